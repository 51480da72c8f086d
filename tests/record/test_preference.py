"""Strengths from blind choices: the mode and its covariance by finite differences, intervals of simulated voters, the file of choices."""

from __future__ import annotations

import math
import threading

import numpy as np
import pytest

from core.record.preference import (
    FILE,
    LEAST_CHOICES,
    STRENGTH_SD,
    TIE_SD,
    Choice,
    _fit,
    add_choice,
    next_pair,
    preference,
    read_choices,
)
from tests.refusals import refused

NAMES = ("a", "b", "c")
SOME = [
    ("a", "b", "left"),
    ("b", "a", "left"),
    ("a", "c", "left"),
    ("a", "b", "equal"),
    ("c", "b", "right"),
    ("a", "b", "left"),
]


def choices(rows=SOME, prompt="p"):
    return [Choice(left, right, prompt, outcome) for left, right, outcome in rows]


def log_posterior(values, rows):
    """Of Davidson's model, as the paper writes it: pi = e^strength, P(tie) = nu sqrt(pi_i pi_j) / (pi_i + pi_j + nu sqrt(...))."""
    *strengths, log_tie = values
    total = -sum(each**2 for each in strengths) / 2 / STRENGTH_SD**2 - log_tie**2 / 2 / TIE_SD**2
    for left, right, outcome in rows:
        one, other = (math.exp(strengths[NAMES.index(name)]) for name in (left, right))
        tie = math.exp(log_tie) * math.sqrt(one * other)
        total += math.log({"left": one, "right": other, "equal": tie}[outcome] / (one + other + tie))
    return total


def test_strengths_are_the_highest_point_of_the_posterior_and_intervals_its_curvature():
    fit, small = _fit(NAMES, choices()), 1e-4
    at = np.append(fit.strengths, fit.log_tie)
    steps = np.eye(4) * small
    slope = [(log_posterior(at + step, SOME) - log_posterior(at - step, SOME)) / 2 / small for step in steps]
    assert np.allclose(slope, 0, atol=1e-5), "centered strengths are the mode: the prior's mean is 0"
    curve = [
        [
            sum(s * u * log_posterior(at + s * one + u * other, SOME) for s in (1, -1) for u in (1, -1)) / 4 / small**2
            for other in steps
        ]
        for one in steps
    ]
    centered = np.eye(3) - 1 / 3
    expected = centered @ np.linalg.inv(-np.array(curve))[:3, :3] @ centered
    assert np.allclose(fit.covariance, expected, rtol=1e-3, atol=1e-4)
    found = preference(NAMES, choices())
    assert found.leader == 0 and found.choices == 6 and not found.settled
    assert found.high[0] - found.low[0] == pytest.approx(2 * 1.96 * math.sqrt(expected[0, 0]), rel=1e-3)
    assert sum(found.first) == pytest.approx(1) and found.first[0] > max(found.first[1:])


def test_skips_and_checkpoints_that_are_gone_do_not_count_and_a_clear_first_place_is_settled():
    rows = [("a", "b", "skip"), ("a", "gone", "left"), ("b", "a", "undo")]
    nothing = preference(NAMES, choices(rows))
    assert nothing.choices == 0 and nothing.strengths == (0, 0, 0)
    clear = choices([("a", "b", "left"), ("c", "a", "right")] * 10)
    assert preference(NAMES, clear).settled and not preference(NAMES, clear[: LEAST_CHOICES - 1]).settled
    even = choices([("a", "b", "left"), ("b", "a", "left"), ("a", "c", "equal"), ("b", "c", "equal")] * 10)
    assert not preference(NAMES, even).settled and preference(NAMES, even).low[0] < 0 < preference(NAMES, even).high[0]


@pytest.mark.parametrize(("wins", "losses", "preferred"), [(9, 0, None), (10, 0, "a"), (0, 10, "b"), (5, 5, None)])
def test_one_is_preferred_from_ten_choices_and_if_its_first_place_is_likely(wins, losses, preferred):
    rows = [("a", "b", "left")] * wins + [("a", "b", "right")] * losses
    fit = preference(("a", "b") if preferred else ("a", "b", "c"), choices(rows))
    assert fit.preferred == preferred


