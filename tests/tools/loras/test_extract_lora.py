"""LoRAs from the difference of two checkpoints, and from DyLoRAs."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from core.families import family
from core.families.loading import load
from core.formats.lora.names import group_by_module
from core.networks.adapter_file import load_lora
from core.record.problems import ProblemsError
from core.tools.loras import extract_lora as extract
from tests.models import tiny_file, tiny_folder, tiny_lora
from tests.tools.loras.test_merge_loras import metadata_of
from tests.tools.loras.test_resize_lora import DOWN, UP, VECTORS, changes
from tests.tools.models.test_convert_model import convert
from tests.tools.models.test_file_metadata import refusals
from tests.tools.test_tools import use

UNET, TEXT = "model.diffusion_model.", "cond_stage_model.transformer.text_model."
TO_Q, LAYER = (
    f"{UNET}input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight",
    "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q",
)
CONV, CONV_LAYER = f"{UNET}input_blocks.1.0.in_layers.2.weight", "lora_unet_down_blocks_0_resnets_0_conv1"
FC1, TEXT_LAYER = f"{TEXT}encoder.layers.0.mlp.fc1.weight", "lora_te_text_model_encoder_layers_0_mlp_fc1"
TEXTS = {"sd2": {"lora_te"}, "sdxl": {"lora_te1", "lora_te2"}}
VERSIONS = {"sd2": "sd_v2", "sdxl": "sdxl"}


def rank_two(shape, seed=0):
    drawn = torch.Generator().manual_seed(seed)
    flat = torch.randn(shape[0], 2, generator=drawn) @ torch.randn(2, shape[1:].numel(), generator=drawn)
    return flat.view(shape)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A model, and one whose weights differ from it by changes of rank 2."""
    folder = tmp_path_factory.mktemp("models")
    base = tiny_file("sd1", folder / "base.safetensors")
    state = load_file(base)
    for key in (TO_Q, CONV):
        state[key] += rank_two(state[key].shape)
    state[FC1] += 0.005
    save_file(state, folder / "tuned.safetensors", {"modelspec.license": "CC-BY-4.0", "modelspec.title": "tuned"})
    return str(base), str(folder / "tuned.safetensors"), load_file(base), state


def extracted(models, tmp_path, **asked):
    given = {"model_org": models[0], "model_tuned": models[1], "output": str(tmp_path / "lora.safetensors"), **asked}
    path, lines = use(name="extract_lora", **given)
    return load_file(path), metadata_of(path), "\n".join(lines)


def test_a_difference_of_low_rank_is_found_exactly(models, tmp_path):
    found, metadata, said = extracted(models, tmp_path, dim=2, conv_dim=3)
    assert metadata["modelspec.license"] == "CC-BY-4.0" and metadata["modelspec.title"] == "lora"
    base, tuned = models[2], models[3]
    for key, layer in ((TO_Q, LAYER), (CONV, CONV_LAYER)):
        wanted = (tuned[key] - base[key]).flatten(1).double()
        torch.testing.assert_close(changes(found)[layer], wanted, rtol=1e-4, atol=1e-5)
    assert found[f"{CONV_LAYER}.{DOWN}"].shape[0] == 3 and found[f"{LAYER}.{UP}"].shape[1] == 2
    assert not any(key.startswith("lora_te") for key in found) and "text encoders left out" in said
    told = {"ss_v2": "False", "ss_base_model_version": "sd_v1", "ss_network_dim": "2", "ss_network_alpha": "2.0"}
    assert {key: metadata[key] for key in told} == told
    assert json.loads(metadata["ss_network_args"]) == {"conv_dim": "3", "conv_alpha": "3.0"}
    assert metadata["ss_sd_model_name"] == "base.safetensors" and len(metadata["ss_new_sd_model_hash"]) == 64


def test_text_encoders_are_kept_where_a_weight_differs_by_more(models, tmp_path):
    found, _, _ = extracted(models, tmp_path, dim=1, min_diff=0.004)
    assert f"{TEXT_LAYER}.{UP}" in found and not any("resnets" in key for key in found)
    torch.testing.assert_close(changes(found)[TEXT_LAYER], torch.full((64, 32), 0.005).double(), rtol=1e-3, atol=1e-5)


