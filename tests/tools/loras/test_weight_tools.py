"""Weights checked, their singular values, two LoRAs compared, tokens that a LoRA changes: against formulas."""

from __future__ import annotations

import math

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from core import tasks
from core.families import family
from core.families.loading import load
from core.networks.adapter_file import load_lora, save_lora
from core.networks.files import read_network
from core.networks.network import attached
from core.record.workspace import PROJECT, Workspace
from core.settings.check import build
from core.tools.loras import interrogate_lora as interrogation
from core.tools.loras.headers import weight_shape
from core.tools.loras.layers import cell_of
from tests.models import tiny_file, tiny_folder, tiny_lora
from tests.refusals import refused
from tests.tasks import surroundings
from tests.tools.models.test_file_metadata import refusals
from tests.tools.test_tools import CONV, LAYER, METADATA, TEXT, use

STARTER = PROJECT / "models/starter"
DOWN, UP = "lora_down.weight", "lora_up.weight"


def low_rank(path, rank=8, seed=0, metadata=METADATA, **more):
    """A LoRA of random numbers, with alpha 2."""
    draw = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, outs, ins in ((LAYER, 24, 16), (CONV, 12, 16), (TEXT, 16, 16)):
        kernel = (3, 3) if name == CONV else ()
        tensors[f"{name}.{DOWN}"] = torch.randn(rank, ins, *kernel, generator=draw)
        tensors[f"{name}.{UP}"] = torch.randn(outs, rank, *(1 for _ in kernel), generator=draw)
        tensors[f"{name}.alpha"] = torch.tensor(2.0)
    return save_lora(path, tensors | more, metadata)


def change(path, name):
    tensors = load_lora(path).tensors
    up, down = tensors[f"{name}.{UP}"], tensors[f"{name}.{DOWN}"]
    return 2.0 / down.shape[0] * up.flatten(1) @ down.flatten(1)


def shown(facts, title):
    return next(each for each in facts["shown"] if each["title"] == title)


def test_norms_are_those_of_the_change_and_stand_in_their_block(tmp_path):
    path = low_rank(tmp_path / "fox.safetensors")
    facts, lines = use(name="check_weights", file=str(path), png=str(tmp_path / "map.png"))
    for name in (LAYER, CONV, TEXT):
        assert facts["norms"][name] == pytest.approx(float(change(path, name).norm()), rel=1e-5)
    assert facts["norm"] == pytest.approx(math.sqrt(sum(norm**2 for norm in facts["norms"].values())))
    heat = shown(facts, "Norm of the change: U-Net")
    assert heat["columns"] == ["MID"] and heat["rows"] == ["conv1", "proj_in"]
    assert heat["values"][1][0] == pytest.approx(facts["norms"][LAYER], rel=1e-5)
    assert shown(facts, "Norm of the change: Text encoder")["rows"] == ["self_attn.q_proj"]
    assert any("no NaN" in line for line in lines) and Image.open(tmp_path / "map.png").width > 100


def test_damaged_and_untrained_layers_are_named_and_marked(tmp_path):
    bad = torch.full((12, 8, 1, 1), 2e4)
    more = {f"{CONV}.{UP}": bad, f"{TEXT}.{UP}": torch.zeros(16, 8)}
    path = low_rank(tmp_path / "fox.safetensors", **more)
    content = load_file(path)
    content[f"{LAYER}.{UP}"][0, 0] = math.nan
    save_file(content, path, METADATA)
    assert refusals(name="singular_values", file=str(path)) == ["weights.not-finite"]
    assert refusals(name="compare_loras", file=str(path), other=str(path)) == ["weights.not-finite"]
    facts, lines = use(name="check_weights", file=str(path))
    assert facts["damaged"] == sorted([f"{LAYER}.{UP}", f"{CONV}.{UP}"]) and facts["untrained"] == [TEXT]
    assert shown(facts, "Norm of the change: Text encoder")["notes"] == {"self_attn.q_proj|0": "untrained"}
    said = "\n".join(lines)
    assert "DAMAGED: NaN or infinity" in said and "DAMAGED: values above 10,000" in said and "untrained" in said


def test_a_checkpoint_is_checked_tensor_by_tensor(tmp_path):
    path = tiny_file("sd1", tmp_path / "model.safetensors")
    facts, _ = use(name="check_weights", file=str(path))
    heat = shown(facts, "Root mean square of the weights: U-Net")
    state = load_file(path)
    key = "model.diffusion_model.input_blocks.4.1.transformer_blocks.0.attn2.to_q.weight"
    cell = heat["values"][heat["rows"].index("attn2.to_q")][heat["columns"].index("IN04")]
    assert cell == pytest.approx(float(state[key].square().mean().sqrt()), rel=1e-5)
    assert shown(facts, "Root mean square of the weights: Text encoder")["columns"] == ["0", "1", "2"]
    state[key][0, 0] = math.inf
    save_file(state, tmp_path / "bad.safetensors")
    assert use(name="check_weights", file=str(tmp_path / "bad.safetensors"))[0]["damaged"] == [key]