def test_each_pair_is_shown_once_before_any_again_those_that_may_be_first_before_others():
    pairs = [("a", "b", "p"), ("a", "c", "p"), ("b", "c", "p"), ("a", "b", "q")]
    made, shown = [], []
    for _ in pairs:
        left, right, prompt = pair = next_pair(NAMES, pairs, made)
        assert pair == next_pair(NAMES, pairs, made), "the same after a refresh"
        shown.append((*sorted((left, right)), prompt))
        made.append(Choice(left, right, prompt, "skip"))
    assert sorted(shown) == sorted(pairs) and next_pair(NAMES, pairs, made) is not None
    assert next_pair(NAMES, [], made) is None
    clear = choices([("a", "c", "left"), ("b", "c", "left")] * 8)  # c is last: what is open is a against b
    assert {*next_pair(NAMES, [(one, other, "new") for one, other, _ in pairs[:3]], clear)[:2]} == {"a", "b"}
    sides = {next_pair(NAMES, pairs[:1], choices([("a", "b", "skip")] * number))[0] for number in range(20)}
    assert sides == {"a", "b"}, "neither is always on the same side"


def test_choices_are_added_whole_taken_back_and_read_past_damage(tmp_path):
    assert read_choices(tmp_path) == []
    first, second = choices()[:2]
    add_choice(tmp_path, first)
    with open(tmp_path / FILE, "ab") as handle:
        handle.write(
            b'{"left": 3}\nnonsense\n[1]\n{"left": "a", "right": "b", "prompt": "p", "outcome": "?"}\n{"left": "torn'
        )
    add_choice(tmp_path, second)
    assert read_choices(tmp_path) == [first, second]
    add_choice(tmp_path, Choice("", "", "", "undo"))
    assert read_choices(tmp_path) == [first]
    for wrong in (Choice("a", "a", "p", "left"), Choice("a", "b", "p", "both")):
        with refused("choice.invalid"):
            add_choice(tmp_path, wrong)
    threads = [threading.Thread(target=add_choice, args=(tmp_path, second)) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(read_choices(tmp_path)) == 21


# -- simulated voters


class Voter:
    """Answers by Davidson's model with known strengths; a share of the answers is a slip of the hand."""

    def __init__(self, number, count, slips=0.0):
        self.random = np.random.default_rng(number)
        self.names = [f"step {place}" for place in range(count)]
        self.strengths = self.random.normal(0, 1.0, count)
        self.tie, self.slips = self.random.uniform(0.2, 1.0), slips

    def answer(self, left, right):
        difference = self.strengths[self.names.index(left)] - self.strengths[self.names.index(right)]
        weights = np.array([math.exp(difference / 2), math.exp(-difference / 2), self.tie])
        if self.random.uniform() < self.slips:
            weights = np.ones(3)
        return ("left", "right", "equal")[self.random.choice(3, p=weights / weights.sum())]

    def choose(self, pair):
        return Choice(*pair, self.answer(*pair[:2]))

    def covered(self, made):
        """The share of the 95% intervals that contain the true strength."""
        fit, true = preference(self.names, made), self.strengths - self.strengths.mean()
        return np.mean([low <= each <= high for low, each, high in zip(fit.low, true, fit.high, strict=True)])


def test_nineteen_of_twenty_intervals_contain_the_true_strength():
    shares = []
    for number in range(60):
        voter = Voter(number, 5)
        pairs = [tuple(voter.random.choice(voter.names, 2, replace=False)) for _ in range(30)]
        shares.append(voter.covered([voter.choose((*pair, "p")) for pair in pairs]))
    assert 0.91 < np.mean(shares) < 0.99  # of 300: the standard error is 1.3% for independent ones


@pytest.mark.slow
@pytest.mark.parametrize(("slips", "voters"), [(0.0, 200), (0.05, 100)])
def test_intervals_and_settled_first_places_of_many_voters_hold_what_they_say(slips, voters):
    """As a person meets it: six checkpoints, five prompts, the most informative pair next, a look after each choice."""
    shares, settled, right, lasting, needed = [], 0, 0, 0, []
    for number in range(voters):
        voter, made = Voter(1000 + number, 6, slips), []
        pairs = [(a, b, p) for p in "pqrst" for i, a in enumerate(voter.names) for b in voter.names[i + 1 :]]
        leader = None
        while len(made) < 60:
            made.append(voter.choose(next_pair(voter.names, pairs, made)))
            if leader is None and len(made) >= LEAST_CHOICES:
                fit = preference(voter.names, made)
                leader = fit.leader if fit.settled else None
                needed += [len(made)] if fit.settled else []
            if len(made) == 30:
                shares.append(voter.covered(made))
        if leader is not None:
            settled += 1
            right += leader == int(voter.strengths.argmax())
            lasting += leader == preference(voter.names, made).leader
    print(f"slips {slips}: covered {np.mean(shares):.3f}, settled {settled}, first {right / settled:.3f}, "
          f"lasting {lasting / settled:.3f}, after {np.median(needed)}")  # fmt: skip
    assert 0.93 < np.mean(shares) < 0.98  # a little wider than they need be
    assert right / settled > 0.93 and lasting / settled > 0.95
