"""Load a model from one file or a diffusers folder: offline, straight into the compute type, quickly.

The modules are built without memory (on the "meta" device) and given the tensors as they come from the file. Reading
runs beside the imports of diffusers and transformers, which take several seconds of their own.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any

import torch

from core.families.components import PARTS, Components
from core.families.imports import quick_imports, turns_often
from core.families.layout import Layout
from core.families.locate import GENERATED, check_family
from core.families.published_shapes import published_shapes
from core.families.vae import overflows, safe_type
from core.formats.detect import FAMILY_NAMES
from core.formats.hashes import HashMemo
from core.formats.models import text_keys
from core.formats.models.checkpoint import (
    Checkpoint,
    Part,
    open_checkpoint,
    open_vae,
    part_digest,
    read_part,
)
from core.formats.models.part_config import check_config
from core.formats.models.part_kinds import PartKind, kind_of, part_title
from core.record.cancel import CancelToken
from core.record.problems import Problem, ProblemsError, raise_if_errors

SHOWN_KEYS = 5
LAYER = re.compile(r"(?:^|\.)layers\.([0-9]{1,6})\.")


def load(
    layout: Layout,
    path: Path | str,
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    vae: Path | str | None = None,
    vae_dtype: torch.dtype = torch.float32,
    parts: Iterable[str] = PARTS,
    memo: HashMemo | None = None,
    cancel: CancelToken | None = None,
    kohya_projection: bool = False,
) -> Components:
    """Load parts of a model, frozen and in eval mode.

    dtype      of U-Net and text encoders   vae_dtype  of the VAE: its own, since 16 bits cost visible precision
    vae        a file or folder whose VAE replaces the model's
    memo       also fill `hashes` of the loaded parts, remembered here
    kohya_projection   see core.formats.models.checkpoint.open_checkpoint
    """
    wanted = set(parts)
    assert wanted <= set(PARTS), wanted
    checkpoint = open_checkpoint(path, layout.family, kohya_projection=kohya_projection)
    check_family(checkpoint.kind, path, layout.family, GENERATED)
    found = _chosen_parts(layout, checkpoint, vae, wanted)
    kinds = {part.name: layout.kind(part.name) for part in found}
    dtypes = {name: safe_type(kind.overflows, dtype, device) for name, kind in kinds.items()}
    if "vae" in dtypes:
        dtypes["vae"] = safe_type(overflows(layout, _vae_config(layout, checkpoint, vae)), vae_dtype, device)
    with turns_often(), ThreadPoolExecutor(1, thread_name_prefix="read-weights") as reader:
        states = {
            part.name: reader.submit(read_part, part, dtypes[part.name], device, cancel, kinds[part.name].wide)
            for part in found
        }
        try:
            modules = {part.name: _build(layout, part, states) for part in found}
        except BaseException:
            reader.shutdown(wait=True, cancel_futures=True)
            raise
    return Components(
        denoiser=modules.get(layout.denoiser),
        vae=modules.get("vae"),
        text_encoders=[modules[name] for name in layout.text_encoders if name in modules],
        tokenizers=[make(checkpoint.path) for make in layout.tokenizers] if "tokenizers" in wanted else [],
        prediction=checkpoint.kind.prediction or _asked_prediction(layout, modules.get(layout.denoiser)),
        zero_terminal_snr=checkpoint.kind.zero_terminal_snr,
        vae_config={**layout.config("vae"), **_vae_config(layout, checkpoint, vae)},
        family=layout.family,
        device=str(device),
        source=checkpoint.path,
        hashes={part.name: part_digest(part, memo, cancel) for part in found if memo is not None},
    )


def fit_problems(layout: Layout, path: Path | str, vae: Path | str | None = None) -> list[Problem]:
    """What `load` would refuse, from headers and configs alone, and what could not be trained together."""
    try:
        checkpoint = open_checkpoint(path, layout.family)
        check_family(checkpoint.kind, path, layout.family)
        parts = _chosen_parts(layout, checkpoint, vae, set(PARTS))
    except ProblemsError as error:
        return error.problems
    found: list[Problem] = []
    configs = {part.name: _config(layout, part) for part in parts}
    for part in parts:
        try:
            wanted = _shapes(layout.kind(part.name), part.name, json.dumps(configs[part.name], sort_keys=True))
        except ProblemsError as error:
            found += [replace(problem, where=str(part.source)) for problem in error.problems]
            continue
        entries = {_with_level(name, wanted): place.entry for name, place in part.places.items()}
        shapes = {name: entry.shape for name, entry in entries.items()}
        found += _misfits(wanted, shapes, part, FAMILY_NAMES[layout.family])
        found += _not_weights(
            [name for name in wanted if name in entries and not entries[name].dtype.startswith(("F", "BF"))], part
        )
    try:
        return found or _not_of_one_model(layout, configs, Path(path))
    except ProblemsError as error:
        return error.problems


def known_tensors(layout: Layout, part: Part) -> tuple[Part, list[Problem]]:
    """(the part without tensors that its class does not have, what it lacks or has in another shape or type)."""
    wanted = published_shapes(layout, part)
    if wanted is None:
        wanted = _shapes(layout.kind(part.name), part.name, json.dumps(_config(layout, part), sort_keys=True))
    places = {name: place for name, place in part.places.items() if _with_level(name, wanted) in wanted}
    known, title = replace(part, places=places), FAMILY_NAMES[layout.family]
    shapes = {_with_level(name, wanted): place.entry.shape for name, place in places.items()}
    packed = [name for name, place in places.items() if not place.entry.dtype.startswith(("F", "BF"))]
    return known, [*_misfits(wanted, shapes, known, title), *_not_weights(packed, known)]


def mismatch_problems(layout: Layout, parts: Iterable[Part], path: Path) -> list[Problem]:
    """Why complete parts do not work together; a VAE that is left out is as published."""
    configs = {"vae": layout.config("vae")} | {part.name: _config(layout, part) for part in parts}
    return _not_of_one_model(layout, configs, path)


@lru_cache(maxsize=16)
def _shapes(kind: PartKind, name: str, config: str) -> dict[str, tuple[int, ...]]:
    """The tensors of a part, by name."""
    return _stored_shapes(kind, make_empty(name, json.loads(config), kind))


def _stored_shapes(kind: PartKind, module: Any) -> dict[str, tuple[int, ...]]:
    """Of the tensors that files hold, by the module's names."""
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items() if name not in kind.tied}


