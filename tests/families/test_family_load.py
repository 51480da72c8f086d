"""SD 2.x and SDXL: a folder and a single file of the same weights are one model, and the one that diffusers loads."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from core.families import family, loading
from core.families.sd2 import prediction_of
from core.families.vae import overflows, safe_type
from core.formats.detect import identify
from core.record.problems import ProblemsError
from tests.models import tiny_file, tiny_layout
from tests.offline import no_network
from tests.refusals import refused

PROJECTION = "conditioner.embedders.1.model.text_projection"


@pytest.fixture(scope="module")
def in_files(tmp_path_factory):
    """Name of a family -> (its layout at tiny sizes, a single file)."""
    made = {}

    def make(name):
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            made[name] = tiny_layout(name, folder / "configs"), tiny_file(name, folder / "model.safetensors")
        return made[name]

    return make


def parts_of(components):
    return [components.denoiser, components.vae, *components.text_encoders]


def assert_same_weights(one, other):
    for mine, theirs in zip(parts_of(one), parts_of(other), strict=True):
        state, expected = mine.state_dict(), theirs.state_dict()
        assert set(state) == set(expected) and all(torch.equal(state[key], expected[key]) for key in expected)


@pytest.mark.slow(but=("sd2",))
def test_a_folder_gives_the_weights_that_diffusers_loads(tiny):
    names = ["text_encoder", "text_encoder_2"][: len(tiny.components.text_encoders)]
    theirs = [tiny.pipeline.unet, tiny.pipeline.vae, *(getattr(tiny.pipeline, name) for name in names)]
    for mine, other in zip(parts_of(tiny.components), theirs, strict=True):
        state, expected = mine.state_dict(), other.state_dict()
        assert set(state) == set(expected) and all(torch.equal(state[key], expected[key]) for key in expected)


@pytest.mark.slow(but=("sd2",))
def test_a_single_file_is_the_same_model(tiny, in_files):
    layout, path = in_files(tiny.name)
    with no_network():
        one = loading.load(layout, path)
    assert_same_weights(one, tiny.components)
    assert (
        one.vae_config["scaling_factor"]
        == tiny.components.vae_config["scaling_factor"]
        == {"sd2": 0.18215, "sdxl": 0.13025}[tiny.name]
    )
    assert one.family == tiny.name and all(not module.training for module in parts_of(one))
    # The digests name caches: the same weights are found again in either form.
    for part in ("denoiser", "vae", "text_encoders"):
        assert loading.digest(layout, path, part) == loading.digest(layout, tiny.folder, part)


def test_sd2_leaves_out_the_last_layer_of_the_file_and_takes_a_file_without_it(tmp_path, in_files):
    layout, path = in_files("sd2")
    state = load_file(path)
    last = {key for key in state if ".resblocks.3." in key}
    assert len(last) == 12, "the file has one layer more than the three that are read"
    save_file({key: value for key, value in state.items() if key not in last}, tmp_path / "short.safetensors")
    short = loading.load(layout, tmp_path / "short.safetensors", parts=("text_encoders",))
    whole = loading.load(layout, path, parts=("text_encoders",))
    assert len(whole.text_encoders[0].encoder.layers) == 3
    one, other = short.text_encoders[0].state_dict(), whole.text_encoders[0].state_dict()
    assert all(torch.equal(one[key], other[key]) for key in other)


def test_a_file_with_a_layer_too_few_says_so(tmp_path, in_files):
    layout, path = in_files("sd2")
    state = {key: value for key, value in load_file(path).items() if ".resblocks.2." not in key}
    save_file(state, tmp_path / "cut.safetensors")
    with pytest.raises(ProblemsError) as caught:
        loading.load(layout, tmp_path / "cut.safetensors", parts=("text_encoders",))
    assert caught.value.problems[0].what.startswith("The text encoder lacks 16 tensors: encoder.layers.2.")
    assert "not a plain SD 2.x model" in caught.value.problems[0].fix


@pytest.mark.slow
def test_the_projection_of_a_single_file_is_used_as_openclip_uses_it(tmp_path, in_files):
    """With P = [[1, 2], [3, 4]] in its corner and the state [1, 0, ...] the pooled vector begins with P's first row."""
    layout, path = in_files("sdxl")
    state = load_file(path)
    state[PROJECTION] = torch.zeros(48, 48)
    state[PROJECTION][:2, :2] = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    save_file(state, tmp_path / "p.safetensors")
    hidden = torch.eye(48)[:1]
    right = loading.load(layout, tmp_path / "p.safetensors", parts=("text_encoders",))
    assert right.text_encoders[1].text_projection(hidden)[0, :3].tolist() == [1.0, 2.0, 0.0]
    theirs = loading.load(layout, tmp_path / "p.safetensors", parts=("text_encoders",), kohya_projection=True)
    assert theirs.text_encoders[1].text_projection(hidden)[0, :3].tolist() == [1.0, 3.0, 0.0]
    digests = {
        loading.digest(layout, tmp_path / "p.safetensors", "text_encoders", kohya_projection=kohya)
        for kohya in (False, True)
    }
    assert len(digests) == 2, "other text states, so other cache entries"