def test_every_layer_of_sdxl_and_sd_has_its_place():
    for name, wanted in (
        ("lora_unet_input_blocks_4_1_transformer_blocks_1_ff_net_0_proj", ("U-Net", "ff.net.0.proj", "IN04")),
        ("lora_unet_middle_block_0_in_layers_2", ("U-Net", "conv1", "MID")),
        ("lora_unet_down_blocks_0_downsamplers_0_conv", ("U-Net", "downsamplers.0.conv", "IN03")),
        (
            "lora_unet_up_blocks_1_attentions_2_transformer_blocks_0_attn1_to_out_0",
            ("U-Net", "attn1.to_out.0", "OUT05"),
        ),
        ("lora_te2_text_model_encoder_layers_31_mlp_fc1", ("Second text encoder", "mlp.fc1", "31")),
    ):
        assert cell_of(name) == wanted


def test_the_rank_that_is_recommended_keeps_what_was_asked(tmp_path):
    """The change has the singular values 4, 2, 1, 0.5: ranks 1 to 4 keep .868, .970, .994 and all of its norm."""
    draw = torch.Generator().manual_seed(0)
    up, down = (torch.linalg.qr(torch.randn(16, 4, generator=draw)).Q for _ in range(2))
    tensors = {f"{TEXT}.{UP}": up * torch.tensor([4.0, 2.0, 1.0, 0.5]), f"{TEXT}.{DOWN}": down.T.contiguous()}
    path = save_lora(tmp_path / "fox.safetensors", tensors, METADATA)
    kept = [math.sqrt(sum(v * v for v in (4, 2, 1, 0.5)[:k]) / 21.25) for k in range(1, 5)]
    for keep, rank in ((0.86, 1), (0.95, 2), (0.99, 3), (0.999, 4)):
        facts, _ = use(name="singular_values", file=str(path), keep=keep)
        assert facts["needed"] == {TEXT: rank} and facts["kept"] == pytest.approx(kept, abs=1e-5)
        assert facts["recommended_rank"] == {3: 4}.get(rank, rank)


def test_singular_values_are_those_of_the_whole_change_for_every_kind(tmp_path):
    path = low_rank(tmp_path / "fox.safetensors")
    facts, lines = use(name="singular_values", file=str(path), png=str(tmp_path / "plot.png"))
    found = torch.zeros(8, dtype=torch.float64)
    for name in (LAYER, CONV, TEXT):
        found += torch.linalg.svdvals(change(path, name).double())[:8].square()
    assert facts["kept"] == pytest.approx((found.cumsum(0) / found.sum()).sqrt().tolist(), abs=1e-5)
    assert (tmp_path / "plot.png").exists() and any("kept norm by rank" in line for line in lines)
    full = {
        f"{TEXT}.diff": change(path, TEXT),
        f"{LAYER}.diff": change(path, LAYER),
        f"{CONV}.diff": change(path, CONV),
    }
    other = save_lora(tmp_path / "full.safetensors", full, METADATA)
    again, _ = use(name="singular_values", file=str(other))
    assert again["kept"][:8] == pytest.approx(facts["kept"], abs=1e-4)


def test_untrained_layers_have_no_singular_values(tmp_path):
    path = low_rank(tmp_path / "fox.safetensors", **{f"{TEXT}.{UP}": torch.zeros(16, 8)})
    assert use(name="singular_values", file=str(path))[0]["needed"].keys() == {LAYER, CONV}
    nothing = {
        f"{name}.{UP}": torch.zeros_like(load_lora(path).tensors[f"{name}.{UP}"]) for name in (LAYER, CONV, TEXT)
    }
    facts, lines = use(name="singular_values", file=str(low_rank(tmp_path / "new.safetensors", **nothing)))
    assert facts == {"shown": []} and len(lines) == 1


def test_cosine_and_difference_are_those_of_the_changes(tmp_path):
    one, other = low_rank(tmp_path / "a.safetensors"), low_rank(tmp_path / "b.safetensors", rank=4, seed=1)
    facts, lines = use(name="compare_loras", file=str(one), other=str(other), png=str(tmp_path / "map.png"))
    for name in (LAYER, CONV, TEXT):
        a, b = change(one, name).flatten(), change(other, name).flatten()
        assert facts["layers"][name]["cosine"] == pytest.approx(float(torch.cosine_similarity(a, b, 0)), abs=1e-5)
        assert facts["layers"][name]["difference"] == pytest.approx(float((a - b).norm()), rel=1e-5)
    assert use(name="compare_loras", file=str(one), other=str(one))[0]["cosine"] == pytest.approx(1)
    heat = shown(facts, "Cosine: U-Net")
    assert heat["span"] == [-1.0, 1.0] and (tmp_path / "map.png").exists()
    text = {key: value for key, value in load_lora(one).tensors.items() if key.startswith(TEXT)}
    alone = save_lora(tmp_path / "text.safetensors", text, METADATA)
    facts, lines = use(name="compare_loras", file=str(one), other=str(alone))
    assert list(facts["layers"]) == [TEXT] and "2 layers only in a.safetensors" in lines