def _with_level(name: str, wanted: Mapping[str, Any]) -> str:
    """As this version of transformers names it: see core.formats.models.text_keys."""
    return text_keys.full_name(name) if text_keys.full_name(name) in wanted else name


def _not_of_one_model(layout: Layout, configs: Mapping[str, Mapping[str, Any]], path: Path) -> list[Problem]:
    """Problems of parts that are complete, but do not fit together."""
    fix = f"choose a plain {FAMILY_NAMES[layout.family]} model, or download the folder again"
    return [
        Problem(f"The parts of this model do not fit together: {why}", str(path), fix, code="model.parts-mismatch")
        for why in layout.misfits(configs, path)
    ]


def _asked_prediction(layout: Layout, unet: Any) -> str:
    if layout.find_prediction is None or unet is None:
        return "epsilon"
    return layout.find_prediction(unet)


def _vae_config(layout: Layout, checkpoint: Checkpoint, vae: Path | str | None) -> dict[str, Any]:
    """Of the VAE in use, whether or not it is loaded: cached latents need its scale too."""
    part = open_vae(vae) if vae is not None else checkpoint.parts.get("vae")
    return layout.config("vae") if part is None else _config(layout, part)


def _config(layout: Layout, part: Part) -> dict[str, Any]:
    return part.config_after(layout.config(part.name))


def _chosen_parts(layout: Layout, checkpoint: Checkpoint, vae: Path | str | None, wanted: set[str]) -> list[Part]:
    """The parts to read, largest last: what the imports hide is the small ones and most of the U-Net."""
    parts = dict(checkpoint.parts)
    if vae is not None and "vae" in wanted:
        parts["vae"] = open_vae(vae)
    names = list(layout.text_encoders) if "text_encoders" in wanted else []
    names += [name for role, name in (("vae", "vae"), ("denoiser", layout.denoiser)) if role in wanted]
    missing = [part_title(name) for name in names if name not in parts]
    if missing:
        fix = (
            "set a VAE in the model settings"
            if missing == ["VAE"]
            else "choose a full model, with its text encoders and VAE"
        )
        what = f"The model has no {' and no '.join(missing)}"
        raise ProblemsError.one(what, str(checkpoint.path), fix, code="model.missing-part")
    return [_without_unused_layers(layout, parts[name]) for name in names]


