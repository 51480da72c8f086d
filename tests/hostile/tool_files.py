"""Hostile files of the model tools: networks and checkpoints that every tool is pointed at, upscalers, VAEs, weights of folders."""

from __future__ import annotations

import json
import os
import random
import shutil
import struct
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from tests.generation.esrgan import esrgan
from tests.hostile.adapter_files import ADAPTERS, kohya
from tests.hostile.changes import Files, change_json, changed, written
from tests.hostile.model_files import (
    START,
    Bad,
    Readers,
    _reshaped,
    entry,
    folder_readers,
    legacy,
    make_checkpoint,
    safetensors_file,
    saved,
    zipped,
)
from tests.models import tiny_folder

STARTER = "models/starter"
LORA_TOOLS: dict[str, dict[str, Any]] = {
    "check_weights": {},
    "singular_values": {},
    "compare_loras": {"other": "good"},
    "merge_loras": {"models": ["", "good"], "method": "concat"},
    "resize_lora": {"new_rank": 1},
    "split_dylora": {},
    "merge_lora_to_model": {"file": STARTER, "models": [""]},
    "convert_lora": {"names": "diffusers"},
    "edit_metadata": {"title": "fox"},
    "strip_metadata": {},
}
MODEL_TOOLS: dict[str, dict[str, Any]] = {
    "merge_models": {"models": ["", "good"]},
    "extract_lora": {"model_org": "good", "model_tuned": "", "dim": 1},
    "bake_vae": {"vae": STARTER},
    "merge_lora_to_model": {"models": ["lora"]},
    "check_weights": {},
    "hashes": {},
    "edit_metadata": {"title": "fox"},
}


def tool(name: str, given: dict[str, Any], good: Callable[[Path], dict[str, Path]]) -> Callable[[Path], Any]:
    """Runs a tool on a file. given: "" stands for it, and a name of `good` for another file; its own setting if neither does."""

    def run(path: Path) -> None:
        from core import tasks
        from core.record.workspace import Workspace
        from core.settings.check import build
        from tests.tasks import surroundings

        if path.is_file() and path.stat().st_size > 1 << 30:  # reading a sparse file takes its hour
            return
        task = tasks.named(name)
        files = {"": str(path)} | {key: str(value) for key, value in good(path.parent.parent).items()}
        asked = {key: _filled(value, files) for key, value in given.items()}
        if "" not in given.values() and [""] not in [value[:1] for value in given.values() if isinstance(value, list)]:
            asked[task.takes] = str(path)
        if "output" in task.job.model_fields[task.own].annotation.model_fields:
            asked["output"] = str(path.parent / "made" / name)
            Path(asked["output"]).parent.mkdir(exist_ok=True)
        task.start(build(task.job, {name: asked}), surroundings(Workspace()))

    return run


def _filled(value: Any, files: dict[str, str]) -> Any:
    if isinstance(value, list):
        return [files.get(each, each) for each in value]
    return files.get(value, value) if isinstance(value, str) else value


def _good_lora(root: Path) -> dict[str, Path]:
    path = root / "good_lora.safetensors"
    return {"good": path if path.exists() else written(root, path.name, save(kohya()["lora"]))}


def _good_checkpoint(root: Path) -> dict[str, Path]:
    return {"good": root / "good.safetensors", "lora": _good_lora(root)["good"]}  # make_checkpoint wrote the first


def lora_tools() -> Readers:
    from core.record.workspace import Workspace
    from core.settings.tools.weights import InterrogateLoraSettings
    from core.tools.loras.interrogate_lora import plan

    def check(path: Path) -> None:
        """Without the states of 49,408 tokens, which take their seconds for any file."""
        plan(InterrogateLoraSettings(file=str(path), base_model=STARTER), Workspace())

    return {name: tool(name, given, _good_lora) for name, given in LORA_TOOLS.items()} | {"interrogate_lora": check}


def model_tools() -> Readers:
    return {name: tool(name, given, _good_checkpoint) for name, given in MODEL_TOOLS.items()}


# ---- upscalers


@cache
def upscalers() -> dict[str, dict[str, torch.Tensor]]:
    """An ESRGAN of each scale and each way to name its tensors."""
    found = {f"folds {folds}": esrgan(folds=folds) for folds in (1, 2)}
    wrapped = {f"params_ema.{name}": value for name, value in found["folds 1"].items()}
    old = {
        name.replace("body.", "RRDB_trunk.").replace("rdb", "RDB").replace("conv_up", "upconv"): value
        for name, value in found["folds 1"].items()
    }
    return found | {"wrapped": wrapped, "old": old}


def upscaler(draw: random.Random) -> dict[str, torch.Tensor]:
    return draw.choice(list(upscalers().values()))


def upscaler_changed(draw: random.Random) -> bytes:
    data = save(upscaler(draw))
    length = int.from_bytes(data[:8], "little")
    listing, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    way = draw.randrange(5)
    if way == 0:
        return changed(data, draw)
    if way == 1:
        return safetensors_file(_reshaped(listing, draw), body)
    if way == 2:
        return safetensors_file(change_json(listing, draw), body)
    for name in draw.sample(list(listing), draw.choice((1, 3, 20))):
        value = listing.pop(name)
        if way == 3:  # of another block, or of none
            number = draw.choice(("7", "99999999", "9" * 5000, "-1", "x", "١"))
            listing[name.replace(".0.", f".{number}.").replace(".1.", f".{number}.")] = value
    return safetensors_file(listing, body)