def test_layers_of_resnets_that_are_left_out_are_named_and_count_for_the_kept_norm(models, tmp_path):
    base, tuned = models[2], models[3]
    attention, conv, text = (float((tuned[key] - base[key]).double().norm()) for key in (TO_Q, CONV, FC1))
    _, _, without = extracted(models, tmp_path / "0", dim=2)
    assert "left out: 1 layer of resnets with a difference; set Conv rank" in without
    assert f"{attention / (attention**2 + conv**2 + text**2) ** 0.5:.1%} of the whole" in without
    _, _, complete = extracted(models, tmp_path / "1", dim=2, conv_dim=2, min_diff=0.0)
    assert "left out" not in complete and "100.0% of the whole" in complete


def test_biases_norms_and_outer_layers_that_differ_are_counted(models, tmp_path):
    state = dict(models[3])
    for name in ("out.0.weight", "out.2.bias", "out.2.weight"):
        state[f"model.diffusion_model.{name}"] = state[f"model.diffusion_model.{name}"] + 0.5
    save_file(state, tmp_path / "tuned.safetensors")
    _, _, said = extracted((models[0], str(tmp_path / "tuned.safetensors")), tmp_path, conv_dim=2, min_diff=0.0)
    assert "left out: 3 biases, norms and outer layers with a difference" in said


def test_text_encoders_that_are_left_out_are_named_with_their_share_and_count_for_the_kept_norm(tmp_path):
    base = tiny_file("sd1", tmp_path / "base.safetensors")
    state = load_file(base)
    state[TO_Q][0, 0] += 0.03
    state[FC1][0, :16] += 0.01 * 0.99
    save_file(state, tmp_path / "tuned.safetensors")
    both = (str(base), str(tmp_path / "tuned.safetensors"))
    _, metadata, said = extracted(both, tmp_path / "0", dim=2)
    assert "(Min difference; 0 extracts them); they have 79.7% of the norm of the difference" in said
    assert "60.4% of the whole" in said and metadata["modelspec.resolution"] == "512x512"
    state[TO_Q][0, 0] -= 0.03
    save_file(state, tmp_path / "tuned.safetensors")
    with pytest.raises(ProblemsError, match="Min difference"):
        extracted(both, tmp_path / "1")


def test_a_lora_states_the_size_that_the_original_was_trained_at(models, tmp_path):
    save_file(models[2], tmp_path / "small.safetensors", {"modelspec.resolution": "128x128"})
    _, metadata, _ = extracted((str(tmp_path / "small.safetensors"), models[1]), tmp_path)
    assert metadata["modelspec.resolution"] == "128x128"


def test_clamping_precisions_and_compatibility_have_their_effects(models, tmp_path):
    plain, _, _ = extracted(models, tmp_path / "0", dim=2)
    bounded, _, _ = extracted(
        models, tmp_path / "1", dim=2, clamp_quantile=0.9, save_precision="fp16", no_metadata=True
    )
    assert bounded[f"{LAYER}.{UP}"].dtype == torch.float16
    assert bounded[f"{LAYER}.{UP}"].abs().max() < plain[f"{LAYER}.{UP}"].abs().max()
    theirs, _, said = extracted(models, tmp_path / "2", dim=2, compatibility="sd-scripts")
    limit = torch.quantile(torch.cat([plain[f"{LAYER}.{UP}"].flatten(), plain[f"{LAYER}.{DOWN}"].flatten()]).abs(), 1.0)
    assert theirs[f"{LAYER}.{UP}"].abs().max() < limit
    exact, kept = changes(plain)[LAYER], changes(theirs)[LAYER]
    share = max(0.0, 1 - float((exact - kept).norm() / exact.norm()) ** 2) ** 0.5
    assert f"{share:.1%} at least" in said and share < 0.999, "of what is written, after the clamp"
    rounded, _, _ = extracted(models, tmp_path / "3", dim=2, load_precision="bf16")
    assert not torch.equal(rounded[f"{LAYER}.{UP}"], plain[f"{LAYER}.{UP}"])


@pytest.mark.slow
def test_a_folder_and_a_file_of_the_same_model_differ_in_nothing(models, tmp_path):
    folder = tiny_folder("sd1", tmp_path / "folder")
    found, _, _ = extracted((str(folder), models[1]), tmp_path, dim=2)
    whole, _, _ = extracted(models, tmp_path / "2", dim=2)
    for name, change in changes(whole).items():
        torch.testing.assert_close(changes(found)[name], change, rtol=1e-4, atol=1e-5)