def test_shapes_are_known_for_kinds_whose_change_needs_no_weight():
    for sizes, wanted in (
        ({"lora_up.weight": (6, 2), "lora_down.weight": (2, 4)}, (6, 4)),
        ({"lora_up.weight": (6, 2, 1, 1), "lora_down.weight": (2, 4, 1, 1), "lora_mid.weight": (2, 2, 3, 3)}, (6, 4, 3, 3)),
        ({"hada_w1_a": (6, 2), "hada_w1_b": (2, 36), "hada_w2_a": (6, 2), "hada_w2_b": (2, 36)}, (6, 36)),
        ({"hada_t1": (2, 2, 3, 3), "hada_w1_a": (2, 6), "hada_w1_b": (2, 4),
          "hada_t2": (2, 2, 3, 3), "hada_w2_a": (2, 6), "hada_w2_b": (2, 4)}, (6, 4, 3, 3)),
        ({"diff": (6, 4, 3, 3), "diff_b": (6,)}, (6, 4, 3, 3)),
        ({"lokr_w1": (2, 3), "lokr_w2_a": (4, 2), "lokr_w2_b": (2, 5)}, (8, 15)),
        ({"lokr_w1_a": (2, 2), "lokr_w1_b": (2, 3), "lokr_t2": (2, 2, 3, 3), "lokr_w2_a": (2, 4), "lokr_w2_b": (2, 5)},
         (8, 15, 3, 3)),
        ({"oft_blocks": (4, 8, 8)}, None),
        ({"lora_up.weight": (6, 2), "lora_down.weight": (2, 4), "dora_scale": (1, 4)}, None),
    ):  # fmt: skip
        assert weight_shape({key: torch.zeros(shape) for key, shape in sizes.items()}) == wanted


def test_kinds_that_scale_the_weight_are_measured_with_their_base_model(tmp_path):
    """(IA)^3: the change is the weight times a vector."""
    draw = torch.Generator().manual_seed(0)
    model = load(family("sd1").layout, STARTER, parts=("denoiser",))
    name = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
    target = next(each for each in family("sd1").lora_targets(model.denoiser) if each.name == name)
    weight = target.module.weight
    scale = torch.randn(1, weight.shape[0], generator=draw).reshape(-1, 1)
    tensors = {f"{target.name}.weight": scale, f"{target.name}.on_input": torch.tensor(False)}
    path = save_lora(tmp_path / "fox.safetensors", tensors, METADATA)
    plain = tiny_lora(model, tmp_path / "plain.safetensors")
    for name, more in (("singular_values", {}), ("compare_loras", {"other": str(path), "file": str(plain)})):
        asked = build(tasks.named(name).job, {name: {"file": str(path)} | more})
        with refused("tools.no-layers", f"{name}.base_model"):
            tasks.named(name).check_job(asked, Workspace())
    facts, lines = use(name="check_weights", file=str(path))
    assert facts["norms"] == {} and facts["damaged"] == [] and lines
    damaged = tmp_path / "nan.safetensors"
    save_file(tensors | {f"{target.name}.weight": scale * torch.nan}, damaged, METADATA)
    assert use(name="check_weights", file=str(damaged))[0]["damaged"] == [f"{target.name}.weight"]
    facts, _ = use(name="check_weights", file=str(path), base_model=str(STARTER))
    assert facts["norms"][target.name] == pytest.approx(float((weight * scale).norm()), rel=1e-5)