def upscaler_pickle_changed(draw: random.Random) -> bytes:
    return changed(saved(draw.choice((upscaler(draw), {"params": upscaler(draw)})), draw.random() < 0.5), draw)


def upscaler_bombs() -> list[Bad]:
    def with_shapes(**shapes: list[int]) -> bytes:
        named = {
            "conv_first.weight": [4, 3, 3, 3],
            "conv_last.weight": [3, 4, 3, 3],
            "body.0.rdb1.conv1.weight": [2, 4, 3, 3],
        }
        named |= {"body.0.rdb1.conv5.weight": [4, 12, 3, 3]} | {
            name.replace("__", "."): shape for name, shape in shapes.items()
        }
        listing, at = {}, 0
        for name, shape in named.items():
            stop = at + 4 * int(torch.Size(shape).numel())
            listing[name], at = entry(shape, at, stop), stop
        return safetensors_file(listing, bytes(at))

    latent = {name: entry([0], 0, 0) for name in ("conv1.weight", "resblock20.conv2.weight", "conv_final.weight")}
    return [
        ("a wide one", partial(with_shapes, conv_first__weight=[1_000_000, 1, 1, 1])),
        ("two wide ones", partial(with_shapes, conv_first__weight=[90_000, 3, 1, 1], body__0__rdb1__conv1__weight=[90_000, 1])),
        ("a number of blocks", partial(with_shapes, body__99999999__rdb1__conv1__weight=[1])),
        ("many blocks", partial(with_shapes, **{f"body__{n}__a": [0] for n in range(19_000)})),
        ("no sides", partial(with_shapes, conv_first__weight=[], conv_last__weight=[], body__0__rdb1__conv1__weight=[])),
        ("no channels", partial(with_shapes, conv_last__weight=[0, 4])),
        ("latents without sides", partial(safetensors_file, latent, b"")),
    ]  # fmt: skip


def upscaler_readers() -> Readers:
    from core.formats.detect import identify
    from core.generation.model.other_files import upscaler_kind
    from core.generation.model.upscaling_networks import load_network

    return {"identify": identify, "load": lambda path: load_network(path, upscaler_kind(path), "cpu")}


# ---- VAEs alone, and folders whose weights are damaged


def _vae(folder: Path) -> bytes:
    """The starter's VAE in a file of its own, as other programs name its tensors."""
    from core import tasks
    from core.record.workspace import Workspace
    from core.settings.tools.convert_model import ExtractVaeSettings
    from tests.tasks import surroundings

    path = folder / "good_vae.safetensors"
    if not path.exists():
        settings = ExtractVaeSettings(file=STARTER, output=str(path))
        tasks.named("extract_vae").run(settings, surroundings(Workspace()))
    return path.read_bytes()


def damaged(data: bytes, draw: random.Random) -> bytes:
    """A large safetensors file that is cut off, or whose header is changed."""
    length = int.from_bytes(data[:8], "little")
    header, body = data[8 : 8 + length], data[8 + length :]
    way = draw.randrange(4)
    if way == 0:
        return data[: draw.randrange(len(data))]
    if way == 1:
        header = changed(header, draw)
        return struct.pack("<Q", len(header)) + header + body
    listing = json.loads(header)
    return safetensors_file(_reshaped(listing, draw) if way == 2 else change_json(listing, draw), body)


def make_vae(folder: Path, case: int) -> Path:
    draw, data = random.Random(f"vae {case}"), _vae(folder.parent)
    if case and draw.random() < 0.3:
        return written(folder, "vae.pt", changed(legacy(START + b"}."), draw) if case % 2 else zipped(data[:case]))
    return written(folder, "vae.safetensors", damaged(data, draw) if case else data)


def vae_readers() -> Readers:
    from core.families.loading import load_vae
    from core.families.sd1 import FAMILY as sd1
    from core.formats.models.checkpoint import open_vae

    return {
        "open": open_vae,
        "load": lambda path: load_vae(sd1.layout, path),
        "bake in": tool("bake_vae", {"file": STARTER, "vae": ""}, _good_lora),
    }


def make_folder(folder: Path, case: int) -> Path:
    """A diffusers folder of which one file of weights is damaged."""
    good, target = folder.parent / "good", folder / "model"
    if not good.exists():
        tiny_folder("sd1", good)
    shutil.copytree(good, target, copy_function=os.link)
    draw = random.Random(f"weights {case}")
    file = draw.choice([path for path in sorted(target.rglob("*.safetensors"))])
    data = file.read_bytes()
    if case:
        file.unlink()
        if draw.random() < 0.2:
            file.with_suffix(".bin").write_bytes(changed(legacy(START + b"}."), draw))
        else:
            file.write_bytes(damaged(data, draw))
    return target


UPSCALERS = Files(
    "upscaler.safetensors",
    lambda: save(upscaler(random.Random(0))),
    [(f"{name}.safetensors", data) for name, data in upscaler_bombs()],
    upscaler_changed,
)
OLDER_UPSCALERS = Files("upscaler.pth", lambda: saved(upscaler(random.Random(0)), True), [], upscaler_pickle_changed)
FAMILIES = {
    "networks in tools": (ADAPTERS, lora_tools),
    "checkpoints in tools": (make_checkpoint, model_tools),
    "upscalers": (UPSCALERS, upscaler_readers),
    "older upscalers": (OLDER_UPSCALERS, upscaler_readers),
    "VAEs": (make_vae, vae_readers),
    "weights of folders": (make_folder, folder_readers),
}
