"""Which checkpoint of a run, or value of a grid, the user prefers: Bradley-Terry strengths from blind choices between two images.

The choices are JSON lines in the folder of the run or grid.
"""

import json
import math
import os
import threading
import time
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from core.record.journal import cut_torn_line
from core.record.problems import ProblemsError, write_errors
from core.record.regular import read_regular

FILE = "choices.jsonl"
MAX_BYTES = 8_000_000
COUNTED = ("left", "right", "equal")
OUTCOMES = (*COUNTED, "skip", "undo")  # undo: takes back the choice before it
LEAST_CHOICES = 10  # before anything is said
LEAST_PAIRS = 3  # of images to choose between: fewer would be shown again and again
PREFERS = 0.5  # probability of being first from which blind choices prefer a checkpoint
STRENGTH_SD = 1.5  # of the prior on a strength, in log odds: 90% of it is between odds of 1 to 12 and 12 to 1
TIE_SD = 2.0  # of the prior on the log of the tie parameter
SETTLED = 0.98  # probability of being first: looking after each choice makes 0.95 wrong in more than 5% of the cases
DRAWS = 4000
NORMAL_95 = 1.959964
_LOCK = threading.Lock()

Array: TypeAlias = NDArray[np.float64]
Pair = tuple[str, str, str]  # two checkpoints and a prompt


@dataclass(frozen=True)
class Choice:
    """The user's choice between the images of two checkpoints for one prompt. left, right: their names; outcome: one of OUTCOMES."""

    left: str
    right: str
    prompt: str
    outcome: str


@dataclass(frozen=True)
class Preference:
    """Strengths of checkpoints fitted to choices. The tuples are in the order of `names`.

    strengths   log odds of being preferred to the average checkpoint
    low, high   ends of their 95% intervals
    first       probability of being the most preferred
    choices     number of choices used, without skips
    """

    names: tuple[str, ...]
    strengths: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    first: tuple[float, ...]
    choices: int

    @property
    def leader(self) -> int:
        """Index of the checkpoint with the highest probability of being the most preferred."""
        return int(np.argmax(self.first))

    @property
    def preferred(self) -> str | None:
        """Name of the leader if its probability is at least PREFERS and there are at least LEAST_CHOICES choices, else None."""
        sure = self.choices >= LEAST_CHOICES and self.first[self.leader] >= PREFERS
        return self.names[self.leader] if sure else None

    @property
    def settled(self) -> bool:
        """Whether further choices will hardly change the leader: its probability is at least SETTLED after LEAST_CHOICES choices."""
        return self.choices >= LEAST_CHOICES and self.first[self.leader] >= SETTLED


@dataclass(frozen=True)
class _Fit:
    """Mode and covariance of the posterior for N checkpoints.

    strengths    [N], relative to their mean
    covariance   [N, N] of the strengths
    log_tie      log of the tie parameter nu
    first        [N], probability of being the most preferred
    """

    strengths: Array
    covariance: Array
    log_tie: float
    first: Array


def preference(names: Sequence[str], choices: Iterable[Choice]) -> Preference:
    """Fit the strengths of the checkpoints `names` to the choices between them. Other choices, and skips, are ignored."""
    counted = _counted(names, choices)
    fit = _fit(names, counted)
    reach = NORMAL_95 * np.sqrt(np.diag(fit.covariance))
    ends = fit.strengths - reach, fit.strengths + reach
    strengths, low, high, first = (tuple(map(float, each)) for each in (fit.strengths, *ends, fit.first))
    return Preference(tuple(names), strengths, low, high, first, len(counted))


def preference_result(labels: Mapping[str, str], choices: Sequence[Choice]) -> dict[str, Any] | None:
    """Return the result of the choices as JSON values; None without names or choices.

    labels    {name: label} of the checkpoints or grid values
    returns   {"least": choices needed for a result, "choices": number used, "prompts": number of prompts, "settled": bool,
              "file": the preferred name or None, "rows": list}. Rows are empty without a result, else one per name, the most
              preferred first: {"file": name, "label", "first": probability of being the most preferred, "share": probability of
              being chosen over the average one, "low", "high": its 95% interval}, all rounded to 0.01
    """
    names = list(labels)
    if not names or not choices:
        return None
    fit = preference(names, choices)
    rows = zip(names, fit.first, fit.strengths, fit.low, fit.high, strict=True) if fit.choices >= LEAST_CHOICES else ()
    json_rows = []
    for name, first, *log_odds in sorted(rows, key=lambda row: (-round(row[1], 2), -row[2])):
        share, low, high = (round(1 / (1 + math.exp(-value)), 2) for value in log_odds)
        row = {"file": name, "label": labels[name], "first": round(first, 2)}
        json_rows.append(row | {"share": share, "low": low, "high": high})
    result = {"least": LEAST_CHOICES, "choices": fit.choices, "settled": fit.settled, "file": fit.preferred}
    result |= {"prompts": len({each.prompt for each in _counted(names, choices)})}
    return result | {"rows": json_rows}


def _counted(names: Sequence[str], choices: Iterable[Choice]) -> list[Choice]:
    """Return the choices with a counted outcome ("left", "right", "equal") between two of `names`."""
    return [each for each in choices if each.outcome in COUNTED and {each.left, each.right} <= set(names)]


