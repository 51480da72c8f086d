"""Hostile ControlNet and LLLite files: those of the smallest model, of every form, with one thing made wrong."""

from __future__ import annotations

import json
import random
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import save

from tests.hostile.changes import Files, changed
from tests.hostile.model_files import Readers, safetensors_file
from tests.models import tiny_configs, tiny_folder

KEYS = ("transformer_blocks.0.", "controlnet_down_blocks.0.", "zero_convs.0.", "lllite_unet_")
OTHER = ("transformer_blocks.99999999.", "transformer_blocks.98.", "zero_convs." + "9" * 5000 + ".0.", "", "x" * 300)


@cache
def unet() -> Any:
    from core.families import family

    return family("sd1").make_empty("unet", tiny_configs("sd1")["unet"]).to_empty(device="cpu").requires_grad_(False)


@cache
def model() -> TemporaryDirectory[str]:
    """The folder of the base model."""
    folder = TemporaryDirectory()
    tiny_folder("sd1", Path(folder.name))
    return folder


@cache
def good() -> tuple[bytes, ...]:
    from core.control.controlnet import from_unet
    from core.control.controlnet_file import to_ldm
    from core.control.lllite import LLLite, lllite_targets

    for weight in unet().parameters():
        torch.nn.init.zeros_(weight)
    net = {key: value.half() for key, value in from_unet(unet(), 0).state_dict().items()}
    ldm = {f"control_model.{to_ldm(key, 'sd1')}": value for key, value in net.items()}
    lite = LLLite.create(lllite_targets(unet(), "sd1"), 4, 4, 0).state_dict()
    return save(net), save(ldm), save({**ldm, "difference": torch.zeros(1)}), save(lite)


def make(folder: Path, case: int) -> Path:
    data, draw = good()[case % 4], random.Random(f"control {case}")
    length = int.from_bytes(data[:8], "little")
    header, body, way = data[8 : 8 + length], data[8 + length :], draw.randrange(4)
    if case > 3 and way == 0:
        data = data[: draw.randrange(len(data))]
    elif case > 3 and way == 1:
        header = changed(header, draw)
        data = len(header).to_bytes(8, "little") + header + body
    elif case > 3:
        listing = json.loads(header)
        name = draw.choice(list(listing))
        if way == 2:
            found = draw.choice([key for key in KEYS if key in header.decode()])
            named = draw.choice([key for key in listing if found in key])
            listing[named.replace(found, draw.choice(OTHER))] = listing.pop(named)
        else:
            listing[name] = draw.choice(
                ({**listing[name], "shape": [0, *listing[name]["shape"]]}, {**listing[name], "dtype": "I16"}, {})
            )
        data = safetensors_file(listing, body)
    path = folder / "net.safetensors"
    path.write_bytes(data)
    return path


def readers() -> Readers:
    from core.control.controlnet_file import load_control_net, net_for_file, open_control_net
    from core.control.lllite import lllite_targets
    from core.control.lllite_file import load_lllite, sizes_of

    places = lllite_targets(unet(), "sd1")
    return {
        "header": lambda path: net_for_file(open_control_net(path), unet().config, "sd1"),
        "of sdxl": lambda path: net_for_file(open_control_net(path), SDXL, "sdxl"),
        "control net": lambda path: load_control_net(path, unet(), "sd1", Path(model().name)),
        "sizes": sizes_of,
        "lllite": lambda path: load_lllite(path, places, "sd1"),
    }


SDXL = tiny_configs("sdxl")["unet"]
FAMILIES: Files = {"control nets": (make, readers)}
