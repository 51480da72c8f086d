"""Hostile network and embedding files: one of each registered kind, with the names of every program, and one thing made wrong."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from tests.hostile.changes import Files, change_json, changed
from tests.hostile.model_files import Bad, Readers, _reshaped, entry, safetensors_file

UNET, TEXT = (
    "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k",
    "lora_te_text_model_encoder_layers_0_mlp_fc1",
)
CONV = "lora_unet_mid_block_resnets_0_conv1"
LAYERS = (UNET, TEXT, CONV, "lora_unet_down_blocks_0_attentions_0_proj_in")


@cache
def targets() -> tuple[Any, ...]:
    """A few layers of the smallest model: Linear, 1x1 and 3x3."""
    from core.families import family
    from core.networks.files import targets_of
    from core.record.workspace import PROJECT

    found = targets_of(family("sd1").load(PROJECT / "models" / "starter"))
    return tuple(target for target in found if target.name in LAYERS)


@cache
def kohya() -> dict[str, dict[str, torch.Tensor]]:
    """{kind: the tensors of its file}."""
    from core.networks.kinds import kinds
    from core.networks.network import Network
    from core.settings.network import NetworkSettings

    size = {"rank": 2, "alpha": 1.0, "conv_rank": 2, "train_text_encoder": True}
    found = {}
    for name, kind in kinds().items():
        own = kind.settings() if kind.settings is not None else None
        network = Network.create(targets(), NetworkSettings(kind=name, **size), 1, kind_settings=own)
        found[name] = {key: value.detach().contiguous().clone() for key, value in network.saved().items()}
    return found


def schemes() -> dict[str, Callable[[str, str], str]]:
    """{program: (layer, key) -> name}, where kohya's layer has a path."""
    from core.formats.lora.names import module_path
    from core.formats.models.sd_keys import unet_to_ldm

    letters = {
        "lora_down.weight": "lora_A.weight",
        "lora_up.weight": "lora_B.weight",
        "dora_scale": "lora_magnitude_vector",
    }

    def path(layer: str, joined: str = ".") -> str:
        return joined.join(module_path(layer.replace("oft_unet_", "lora_unet_")) or ("unet", layer))

    def comfyui(layer: str, key: str) -> str:
        part, inner = module_path(layer.replace("oft_unet_", "lora_unet_")) or ("unet", layer)
        start = "diffusion_model." if part == "unet" else "text_encoders.clip_l.transformer."
        return f"{start}{unet_to_ldm(inner) if part == 'unet' else inner}.{key}"

    return {
        "kohya": lambda layer, key: f"{layer}.{key}",
        "peft": lambda layer, key: f"{path(layer)}.{letters.get(key, key)}",
        "peft model": lambda layer, key: f"base_model.model.{path(layer)}.{letters.get(key, key)}",
        "old": lambda layer, key: f"{path(layer)}.{key.replace('lora_', 'lora.')}",
        "comfyui": comfyui,
        "lycoris": lambda layer, key: f"lycoris_{path(layer, '_').replace('.', '_')}.{key}",
        "modules": lambda layer, key: f"{path(layer)}.{key}",
    }


def good(draw: random.Random) -> bytes:
    if draw.random() < 0.1:
        return save(
            draw.choice(({"<fox>": torch.ones(2, 768), "<cup>": torch.ones(768)}, {"clip_l": torch.ones(1, 768)}))
        )
    kind, scheme = draw.choice(sorted(kohya())), draw.choice(sorted(schemes()))
    named = schemes()[scheme]
    tensors = {named(*key.split(".", 1)): value.clone() for key, value in kohya()[kind].items()}
    config = json.dumps(
        {"unet.r": 2, "unet.lora_alpha": 4, "r": 2, "lora_alpha": 1, "unet.alpha_pattern": {"mid_block": 1}}
    )
    return save(tensors, {"lora_adapter_metadata": config, "ss_network_module": draw.choice(("networks.dylora", "x"))})