def _without_unused_layers(layout: Layout, part: Part) -> Part:
    """Of a single file's text encoder the layers that are used: SD 2 is read one before the last of its 24."""
    if part.name not in layout.text_encoders or part.config is not None:
        return part
    count = _config(layout, part).get("num_hidden_layers", math.inf)
    places = {name: place for name, place in part.places.items() if _layer(name) < count}
    return replace(part, places=places)


def _layer(name: str) -> int:
    """Number of the layer a tensor is of, -1 for one outside of all: `encoder.layers.7.mlp.fc1.bias` -> 7."""
    found = LAYER.search(name)
    return int(found[1]) if found else -1


def _build(layout: Layout, part: Part, states: Mapping[str, Future]) -> Any:
    """The module of a part, with its weights."""
    kind = layout.kind(part.name)
    module = make_empty(part.name, _config(layout, part), kind)
    state = kind.named(module, states[part.name].result())
    _give_weights(module, state, part, kind, FAMILY_NAMES[layout.family])
    return module.eval().requires_grad_(False)


def load_vae(layout: Layout, path: Path | str, device: str = "cpu", cancel: CancelToken | None = None) -> Any:
    """A VAE alone, in fp32: from its own file or folder, or a whole model's. layout: of a family that has such a VAE"""
    part, kind = open_vae(path), layout.kind("vae")
    module = make_empty("vae", _config(layout, part), kind)
    state = kind.named(module, read_part(part, torch.float32, device, cancel))
    _give_weights(module, state, part, kind, FAMILY_NAMES[layout.family])
    return module.eval().requires_grad_(False)


def make_empty(name: str, config: Mapping[str, Any], kind: PartKind | None = None) -> Any:
    """A part without numbers, on the "meta" device: to be given weights, or to count shapes and work.

    kind  what it is, where a family knows it; None: what its config says
    """
    kind, where = kind or kind_of(name, config), f"{part_title(name)}, config.json"
    assert kind is not None, f"the class of {name} is not registered in core/formats/models/part_kinds.py"
    with quick_imports():
        make = kind.maker()
    check_config(kind, config, where, whole=False)
    try:
        with torch.device("meta"):
            return make(config).requires_grad_(False)
    except Exception as error:  # the libraries check little: a config that contradicts itself raises anything
        what = f"The config does not describe a valid {part_title(name)} ({type(error).__name__}: {str(error)[:200]})"
        raise ProblemsError.one(what, where, "download the model's folder again", code="model.bad-config") from error


def _give_weights(module: Any, state: dict[str, torch.Tensor], part: Part, kind: PartKind, title: str) -> None:
    """Put the tensors into the module built on "meta"; every key must be there, none left over, every shape right."""
    wanted = _stored_shapes(kind, module)
    raise_if_errors(_misfits(wanted, {name: tensor.shape for name, tensor in state.items()}, part, title))
    raise_if_errors(_not_weights([name for name in wanted if not state[name].is_floating_point()], part))
    for name, shape in wanted.items():
        state[name] = state[name].reshape(shape)
    state |= {name: state[other] for name, other in kind.tied.items()}
    module.load_state_dict(state, strict=True, assign=True)
    if kind.tied:
        module.tie_weights()
    _fill_counters(module, next(iter(state.values())).device, part)


def _misfits(
    wanted: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]], part: Part, title: str
) -> list[Problem]:
    """Why tensors of these shapes are not those of the part, by name."""
    problems = []
    if missing := sorted(wanted.keys() - found.keys()):
        problems.append(_keys_problem("lacks", "", missing, part, title))
    if extra := sorted(found.keys() - wanted.keys()):
        problems.append(_keys_problem("has", "unknown ", extra, part, title))
    wrong = [
        f"{name} {_size(found[name])} instead of {_size(wanted[name])}"
        for name in sorted(wanted.keys() & found.keys())
        if not _fits(found[name], wanted[name])
    ]
    return problems + ([_shapes_problem(wrong, part, title)] if wrong else [])


