"""Options of noise and loss in a real training: what reaches the loss, and that it resumes bit for bit."""

import pytest
import torch
from safetensors.torch import load_file

from core.training.loop import passes, update
from core.training.loop.stepper import Stepper
from tests.options import NOISE
from tests.refusals import refused

EVERYTHING = {**NOISE, "huber_scale": 2, "max_timestep": 900}


@pytest.fixture
def seen(monkeypatch):
    """The timesteps and keyword arguments of each call of `training_loss`."""
    calls = []

    def watched(objective, predict, latents, noises, timesteps, **more):
        bars = {"alpha_bar": objective.alpha_bar}
        calls.append({"latents": latents, "timesteps": timesteps} | vars(noises) | bars | more)
        return update_loss(objective, predict, latents, noises, timesteps, **more)

    update_loss = passes.training_loss
    monkeypatch.setattr(passes, "training_loss", watched)
    return calls


def test_every_option_reaches_the_loss(train, seen):
    assert train(noise=EVERYTHING, schedule={"max_train_steps": 2}).start() == "done"
    for call in seen:
        count = len(call["timesteps"])
        assert call["noise"].shape == call["multires"].shape == call["perturbation"].shape
        assert call["offset"].shape == (count, 4, 1, 1)
        assert call["offset_strength"].shape == call["perturbation_strength"].shape == (count,)
        assert int(call["timesteps"].max()) < 900 and float(call["alpha_bar"][-1]) > 0


def test_zero_terminal_snr_trains_on_the_stretched_schedule_and_tells_a_noise_model(train, seen):
    training = train(noise={"zero_terminal_snr": True}, schedule={"max_train_steps": 1})
    assert training.start() == "done"
    assert float(seen[0]["alpha_bar"][-1]) == 0.0
    assert any("Zero terminal SNR" in line["text"] for line in training.lines("log"))  # the starter predicts noise


def test_weights_that_do_not_go_with_the_detected_prediction_stop_before_the_first_step(train, seen):
    with refused("noise.scale-v-loss-for-epsilon"):
        train(noise={"scale_v_pred_loss_like_noise_pred": True}).start()
    assert not seen


def change(training):
    """How far one step moved the up matrices, which begin at 0."""
    assert training.start() == "done"
    moved = {name: value for name, value in load_file(training.file()).items() if name.endswith("lora_up.weight")}
    return torch.cat([value.flatten() for value in moved.values()])