def test_tokens_are_ranked_by_what_the_lora_changes_of_their_states(tmp_path, monkeypatch):
    model = load(family("sd1").layout, STARTER, parts=("denoiser", "text_encoders", "tokenizers"))
    path = tiny_lora(model, tmp_path / "fox.safetensors")
    assert interrogation.token_count(model.tokenizers[0]) == 49408
    monkeypatch.setattr(interrogation, "token_count", lambda tokenizer: 1000)
    asked = {"file": str(path), "base_model": str(STARTER), "top": 5, "batch_size": 4096}
    facts, lines = use(name="interrogate_lora", **asked)
    found, encoder, tokenizer = facts["tokens"]["Text encoder"], model.text_encoders[0], model.tokenizers[0]
    ends = tokenizer.bos_token_id, tokenizer.eos_token_id
    ids = torch.tensor([[ends[0], token, ends[1]] for token in (found[0]["id"], 500)])
    with torch.no_grad():
        before = encoder(ids).last_hidden_state
        with attached(read_network(model, path, 1.0)):
            changes = (encoder(ids).last_hidden_state - before).abs().mean(dim=(1, 2))
    assert found[0]["score"] == pytest.approx(float(changes[0]), rel=1e-4) and changes[0] > changes[1]
    scores = [row["score"] for row in found]
    assert len(facts["brief"]) == 1 and facts["shown"][0]["columns"][0] == "Token", "the table has the tokens, once"
    assert len(found) == 5 and scores == sorted(scores, reverse=True) and len(lines) == 6
    skipped, _ = use(name="interrogate_lora", **asked, clip_skip=2)
    assert skipped["tokens"]["Text encoder"][0]["score"] != pytest.approx(scores[0])


def test_each_text_encoder_of_sdxl_has_its_own_list(tmp_path, monkeypatch):
    monkeypatch.setattr(interrogation, "token_count", lambda tokenizer: 200)
    folder = tiny_folder("sdxl", tmp_path / "tiny")
    model = load(family("sdxl").layout, folder, parts=("denoiser", "text_encoders", "tokenizers"))
    path = tiny_lora(model, tmp_path / "fox.safetensors")
    facts, _ = use(name="interrogate_lora", file=str(path), base_model=str(folder), top=3)
    first, second = facts["tokens"]["Text encoder 1"], facts["tokens"]["Text encoder 2"]
    assert len(first) == len(second) == 3 and first != second
    encoder, tokenizer = model.text_encoders[1], model.tokenizers[1]
    ids = torch.tensor([[tokenizer.bos_token_id, second[0]["id"], tokenizer.eos_token_id]])
    with torch.no_grad():
        before = encoder(ids, output_hidden_states=True).hidden_states[-2]
        with attached(read_network(model, path, 1.0)):
            after = encoder(ids, output_hidden_states=True).hidden_states[-2]
    assert second[0]["score"] == pytest.approx(float((after - before).abs().mean()), rel=1e-4)


def test_wrong_files_are_refused_at_their_setting(tmp_path):
    one = low_rank(tmp_path / "a.safetensors")
    xl = low_rank(tmp_path / "xl.safetensors", metadata={"ss_base_model_version": "sdxl_base_v1-0"})
    assert refusals(name="check_weights", file="models/starter") == ["tools.is-a-folder"]
    assert refusals(name="compare_loras", file="gone", other="gone") == ["tools.no-such-file"] * 2
    assert refusals(name="compare_loras", file=str(one), other=str(xl)) == ["tools.other-family"]
    assert refusals(name="singular_values", file=str(one), png=str(tmp_path / "a.jpg")) == ["tools.not-a-png"]
    assert refusals(name="singular_values", file="models/starter/unet/diffusion_pytorch_model.safetensors") == [
        "tools.not-a-lora"
    ]
    assert refusals(name="interrogate_lora", file=str(one)) == ["tools.no-base-model"]
    assert refusals(name="interrogate_lora", file=str(xl), base_model="models/starter") == ["tools.other-family"]
    beyond = refusals(name="interrogate_lora", file=str(one), base_model="models/starter", clip_skip=5)
    assert beyond == ["model.clip-skip-layers"]
    unet = {key: value for key, value in load_lora(one).tensors.items() if not key.startswith(TEXT)}
    bare = save_lora(tmp_path / "unet.safetensors", unet, METADATA)
    task = tasks.named("interrogate_lora")
    job = build(task.job, {"interrogate_lora": {"file": str(bare), "base_model": "models/starter"}})
    with refused("tools.no-text-encoder"):
        task.check_job(job, Workspace())
    layers = load_lora(one).tensors
    save_file(layers | {f"{TEXT}.alpha": torch.tensor(torch.nan)}, tmp_path / "alpha.safetensors", METADATA)
    save_file({key: value for key, value in layers.items() if UP not in key}, tmp_path / "half.safetensors", METADATA)
    save_file(layers | {f"{TEXT}.{UP}": layers[f"{TEXT}.{UP}"] * torch.nan}, tmp_path / "nan.safetensors", METADATA)
    for name, code, begin in (
        ("alpha", "weights.not-finite", False),
        ("half", "lora.incomplete", False),
        ("nan", "weights.not-finite", True),
    ):
        path = tmp_path / f"{name}.safetensors"
        job = build(task.job, {"interrogate_lora": {"file": str(path), "base_model": "models/starter"}})
        with refused(code, path) as caught:
            task.start(job, surroundings(Workspace())) if begin else task.check_job(job, Workspace())
        assert [problem.where for problem in caught.value.problems] == ["interrogate_lora.file"]
