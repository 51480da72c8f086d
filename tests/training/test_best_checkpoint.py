"""Which checkpoint is best: a few images are held out by themselves, each save is measured, and the best one is named."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from core.dataset.buckets.validation_split import automatic_count
from core.generation.model.library import Scan
from core.record.best import BestTracker, read_best
from core.record.journal import read_lines
from core.settings.job import TrainJob, new_project
from core.training.loop import validation
from core.training.loop.validation import Budget, pairs_within, spread_pairs
from tests.noise import noise_images

AUTO = {"best_checkpoint": "auto"}
THREE_SAVES = {"save_n_evenly": 3, "save_every_minutes": None}


@pytest.fixture(scope="module")
def forty(tmp_path_factory):
    return noise_images(tmp_path_factory.mktemp("dataset") / "forty", 40)


@pytest.fixture
def unhurried(monkeypatch):
    """As if measuring cost next to nothing: runs of a few steps measure what long ones do."""
    monkeypatch.setattr(validation, "COST_SHARE", 10.0)


def shown(training):
    """Keys of all images that any step of the run shows."""
    return {
        placed.key
        for step in range(training.run.total)
        for batch in training.run.plan.step_batches(step)[1]
        for placed, _ in batch.items
    }


@pytest.mark.slow
def test_of_forty_images_two_never_train_and_the_best_checkpoint_is_named_and_offered_first(
    train, forty, at_first_step, unhurried
):
    groups = {
        "dataset": {"folder": str(forty), "train_batch_size": 4},
        "schedule": {"max_train_steps": 10, "seed": 7},
        "saving": THREE_SAVES,
        "validation": AUTO,
    }
    run = train(**groups)
    assert run.start() == "done"
    found = run.lines("validated")
    assert [line["step"] for line in found] == [0, *sorted({line["step"] for line in run.lines("saved")})]
    assert {line["measured_on"] for line in found} == {"held_out"} and len({line["each_of"] for line in found}) == 1
    assert {len(line["each"]) for line in found} == {8}
    for line in found:
        assert line["loss"] == pytest.approx(math.fsum(line["each"]) / 8, rel=1e-6)
        assert line["gap"] is None and line["images"] == 2
    lowest = min(found[1:], key=lambda line: line["loss"])["step"]
    tracker = BestTracker()
    for line in read_lines(run.folder.journal_file):
        tracker.take(line)
    best = tracker.best(run.folder.path)
    assert best.step == lowest and best.others == 2
    assert read_best(run.folder.path) == (best.file, best.label)
    assert any(line["text"].startswith("Best checkpoint") for line in run.lines("log"))
    first = next(line["text"] for line in run.lines("log") if "held out" in line["text"])
    assert first.count(".png") == 2 and run.lines("log")[0]["text"] == first
    label, path = Scan(run.workspace).loras()[0]
    assert path == run.folder.path / best.file and label.endswith(f"({best.label})")
    assert sum(f"({best.label})" in label for label, _ in Scan(run.workspace).loras()) == 1
    held, trained = at_first_step(
        lambda training: ({each.key for each in training.inputs.validation.images}, shown(training)), **groups
    )
    assert len(held) == automatic_count(40) == 2 and len(trained) == 38 and not held & trained


@pytest.mark.slow
def test_few_images_all_train_and_what_is_measured_is_called_what_it_is(train, at_first_step, unhurried):
    groups = {"validation": AUTO, "saving": THREE_SAVES, "schedule": {"max_train_steps": 6, "seed": 7}}
    run, without = train(**groups), train(**groups | {"validation": {"best_checkpoint": "off"}})
    assert run.start() == without.start() == "done"
    assert {line["measured_on"] for line in run.lines("validated")} == {"training"}
    assert {line["images"] for line in run.lines("validated")} == {5}
    assert run.losses() == without.losses() and not without.lines("validated")
    a, b = load_file(run.file()), load_file(without.file())
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert read_best(run.folder.path)[1] == "lowest loss on training images" and read_best(without.folder.path) is None
    trained, measured = at_first_step(lambda training: (shown(training), training.inputs.validation.images), **groups)
    assert len(trained) == 5 and not measured


@pytest.mark.slow
def test_images_put_back_all_train_and_the_checkpoints_are_still_compared(at_first_step, forty, unhurried):
    groups = {"dataset": {"folder": str(forty)}, "validation": {"best_checkpoint": "training"}}
    trained, how = at_first_step(
        lambda training: (
            {placed.key for placed in training.run.plan.placed},
            training.inputs.validation.measured_on,
        ),
        **groups,
    )
    assert len(trained) == 40 and how == "training"


@pytest.mark.slow
def test_what_a_person_holds_out_is_measured_as_often_as_they_say_and_at_each_save(train, unhurried):
    own = {"validation_split": 0.4, "validate_every_n_steps": 5, "validate_every_n_epochs": None}
    run = train(validation=AUTO | own, saving=THREE_SAVES, schedule={"max_train_steps": 6, "seed": 7})
    run.start()
    found = run.lines("validated")
    assert [line["step"] for line in found] == [0, 2, 4, 5, 6]
    assert all(line["gap"] is not None and line["measured_on"] == "held_out" for line in found)


def test_every_run_measures_and_only_a_new_project_holds_images_out():
    """Held-out images change what trains: the command line and settings of other programs get them on request alone."""
    assert TrainJob().validation.best_checkpoint == "training"
    assert new_project().validation.best_checkpoint == "auto"


@pytest.mark.slow
def test_a_run_that_is_trained_further_measures_the_same_pairs(train, forty):
    groups = {
        "dataset": {"folder": str(forty), "train_batch_size": 4},
        "schedule": {"max_train_steps": 200, "seed": 7},
        "saving": {"save_state": True, "save_every_minutes": None},
        "validation": AUTO,
    }
    run = train(**groups)
    run.start(stop_at=2)
    longer = run.again()
    longer.job = longer.job.with_settings(schedule={"max_train_steps": 4000})
    longer.start(stop_at=4)
    assert pairs_within(800, 1) != pairs_within(16000, 1), "the length alone would differ"
    assert [line["step"] for line in longer.lines("validated")] == [0, 2, 4]
    assert len({line["each_of"] for line in longer.lines("validated")}) == 1


@pytest.mark.slow
def test_a_run_too_short_to_measure_says_so_and_measures_nothing(train):
    run = train(saving=THREE_SAVES, schedule={"max_train_steps": 6, "seed": 7})
    run.start()
    assert not run.lines("validated") and any("compare checkpoints" in line["text"] for line in run.lines("log"))


@given(st.integers(1, 100_000), st.integers(1, 200), st.integers(1, 2000))
def test_all_planned_measurements_of_a_run_cost_at_most_two_percent_of_its_forward_passes(images, saves, by_hand):
    steps = [number * 10 for number in range(1, saves + 1)]
    for pairs in (pairs_within(images, saves), by_hand):
        left_out = Budget(images, steps, pairs).unmeasured_saves(pairs)
        moments = [step for step in [0, *steps] if step not in left_out]
        assert pairs * len(moments) <= 0.02 * 2 * images
        assert len(moments) != 1 and (not moments or steps[-1] in moments), "one alone names no best; the last is there"
        if moments and len(moments) <= saves:
            gaps = [b - a for a, b in pairwise(moments)]
            assert max(gaps) - min(gaps) <= 10 and 0 not in moments
    assert pairs_within(images, saves) % 4 == 0 and 4 <= pairs_within(images, saves) <= 64


def test_pairs_take_each_image_and_each_timestep_as_often(at_first_step, tmp_path):
    eight = noise_images(tmp_path / "eight", 8)

    def look(training):
        images = training.run.plan.placed
        return {
            (count, pairs): [
                (placed.key, number)
                for each in spread_pairs(images[:count], pairs)
                for (placed, _), number in zip(each.batch.items, each.timestep_indices, strict=True)
            ]
            for count in (1, 2, 3, 4, 6, 8)
            for pairs in (4, 8, 16, 32)
            if pairs <= 4 * count
        }

    for (count, pairs), found in at_first_step(look, dataset={"folder": str(eight)}).items():
        assert len(found) == len(set(found)) == pairs
        for place, values in ((0, min(count, pairs)), (1, 4)):
            counts = [sum(each[place] == value for each in found) for value in {each[place] for each in found}]
            assert len(counts) == values and max(counts) - min(counts) <= (place == 0 and pairs % count > 0)
