"""LoRAs merged: what sd-scripts computes, the exact sum, and what is refused."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from core.formats.lora.names import group_by_module
from core.networks.adapter_file import save_lora
from core.record.workspace import Workspace
from core.settings.tools.loras import MergeLorasSettings
from core.tools.loras.merge_loras import plan
from tests.tools.loras.test_resize_lora import CASES, DOWN, NORM, UP, VECTORS, A, changes, of_case
from tests.tools.models.test_file_metadata import refusals
from tests.tools.test_tools import use

FILES = [str(VECTORS / f"mr_{name}.safetensors") for name in "abc"]
SD1 = {"ss_base_model_version": "sd_v1"}
MERGES = [name for name, case in CASES.items() if case["tool"] in ("merge_lora", "svd_merge_lora")]


def merged(tmp_path, models, **asked):
    path, _ = use(
        name="merge_loras", models=list(map(str, models)), output=str(tmp_path / "merged.safetensors"), **asked
    )
    return load_file(path), metadata_of(path)


def metadata_of(path):
    with safe_open(path, "pt") as file:
        return file.metadata()


def one(path, up=2.0, down=3.0, alpha=1.0, layer=A):
    """The scalar LoRA: a change of 6 at alpha 1."""
    tensors = {f"{layer}.{UP}": torch.full((1, 1), up), f"{layer}.{DOWN}": torch.full((1, 1), down)}
    return str(save_lora(path, tensors | {f"{layer}.alpha": torch.tensor(alpha)}, {"ss_base_model_version": "sd_v1"}))


def test_the_merge_of_a_runs_checkpoint_is_named_after_all_runs_and_saved_in_models(tmp_path):
    space = Workspace(outputs=tmp_path / "outputs", models=tmp_path / "models")
    names = ("20260101-120000_fox/checkpoints/fox-step00000020", "20260102-120000_owl, look/checkpoints/owl")
    files = [space.runs / f"{name}.safetensors" for name in names]
    for file in files:
        file.parent.mkdir(parents=True)
        one(file)
    alone = tmp_path / "mine.safetensors"
    one(alone)

    def target(*models):
        return plan(MergeLorasSettings(models=[str(each) for each in models]), space).target

    assert target(*files) == space.models / "loras" / "fox_owl_merged.safetensors"
    assert target(files[0], files[0], alone) == space.models / "loras" / "fox_mine_merged.safetensors"
    assert target(alone, files[0]) == tmp_path / "mine_merged.safetensors"


def numbers_of(tensors):
    return {key.partition(".")[2]: value.flatten().tolist() for key, value in tensors.items()}


@pytest.mark.parametrize("name", MERGES)
def test_with_compatibility_it_is_what_sd_scripts_computes(name, tmp_path):
    case = CASES[name]
    models = [str(VECTORS / file) for file in case["files"]]
    svd = case["tool"] == "svd_merge_lora"
    method = "svd" if svd else "concat" if case.get("concat") else "plain"
    asked = {"ratios": ", ".join(map(str, case["ratios"])), "method": method, "compatibility": "sd-scripts"}
    asked |= {key: case[key] for key in ("new_rank", "new_conv_rank") if key in case}
    if "error" in case:
        assert refusals(name="merge_loras", models=models, **asked) == ["merge.other-rank"]
        return
    found, metadata = merged(tmp_path, models, **asked)
    wanted = of_case(name)
    assert {key: value.shape for key, value in found.items()} == {key: value.shape for key, value in wanted.items()}
    for key, value in wanted.items():
        ours = found[key].abs() if svd else found[key]  # up to signs
        theirs = value.abs() if svd else value
        if not svd or key.endswith("alpha"):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    for layer, change in changes(found).items():
        torch.testing.assert_close(change, changes(wanted)[layer], rtol=1e-3, atol=1e-4)
    assert {key: metadata[key] for key in case["metadata"]} == case["metadata"]


@pytest.mark.parametrize("method", ["concat", "svd"])
def test_the_sum_is_exact_for_other_ranks_and_alphas_and_negative_ratios(method, tmp_path):
    rank = {"new_rank": 64} if method == "svd" else {}
    found, metadata = merged(tmp_path, FILES, ratios="0.7, -0.4, 1.5", method=method, **rank)
    sources, given = [changes(load_file(path)) for path in FILES], (0.7, -0.4, 1.5)
    for name, change in changes(found).items():
        wanted = sum(w * each[name] for w, each in zip(given, sources, strict=True) if name in each)
        torch.testing.assert_close(change, wanted, rtol=1e-5, atol=1e-5)
    made_of = json.loads(metadata["sd_merge_models"])
    assert [each["name"] for each in made_of.values()] == ["mr_a.safetensors", "mr_b.safetensors", "mr_c.safetensors"]
    assert metadata["modelspec.merged_from"] == "mr_a, mr_b, mr_c" and all(len(sha) == 64 for sha in made_of)


def test_peft_gives_the_same_by_concatenation_and_by_singular_values(tmp_path):
    from peft import LoraConfig, get_peft_model

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(40, 40, bias=False)

    files = [group_by_module(load_file(path))[A] for path in FILES[:2]]
    config = {"r": 8, "target_modules": ["layer"]}
    model = get_peft_model(Model(), LoraConfig(lora_alpha=4, **config), "one")
    model.add_adapter("two", LoraConfig(lora_alpha=2, **config))
    layer = model.base_model.model.layer
    for name, tensors in zip(("one", "two"), files, strict=True):
        layer.lora_A[name].weight.data, layer.lora_B[name].weight.data = tensors[DOWN], tensors[UP]
    for kind, method, asked in (("cat", "concat", {}), ("svd", "svd", {"new_rank": 3, "new_conv_rank": 3})):
        ranks = {"svd_rank": 3} if kind == "svd" else {}
        model.add_weighted_adapter(["one", "two"], [0.6, 0.4], kind, combination_type=kind, **ranks)
        theirs = layer.lora_B[kind].weight @ layer.lora_A[kind].weight * layer.scaling[kind]
        found, _ = merged(tmp_path / kind, FILES[:2], ratios="0.6, 0.4", method=method, **asked)
        torch.testing.assert_close(changes(found)[A].float(), theirs.detach(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", ["concat", "svd", "plain"])
def test_changes_of_biases_and_norm_layers_are_summed_by_ratio_and_block(method, tmp_path):
    files = []
    for number in (1.0, 10.0):
        more = {f"{A}.diff_b": torch.tensor([number]), f"{NORM}.w_norm": torch.tensor([number, 2 * number])}
        more |= {f"{NORM}.b_norm": torch.ones(2)} if number == 1 else {}
        path = tmp_path / f"{number}.safetensors"
        save_file(load_file(one(path)) | more, path, SD1)
        files.append(path)
    found, _ = merged(tmp_path, files, ratios="0.5, -2", method=method, lbws=["", "OUTALL"])
    wanted = {f"{A}.diff_b": [0.5], f"{NORM}.w_norm": [0.5, 1.0], f"{NORM}.b_norm": [0.5, 0.5]}  # the second: 0 in IN01
    assert {key: found[key].tolist() for key in wanted} == wanted
    (tmp_path / "merged.safetensors").unlink()
    found, _ = merged(tmp_path, files, ratios="0.5, -2", method=method)
    wanted = {f"{A}.diff_b": [-19.5], f"{NORM}.w_norm": [-19.5, -39.0], f"{NORM}.b_norm": [0.5, 0.5]}
    assert {key: found[key].tolist() for key in wanted} == wanted
    save_file(load_file(files[1]) | {f"{NORM}.w_norm": torch.ones(3)}, files[1], SD1)
    assert refusals(name="merge_loras", models=list(map(str, files)), method=method) == ["merge.other-shape"]


def test_plain_is_linear_in_the_ratios_but_with_compatibility(tmp_path):
    file = one(tmp_path / "one.safetensors")
    plain = {"method": "plain"}
    for number, (models, ratios, ours, theirs) in enumerate((
        ([file], "0.5", 3.0, 1.5),
        ([file], "-0.5", -3.0, -1.5),
        ([file, file], "0.5, 0.5", 6.0, 6.0),
        ([file, file], "1, 1", 12.0, 24.0),
        ([file, file], "1, -1", 0.0, 0.0),
    )):  # fmt: skip
        place = tmp_path / str(number)
        found, _ = merged(place, models, ratios=ratios, **plain)
        assert float(changes(found)[A]) == pytest.approx(ours)
        found, _ = merged(place / "theirs", models, ratios=ratios, compatibility="sd-scripts", **plain)
        assert float(changes(found)[A]) == pytest.approx(theirs)
    found, _ = merged(tmp_path / "half", [file], ratios="-0.5", compatibility="sd-scripts", **plain)
    assert numbers_of(found) == {"lora_up.weight": [1.0], "lora_down.weight": [-1.5], "alpha": [1.0]}
    strong = one(tmp_path / "strong.safetensors", alpha=4.0)
    for compatibility in ("none", "sd-scripts"):
        asked = {"ratios": "0, 1", "compatibility": compatibility, **plain}
        found, _ = merged(tmp_path / f"alpha{compatibility}", [file, strong], **asked)
        assert float(changes(found)[A]) == pytest.approx(24.0)


def test_concat_keeps_the_strength_that_sd_scripts_halves(tmp_path):
    file = one(tmp_path / "one.safetensors")
    for compatibility, wanted in (("none", 12.0), ("sd-scripts", 6.0)):
        found, _ = merged(tmp_path / compatibility, [file, file], compatibility=compatibility)
        assert found[f"{A}.{DOWN}"].shape == (2, 1) and float(changes(found)[A]) == pytest.approx(wanted)
    found, _ = merged(tmp_path / "difference", [file, file], ratios="1, -1")
    assert float(changes(found)[A]) == 0.0


def test_block_weights_hold_once_but_twice_with_compatibility(tmp_path):
    layer = "lora_unet_down_blocks_1_attentions_0_proj_in"  # IN04
    file = one(tmp_path / "one.safetensors", layer=layer)
    weights = ["1,1,1,0.5" + ",1" * 13]  # BASE, IN01, IN02, IN04 ...
    for method, compatibility, wanted in (
        ("concat", "none", 3.0), ("plain", "none", 3.0), ("svd", "none", 3.0),
        ("plain", "sd-scripts", 1.5), ("concat", "sd-scripts", 1.5), ("svd", "sd-scripts", 3.0),
    ):  # fmt: skip
        asked = {"method": method, "compatibility": compatibility, "lbws": weights}
        found, _ = merged(tmp_path / method / compatibility, [file], **asked)
        change = float(changes(found)[layer])
        assert change == pytest.approx(wanted) or (method, compatibility) == ("svd", "sd-scripts")  # which clamps
    found, _ = merged(tmp_path / "none", [file, file], lbws=["NONE", "[1,1,1,0.5" + ",1" * 13 + "]"])
    assert float(changes(found)[layer]) == pytest.approx(3.0)


def test_shuffling_changes_the_order_of_ranks_by_the_seed_and_not_the_change(tmp_path):
    plain, _ = merged(tmp_path / "0", FILES[:2])
    first, _ = merged(tmp_path / "1", FILES[:2], shuffle=True, seed=1)
    again, _ = merged(tmp_path / "2", FILES[:2], shuffle=True, seed=1)
    other, _ = merged(tmp_path / "3", FILES[:2], shuffle=True, seed=2)
    key = f"{A}.{DOWN}"
    assert torch.equal(first[key], again[key])
    assert not torch.equal(first[key], plain[key]) and not torch.equal(first[key], other[key])
    for name, change in changes(first).items():
        torch.testing.assert_close(change, changes(plain)[name])


def test_other_kinds_are_merged_by_singular_values(tmp_path):
    drawn = torch.Generator().manual_seed(1)
    full = torch.randn(40, 40, generator=drawn)
    save_file({f"{A}.diff": full}, tmp_path / "full.safetensors")
    models = [FILES[0], str(tmp_path / "full.safetensors")]
    assert refusals(name="merge_loras", models=models) == ["merge.needs-svd"]
    found, _ = merged(tmp_path, models, ratios="1, 0.5", method="svd", new_rank=40)
    wanted = changes(load_file(FILES[0]))[A] + 0.5 * full.double()
    torch.testing.assert_close(changes(found)[A], wanted, rtol=1e-4, atol=1e-4)


def described(path, **texts):
    metadata = SD1 | {f"modelspec.{name}": text for name, text in texts.items()}
    return str(save_lora(path, {f"{A}.{UP}": torch.ones(1, 1), f"{A}.{DOWN}": torch.ones(1, 1)}, metadata))


def test_license_and_author_stay_where_all_loras_agree_and_the_others_are_named(tmp_path):
    files = [
        described(tmp_path / "a.safetensors", title="A", license="CC-BY-4.0", author="Mira", trigger_phrase="zkw"),
        described(tmp_path / "b.safetensors", title="B", license="CC-BY-4.0", trigger_phrase="fox"),
    ]
    path, lines = use(name="merge_loras", models=files, output=str(tmp_path / "merged.safetensors"))
    metadata = metadata_of(path)
    assert metadata["modelspec.license"] == "CC-BY-4.0" and metadata["modelspec.title"] == "merged"
    assert not {"modelspec.author", "modelspec.trigger_phrase"} & {*metadata}
    assert "left out, since the files differ: author and trigger phrase" in lines
    file = str(tmp_path / "sd_scripts.safetensors")
    path, lines = use(name="merge_loras", models=files, output=file, compatibility="sd-scripts")
    assert "modelspec.license" not in metadata_of(path)
    assert "left out, as by sd-scripts: author, trigger phrase and license" in lines


def test_precision_hashes_and_clamping_are_as_asked(tmp_path):
    import hashlib

    found, metadata = merged(tmp_path, FILES[:2], save_precision="fp16", no_metadata=True)
    assert found[f"{A}.{UP}"].dtype == torch.float16 and "modelspec.title" not in metadata
    content = (tmp_path / "merged.safetensors").read_bytes()
    # The hash is of the tensors' bytes as they stand in the file, after the cast.
    tail = content[8 + int.from_bytes(content[:8], "little") :]
    assert metadata["sshs_model_hash"] == hashlib.sha256(tail).hexdigest()
    asked = {"method": "svd", "new_rank": 4}
    free, _ = merged(tmp_path / "free", FILES[:2], **asked)
    bounded, _ = merged(tmp_path / "bounded", FILES[:2], clamp_quantile=0.9, **asked)
    assert bounded[f"{A}.{DOWN}"].max() < free[f"{A}.{DOWN}"].max()


@pytest.mark.parametrize("clamp", [{}, {"compatibility": "sd-scripts"}, {"clamp_quantile": 0.9}])
def test_the_kept_norm_is_that_of_the_written_weights(clamp, tmp_path):
    exact, _ = merged(tmp_path / "exact", FILES[:2], method="concat")
    given = {"models": FILES[:2], "method": "svd", "new_rank": 3, "save_precision": "fp32", **clamp}
    path, lines = use(name="merge_loras", output=str(tmp_path / "merged.safetensors"), **given)
    written, shares = changes(load_file(path)), []
    for name, change in changes(exact).items():
        shares.append(max(0.0, 1 - float((change - written[name]).norm() / change.norm()) ** 2) ** 0.5)
    assert f"kept norm: {sum(shares) / len(shares):.1%} on average, {min(shares):.1%} at least" in lines


def test_what_cannot_be_merged_is_refused_before_anything_is_written(tmp_path):
    xl = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q"
    sdxl = one(tmp_path / "xl.safetensors", layer=xl)
    broken = load_file(FILES[0])
    broken[f"{A}.{UP}"][0, 0] = torch.nan
    save_file(broken, tmp_path / "broken.safetensors", {"ss_base_model_version": "sd_v1"})
    small = one(tmp_path / "small.safetensors")
    for asked, codes in (
        ({"models": []}, ["tools.no-file-given"]),
        ({"models": [FILES[0], sdxl]}, ["lora.other-family"]),
        ({"models": [FILES[0], small]}, ["merge.other-shape"]),
        ({"models": FILES[:2], "ratios": "1, x", "lbws": ["ALL"] * 3}, ["merge.bad-ratios", "merge.block-weights"]),
        ({"models": FILES[:2], "ratios": "1"}, ["merge.bad-ratios"]),
        ({"models": FILES[:2], "lbws": ["1,2"]}, ["merge.block-weights"]),
        ({"models": FILES[:2], "output": FILES[1]}, ["tools.output-is-input"]),
        ({"models": [FILES[0], str(tmp_path / "broken.safetensors")]}, ["weights.not-finite"]),
    ):
        given = {"output": str(tmp_path / "out" / "merged.safetensors"), **asked}
        assert refusals(name="merge_loras", **given) == codes, asked
    assert not (tmp_path / "out").exists()


def test_a_loha_whose_kernels_are_flattened_is_merged_with_a_lora_and_written_as_a_convolution(tmp_path):
    name = "lora_unet_down_blocks_0_resnets_0_conv1"
    draw = torch.Generator().manual_seed(1)
    factors = {
        f"hada_w{n}_{side}": torch.randn(*shape, generator=draw)
        for n in (1, 2)
        for side, shape in (("a", (8, 2)), ("b", (2, 36)))
    }
    save_file({f"{name}.{key}": value for key, value in factors.items()}, tmp_path / "loha.safetensors", SD1)
    lora = {
        f"{name}.{UP}": torch.randn(8, 2, 1, 1, generator=draw),
        f"{name}.{DOWN}": torch.randn(2, 4, 3, 3, generator=draw),
    }
    save_file(lora, tmp_path / "lora.safetensors", SD1)
    files = [tmp_path / "loha.safetensors", tmp_path / "lora.safetensors"]
    product = factors["hada_w1_a"] @ factors["hada_w1_b"] * (factors["hada_w2_a"] @ factors["hada_w2_b"])
    wanted = 0.5 * product + 2 * lora[f"{name}.{UP}"].flatten(1) @ lora[f"{name}.{DOWN}"].flatten(1)
    for number, (models, ratios) in enumerate(((files, "0.5, 2"), (files[::-1], "2, 0.5"))):
        found, _ = merged(tmp_path / str(number), models, method="svd", new_rank=8, ratios=ratios)
        assert found[f"{name}.{DOWN}"].shape == (8, 4, 3, 3)
        torch.testing.assert_close(changes(found)[name].float(), wanted, rtol=1e-4, atol=1e-4)
    path, _ = use(
        name="resize_lora", file=str(files[0]), new_rank=8, new_conv_rank=4, output=str(tmp_path / "r.safetensors")
    )
    assert load_file(path)[f"{name}.{DOWN}"].shape == (4, 4, 3, 3)


def test_a_locon_with_a_scalar_is_no_sum_of_two_matrices(tmp_path):
    """Its factors alone are not its change: only the methods that build it can merge it."""
    layer = {f"{A}.{UP}": torch.ones(4, 2), f"{A}.{DOWN}": torch.ones(2, 4), f"{A}.scalar": torch.tensor(0.5)}
    models = [str(save_lora(tmp_path / f"{n}.safetensors", layer, {"ss_base_model_version": "sd_v1"})) for n in "ab"]
    assert refusals(name="merge_loras", models=models) == ["merge.needs-svd"]
    found, _ = merged(tmp_path, models, method="svd")
    torch.testing.assert_close(changes(found)[A], torch.full((4, 4), 2.0).double(), rtol=1e-4, atol=1e-5)