def test_every_layer_of_a_model_that_is_built_otherwise_is_extracted(models, tmp_path):
    """A shortcut that the published U-Net of the family does not have."""
    files, key = [], "input_blocks.2.0.skip_connection.weight"
    for name, number in (("base", 0.0), ("tuned", 1.0)):
        state = load_file(models[0])
        width = state[f"{UNET}input_blocks.2.0.out_layers.3.weight"].shape[0]
        state |= {f"{UNET}{key}": torch.full((width, width, 1, 1), number), f"{UNET}{key[:-6]}bias": torch.zeros(width)}
        save_file(state, tmp_path / f"{name}.safetensors")
        files.append(str(tmp_path / f"{name}.safetensors"))
    found, *_ = extracted(files, tmp_path, conv_dim=1)
    assert f"lora_unet_down_blocks_0_resnets_1_conv_shortcut.{UP}" in found


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sd2", "sdxl"])
def test_a_merged_lora_is_extracted_again_from_models_of_the_other_families(name, tmp_path):
    folder, merged = tiny_folder(name, tmp_path / name), tmp_path / "merged"
    whole = load(family(name).layout, folder, parts=("text_encoders", "denoiser"))
    lora = tiny_lora(whole, tmp_path / "lora.safetensors")
    use(name="merge_lora_to_model", file=str(folder), models=[str(lora)], output=str(merged))
    found, _, _ = extracted((str(folder), str(merged)), tmp_path / "found", dim=4, min_diff=0.0)
    wanted, ours = changes(load_lora(lora).tensors), changes(load_lora(tmp_path / "found" / "lora.safetensors").tensors)
    assert found and ours.keys() == wanted.keys()
    assert max(float((ours[layer] - change).abs().max()) for layer, change in wanted.items()) < 1e-6


def weights_by_layer(name, folder, conv):
    """{kohya's layer: its weight} of the layers that a LoRA has, from a loaded model."""
    whole = load(family(name).layout, folder, parts=("text_encoders", "denoiser"))
    parts = [part for part in (*whole.text_encoders, whole.denoiser) if part is not None]
    return {
        target.name: target.module.weight.detach().double()
        for part in parts
        for target in family(name).lora_targets(part, conv=conv)
    }


@pytest.mark.slow
@pytest.mark.parametrize("conv", [False, True])
@pytest.mark.parametrize("name", ["sd2", "sdxl"])
def test_at_full_rank_the_whole_difference_of_two_models_is_extracted(name, conv, tmp_path):
    """Of single files and of a folder, where the text encoders' layers lie otherwise: in one tensor of queries, keys and values."""
    folders = [tiny_folder(name, tmp_path / f"{name} {seed}", seed=seed) for seed in (0, 1)]
    files = [convert(folder, tmp_path / f"{seed}.safetensors") for seed, folder in enumerate(folders)]
    before, after = (weights_by_layer(name, folder, conv) for folder in folders)
    ranks = {"dim": 1024} | ({"conv_dim": 1024} if conv else {})
    for number, pair in enumerate([files, (files[0], folders[1])]):
        found, metadata, _ = extracted(tuple(map(str, pair)), tmp_path / f"found {number}", **ranks)
        ours = changes(load_lora(tmp_path / f"found {number}" / "lora.safetensors").tensors)
        assert ours.keys() == before.keys()
        assert {each for each in TEXTS[name] if any(layer.startswith(f"{each}_") for layer in ours)} == TEXTS[name]
        for layer, change in ours.items():
            torch.testing.assert_close(change, (after[layer] - before[layer]).flatten(1), rtol=0, atol=1e-5)
        kernels = {layer for layer, weight in before.items() if weight.shape[2:] == (3, 3)}
        assert bool(kernels) == conv and all(found[f"{layer}.{DOWN}"].shape[2:] == (3, 3) for layer in kernels)
        assert metadata["ss_v2"] == str(name == "sd2") and metadata["ss_base_model_version"].startswith(VERSIONS[name])


