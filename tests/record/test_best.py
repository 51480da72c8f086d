"""Which checkpoint is best: the lowest measured loss of those that are there, and a paired t-test says how sure it is."""

import math
import random
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.engine.verdict import measured_sentence
from core.record.best import BestTracker, best_checkpoint, clearly_lower, read_best, short_label, student_t, write_best


def measured(step, each, **more):
    loss = sum(each) / len(each)
    return {
        "kind": "validated",
        "seq": step,
        "step": step,
        "loss": loss,
        "each": each,
        "each_of": "a",
        "images": 2,
    } | more


def saved(*steps):
    return [(step, f"checkpoints/x-{step}.safetensors") for step in steps]


@pytest.mark.parametrize(  # from printed tables of the distribution
    "probability, freedom, expected",
    [(0.975, 7, 2.365), (0.975, 30, 2.042), (0.995, 15, 2.947), (0.95, 11, 1.796), (0.975, 3, 3.182)],
)
def test_the_quantiles_are_those_of_the_tables(probability, freedom, expected):
    assert student_t(probability, freedom) == pytest.approx(expected, rel=0.002)


def test_differences_are_paired_so_images_may_differ_far_more_than_checkpoints():
    images = [0.01 * 2**n for n in range(8)]
    lower = [loss - 0.002 - 0.0001 * (n % 3) for n, loss in enumerate(images)]
    assert clearly_lower(lower, images) is True and clearly_lower(images, lower) is False
    mixed = [loss + (0.002 if n % 2 else -0.0021) for n, loss in enumerate(images)]
    assert clearly_lower(mixed, images) is False
    assert clearly_lower(images, images) is False
    assert clearly_lower([0.1] * 3, [0.2] * 3) is None and clearly_lower([], []) is None
    assert clearly_lower([0.1] * 8, [0.2] * 4) is None


@given(
    these=st.lists(st.floats(0.01, 1), min_size=8, max_size=8),
    those=st.lists(st.floats(0.01, 1), min_size=8, max_size=8),
    compared=st.integers(1, 20),
)
def test_the_verdict_is_the_paired_t_test(these, those, compared):
    differences = [b - a for a, b in zip(these, those, strict=True)]
    error = statistics.stdev(differences) / math.sqrt(8)
    wanted = statistics.fmean(differences) - student_t(1 - 0.05 / 2 / compared, 7) * error
    if abs(wanted) > 1e-9:
        assert clearly_lower(these, those, compared) is (wanted > 0)


def test_checkpoints_that_are_equally_good_are_rarely_said_to_differ():
    """Of ten checkpoints with the same true loss, any is called clearly worse in at most 5% of runs."""
    chance, wrong = random.Random(1), 0
    for _ in range(200):
        rows = [[chance.gauss(1, 0.1) for _ in range(16)] for _ in range(10)]
        best = best_checkpoint(saved(*range(10)), [measured(step, each) for step, each in enumerate(rows)])
        wrong += len(best.as_good) + best.unclear < 9
    assert wrong <= 0.05 * 200
    sure = best_checkpoint(
        saved(*range(3)), [measured(n, [1 + n / 2 + chance.gauss(0, 0.1) for _ in range(16)]) for n in range(3)]
    )
    assert sure.step == 0 and sure.as_good == () and "clearly better than the other 2" in sure.sure


def test_none_is_as_good_that_is_behind_one_that_is_clearly_worse():
    base = [0.04 + 0.001 * n for n in range(8)]
    rows = {
        70: base,
        47: [loss + 0.002 + 0.0001 * (n % 2) for n, loss in enumerate(base)],
        23: [loss + (0.06 if n % 4 == 0 else -0.004) for n, loss in enumerate(base)],  # the worst, and varies much
    }
    found = best_checkpoint(saved(*rows), [measured(step, each) for step, each in rows.items()])
    assert clearly_lower(rows[70], rows[23], 3) is False, "alone it could not be tracker"
    assert (found.step, found.as_good, found.unclear) == (70, (), 1)
    assert "as good" not in found.sure and "clearly" not in found.sure


def test_the_lowest_of_those_that_are_there_is_named():
    rows = [measured(1, [0.3] * 4), measured(2, [0.1] * 4), measured(3, [0.2] * 4), measured(0, [0.01] * 4)]
    assert best_checkpoint(saved(1, 2, 3), rows).step == 2, "the base model is no checkpoint"
    assert best_checkpoint(saved(1, 3), rows).step == 3
    assert best_checkpoint(saved(7), rows) is None and best_checkpoint([], []) is None
    assert best_checkpoint(saved(1, 2), [*rows[:1], measured(2, [math.nan] * 4)]).step == 1


def test_only_measurements_of_the_same_images_compare_and_old_journals_say_they_do_not_know():
    other = [measured(1, [0.1] * 4, each_of="b"), measured(2, [0.3] * 4), measured(3, [0.2] * 4)]
    assert best_checkpoint(saved(1, 2, 3), other).step == 3
    old = [{"kind": "validated", "step": n, "loss": 1 / n, "images": 3} for n in (1, 2)]
    best = best_checkpoint(saved(1, 2), old)
    assert (best.step, best.unknown, best.measured_on) == (2, (1,), "held_out") and "not measured" in best.sure


def test_what_was_measured_on_training_images_is_called_so():
    rows = [measured(step, [0.1 * step] * 4, measured_on="training") for step in (1, 2)]
    best = best_checkpoint(saved(1, 2), rows)
    assert "training images (fixed noise)" in best.what and "cannot show overfitting" in best.what
    assert "best" not in best.label and short_label(best.label) == "lowest loss"


def test_the_only_existing_one_that_was_measured_has_no_mark_and_no_lowest_loss():
    """The other was moved to the trash, and its loss was lower."""
    best = best_checkpoint(saved(2), [measured(1, [0.1] * 4), measured(2, [0.2] * 4)])
    assert (best.step, best.others, best.label) == (2, 0, "")
    assert "lowest" not in measured_sentence(best.to_dict()) and "only step 2 has" in measured_sentence(best.to_dict())


def test_the_best_one_is_called_so_only_if_no_other_is_as_good():
    found = [
        best_checkpoint(saved(1, 2), [measured(1, [0.1, 0.3] * 4), measured(2, each)])
        for each in ([0.3, 0.1] * 4, [0.5] * 8)
    ]
    assert [(each.as_good, each.label) for each in found] == [((2,), "lowest loss"), ((), "best")]


def test_repeated_steps_and_files_that_are_gone_count_anew(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    tracker = BestTracker()
    for number, (step, loss) in enumerate([(1, 0.2), (2, 0.1), (3, 0.3), (2, 0.25)]):
        name = f"checkpoints/x-{step}.safetensors"
        (tmp_path / name).write_bytes(b"x")
        tracker.take({"kind": "saved", "seq": 2 * number, "step": step, "file": name, "bytes": 1})
        tracker.take(measured(step, [loss] * 4, seq=2 * number + 1))
    assert tracker.best(tmp_path).step == 1, "step 3 was forgotten with the life that measured it"
    write_best(tmp_path, tracker.best(tmp_path))
    assert read_best(tmp_path) == ("checkpoints/x-1.safetensors", "best")
    average = "checkpoints/x-average-1-to-2.safetensors"
    (tmp_path / average).write_bytes(b"x")
    tracker.take({"kind": "saved", "seq": 9, "step": 1, "file": average, "bytes": 1})
    (tmp_path / "checkpoints/x-1.safetensors").unlink()
    assert tracker.best(tmp_path).step == 2 and read_best(tmp_path) is None
