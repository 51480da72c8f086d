"""Checkpoints merged: the sums of each method, what is taken from the first model, and what is refused."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from core import tasks
from core.formats.tensors.header import read_header
from core.networks.block_weights import SLOTS, slot_of_key
from core.record.workspace import Workspace
from core.settings.check import build
from core.tools.models.merge_models import FIRST_LAYER
from tests.models import tiny_file, tiny_folder
from tests.refusals import refused
from tests.tasks import surroundings
from tests.tools.models.test_convert_model import convert
from tests.tools.models.test_file_metadata import refusals
from tests.tools.test_tools import use

UNET, TEXT, VAE = "model.diffusion_model.", "cond_stage_model.transformer.", "first_stage_model."
IN4, MID, OUT3 = (f"{UNET}{name}" for name in (
    "input_blocks.4.0.in_layers.2.weight", "middle_block.0.in_layers.2.weight", "output_blocks.3.0.in_layers.2.weight"
))  # fmt: skip
POSITIONS = f"{TEXT}text_model.embeddings.position_ids"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return [tiny_file("sd1", folder / f"{name}.safetensors", seed=seed) for seed, name in enumerate("abc")]


def merged(models, tmp_path, **asked):
    given = {"models": list(map(str, models)), "output": str(tmp_path / "merged.safetensors"), **asked}
    path, lines = use(name="merge_models", **given)
    return load_file(path), [load_file(model) for model in models], "\n".join(lines), read_header(path)[1]


def assert_all(found, wanted):
    """wanted: key -> tensor."""
    for key, value in found.items():
        torch.testing.assert_close(value, wanted(key), rtol=1e-5, atol=1e-6, msg=key)


def test_equal_ratios_give_the_mean_and_a_record_of_what_was_merged(models, tmp_path):
    found, (a, b, c), _, metadata = merged(models, tmp_path)
    assert_all(found, lambda key: (a[key] + b[key] + c[key]) / 3)
    assert (
        len(json.loads(metadata["sd_merge_models"])) == 3
        and metadata["modelspec.architecture"] == "stable-diffusion-v1"
    )
    assert metadata["modelspec.merged_from"] == "a, b, c"


def test_the_license_stays_where_all_models_have_it_and_other_authors_are_named(models, tmp_path):
    files = [tmp_path / f"{name}.safetensors" for name in "ab"]
    for file, author in zip(files, ("Mira", "Ada"), strict=True):
        save_file(load_file(models[0]), file, {"modelspec.license": "MIT", "modelspec.author": author})
    _, _, lines, metadata = merged(files, tmp_path)
    assert metadata["modelspec.license"] == "MIT" and "modelspec.author" not in metadata
    assert "left out, since the files differ: author" in lines


@pytest.mark.slow
def test_ratios_are_scaled_to_a_sum_of_one_but_not_with_compatibility(models, tmp_path):
    found, (a, b), _, _ = merged(models[:2], tmp_path, ratios="0.6, 0.2")
    assert_all(found, lambda key: 0.75 * a[key] + 0.25 * b[key])
    found, _, _, _ = merged(models[:2], tmp_path / "two", ratios="0.6, 0.2", compatibility="sd-scripts")
    assert_all(found, lambda key: 0.6 * a[key] + 0.2 * b[key])


def test_add_difference_and_sigmoid_are_their_formulas(models, tmp_path):
    found, (a, b, c), _, _ = merged(models, tmp_path, method="add_difference", multiplier=0.75)
    assert_all(found, lambda key: a[key] + 0.75 * (b[key] - c[key]))
    found, _, _, _ = merged(models[:2], tmp_path / "two", method="sigmoid", multiplier=0.3)
    smooth = 0.3 * 0.3 * (3 - 0.6)
    assert_all(found, lambda key: (1 - smooth) * a[key] + smooth * b[key])


@pytest.mark.parametrize("method", ["add_difference", "weighted_sum"])
def test_an_inpainting_model_keeps_its_mask_channels_if_it_is_the_first(models, tmp_path, method):
    state, wide = load_file(models[0]), tmp_path / "inpainting.safetensors"
    state[FIRST_LAYER] = torch.cat(
        [state[FIRST_LAYER], torch.full_like(state[FIRST_LAYER], 0.5)[:, [0, 1, 2, 3, 0]]], 1
    )
    save_file(state, wide)
    found, (a, b, *c), _, _ = merged(
        [wide, *models[1 : 3 if method == "add_difference" else 2]], tmp_path, method=method, multiplier=1.0
    )
    assert torch.equal(found[FIRST_LAYER][:, 4:], a[FIRST_LAYER][:, 4:])
    a[FIRST_LAYER], found[FIRST_LAYER] = a[FIRST_LAYER][:, :4], found[FIRST_LAYER][:, :4]
    assert_all(found, lambda key: a[key] + b[key] - c[0][key] if c else (a[key] + b[key]) / 2)
    assert refusals(name="merge_models", models=[str(models[1]), str(wide)]) == ["merge.other-family"]


@pytest.mark.slow
def test_each_block_has_its_weight_and_base_is_for_all_outside(models, tmp_path):
    given = [0.1] + [n / 100 for n in range(25)]
    found, (a, b), _, _ = merged(models[:2], tmp_path, block_weights=",".join(map(str, given)))

    def wanted(key):
        weight = given[slot_of_key(key, "sd1")]
        return (1 - weight) * a[key] + weight * b[key]

    assert_all(found, wanted)
    assert [SLOTS[slot_of_key(key, "sd1")] for key in (IN4, MID, OUT3, f"{VAE}x")] == ["IN04", "MID", "OUT03", "BASE"]
    assert SLOTS[slot_of_key(f"{UNET}out.2.weight", "sdxl")] == "OUT08"
    assert SLOTS[slot_of_key(f"{UNET}time_embed.0.weight", "sd1")] == "IN00"
    # 25 numbers have no BASE, 17 not all blocks: there the ratio holds
    found, _, _, _ = merged(models[:2], tmp_path / "two", block_weights=",".join(["1"] * 25), ratios="0.8, 0.2")
    assert torch.equal(found[IN4], b[IN4])
    key = f"{VAE}decoder.conv_in.weight"
    torch.testing.assert_close(found[key], 0.8 * a[key] + 0.2 * b[key])
    found, _, _, _ = merged(models[:2], tmp_path / "three", block_weights=",".join(["1"] * 17), ratios="0.8, 0.2")
    key = f"{UNET}input_blocks.3.0.op.weight"
    torch.testing.assert_close(found[key], 0.8 * a[key] + 0.2 * b[key])
    found, _, _, _ = merged(models, tmp_path / "four", method="add_difference", block_weights="MIDD", multiplier=0.5)
    c = load_file(models[2])
    torch.testing.assert_close(found[MID], a[MID] + b[MID] - c[MID])


@pytest.mark.slow
@pytest.mark.parametrize("name", ("sd1", "sd2", "sdxl"))
def test_folders_are_merged_as_their_files_are(name, tmp_path):
    folders = [tiny_folder(name, tmp_path / each, seed=seed) for seed, each in enumerate("ab")]
    files = [convert(each, tmp_path / f"{each.name}.safetensors") for each in folders]
    wanted, _, _, of_files = merged(files, tmp_path / "files", ratios="0.7, 0.3")
    for each in (folders, [folders[0], files[1]], [files[0], folders[1]]):
        path, _ = use(name="merge_models", models=list(map(str, each)), ratios="0.7, 0.3",
                      output=str(tmp_path / f"{len(list(tmp_path.iterdir()))}.safetensors"))  # fmt: skip
        found = load_file(path)
        assert found.keys() == wanted.keys() and all(torch.equal(found[key], wanted[key]) for key in wanted)
        metadata = read_header(path)[1]
        assert metadata["modelspec.resolution"] == "128x128", "the size that the models are made for"
        assert metadata.get("atelier_sizes") == of_files.get("atelier_sizes")
        assert json.loads(metadata["sd_merge_recipe"])["ratios"] == "0.7, 0.3"
    (folders[1] / "unet" / "config.json").unlink()
    assert refusals(name="merge_models", models=list(map(str, folders)), output=str(tmp_path / "none.safetensors"))


def test_only_the_unet_is_merged_where_that_is_asked(models, tmp_path):
    found, (a, b), said, _ = merged(models[:2], tmp_path, unet_only=True, saving_precision="fp16")
    assert said.startswith(f"{sum(key.startswith(UNET) for key in found)} tensors merged")
    for key, value in found.items():
        wanted = (a[key] + b[key]) / 2 if key.startswith(UNET) else a[key]
        assert value.dtype == torch.float16 and torch.equal(value, wanted.half()), key


def test_keys_of_one_model_alone_and_whole_numbers_are_the_first_ones(models, tmp_path):
    a, b = (load_file(model) for model in models[:2])
    a["extra"], b["other"] = torch.ones(3), torch.ones(3)
    a[POSITIONS] = torch.arange(77)[None] * 0.9  # as a careless merge leaves them
    b[POSITIONS.replace("text_model.", "")] = torch.zeros(1, 77)
    old = {key.replace("text_model.", ""): value for key, value in b.items()}  # as files of 2022 name them
    for name, state in (("a", a), ("b", old)):
        save_file(state, tmp_path / f"{name}.safetensors")
    found, _, said, _ = merged([tmp_path / "a.safetensors", tmp_path / "b.safetensors"], tmp_path, show_skipped=True)
    assert set(found) == set(a) and torch.equal(found["extra"], torch.ones(3))
    assert torch.equal(found[POSITIONS], torch.arange(77)[None])
    key = f"{TEXT}text_model.encoder.layers.0.mlp.fc1.weight"
    torch.testing.assert_close(found[key], (a[key] + b[key]) / 2)
    assert said.startswith(f"{len(a) - 2} tensors merged")  # without the extra and the whole numbers
    assert "not in b.safetensors" in said and "extra" in said and "only in b.safetensors" in said and "other" in said


@pytest.mark.slow
def test_what_cannot_be_merged_is_refused_before_anything_is_written(models, tmp_path):
    a, b, c = map(str, models)
    xl = str(tiny_file("sdxl", tmp_path / "xl.safetensors"))
    state = load_file(a)
    state[MID] = state[MID][:, :8].contiguous()
    save_file(state, tmp_path / "small.safetensors")
    output = str(tmp_path / "merged.safetensors")
    for asked, codes in (
        ({"models": [a]}, ["merge.model-count"]),
        ({"models": [a, b], "method": "add_difference"}, ["merge.model-count"]),
        ({"models": [a, xl]}, ["merge.other-family"]),
        ({"models": [a, str(tmp_path / "small.safetensors")]}, ["merge.other-shape"]),
        ({"models": [a, "models/starter/vae"]}, ["merge.not-a-checkpoint"]),
        ({"models": [a, "models/starter"]}, ["merge.other-shape"]),
        ({"models": [a, "gone.safetensors"]}, ["model.not-found"]),
        ({"models": [a, b], "ratios": "1, x"}, ["merge.bad-ratios"]),
        ({"models": [a, b], "ratios": "1, 2, 3", "block_weights": "1, 2"}, ["merge.bad-ratios", "merge.block-weights"]),
        ({"models": [a, b], "ratios": "1, -1"}, ["merge.bad-ratios"]),
        ({"models": [a, b, c], "block_weights": "ALL"}, ["merge.block-weights"]),
        ({"models": [a, b], "method": "sigmoid", "multiplier": 2.0}, ["merge.bad-multiplier"]),
        ({"models": [a, b], "output": a}, ["tools.output-is-input"]),
    ):
        assert refusals(name="merge_models", **{"output": output, **asked}) == codes, asked
    assert not (tmp_path / "merged.safetensors").exists()


@pytest.mark.slow
def test_nan_and_what_fp16_cannot_hold_end_it_by_name_without_a_file(models, tmp_path):
    for value, precision, code in ((float("nan"), None, "weights.not-finite"), (3e5, "fp16", "merge.overflow")):
        state = load_file(models[0])
        state[MID][0, 0, 0, 0] = value
        save_file(state, tmp_path / "bad.safetensors")
        asked = {"models": [str(tmp_path / "bad.safetensors"), str(models[1])], "saving_precision": precision}
        output = tmp_path / "out" / "merged.safetensors"
        with refused(code, MID, "bad.safetensors" if precision is None else "saving_precision"):
            use(name="merge_models", output=str(output), **asked)
        assert list(output.parent.iterdir()) == []


@pytest.mark.slow
def test_the_setting_that_a_method_does_not_read_is_left_out_of_its_form_and_said(models, tmp_path):
    task = tasks.named("merge_models")

    def warned(**asked):
        given = {"models": list(map(str, models[:2])), "output": str(tmp_path / f"{len(asked)}.safetensors"), **asked}
        context = surroundings(Workspace())
        task.start(build(task.job, {"merge_models": given}), context)
        return [event.text for event in context.journal.events if getattr(event, "level", "") == "warning"]

    assert warned() == [] and task.unused({}) == {"multiplier"}
    assert len(warned(multiplier=0.3)) == 1
    assert task.unused({"method": "sigmoid"}) == {"ratios"}
    assert len(warned(method="sigmoid", ratios="0.3, 0.7")) == 1