def _not_weights(names: Iterable[str], part: Part) -> list[Problem]:
    """Problems of integer tensors: another program's packed form."""
    names = [name for name in names if not name.endswith("position_ids")]
    if not names:
        return []
    what = f"The {part_title(part.name)} has integer tensors instead of weights, such as {names[0]}"
    fix = "choose the model in fp32, fp16, bf16 or fp8"
    return [Problem(what, str(part.source), fix, code="model.integer-weights")]


def _fits(shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    """Only ones at the end may differ: 1x1 convolution or linear layer."""
    if tuple(shape) == tuple(wanted):
        return True
    shorter, longer = sorted((tuple(shape), tuple(wanted)), key=len)
    return len(shorter) >= 2 and longer[: len(shorter)] == shorter and prod(longer[len(shorter) :]) == 1


def _fill_counters(module: Any, device: torch.device, part: Part) -> None:
    """CLIP's position_ids (0, 1, ...) are in no file; a module built on "meta" has them without values."""
    for name, buffer in list(module.named_buffers()):
        if buffer.is_meta:
            owner, _, attribute = name.rpartition(".")
            if attribute != "position_ids":
                raise TypeError(
                    f"{type(module).__name__} computes {name} when it is made, so it cannot be loaded: {part.source}"
                )
            setattr(
                module.get_submodule(owner),
                attribute,
                torch.arange(buffer.shape[-1], device=device).expand(buffer.shape).clone(),
            )


def _keys_problem(verb: str, kind: str, keys: list[str], part: Part, title: str) -> Problem:
    shown = ", ".join(keys[:SHOWN_KEYS]) + (f" and {len(keys) - SHOWN_KEYS} more" if len(keys) > SHOWN_KEYS else "")
    what = f"The {part_title(part.name)} {verb} {len(keys)} {kind}{'tensor' if len(keys) == 1 else 'tensors'}: {shown}"
    fix = f"choose another file: this one is incomplete or not a plain {title} model"
    return Problem(what, str(part.source), fix, code="model.other-tensors")


def _shapes_problem(lines: list[str], part: Part, title: str) -> Problem:
    shown = "; ".join(lines[:SHOWN_KEYS]) + (f" and {len(lines) - SHOWN_KEYS} more" if len(lines) > SHOWN_KEYS else "")
    fix = (
        f"use the model's diffusers folder, whose config gives its sizes: a single file must have {title}'s published sizes"
        if part.config is None
        else "download the folder again: its config.json and its weights are of different models"
    )
    what = f"The {part_title(part.name)} has tensors of other sizes: {shown}"
    return Problem(what, str(part.source), fix, code="model.other-sizes")


def _size(shape: tuple[int, ...]) -> str:
    return "x".join(str(side) for side in shape)


def digest(
    layout: Layout,
    path: Path | str,
    part: str,
    *,
    vae: Path | str | None = None,
    memo: HashMemo | None = None,
    cancel: CancelToken | None = None,
    kohya_projection: bool = False,
) -> str:
    """SHA-256 of weights as stored ("denoiser", "vae" or "text_encoders"), for the keys of caches. Loads nothing."""
    assert part in ("denoiser", "vae", "text_encoders"), part
    if part == "vae" and vae is not None:
        return part_digest(open_vae(vae), memo, cancel)
    checkpoint = open_checkpoint(path, layout.family, kohya_projection=kohya_projection)
    found = [part_digest(each, memo, cancel) for each in _chosen_parts(layout, checkpoint, None, {part})]
    return found[0] if len(found) == 1 else hashlib.sha256(" ".join(found).encode()).hexdigest()


def weight_bytes(layout: Layout, path: Path | str, item_bytes: int | None = None) -> dict[str, int]:
    """Bytes of each part's weights as stored, or with `item_bytes` for each number (2 in bf16): what loading takes."""
    checkpoint = open_checkpoint(path, layout.family)
    return {name: part.weight_bytes(item_bytes) for name, part in checkpoint.parts.items()}
