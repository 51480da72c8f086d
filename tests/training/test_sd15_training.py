"""SD 1.5 at its real size trains like the starter, from a folder and from one file, without a network."""

import pytest
import torch
from safetensors.torch import load_file

from tests.offline import no_network


@pytest.mark.slow
def test_folder_and_file_train_the_same_lora_offline(train, sd15):
    results = []
    for path in sd15:
        training = train(
            model={"base_model": str(path)},
            network={"rank": 4, "alpha": 4.0, "train_text_encoder": True},
            schedule={"max_train_steps": 2, "seed": 7},
            dataset={"resolution": 64, "train_batch_size": 1},
            memory={"mixed_precision": "bf16"},
        )
        with no_network():
            assert training.start() == "done"
        results.append(load_file(training.file()))
    folder, file = results
    assert len(folder) == 3 * (192 + 72), "every module that kohya's tools train is there"
    assert folder.keys() == file.keys() and all(torch.equal(folder[name], file[name]) for name in folder)
