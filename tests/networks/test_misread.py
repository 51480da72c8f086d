"""The table of programs and network kinds, against small restatements of how the programs read a layer."""

import pytest
import torch

from core.formats.lora.names import group_by_module
from core.networks.adapter_file import LoraFile, lora_outline, save_lora
from core.networks.kinds import kinds
from core.networks.misread import misread_problems, table
from core.settings.check import build
from core.settings.job import TrainJob
from core.settings.readers import NAMES_OF_KOHYA, PROGRAMS, program_of
from core.settings.rules import training_problems
from tests.docs.guide import DOCS
from tests.networks.test_kinds import CASES, Tiny, job_of, trained

LORA = {"lora_up.weight", "lora_down.weight"}
GLORA = ("a1.weight", "a2.weight", "b1.weight", "b2.weight")


def tucker(core, outs, ins):
    # Which those programs do not install: it lays the result out otherwise
    with torch.backends.opt_einsum.flags(enabled=False):
        return torch.einsum("i j k l, j r, i p -> p r k l", core, ins, outs)


def difference(layer, contiguous=False):
    """The change of kinds that add one and its scale, as all programs compute it; None without their keys. contiguous: A1111 copies
    LoKr's core, whose product torch.kron cannot view otherwise"""
    alpha, get = layer.get("alpha"), layer.get
    if "diff" in layer:
        return layer["diff"], 1.0
    if layer.keys() >= LORA:
        up, down = layer["lora_up.weight"].flatten(1), layer["lora_down.weight"]
        if (mid := get("lora_mid.weight")) is not None:
            down = torch.einsum("rqhw, qi -> rihw", mid, down.flatten(1))
        return up @ down.flatten(1), 1.0 if alpha is None else alpha / len(down)
    if "hada_w1_a" in layer:
        sides = [
            tucker(layer[f"hada_t{n}"], layer[f"hada_w{n}_a"], layer[f"hada_w{n}_b"])
            if f"hada_t{n}" in layer
            else layer[f"hada_w{n}_a"] @ layer[f"hada_w{n}_b"]
            for n in (1, 2)
        ]
        return sides[0] * sides[1], alpha / len(layer["hada_w1_b"])
    if "lokr_w1" in layer or "lokr_w1_a" in layer:
        ranks = [len(layer[key]) for key in ("lokr_w1_b", "lokr_w2_b") if key in layer]
        w1 = layer["lokr_w1"] if "lokr_w1" in layer else layer["lokr_w1_a"] @ layer["lokr_w1_b"]
        if "lokr_t2" in layer:
            w2 = tucker(layer["lokr_t2"], layer["lokr_w2_a"], layer["lokr_w2_b"])
        else:
            w2 = layer["lokr_w2"] if "lokr_w2" in layer else layer["lokr_w2_a"] @ layer["lokr_w2_b"]
        w1 = w1[:, :, None, None] if w2.ndim == 4 else w1
        return torch.kron(w1, w2.contiguous() if contiguous else w2), alpha / ranks[
            -1
        ] if ranks and alpha is not None else 1.0
    return None


def norms(weight, dim):
    return torch.linalg.vector_norm(weight, dim=[each for each in range(weight.ndim) if each != dim], keepdim=True)


def turns(layer, limit):
    q = layer["oft_blocks"] - layer["oft_blocks"].transpose(-1, -2)
    q = q * min(1.0, float(limit / (q.norm() + 1e-8))) if limit is not None else q
    eye = torch.eye(q.shape[-1])
    return (eye + q) @ (eye - q).inverse()


def turned(weight, blocks):
    return torch.einsum("k n m, k n ... -> k m ...", blocks, weight.unflatten(0, blocks.shape[:2])).flatten(0, 1)