def change(draw: random.Random) -> bytes:
    data = good(draw)
    if draw.random() < 0.25:
        return changed(data, draw)
    length = int.from_bytes(data[:8], "little")
    listing, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    if draw.random() < 0.5:
        listing = _foreign(_reshaped(listing, draw) if draw.random() < 0.6 else listing, draw)
        return safetensors_file(listing, body if draw.random() < 0.7 else draw.randbytes(len(body)))
    if draw.random() < 0.4:
        text = listing["__metadata__"]["lora_adapter_metadata"] if "__metadata__" in listing else "{}"
        config = change_json(json.loads(text), draw)
        listing["__metadata__"] = {"lora_adapter_metadata": json.dumps(config)}
        return safetensors_file(listing, body)
    return safetensors_file(change_json(listing, draw), body)


def _foreign(listing: dict[str, Any], draw: random.Random) -> dict[str, Any]:
    """Names of other layers, kinds and programs among the file's own."""
    keys = sorted({key.split(".", 1)[1] for tensors in kohya().values() for key in tensors})
    found: dict[str, Any] = {}
    for name, value in listing.items():
        way = draw.random()
        if name == "__metadata__" or way < 0.7:
            found[name] = value
        elif way < 0.85:
            found[f"{name.rpartition('.')[0]}.{draw.choice(keys)}"] = value
        elif way < 0.95:
            found[draw.choice(sorted(schemes().values(), key=str))(draw.choice(LAYERS), draw.choice(keys))] = value
    return found


def bombs() -> list[Bad]:
    many = {f"unet{'.attn1.processor' * 20}.to_q{n}_lora.down.weight": entry([0], 0, 0) for n in range(15_000)}
    deep = {f"lora_unet{'_down_blocks' * 5000}.lora_down.weight": entry([1])}
    dots = {f"unet{'.lora_' * 20_000}A.weight": entry([1]), f"base_model.model{'.lora.' * 20_000}": entry([1])}
    tokens = {f"<{n}>": entry([1, 1]) for n in range(199)}
    pattern = json.dumps(
        {"r": 1, "lora_alpha": 1, "alpha_pattern": {"(a+)+$": 1, **{str(n): n for n in range(20_000)}}}
    )
    layer = "base_model.model.mid_block" + ".x" * 2000
    adapter = {f"{layer}.lora_A.weight": entry([1, 1]), f"{layer}.lora_B.weight": entry([1, 1])}
    return [
        ("many processors", partial(safetensors_file, many, b"")),
        ("a long layer", partial(safetensors_file, deep, bytes(4))),
        ("many endings", partial(safetensors_file, dots, bytes(4))),
        ("many tokens", partial(safetensors_file, tokens, bytes(4))),
        ("an expression", partial(safetensors_file, {**adapter, "__metadata__": {"lora_adapter_metadata": pattern}}, bytes(4))),
    ]  # fmt: skip


def readers() -> Readers:
    from core.formats.detect import identify
    from core.formats.embedding_file import tokens_in
    from core.networks.adapter_file import load_lora, to_diffusers, to_kohya
    from core.networks.network import Network
    from core.record.workspace import Workspace
    from core.settings.tools.model_files import ConvertLoraSettings
    from core.tools.loras.convert_lora import plan
    from core.tools.models.inspect import fact_lines, inspect

    def network(path: Path) -> None:
        """Its change of each weight, as merging computes it."""
        made = Network.from_tensors(load_lora(path).tensors, targets())
        with torch.no_grad():
            for adapter in made.adapters.values():
                adapter.merged(adapter.module.weight.float())

    def small(path: Path) -> None:
        if path.is_file() and path.stat().st_size < 1 << 30:
            fact_lines(inspect(path))

    return {
        "identify": identify,
        "header": lambda path: load_lora(path, shapes=True),
        "network": network,
        "diffusers": lambda path: to_diffusers(load_lora(path), fold_alpha=True),
        "kohya": lambda path: to_kohya(load_lora(path)),
        "inspect": small,
        "tokens": tokens_in,
        "conversion": lambda path: plan(ConvertLoraSettings(file=str(path), names="diffusers"), Workspace()),
    }


ADAPTERS = Files(
    "adapter.safetensors",
    lambda: good(random.Random(0)),
    [(f"{name}.safetensors", data) for name, data in bombs()],
    change,
)
FAMILIES = {"adapters": (ADAPTERS, readers)}
