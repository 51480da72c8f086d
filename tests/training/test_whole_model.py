"""DreamBooth and fine-tune: the model itself learns, is saved whole, and continues to the bit."""

import pytest
import torch


def learned(training, name="t.safetensors"):
    from safetensors.torch import load_file

    return load_file(training.file(name))


def test_a_first_training(train):
    training = train(method={"kind": "dreambooth"}, optimizer={"learning_rate": 1e-5}, schedule={"max_train_steps": 2})
    assert training.start() == "done"
    print(training.losses(), len(learned(training)))