@pytest.mark.slow
def test_the_weights_of_each_model_are_put_where_they_are_asked_for(models, tmp_path, monkeypatch):
    """Told of as the GPU, they stay on the CPU here: what is computed of them is the same."""
    placed, read = set(), extract._read

    class Weights:
        def __init__(self, place, files, precision):
            self.file, self.read = place.file.name, read(place, files, precision)

        def to(self, device):
            placed.add((self.file, device))
            return self.read

    plain, *_ = extracted(models, tmp_path / "plain", dim=2)
    monkeypatch.setattr(extract, "_read", Weights)
    monkeypatch.setattr(extract, "_others_changed", lambda *given: 0)  # compares on the CPU
    monkeypatch.setattr("core.tools.loras.extract_lora.refuse_device", lambda device, where: None)
    for own in ("load_original_model_to", "load_tuned_model_to"):
        found, *_ = extracted(models, tmp_path / own, dim=2, **{own: "cuda"})
        first = own == "load_original_model_to"
        assert placed == {
            ("base.safetensors", "cuda" if first else "cpu"),
            ("tuned.safetensors", "cpu" if first else "cuda"),
        }
        assert all(torch.equal(value, plain[key]) for key, value in found.items())
        placed.clear()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")
def test_on_the_gpu_the_same_lora_is_extracted(models, tmp_path):
    here, *_ = extracted(models, tmp_path / "cpu", dim=2, conv_dim=2)
    for own in ("load_original_model_to", "load_tuned_model_to", "device"):
        there, *_ = extracted(models, tmp_path / own, dim=2, conv_dim=2, **{own: "cuda"})
        for layer, change in changes(there).items():
            torch.testing.assert_close(change, changes(here)[layer], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_models_that_do_not_belong_together_are_refused(models, tmp_path):
    xl = str(tiny_file("sdxl", tmp_path / "xl.safetensors"))
    state = load_file(models[0])
    state[TO_Q] = state[TO_Q][:16].contiguous()
    save_file(state, tmp_path / "small.safetensors")
    state = load_file(models[0])
    state[TO_Q][0, 0] = torch.nan
    save_file(state, tmp_path / "broken.safetensors")
    save_file(models[2], tmp_path / "copy.safetensors")
    output = str(tmp_path / "lora.safetensors")
    for tuned, codes in (
        (xl, ["tools.other-family"]),
        (str(tmp_path / "small.safetensors"), ["extract.other-shape"]),
        (str(tmp_path / "broken.safetensors"), ["weights.not-finite"]),
        (str(VECTORS / "mr_a.safetensors"), ["merge.not-a-checkpoint"]),
        (models[0], ["extract.no-difference"]),
        (str(tmp_path / "copy.safetensors"), ["extract.no-difference"]),
    ):
        asked = {"model_org": models[0], "model_tuned": tuned, "output": output}
        assert refusals(name="extract_lora", **asked) == codes
    if not torch.cuda.is_available():
        asked = {"model_org": models[0], "model_tuned": models[1], "load_original_model_to": "cuda"}
        assert refusals(name="extract_lora", load_tuned_model_to="cuda", device="cuda", **asked) == ["tools.no-gpu"] * 3
    assert not (tmp_path / "lora.safetensors").exists()


def test_a_dylora_is_cut_into_its_lower_ranks_at_the_same_strength(tmp_path):
    source = VECTORS / "mr_a.safetensors"
    whole = group_by_module(load_file(source))
    for compatibility in ("none", "sd-scripts"):
        use(
            name="split_dylora",
            model=str(source),
            unit=2,
            output=str(tmp_path / compatibility),
            compatibility=compatibility,
        )
        files = sorted((tmp_path / compatibility).iterdir())
        assert [path.name for path in files] == [f"mr_a-000{rank}.safetensors" for rank in (2, 4, 6)]
        for path, rank in zip(files, (2, 4, 6), strict=True):
            for name, layer in group_by_module(load_file(path)).items():
                here = min(rank, len(whole[name][DOWN]))
                assert torch.equal(layer[DOWN], whole[name][DOWN][:here]) and torch.equal(
                    layer[UP], whole[name][UP][:, :here]
                )
                kept = float(whole[name]["alpha"])
                wanted = kept if compatibility == "sd-scripts" else kept * here / len(whole[name][DOWN])
                assert float(layer["alpha"]) == pytest.approx(wanted)
        assert metadata_of(files[0])["ss_training_comment"].startswith("split from DyLoRA, rank 8 to 2")
    assert refusals(name="split_dylora", model=str(source), unit=8) == ["split.no-rank"]
    name = next(iter(whole))
    save_file(load_file(source) | {f"{name}.dora_scale": torch.ones(64, 1)}, tmp_path / "dora.safetensors")
    assert refusals(name="split_dylora", model=str(tmp_path / "dora.safetensors"), unit=2) == ["split.not-a-lora"]
    asked = {"model": str(source), "unit": 4, "output": str(tmp_path / "none")}
    assert refusals(name="split_dylora", **asked) == ["tools.output-exists"]
