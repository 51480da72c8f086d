"""A model of exactly SD 1.5's architecture (random numbers, 2.1 GB), as a folder and as one file, without a network.

The slowest tests of the loading part: everything that can be shown on a tiny model is shown in test_sd1_load.py.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from core.diffusion.text_states import Conditioning
from core.families.locate import family_of
from core.families.sd1 import FAMILY as sd1
from core.formats.detect import identify
from tests.models import SD15_NUMBERS as PARAMETERS
from tests.offline import no_network

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def models(sd15):
    return sd15


def test_both_forms_are_told_from_their_headers(models):
    folder, file = models
    for path, layout in ((folder, "diffusers"), (file, "single_file")):
        kind = identify(path)
        assert (kind.kind, kind.family, kind.layout, kind.prediction) == ("checkpoint", "sd1", layout, "epsilon")
        assert family_of(path) == "sd1"
        assert sd1.weight_bytes(path, 1) == PARAMETERS


def test_file_and_folder_load_offline_to_the_same_model_and_it_runs(models):
    folder, file = models
    with no_network():
        one = sd1.load(file, dtype=torch.bfloat16, parts=("denoiser", "text_encoders", "tokenizers"))
        state = {**one.denoiser.state_dict(), **one.text_encoders[0].state_dict()}
        states = sd1.encode_captions(one, ["a fox, glyph style"])
        noise = sd1.predict(one, torch.randn(1, 4, 8, 8), torch.tensor([500]), Conditioning(states))
        assert states.context.shape == (1, 77, 768) and noise.shape == (1, 4, 8, 8) and noise.dtype == torch.bfloat16
        assert bool(noise.isfinite().all()) and 0.1 < float(noise.float().std()) < 100
        other = sd1.load(folder, dtype=torch.bfloat16, parts=("denoiser", "text_encoders", "tokenizers"))
    expected = {**other.denoiser.state_dict(), **other.text_encoders[0].state_dict()}
    assert set(state) == set(expected) and all(torch.equal(state[key], expected[key]) for key in expected)
    assert all(tensor.dtype == torch.bfloat16 for tensor in state.values())


def test_the_vae_of_file_and_folder_is_the_same(models):
    folder, file = models
    with no_network():
        one, other = (sd1.load(path, parts=("vae",)).vae for path in (file, folder))
    state, expected = one.state_dict(), other.state_dict()
    assert set(state) == set(expected) and all(torch.equal(state[key], expected[key]) for key in expected)
    mean, logvar = sd1.encode_image_latents(one, torch.zeros(1, 3, 64, 64))
    assert mean.shape == logvar.shape == (1, 4, 8, 8) and mean.dtype == torch.float32
    assert sd1.digest(file, "vae") == sd1.digest(folder, "vae")


MEASURE = """
import json, resource, sys
import torch
from core.families.sd1 import FAMILY as sd1
from core.families.part_shapes import make_empty
make_empty("unet", {})
make_empty("text_encoder", {})
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
loaded = sd1.load(sys.argv[1], dtype=torch.bfloat16, parts=("denoiser", "text_encoders"))
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
weights = sum(value.numel() * 2 for part in (loaded.denoiser, *loaded.text_encoders) for value in part.parameters())
print(json.dumps({"used": (after - before) * 1024, "weights": weights}))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in other units elsewhere, and Windows has none")
def test_loading_takes_little_more_memory_than_the_weights(models):
    """One tensor at a time is read and converted: the largest (the token vectors) is 76 MB as stored."""
    answer = subprocess.run(
        [sys.executable, "-c", MEASURE, str(models[1])], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert answer.stderr == "", "libraries have nothing to say to a person at start"
    measured = json.loads(answer.stdout.splitlines()[-1])
    assert measured["weights"] == 2 * (PARAMETERS["unet"] + PARAMETERS["text_encoder"])
    assert measured["used"] < 1.1 * measured["weights"]