def _fit(names: Sequence[str], choices: Sequence[Choice]) -> _Fit:
    """Fit Davidson's model (1970), Bradley-Terry with ties, to choices between `names`, by Newton's method on the log posterior.

    P(left) : P(equal) : P(right) = e^(d/2) : nu : e^(-d/2), d the difference of the strengths. The log posterior is concave.
    """
    number, index = len(names), {name: position for position, name in enumerate(names)}
    sides = np.zeros((len(choices), number))
    for row, choice in enumerate(choices):
        sides[row, index[choice.left]], sides[row, index[choice.right]] = 1.0, -1.0
    score = np.array([{"left": 0.5, "right": -0.5, "equal": 0.0}[each.outcome] for each in choices])
    ties = np.array([float(each.outcome == "equal") for each in choices])
    prior = np.diag([STRENGTH_SD**-2] * number + [TIE_SD**-2])
    mode = np.zeros(number + 1)
    for _ in range(100):
        mean, variance, tie = _moments(sides @ mode[:number], float(mode[number]))
        gradient = np.append(sides.T @ (score - mean), np.sum(ties - tie)) - prior @ mode
        information = prior.copy()
        information[:number, :number] += sides.T @ (variance[:, None] * sides)
        information[:number, number] = information[number, :number] = sides.T @ (-mean * tie)
        information[number, number] += np.sum(tie * (1 - tie))
        step = np.linalg.solve(information, gradient)
        mode += np.clip(step, -2.0, 2.0)
        if np.abs(step).max() < 1e-9:
            break
    centered = np.eye(number) - 1 / max(number, 1)
    covariance = centered @ np.linalg.inv(information)[:number, :number] @ centered
    strengths = centered @ mode[:number]
    draws = np.random.default_rng(0).multivariate_normal(strengths, covariance, DRAWS, method="eigh")
    first = np.bincount(draws.argmax(1), minlength=number) / DRAWS
    return _Fit(strengths, covariance, float(mode[number]), first)


def _moments(difference: Array, log_tie: float) -> tuple[Array, Array, Array]:
    """Return (mean of the score, its variance, probability of a tie) for each difference of strengths; all of its shape.

    The score is 1/2 for left, -1/2 for right and 0 for a tie.
    """
    left, right, tie = np.exp(difference / 2), np.exp(-difference / 2), np.exp(log_tie)
    total = left + right + tie
    mean = (left - right) / total / 2
    return mean, (left + right) / total / 4 - mean**2, tie / total


# -- what is shown next


def next_pair(names: Sequence[str], pairs: Sequence[Pair], choices: Sequence[Choice]) -> Pair | None:
    """Return the pair of images to show next, (left, right, prompt): the one expected to tell most about which checkpoint is preferred.
    Equal arguments give the same pair.

    names     of the checkpoints
    pairs     candidates, of which both images exist; each is shown once before any is shown again
    returns   None if there are no pairs
    """
    shown = Counter((frozenset((each.left, each.right)), each.prompt) for each in choices)
    fewest = min((shown[frozenset(pair[:2]), pair[2]] for pair in pairs), default=0)
    fresh = [pair for pair in pairs if shown[frozenset(pair[:2]), pair[2]] == fewest]
    if not fresh:
        return None
    fit = _fit(names, _counted(names, choices))
    index, prompts = {name: position for position, name in enumerate(names)}, Counter(each.prompt for each in choices)
    random = np.random.default_rng(len(choices))
    gains = [(_gain(fit, index[one], index[other]), -prompts[prompt]) for one, other, prompt in fresh]
    best = max(gains)
    one, other, prompt = fresh[random.choice([position for position, gain in enumerate(gains) if gain == best])]
    return (one, other, prompt) if random.integers(2) else (other, one, prompt)


def _gain(fit: _Fit, one: int, other: int) -> float:
    """Return the expected information (nats) of a choice between checkpoints `one` and `other` (indices), weighted by the probability that
    one of them is first."""
    cov = fit.covariance
    spread = cov[one, one] + cov[other, other] - 2 * cov[one, other]
    _, variance, _ = _moments(fit.strengths[one] - fit.strengths[other], fit.log_tie)
    weight = fit.first[one] + fit.first[other] + 1 / len(fit.first) ** 2
    return round(float(weight * np.log1p(variance * spread)), 9)  # equal pairs stay equal in spite of rounding


# -- with the run or grid


def read_choices(folder: Path, names: Collection[str] | None = None) -> list[Choice]:
    """Return the choices stored in the folder of a run or grid, without undone ones. Damaged lines are skipped.
    names: only choices and undos between these; None: all"""
    try:
        lines = read_regular(folder / FILE, MAX_BYTES).split(b"\n")[:-1]
    except ProblemsError:
        return []
    choices: list[Choice] = []
    for line in lines:
        try:
            raw = json.loads(line.decode("utf-8"))
            choice = Choice(*(str(raw[name]) for name in ("left", "right", "prompt", "outcome")))
        except (ValueError, TypeError, KeyError, RecursionError):
            continue
        if names is not None and not {choice.left, choice.right} <= set(names):
            continue
        if choice.outcome == "undo":
            choices = choices[:-1]
        elif choice.outcome in OUTCOMES:
            choices.append(choice)
    return choices


def add_choice(folder: Path, choice: Choice) -> None:
    """Append a choice to those in the folder of a run or grid, whole or not at all. Raises ProblemsError if it is invalid or cannot be
    written."""
    if choice.outcome not in OUTCOMES or (choice.left == choice.right and choice.outcome != "undo"):
        raise ProblemsError.one("The choice is not valid", "choice", "choose again", "choice.invalid")
    line = json.dumps(asdict(choice) | {"time": round(time.time(), 3)})
    with write_errors("The choice cannot be saved", str(folder)), _LOCK:
        cut_torn_line(folder / FILE)  # of a process that was killed
        with open(folder / FILE, "ab", buffering=0) as handle:
            handle.write(f"{line}\n".encode())
            os.fsync(handle.fileno())