def butterfly(weight, stages):
    for number, blocks in enumerate(stages):
        apart = 2**number * (blocks.shape[-1] // 2)
        mixed = weight.unflatten(0, (-1, 2, apart)).transpose(1, 2).flatten(0, 2).unflatten(0, (-1, blocks.shape[-1]))
        mixed = torch.einsum("b i j, b j ... -> b i ...", blocks, mixed).flatten(0, 1)
        weight = mixed.unflatten(0, (-1, apart, 2)).transpose(1, 2).flatten(0, 2)
    return weight


def comfyui(name, layer, weight):
    """Its weight adapters: LoRA, LoHa, LoKr, GLoRA, OFT and BOFT by `oft_blocks`; no prefix of sd-scripts' OFT, no (IA)^3."""
    if name.startswith("oft_unet_"):
        return None
    if "oft_blocks" in layer:
        limit = layer["alpha"] if layer.get("alpha", 0) > 0 else None  # not times the output width
        if layer["oft_blocks"].ndim == 3:
            return turned(weight, turns(layer, limit))  # the rescale is loaded and not used
        return butterfly(weight, turns(layer, limit)) * layer.get("rescale", 1.0)
    return forge(name, layer, weight)


def forge(name, layer, weight):
    """The same without OFT: a file with keys that are left is refused."""
    if all(key in layer for key in GLORA):
        a1, a2, b1, b2 = (layer[key].flatten(1) for key in GLORA)
        on_input = torch.einsum("o i ..., i j -> o j ...", weight, a1 @ a2)
        return weight + layer["alpha"] / len(a2) * (on_input + (b1 @ b2).view(weight.shape))
    if (found := difference(layer)) is None:
        return None
    whole = weight + found[0].reshape(weight.shape) * found[1]
    if (scale := layer.get("dora_scale")) is None:
        return whole
    per_output = scale.shape[0] == weight.shape[0]
    return whole * scale / (norms(weight, 0) if per_output else norms(whole, 1))  # of the unchanged weight


def a1111(name, layer, weight):
    """Its module types; `oft_blocks` are sd-scripts' OFT, of any name but sd-scripts' own on SD 1.x."""
    if name.startswith("oft_unet_"):
        return None
    if "oft_blocks" in layer:
        assert layer["oft_blocks"].ndim == 3, "transposes the wrong dimensions"
        return turned(weight, turns(layer, layer["alpha"] * len(weight))) * layer.get(
            "rescale", torch.ones(())
        ).reshape(-1, *(1 for _ in weight.shape[1:]))
    if "on_input" in layer:
        return weight + weight * (layer["weight"] if layer["on_input"] else layer["weight"].reshape(-1, 1))
    if all(key in layer for key in GLORA):
        a1, a2, b1, b2 = (layer[key].flatten(1) for key in GLORA)
        return weight + layer["alpha"] / len(b1) * (b2 @ b1 + (weight @ a2) @ a1)  # LyCORIS' former layout
    if (found := difference(layer, contiguous=True)) is None:
        return None
    whole = weight + found[0].reshape(weight.shape) * found[1]
    return whole * layer["dora_scale"] / norms(whole, 1) if "dora_scale" in layer else whole


def invokeai(name, layer, weight):
    """Its layer classes: DoRA over LoRA without Tucker, (IA)^3 without a look at the weight's form; it raises at keys of other kinds."""
    if "dora_scale" in layer:
        assert "hada_w1_a" not in layer and "lokr_w1" not in layer and "lokr_w1_a" not in layer
        up, down = layer["lora_up.weight"].flatten(1), layer["lora_down.weight"].flatten(1)
        whole = weight + (up @ down).reshape(weight.shape) * layer["alpha"] / len(down)
        return whole * layer["dora_scale"] / norms(whole, 1)
    if "on_input" in layer:
        return weight + weight * (layer["weight"] if layer["on_input"] else layer["weight"].reshape(-1, 1))
    if (found := difference(layer, contiguous=True)) is None:
        return None
    return weight + found[0].reshape(weight.shape) * found[1]


def diffusers(name, layer, weight):
    """Of kohya's names: LoRA alone; `dora_scale` is dropped with a warning."""
    plain = layer.keys() <= LORA | {"alpha"}
    return forge(name, layer, weight) if plain and not name.startswith("oft_unet_") else None


READERS = dict(zip(PROGRAMS, (comfyui, forge, a1111, invokeai, diffusers), strict=True))


def is_read(program, network, layers):
    """Whether a program makes of every layer what the network is."""
    for name, adapter in zip(layers, network.adapters.values(), strict=True):
        weight = adapter.module.weight.detach().clone()
        try:
            found = READERS[program](name, layers[name], weight)
        except (RuntimeError, AssertionError):
            return False
        wanted = adapter.merged(weight)
        if found is None or found.shape != wanted.shape or not torch.allclose(found, wanted, rtol=1e-4, atol=1e-5):
            return False
    return True


@pytest.mark.parametrize("case", CASES)
def test_the_table_says_of_every_kind_and_option_what_the_programs_read(case, tmp_path):
    torch.manual_seed(0)
    with torch.no_grad():
        network = trained(case, Tiny().requires_grad_(False), rank=4)
        tensors = {key: value.detach() for key, value in network.saved().items()}
        layers = group_by_module(tensors)
        read = {program for program in PROGRAMS if is_read(program, network, layers)}
        told = {program for program in PROGRAMS if not misread_problems(LoraFile(tensors), (program,))}
    assert told == read
    save_lora(tmp_path / "t.safetensors", tensors, {})
    # As at the end of a training: shapes and single numbers, no values
    by_file = lora_outline(tmp_path / "t.safetensors")
    assert told == {program for program in PROGRAMS if not misread_problems(by_file, (program,))}
    advice = [each for each in training_problems(job_of(case, rank=4)) if each.code == "network.misread"]
    assert bool(advice) == bool(set(NAMES_OF_KOHYA) - read), "the advice before a training says the same"
    for program in set(NAMES_OF_KOHYA) - read:
        assert any(program in each.what for each in advice)


def test_the_guide_has_the_table():
    lines = (DOCS / "lora.md").read_text("utf-8").splitlines()
    missing = [line for line in table() if line not in lines]
    assert not missing, "copy these lines into docs/lora.md:\n" + "\n".join(missing)
    assert len(table()) >= len(kinds()) + 3


def test_a_lora_is_read_by_all_and_gives_no_advice():
    assert not [each for each in training_problems(build(TrainJob, {})) if each.code == "network.misread"]


def test_folders_tell_their_program(tmp_path):
    for path, program in (
        ("ComfyUI/models/loras", "ComfyUI"),
        ("ai/stable-diffusion-webui-forge/models/Lora", "Forge"),
        ("stable-diffusion-webui/models/Lora", "A1111"),
        ("invokeai/autoimport/lora", "InvokeAI"),
        ("mine/loras", None),
    ):
        assert program_of(tmp_path / path) == program
