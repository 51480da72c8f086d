"""Whole runs with optimizers of every kind: stopped and continued, they end where an unbroken one ends."""

import pytest
import torch
from safetensors.torch import load_file

from core.record.run_folder import newest_state
from tests.refusals import refused


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
