"""LoRAs of lower rank: what sd-scripts computes, the nearest product of a rank, and what is refused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from core.formats.embedding_file import tokens_in
from core.formats.lora.names import group_by_module
from core.generation.model.upscaling_networks import LatentUpscaler
from core.networks.adapter_file import save_lora
from core.record.problems import ProblemsError
from core.tools.loras.resize_lora import needed_rank
from core.tools.loras.svd import Product, clamped, decompose
from tests.recorded_tensors import recorded_tensors
from tests.tools.models.test_file_metadata import refusals
from tests.tools.test_tools import use

VECTORS = Path(__file__).parents[2] / "vectors"
STARTER = Path(__file__).parents[3] / "models" / "starter"
CASES = json.loads((VECTORS / "merge_resize.json").read_text("utf-8"))["cases"]
RECORDED = recorded_tensors(VECTORS / "merge_resize.safetensors")
UP, DOWN = "lora_up.weight", "lora_down.weight"
A = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
NORM = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_norm1"


def of_case(name):
    return {key.partition("|")[2]: value for key, value in RECORDED.items() if key.startswith(f"{name}|")}


def change(layer):
    up, down = layer[UP].double().flatten(1), layer[DOWN].double().flatten(1)
    return up @ down * (float(layer["alpha"]) / len(down))


def changes(tensors):
    return {name: change(layer) for name, layer in group_by_module(tensors).items()}


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case["tool"] == "resize_lora"])
def test_with_compatibility_it_is_what_sd_scripts_computes(name, tmp_path):
    case = CASES[name]
    given = {key: case[key] for key in ("new_rank", "new_conv_rank", "dynamic_method", "dynamic_param")}
    given |= {"output": str(tmp_path / "out.safetensors"), "compatibility": "sd-scripts"}
    path, _ = use(name="resize_lora", file=str(VECTORS / case["file"]), **given)
    found, wanted = load_file(path), of_case(name)
    assert {key: value.shape for key, value in found.items()} == {key: value.shape for key, value in wanted.items()}
    for layer, tensor in changes(found).items():
        torch.testing.assert_close(tensor, changes(wanted)[layer], rtol=1e-4, atol=1e-5)
    assert {key: float(v) for key, v in found.items() if key.endswith("alpha")} == pytest.approx(
        {key: float(v) for key, v in wanted.items() if key.endswith("alpha")}
    )
    for key in found:
        torch.testing.assert_close(found[key].abs(), wanted[key].abs(), rtol=1e-3, atol=1e-4)  # up to signs


def test_each_layer_is_the_nearest_of_its_rank_and_the_strength_stays(tmp_path):
    source = VECTORS / "mr_a.safetensors"
    path, _ = use(name="resize_lora", file=str(source), new_rank=3, new_conv_rank=2, output=str(tmp_path))
    before, after = changes(load_file(source)), group_by_module(load_file(path))
    for name, layer in after.items():
        rank = 2 if layer[DOWN].shape[2:] == (3, 3) else 3
        u, s, v = torch.linalg.svd(before[name], full_matrices=False)
        assert len(layer[DOWN]) == rank
        torch.testing.assert_close(change(layer), u[:, :rank] * s[:rank] @ v[:rank], rtol=1e-4, atol=1e-5)
    old = group_by_module(load_file(source))
    assert all(
        float(layer["alpha"]) / len(layer[DOWN]) == pytest.approx(float(old[n]["alpha"]) / len(old[n][DOWN]))
        for n, layer in after.items()
    )
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    assert (metadata["ss_network_dim"], json.loads(metadata["ss_network_args"])["conv_dim"]) == ("3", "2")
    assert metadata["ss_training_comment"].startswith("dimension is resized from 8 to 3")
    assert path.name == "mr_a_rank3.safetensors"


def test_dynamic_methods_take_as_many_as_their_share_needs_and_no_more():
    values = torch.tensor([4.0, 2.0, 1.0, 0.5])
    assert [needed_rank(values, "sv_ratio", p) for p in (1.5, 2.5, 3.9, 100)] == [1, 2, 2, 4]
    assert [needed_rank(values, "sv_cumulative", p) for p in (0.5, 0.75, 0.9, 1.0)] == [1, 2, 3, 4]
    assert [needed_rank(values, "sv_fro", p) for p in (0.8, 0.9, 0.999)] == [1, 2, 4]


def test_kept_norms_are_told_and_a_layer_without_a_change_gets_rank_one(tmp_path):
    tensors = load_file(VECTORS / "mr_a.safetensors") | {f"{A}.{UP}": torch.zeros(40, 8)}
    source = save_lora(tmp_path / "fox.safetensors", tensors)
    from core import tasks
    from core.record.workspace import Workspace
    from core.settings.check import build
    from tests.tasks import surroundings

    task = tasks.named("resize_lora")
    job = build(task.job, {"resize_lora": {"file": str(source), "new_rank": 4, "new_conv_rank": 4}})
    facts = task.start(job, surroundings(Workspace())).facts
    assert facts["ranks"][A] == 1 and facts["kept"][A] == 1
    name = next(name for name in facts["ranks"] if name != A and "conv1" not in name)
    save_lora(
        source, {key: value if key.endswith("alpha") else torch.zeros_like(value) for key, value in tensors.items()}
    )
    target = tmp_path / "zero.safetensors"
    job = job.with_settings(resize_lora={"output": str(target)})
    assert task.start(job, surroundings(Workspace())).facts["kept_norm"] == 1
    values = torch.linalg.svdvals(changes(tensors)[name])
    assert facts["kept"][name] == pytest.approx(float((values[:4].square().sum() / values.square().sum()).sqrt()))


def test_other_kinds_become_loras_of_the_same_change(tmp_path):
    drawn = torch.Generator().manual_seed(1)
    w = [torch.randn(shape, generator=drawn) for shape in ((40, 2), (2, 40), (40, 2), (2, 40))]
    keys = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
    save_file({f"{A}.{key}": each for key, each in zip(keys, w, strict=True)} | {f"{A}.alpha": torch.tensor(1.0)},
              tmp_path / "loha.safetensors")  # fmt: skip
    path, _ = use(name="resize_lora", file=str(tmp_path / "loha.safetensors"), new_rank=4)
    layer = group_by_module(load_file(path))[A]
    wanted = (w[0] @ w[1]) * (w[2] @ w[3]) / 2
    torch.testing.assert_close(change(layer).float(), wanted, rtol=1e-4, atol=1e-4)


def test_what_cannot_be_resized_is_refused_before_the_start(tmp_path):
    source = VECTORS / "mr_a.safetensors"
    assert refusals(name="resize_lora", file=str(source), dynamic_method="sv_fro") == ["resize.no-parameter"]
    bad = {"dynamic_method": "sv_fro", "dynamic_param": 1.5}
    assert refusals(name="resize_lora", file=str(source), **bad) == ["resize.bad-parameter"]
    assert refusals(name="resize_lora", file=str(source), output=str(source)) == ["tools.output-is-input"]
    dora = load_file(source) | {f"{A}.dora_scale": torch.ones(40, 1)}
    save_file(dora, tmp_path / "dora.safetensors")
    assert refusals(name="resize_lora", file=str(tmp_path / "dora.safetensors")) == ["tools.needs-base-model"]
    broken = load_file(source)
    broken[f"{A}.{UP}"][0, 0] = torch.nan
    save_file(broken, tmp_path / "broken.safetensors")
    assert refusals(name="resize_lora", file=str(tmp_path / "broken.safetensors")) == ["weights.not-finite"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken.safetensors", "dora.safetensors"]


def test_products_are_decomposed_by_their_factors_as_whole():
    drawn = torch.Generator().manual_seed(0)
    shapes = {"a": (24, 4, 36), "b": (24, 4, 36), "wide": (6, 8, 10), "one": (1, 1, 5)}
    products = {n: Product(torch.randn(o, r, generator=drawn), torch.randn(r, i, generator=drawn))
                for n, (o, r, i) in shapes.items()}  # fmt: skip
    for product in products.values():
        whole, parts = product.up @ product.down, decompose(product)
        torch.testing.assert_close(parts.u * parts.s @ parts.v, whole, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(parts.s, torch.linalg.svdvals(whole)[: len(parts.s)], rtol=1e-5, atol=1e-5)
        assert all(column[column.abs().argmax()] > 0 for column in parts.u.T)
    assert len(decompose(torch.randn(5, 7, generator=drawn)).s) == 5
    up, down = clamped(torch.arange(50.0), torch.arange(51.0), 0.99)
    assert (
        float(up.max())
        == float(down.max())
        == float(torch.quantile(torch.cat([torch.arange(50.0), torch.arange(51.0)]), 0.99))
    )


def test_the_norm_that_the_whole_keeps_is_that_of_all_changes(tmp_path):
    source = VECTORS / "mr_a.safetensors"
    path, lines = use(name="resize_lora", file=str(source), new_rank=3, output=str(tmp_path / "three.safetensors"))
    before, after = changes(load_file(source)).values(), changes(load_file(path)).values()
    whole = (sum(each.square().sum() for each in after) / sum(each.square().sum() for each in before)).sqrt()
    assert any(f"{float(whole):.1%} of the whole" in line for line in lines)


def test_changes_of_biases_and_norm_layers_are_carried_over(tmp_path):
    drawn = torch.Generator().manual_seed(2)
    full = {f"{A}.diff": torch.randn(40, 40, generator=drawn), f"{A}.diff_b": torch.ones(40)}
    beside = {f"{NORM}.w_norm": torch.full((40,), 0.5), f"{NORM}.b_norm": torch.full((40,), 0.25)}
    save_file(full | beside, tmp_path / "full.safetensors")
    path, _ = use(name="resize_lora", file=str(tmp_path / "full.safetensors"), new_rank=40)
    layer = group_by_module(load_file(path))[A]
    torch.testing.assert_close(change(layer).float(), full[f"{A}.diff"], rtol=1e-3, atol=1e-3)
    found = load_file(path)
    assert all(torch.equal(found[key], value) for key, value in (beside | {f"{A}.diff_b": torch.ones(40)}).items())
    assert {"lora_up.weight", "lora_down.weight", "alpha", "diff_b"} == layer.keys()


def test_embeddings_bundled_with_a_lora_are_kept_or_named(tmp_path):
    drawn = torch.Generator().manual_seed(2)
    layer = {f"{A}.{DOWN}": torch.randn(4, 40, generator=drawn), f"{A}.{UP}": torch.randn(40, 4, generator=drawn)}
    bundle = {f"bundle_emb.mi.ra.{key}": torch.randn(2, 64, generator=drawn) for key in ("string_to_param.*", "clip_l")}
    source = tmp_path / "one.safetensors"
    save_file(layer | {f"{A}.alpha": torch.tensor(4.0)} | bundle, source)
    for name, given in (("resize_lora", {"new_rank": 2}), ("convert_lora", {"names": "diffusers"})):
        path, _ = use(name=name, file=str(source), **given)
        found = load_file(path)
        assert all(torch.equal(found[key], value) for key, value in bundle.items())
    path, _ = use(name="convert_lora", file=str(path), names="kohya")
    assert bundle.keys() <= load_file(path).keys()
    path, lines = use(name="merge_loras", models=[str(source)], ratios="1", output=str(tmp_path / "m.safetensors"))
    assert not bundle.keys() & load_file(path).keys() and any("bundle_emb.mi.ra.clip_l" in line for line in lines)
    assert tokens_in(source) == ["mi.ra"]


def test_biases_of_peft_are_kept_as_the_changes_that_they_are_and_whole_ones_are_named(tmp_path):
    path, drawn = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q", torch.Generator().manual_seed(4)
    tensors = {
        f"{path}.lora_A.weight": torch.randn(4, 40, generator=drawn),
        f"{path}.lora_B.weight": torch.randn(40, 4, generator=drawn),
        f"{path}.lora_B.bias": torch.ones(40),
    }
    config = {"unet.r": 4, "unet.lora_alpha": 2}
    metadata = {"lora_adapter_metadata": json.dumps(config)}
    save_file(tensors | {f"{path}.bias": torch.ones(40)}, tmp_path / "whole.safetensors", metadata)
    save_file(tensors, tmp_path / "peft.safetensors", metadata)
    files = [str(tmp_path / f"{name}.safetensors") for name in ("whole", "peft")]
    for given in ({"name": "resize_lora", "file": files[0], "new_rank": 2}, {"name": "merge_loras", "models": [files[0]]},
                  {"name": "split_dylora", "model": files[0], "unit": 2}):  # fmt: skip
        made, lines = use(**given, output=str(tmp_path / f"{given['name']}.safetensors"))
        assert torch.equal(load_file(made)[f"{A}.diff_b"], torch.full((40,), 0.5)), given["name"]
        assert any(f"{A}.bias" in line for line in lines), given["name"]
        assert not any(f"{A}.lora_B.bias" in line for line in lines)


def test_an_alpha_that_is_no_number_is_named(tmp_path):
    tensors = load_file(VECTORS / "mr_a.safetensors") | {f"{A}.alpha": torch.tensor(torch.nan)}
    save_file(tensors, tmp_path / "nan.safetensors")
    facts, _ = use(name="check_weights", file=str(tmp_path / "nan.safetensors"))
    assert facts["damaged"] == [f"{A}.alpha"]
    for task in ("singular_values", "resize_lora"):
        with pytest.raises(ProblemsError) as error:
            use(name=task, file=str(tmp_path / "nan.safetensors"))
        assert error.value.codes == ["weights.not-finite"] and f"{A}.alpha" in str(error.value)


@pytest.mark.slow
def test_checks_before_a_start_load_no_torch(tmp_path):
    upscaler, images = tmp_path / "upscaler.safetensors", tmp_path / "images"
    save_file(LatentUpscaler().state_dict(), upscaler)
    images.mkdir()
    Image.new("RGB", (16, 16)).save(images / "a.png")
    first, second, starter = (str(VECTORS / "mr_a.safetensors"), str(VECTORS / "mr_b.safetensors"), str(STARTER))
    tuned = shutil.copytree(STARTER, tmp_path / "tuned")
    narrow = []
    for dtype in (torch.float8_e4m3fn, torch.float8_e5m2):  # of the alphas
        narrow.append(str(tmp_path / f"{dtype}.safetensors"))
        layers = {key: value.to(dtype) if key.endswith("alpha") else value for key, value in load_file(first).items()}
        save_file(layers, narrow[-1])
    asked = {
        "resize_lora": {"file": narrow[0]},
        "merge_loras": {"models": [first, second]},
        "extract_lora": {"model_org": starter, "model_tuned": str(tuned), "conv_dim": 4},
        "split_dylora": {"model": first, "unit": 4},
        "convert_lora": {"file": narrow[1], "names": "diffusers"},
        "interrogate_lora": {"file": first, "base_model": starter},
        "compare_loras": {"file": first, "other": second},
        "merge_lora_to_model": {"file": starter, "models": [first]},
        "convert_model": {"file": starter, "save_precision": "bf16"},
        "merge_models": {"models": [starter, str(tuned)], "saving_precision": "fp16"},
        "extract_vae": {"file": starter},
        "bake_vae": {"file": starter, "vae": str(tuned / "vae")},
        "latent_upscaler": {"images": str(images), "vae": starter, "weights": str(upscaler)},
        "edit_metadata": {"file": first, "set_keys": ["a=b"], "thumbnail": str(images / "a.png")},
    }
    code = f"""
import sys
from core import tasks
from core.record.problems import ProblemsError
from core.record.workspace import Workspace
from core.settings.check import build
for name, given in {asked!r}.items():
    task = tasks.named(name)
    elsewhere = name in ("compare_loras", "interrogate_lora", "latent_upscaler")
    output = {{}} if elsewhere else {{"output": {str(tmp_path)!r} + "/" + name + ".safetensors"}}
    try:
        print(task.check_job(build(task.job, {{name: given | output}}), Workspace()))
    except ProblemsError as error:
        print(*error.codes)
    assert "torch" not in sys.modules, name
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert "extract 303 layers" in ran.stdout and "23.5 MB" in ran.stdout
    assert "merge 2 models" in ran.stdout and "upscale 1 image" in ran.stdout