@pytest.mark.slow
@pytest.mark.parametrize(("gathered", "share"), [(1, 1.0), (2, 0.5)])
def test_an_incomplete_update_of_an_epoch_counts_less_in_sd_scripts(train, gathered, share):
    """The epoch is one batch of all five images; with two batches an update, half of the only update is missing."""
    groups = {
        "dataset": {"train_batch_size": 5, "enable_bucket": False},
        "optimizer": {"optimizer_type": "SGD", "learning_rate": 1.0, "max_grad_norm": 0},
        "schedule": {"max_train_steps": 1, "gradient_accumulation_steps": gathered},
    }
    plain, kohya = (change(train(model={"compatibility": which}, **groups)) for which in ("none", "sd-scripts-0.10"))
    assert float(plain.norm()) > 0
    torch.testing.assert_close(kohya, share * plain, rtol=1e-4, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize(("which", "divisors"), [("none", [5, 5, 5]), ("sd-scripts-0.10", [3, 6, 6])])
def test_each_image_counts_the_same_or_as_in_sd_scripts_each_batch(train, monkeypatch, which, divisors):
    found = []

    def watched(run, whole, images):
        found.append((len(whole.items), loss_divisor(run, whole, images)))
        return found[-1][1]

    loss_divisor = update.loss_divisor
    monkeypatch.setattr(update, "loss_divisor", watched)
    schedule = {"max_train_steps": 1, "gradient_accumulation_steps": 3}
    assert train(model={"compatibility": which}, schedule=schedule).start() == "done"
    assert sorted(found) == list(zip([1, 2, 2], divisors, strict=True))


@pytest.mark.slow
def test_weighted_captions_can_be_weighed_as_in_sd_scripts_0_9(train, images, tmp_path):
    """The words' weights change the loss in both ways, differently; what is cached of one is not taken for the other."""
    folder = tmp_path / "heavy"
    folder.mkdir()
    image = sorted(images.glob("*.png"))[0]
    (folder / image.name).write_bytes(image.read_bytes())
    (folder / image.with_suffix(".txt").name).write_text("a (glyph:1.5) here")
    losses = []
    for captions in ({}, {"weighted_captions": True}, {"weighted_captions": True, "weighted_mean": "kept"}):
        for length in (75, 150):
            training = train(
                dataset={"folder": str(folder)},
                captions={**captions, "max_token_length": length},
                schedule={"max_train_steps": 1},
            )
            assert training.start() == "done"
            losses.append(training.losses()[1])
    assert len(set(losses)) == 6


CLIPPED = {"optimizer_type": "SGD", "learning_rate": 1.0, "max_grad_norm": 1e-3}  # below every gradient here


def norms(training):
    return [line["grad_norm"] for line in training.lines("steps")]


@pytest.mark.slow
def test_a_part_with_rate_0_counts_in_the_clipped_norm_only_as_in_sd_scripts(train):
    groups = {"network": {"train_text_encoder": True}, "schedule": {"max_train_steps": 1}}
    rates = CLIPPED | {"text_encoder_lr": 0.0}
    all_train, plain = (train(optimizer=own, **groups) for own in (CLIPPED, rates))
    kohya = train(optimizer=rates, model={"compatibility": "sd-scripts-0.10"}, **groups)
    moved = [change(training) for training in (all_train, plain, kohya)]
    (whole,), (own,), (theirs,) = (norms(training) for training in (all_train, plain, kohya))
    assert own < theirs == pytest.approx(whole, rel=1e-5)
    torch.testing.assert_close(moved[2], moved[1] * (own / theirs), rtol=1e-3, atol=1e-9)


@pytest.mark.slow
def test_for_a_new_word_the_whole_table_is_clipped_only_as_in_sd_scripts(train):
    word = {"method": {"kind": "embedding"}, "embedding": {"token_string": "zunkel", "init_word": "fox"}}
    captions = {"caption_prefix": "zunkel, ", "max_token_length": 75}
    moved, length = [], []
    for compatibility in ("none", "sd-scripts-0.10"):
        model = {"compatibility": compatibility}
        training = train(optimizer=CLIPPED, model=model, captions=captions, schedule={"max_train_steps": 1}, **word)
        assert training.start() == "done"
        begun = train(
            optimizer=CLIPPED | {"learning_rate": 1e-30},
            model=model,
            captions=captions,
            schedule={"max_train_steps": 1},
            **word,
        )
        assert begun.start() == "done"
        moved.append(*(load_file(training.file())[name] - load_file(begun.file())[name] for name in ["emb_params"]))
        length += norms(training)
    assert length[0] < length[1], "the other words' gradients count too, the filling's most"
    assert float(moved[0].norm()) == pytest.approx(1e-3, rel=1e-2)
    torch.testing.assert_close(moved[1], moved[0] * (length[0] / length[1]), rtol=2e-2, atol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize(("which", "ticks"), [("none", [0, 1, 2, 3]), ("sd-scripts-0.10", [0, 0, 1, 1])])
def test_the_curve_stands_still_while_fp16_overflows_only_as_in_sd_scripts(train, monkeypatch, which, ticks):
    """The gradients of the first and the third step overflow."""
    seen, step = [], Stepper.step

    def watched(self, loss):
        seen.append(self.optimizer.param_groups[0]["lr"])
        if len(seen) in (1, 3):
            self._parameters[0].grad.fill_(float("inf"))
        return step(self, loss)

    monkeypatch.setattr(Stepper, "step", watched)
    schedule = {"max_train_steps": 4, "lr_scheduler": "linear"}
    training = train(
        model={"compatibility": which},
        memory={"full_precision": "fp16"},
        optimizer={"learning_rate": 1.0},
        schedule=schedule,
    )
    assert training.start() == "done"
    assert seen == pytest.approx([1 - tick / 4 for tick in ticks])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("which", "dtype"),
    [("sd-scripts-0.10", torch.float32), ("sd-scripts-0.9", torch.bfloat16)],
)
def test_latents_of_a_lora_are_halved_only_as_in_sd_scripts_0_9(train, seen, which, dtype):
    training = train(
        model={"compatibility": which}, memory={"mixed_precision": "bf16"}, schedule={"max_train_steps": 1}
    )
    assert training.start() == "done"
    assert {call[name].dtype for call in seen for name in ("latents", "noise")} == {dtype}
