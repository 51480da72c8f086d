"""SD 1.5 at its real size trains like the starter, from one file, without a network."""

import pytest
from safetensors.torch import load_file

from tests.offline import no_network


@pytest.mark.slow
def test_a_file_trains_every_module_offline(train, sd15_file):
    """That a folder holds the same model is tests/families/test_sd15_real_size.py's."""
    training = train(
        model={"base_model": str(sd15_file)},
        network={"rank": 4, "alpha": 4.0, "train_text_encoder": True},
        schedule={"max_train_steps": 1, "seed": 7},
        dataset={"resolution": 64, "train_batch_size": 1},
    )
    with no_network():
        assert training.start() == "done"
    assert len(load_file(training.file())) == 3 * (192 + 72), "every module that kohya's tools train is there"