@pytest.mark.slow
def test_playgrounds_projection_is_transformers_own(tmp_path, in_files):
    layout, path = in_files("sdxl")
    state = load_file(path)
    state[PROJECTION + ".weight"] = state.pop(PROJECTION).T.contiguous()
    save_file(state, tmp_path / "p.safetensors")
    one = loading.load(layout, tmp_path / "p.safetensors", parts=("text_encoders",))
    other = loading.load(layout, path, parts=("text_encoders",))
    assert torch.equal(one.text_encoders[1].text_projection.weight, other.text_encoders[1].text_projection.weight)


@pytest.mark.slow
def test_pickles_with_transposed_tensors_load_and_hash_the_same(tmp_path, in_files):
    """Some .ckpt files hold views: their rows lie across each other in the file."""
    layout, path = in_files("sdxl")
    state = load_file(path)
    in_proj = next(key for key in state if key.endswith("in_proj_weight"))
    for key in (in_proj, PROJECTION):
        state[key] = state[key].T.contiguous().T
        assert not state[key].is_contiguous()
    torch.save({"state_dict": state}, tmp_path / "model.ckpt")
    pickled = loading.load(layout, tmp_path / "model.ckpt", parts=("text_encoders",))
    plain = loading.load(layout, path, parts=("text_encoders",))
    for mine, theirs in zip(pickled.text_encoders, plain.text_encoders, strict=True):
        one, other = mine.state_dict(), theirs.state_dict()
        assert all(torch.equal(one[key], other[key]) for key in other)
    digests = [loading.digest(layout, file, "text_encoders") for file in (tmp_path / "model.ckpt", path)]
    assert digests[0] == digests[1]


@pytest.mark.slow(but=("sd2",))
def test_only_the_parts_asked_for_are_loaded(tiny):
    words = tiny.family.load(tiny.folder, parts=("tokenizers",))
    assert words.denoiser is None and words.vae is None and words.text_encoders == []
    assert len(words.tokenizers) == len(tiny.components.text_encoders)


def test_the_family_of_a_file_is_told_by_its_names(in_files):
    assert identify(in_files("sd2")[1]).family == "sd2"
    assert identify(in_files("sdxl")[1]).family == "sdxl"
    with refused("model.other-family", "SD 2.x"):
        family("sd2").load(in_files("sdxl")[1])


# ---- prediction ----


@pytest.mark.slow
def test_what_the_files_metadata_says_of_the_prediction_counts(tmp_path, in_files):
    layout, _ = in_files("sd2")
    for said, expected in (("v", "v"), ("epsilon", "epsilon")):
        path = tiny_file("sd2", tmp_path / f"{said}.safetensors", {"modelspec.prediction_type": said})
        assert loading.load(layout, path, parts=("vae",)).prediction == expected


def test_a_folder_says_its_prediction_in_the_scheduler(tiny_models):
    assert tiny_models("sd2").components.prediction == "v"
    assert tiny_models("sdxl").components.prediction == "epsilon"


def test_an_sd2_file_that_does_not_say_is_asked_by_one_pass(monkeypatch, in_files):
    """At t = 999 a model of noise gives its input back; one of v gives something far below it."""

    class Unet(torch.nn.Module):
        def __init__(self, shift):
            super().__init__()
            self.conv_in, self.shift = torch.nn.Conv2d(4, 4, 1), shift
            self.config = type("Config", (), {"cross_attention_dim": 1024, "out_channels": 4})

        def forward(self, x, timestep, encoder_hidden_states, return_dict):
            assert timestep.tolist() == [999] and encoder_hidden_states.shape == (1, 2, 1024)
            return (x + self.shift,)

    assert prediction_of(Unet(0.0)) == "epsilon" and prediction_of(Unet(-1.5)) == "v"
    inpainting = Unet(-1.5)
    inpainting.conv_in = torch.nn.Conv2d(9, 4, 1)
    assert prediction_of(inpainting) == "epsilon"
    layout, path = in_files("sd2")
    asked = []
    told = loading.replace(layout, find_prediction=lambda unet: asked.append(unet) or "v")
    assert loading.load(told, path, parts=("denoiser",)).prediction == "v" and len(asked) == 1
    assert loading.load(told, path, parts=("vae",)).prediction == "epsilon" and len(asked) == 1, "nothing to ask"


# ---- the VAE's type ----


def test_sdxls_vae_is_never_loaded_in_fp16_but_the_repaired_one_may_be(monkeypatch):
    half, published, repaired = torch.float16, {"force_upcast": True}, {"force_upcast": False}
    for fast, expected in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr("core.record.machine.bf16_is_fast", lambda device, fast=fast: fast)
        sdxl, sd1 = family("sdxl").layout, family("sd1").layout
        assert all(safe_type(overflows(sdxl, config), half, "cuda") == expected for config in (published, {}))
        assert safe_type(overflows(sdxl, repaired), half, "cuda") == half
        assert safe_type(overflows(sd1, published), half, "cuda") == half
        assert safe_type(overflows(sdxl, published), torch.float32, "cuda") == torch.float32


def test_loading_keeps_to_that(tiny_models, monkeypatch):
    monkeypatch.setattr("core.record.machine.bf16_is_fast", lambda device: False)
    for name, expected in (("sdxl", torch.float32), ("sd2", torch.float16)):
        loaded = tiny_models(name).family.load(tiny_models(name).folder, parts=("vae",), vae_dtype=torch.float16)
        assert next(loaded.vae.parameters()).dtype == expected
