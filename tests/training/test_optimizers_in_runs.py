"""Whole runs with optimizers of every kind: stopped and continued, they end where an unbroken one ends."""

import pytest
import torch
from safetensors.torch import load_file

from core.record.run_folder import newest_state
from core.training.prove import prove
from tests.refusals import refused

KINDS = {
    "schedule-free": {"optimizer_type": "AdamWScheduleFree", "optimizer_args": {"warmup_steps": 2}},
    "finds its step size": {"optimizer_type": "Prodigy", "learning_rate": 1.0},
    "both": {"optimizer_type": "prodigyplus.ProdigyPlusScheduleFree", "learning_rate": 1.0},
    "finds its rate": {"optimizer_type": "AdaFactor"},
    "draws": {"optimizer_type": "pytorch_optimizer.Gravity"},
    "8 bits, LoRA+": {"optimizer_type": "Lion8bit", "learning_rate": 1e-5, "loraplus_lr_ratio": 4.0},
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_is_stopped_and_continued_equals_an_unbroken_one(train, kind):
    training = train(optimizer=KINDS[kind], schedule={"max_train_steps": 4, "seed": 7}, samples={"sample_prompts": []})
    found = prove(training.job, training.workspace, "cpu", 4)
    assert found.equal, found.words()


@pytest.mark.slow
def test_files_of_a_schedule_free_run_hold_the_average_and_saving_them_changes_nothing(train):
    runs = {}
    for every in (0, 2):
        training = train(
            optimizer={"optimizer_type": "AdamWScheduleFree", "learning_rate": 1e-2},
            schedule={"max_train_steps": 6, "seed": 7},
            saving={"save_every_n_steps": every},
        )
        training.start()
        runs[every] = load_file(training.file())
        state = torch.load(newest_state(training.folder.states) / "training.pt", weights_only=True)
    assert all((runs[0][key] == runs[2][key]).all() for key in runs[0])
    trainable = {key: value for key, value in state["weights"].items() if key in runs[0] and "lora_up" in key}
    assert trainable and any((runs[0][key] != value).any() for key, value in trainable.items())


def test_an_optimizer_that_the_device_cannot_run_is_said_before_anything_is_loaded(train):
    training = train(optimizer={"optimizer_type": "bitsandbytes.optim.AdEMAMix32bit"})
    with refused("optimizer.other-device", "cuda"):
        training.start()
