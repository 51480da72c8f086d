"""The loss on held-out images: the same measure each time, and nothing of the training changes by it."""

import json
import math
import shutil

import pytest
import torch
from safetensors.torch import load_file

from core.settings.noise import NoiseSettings
from core.training.loop.validation import timesteps_of

HELD = {"validation_split": 0.4}


def weights(training):
    return load_file(training.file())


def test_the_timesteps_are_the_inner_four_of_six():
    assert timesteps_of(NoiseSettings()) == [200, 400, 600, 800]
    assert timesteps_of(NoiseSettings(min_timestep=500, max_timestep=505)) == [501, 502, 503, 504]
    assert timesteps_of(NoiseSettings(min_timestep=7, max_timestep=7)) == [7, 7, 7, 7]


@pytest.mark.slow
def test_a_training_with_validation_is_the_same_to_the_bit(train):
    chance = {
        "dataset": {"flip_aug": True},
        "captions": {"shuffle_caption": True, "caption_dropout_rate": 0.3},
        "noise": {"noise_offset": 0.1},
        "schedule": {"max_train_steps": 2},
    }
    without = train(validation=HELD | {"validate_every_n_epochs": None}, **chance)
    measured = train(validation=HELD | {"validate_every_n_steps": 1}, **chance)
    assert without.start() == measured.start() == "done"
    assert without.losses() == measured.losses() and not without.lines("validated")
    a, b = weights(without), weights(measured)
    assert all(torch.equal(a[name], b[name]) for name in a)
    found = measured.lines("validated")
    assert [line["step"] for line in found] == [0, 1, 2]
    for line in found:
        assert list(line["by_timestep"]) == ["200", "400", "600", "800"] and line["images"] == 2
        assert line["loss"] == pytest.approx(sum(line["by_timestep"].values()) / 4)
        assert line["gap"] == pytest.approx(line["loss"] - line["train_loss"])
        assert math.isfinite(line["loss"]) and line["loss"] > 0
    assert len({line["loss"] for line in found}) == 3, "it follows the weights"


def measured_by(training):
    return training.inputs.validation.measure(training.run.passes, training.run.context, 0)


@pytest.mark.slow
def test_weights_that_do_not_change_measure_the_same_whatever_the_training_draws(train):
    still = {"optimizer": {"learning_rate": 1e-12}, "validation": HELD | {"validate_every_n_steps": 2}}
    training = train(**still)
    training.start()
    losses = [line["loss"] for line in training.lines("validated")]
    assert len(losses) > 1 and losses == pytest.approx([losses[0]] * len(losses), rel=1e-6)


@pytest.mark.slow
def test_the_same_weights_measure_the_same_with_every_training_seed(at_first_step):
    def measured(seed, draw="sample"):
        found = at_first_step(
            measured_by,
            schedule={"max_train_steps": 1, "seed": seed},
            validation=HELD,
            memory={"latent_draw": draw},
            dataset={"flip_aug": True},
        )
        return found.by_timestep, found.train_loss

    assert measured(1) == measured(2)
    assert measured(1, draw="frozen") == measured(2, draw="frozen")


@pytest.mark.slow
def test_without_held_out_images_nothing_is_measured_and_a_limit_takes_fewer(train):
    none = train(schedule={"max_train_steps": 1, "seed": 7})
    none.start()
    assert not none.lines("validated")
    few = train(
        dataset={"train_batch_size": 1},
        schedule={"max_train_steps": 1, "seed": 7},
        validation={"validation_split": 0.6, "max_validation_steps": 1},
    )
    few.start()
    assert {line["images"] for line in few.lines("validated")} == {1}
    told = json.loads(few.folder.dataset_file.read_text("utf-8"))["validation"]
    assert len(told["images"]) == 1, "what is measured, not what is held out"
    assert told["seed"] == 0 and told["timesteps"] == [200, 400, 600, 800]
    assert len(told["images"][0]["sha256"]) == 64 and told["images"][0]["caption"]
    assert told["images"][0]["masked"] is False


@pytest.mark.slow
def test_what_goes_wrong_in_validation_is_said_and_ends_no_training(train, monkeypatch):
    def broken(*given):
        raise RuntimeError("no more images")

    monkeypatch.setattr("core.training.loop.validation.Validation.measure", broken)
    training = train(schedule={"max_train_steps": 1, "seed": 7}, validation=HELD)
    assert training.start() == "done"
    assert any("Validation failed: no more images" in line["text"] for line in training.lines("log"))


@pytest.mark.slow
def test_another_validation_seed_holds_out_other_images_and_measures_with_other_noise(at_first_step, images, tmp_path):
    def measured(seed, split=0.0, **groups):
        return at_first_step(
            lambda training: (
                {each.key for each in training.inputs.validation.images},
                measured_by(training).loss,
            ),
            validation={"validation_split": split, "validation_seed": seed},
            **groups,
        )

    assert measured(0, 0.4)[0] != measured(1, 0.4)[0]
    for number, path in enumerate(sorted(images.glob("*.png"))):  # the first alone is held out, whatever the seed
        place = tmp_path / ("train" if number else "validation")
        place.mkdir(exist_ok=True)
        shutil.copy(path, place)
    sources = [{"folder": str(tmp_path / role), "role": role} for role in ("train", "validation")]
    (first, loss), (second, other) = (measured(seed, dataset={"sources": sources, "folder": None}) for seed in (0, 1))
    assert first == second and loss != other
