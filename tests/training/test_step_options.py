"""Options of noise and loss in a real training: what reaches the loss, and that it resumes bit for bit."""

import pytest
import torch
from safetensors.torch import load_file

from core.record.problems import ProblemsError
from core.training import update

EVERYTHING = {
    "noise_offset": 0.05,
    "noise_offset_random_strength": True,
    "adaptive_noise_scale": 0.01,
    "multires_noise_iterations": 6,
    "ip_noise_gamma": 0.1,
    "ip_noise_gamma_random_strength": True,
    "min_snr_gamma": 5,
    "loss_type": "huber",
    "huber_scale": 2,
    "max_timestep": 900,
}


@pytest.fixture
def seen(monkeypatch):
    """The timesteps and keyword arguments of each call of `training_loss`."""
    calls = []

    def watched(predict, latents, noise, timesteps, settings, **more):
        calls.append({"latents": latents, "noise": noise, "timesteps": timesteps, **more})
        return update_loss(predict, latents, noise, timesteps, settings, **more)

    update_loss = update.training_loss
    monkeypatch.setattr(update, "training_loss", watched)
    return calls


def test_every_option_reaches_the_loss(train, seen):
    assert train(noise=EVERYTHING, schedule={"max_train_steps": 2}).start() == "done"
    for call in seen:
        count = len(call["timesteps"])
        assert call["noise"].shape == call["multires_noise"].shape == call["perturbation_noise"].shape
        assert call["offset_noise"].shape == (count, 4, 1, 1)
        assert call["offset_strength"].shape == call["perturbation_strength"].shape == (count,)
        assert int(call["timesteps"].max()) < 900 and float(call["alpha_bar"][-1]) > 0


def test_zero_terminal_snr_trains_on_the_stretched_schedule_and_tells_a_noise_model(train, seen):
    training = train(noise={"zero_terminal_snr": True}, schedule={"max_train_steps": 1})
    assert training.start() == "done"
    assert float(seen[0]["alpha_bar"][-1]) == 0.0
    assert any("Zero terminal SNR" in line["text"] for line in training.lines("log"))  # the starter predicts noise


def test_weights_that_do_not_go_with_the_detected_prediction_stop_before_the_first_step(train, seen):
    with pytest.raises(ProblemsError, match="predicts v"):
        train(noise={"scale_v_pred_loss_like_noise_pred": True}).start()
    assert not seen


def test_a_training_with_every_option_resumes_bit_for_bit(train, monkeypatch):
    whole, broken = train(noise=EVERYTHING), train(noise=EVERYTHING)
    assert whole.start() == "done"

    def stop_after_two(line):
        if line["kind"] == "steps" and line["steps"][-1] >= 2:
            broken.token.cancel()

    broken.on_line = stop_after_two
    monkeypatch.setattr("core.training.losses.EVENT_SECONDS", 0.0)
    assert broken.start() == "stopped" and max(broken.losses()) < max(whole.losses())
    rest = broken.again()
    assert rest.start() == "done" and rest.losses() == whole.losses()
    first, second = load_file(whole.file()), load_file(rest.file())
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
