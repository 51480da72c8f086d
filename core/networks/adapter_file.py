"""Network files: kohya's layer names and metadata, written complete or not at all; the keys below a layer's name belong to the
kind (core/networks/kinds).

A layer's name is `lora_unet_` or `lora_te_` and its diffusers path with `_` for `.`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from core.formats.detect import ModelKind, identify_header
from core.formats.hashes import LEGACY_BYTES, LEGACY_START
from core.formats.lora.names import group_by_module, kohya_name, module_path
from core.formats.models.overflow import kept_wide, not_finite, overflowing, refuse_no_numbers, shown
from core.formats.tensors.reading import TORCH_NAMES, TensorFile
from core.networks.kinds import kind_of_keys, kinds
from core.record import atomic
from core.record.bounded_json import parse_json
from core.record.problems import Problem, ProblemsError

if TYPE_CHECKING:
    import torch

__all__ = [
    "LoraFile",
    "load_lora",
    "save_lora",
    "to_diffusers",
    "with_convolutions",
    "write_lora",
]

CHUNK_BYTES = 1 << 24
PROJECTION = re.compile(r"^lora_unet_.*_proj_(in|out)\.")
AGAIN = "download or copy it again"


@dataclass(frozen=True)
class LoraFile:
    """A LoRA in memory. `tensors` have kohya's keys whatever the file's layout was."""

    tensors: Mapping[str, torch.Tensor]
    metadata: Mapping[str, str] = field(default_factory=dict)
    family: str | None = None
    path: Path | None = None


# ---- writing ----


def save_lora(
    path: Path | str,
    tensors: Mapping[str, torch.Tensor],
    metadata: Mapping[str, str] | None = None,
    dtype: torch.dtype | None = None,
) -> Path:
    """Write a LoRA file, complete or not at all. Adds the hashes by which A1111 identifies it.

    tensors  by kohya key, on any device     metadata  all strings; None or empty writes only the hashes
    dtype    of the matrices; alphas stay float32, which stores them exactly. Weights that overflow are refused by name:
             write_lora falls back to fp32
    """
    import torch
    from safetensors.torch import save

    path = Path(path)
    _refuse_overflow(path, tensors, dtype)
    ready = {}
    for name, value in tensors.items():
        own = dtype if dtype is not None and value.is_floating_point() else value.dtype  # flags and counts keep theirs
        wanted = torch.float32 if name.endswith(".alpha") else own
        ready[name] = value.detach().to("cpu", wanted).contiguous().clone()
    described = {str(key): str(value) for key, value in (metadata or {}).items()}
    ours = {key: value for key, value in described.items() if key.startswith("ss_")}
    serialized = save(ready, metadata=ours or None)
    ready.clear()
    described |= _weight_hashes(serialized)
    with atomic.open_atomic(path) as temporary:
        _write_with_metadata(temporary, serialized, described)
    return path


def write_lora(
    path: Path | str,
    tensors: Mapping[str, torch.Tensor],
    metadata: Mapping[str, str] | None = None,
    dtype: torch.dtype | None = None,
) -> list[Problem]:
    """Like save_lora, for a run that must not fail at its save: if `dtype` would overflow, the file is in fp32.

    returns  the advice naming the weights
    """
    import torch

    names = overflowing(_matrices(tensors), dtype) if dtype is not None else []
    save_lora(path, tensors, metadata, torch.float32 if names else dtype)
    return [kept_wide(names, dtype, path)] if names else []


def with_convolutions(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """proj_in and proj_out of the U-Net in the shapes of 1x1 convolutions, [r, in, 1, 1] and [out, r, 1, 1], as the layers of
    SD 2.x have them when sd-scripts reads a single file."""
    return {
        name: value[:, :, None, None] if value.ndim == 2 and PROJECTION.search(name) else value
        for name, value in tensors.items()
    }


def _refuse_overflow(path: Path, tensors: Mapping[str, torch.Tensor], dtype: torch.dtype | None) -> None:
    """Before anything is written: refuse NaN, inf, and values that overflow in the dtype."""
    refuse_no_numbers(not_finite(tensors), path)
    names = overflowing(_matrices(tensors), dtype) if dtype is not None else []
    if names:
        what = f"Some weights are too large for the dtype of the file: {shown(names)}"
        fix = "save as bf16 or fp32; weights this large usually mean that the learning rate is too high"
        raise ProblemsError.one(what, str(path), fix, "weights.overflow")


def _matrices(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Without the alphas, which are always float32."""
    return {name: value for name, value in tensors.items() if not name.endswith(".alpha")}


def _weight_hashes(serialized: bytes) -> dict[str, str]:
    """A1111's two hashes of a LoRA, both of the file with the `ss_` metadata only.

    sshs_model_hash: SHA-256 after the header. sshs_legacy_hash: 8 digits of that of 64 KiB at 1 MiB.
    """
    content = memoryview(serialized)
    after_header = 8 + int.from_bytes(serialized[:8], "little")
    return {
        "sshs_model_hash": hashlib.sha256(content[after_header:]).hexdigest(),
        "sshs_legacy_hash": hashlib.sha256(content[LEGACY_START : LEGACY_START + LEGACY_BYTES]).hexdigest()[:8],
    }


def _write_with_metadata(path: Path, serialized: bytes, metadata: Mapping[str, str]) -> None:
    """The same tensors under a header with other metadata, without serializing them again."""
    length = int.from_bytes(serialized[:8], "little")
    listing = json.loads(serialized[8 : 8 + length])
    listing.pop("__metadata__", None)
    text = json.dumps({"__metadata__": dict(metadata), **listing}, ensure_ascii=False, separators=(",", ":")).encode(
        "utf-8"
    )
    text += b" " * (-len(text) % 8)  # tensors start at a multiple of 8 bytes
    content = memoryview(serialized)[8 + length :]
    with open(path, "wb") as handle:
        handle.write(len(text).to_bytes(8, "little") + text)
        for start in range(0, len(content), CHUNK_BYTES):
            handle.write(content[start : start + CHUNK_BYTES])


# ---- reading ----


def load_lora(path: Path | str, *, shapes: bool = False) -> LoraFile:
    """Read a LoRA in kohya's or PEFT's layout. Anything else is refused with its kind.

    shapes   read only the header and the alphas; the weights are on torch's "meta" device
    """
    path = Path(path)
    with TensorFile(path) as file:
        kind = identify_header(file.entries, file.metadata)
        _refuse_other(kind, path)
        read = partial(_shape_of, file) if shapes else file.read
        tensors = {name: read(name) for name in file.entries}
        metadata = dict(file.metadata)
    if kind.layout == "peft":
        tensors = _from_peft(tensors, metadata, path, kind.family)
    _refuse_incomplete(tensors, path)
    return LoraFile(tensors, metadata, kind.family, path)


def _shape_of(file: TensorFile, name: str) -> torch.Tensor:
    import torch

    entry = file.entries[name]
    if prod(entry.shape) == 1:
        return file.read(name)
    return torch.empty(entry.shape, dtype=getattr(torch, TORCH_NAMES[entry.dtype]), device="meta")


def _refuse_other(kind: ModelKind, path: Path) -> None:
    if kind.kind != "lora":
        what = f"This file is not a LoRA but: {kind} ({kind.evidence})"
        raise ProblemsError.one(what, str(path), "choose a LoRA file", "lora.not-a-lora")
    if kind.variant is not None:
        what = f"This is a {kind.variant} file, which is not supported"
        raise ProblemsError.one(what, str(path), "choose a plain LoRA file", "lora.unsupported-variant")
    if kind.layout not in ("kohya", "peft"):
        what, where = "This LoRA has the key names of an old diffusers version", str(path)
        raise ProblemsError.one(what, where, "load and save it with a current diffusers version", "lora.old-diffusers")


def _from_peft(
    tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str], path: Path, family: str | None
) -> dict[str, torch.Tensor]:
    """PEFT's names -> kohya's. Alphas are in the metadata (`lora_adapter_metadata`), else alpha = rank."""
    import torch

    settings = parse_json(metadata.get("lora_adapter_metadata", "{}"), f"{path}, lora_adapter_metadata", AGAIN)
    if not isinstance(settings, dict):
        what = "The LoRA's metadata (lora_adapter_metadata) is invalid"
        raise ProblemsError.one(what, str(path), AGAIN, "lora.bad-metadata")
    endings = {short: key for each in kinds().values() for short, key in (each.from_peft or {}).items()}
    found: dict[str, torch.Tensor] = {}
    unknown = []
    for name, value in tensors.items():
        layer, _, kind = name.removeprefix("base_model.model.").rpartition(".lora_")
        if name.endswith(".alpha"):
            layer, kind = name.removesuffix(".alpha"), "alpha"
        part, _, inner = layer.partition(".")
        kohya, suffix = (
            kohya_name(part, inner, family),
            endings.get(kind.removesuffix(".weight").removesuffix(".default")),
        )
        if kohya is None or suffix is None:
            unknown.append(name)
            continue
        found[f"{kohya}.{suffix}"] = value
        if kind.startswith("A") and f"{part}.r" in settings:
            pattern = settings.get(f"{part}.alpha_pattern") or {}
            given = pattern.get(inner) if isinstance(pattern, dict) else None
            alpha = settings.get(f"{part}.lora_alpha") if given is None else given
            if alpha is not None and type(alpha) not in (int, float):
                what = f"The LoRA's alpha of {inner} is not a number"
                raise ProblemsError.one(what, str(path), AGAIN, "lora.bad-metadata")
            if alpha is not None:  # otherwise its rank
                found[f"{kohya}.alpha"] = torch.tensor(float(alpha))
    if unknown:
        what = f"The LoRA has layers of an unknown part: {unknown[0]}"
        raise ProblemsError.one(what, str(path), "choose a LoRA for Stable Diffusion", "lora.unknown-layer")
    return found


def _refuse_incomplete(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    """Every layer is of a known kind and complete; every alpha is a number."""
    problems = [flaw for name, layer in group_by_module(tensors).items() if (flaw := _flaw(name, layer))]
    if problems:
        more = f" and {len(problems) - 1} more" if len(problems) > 1 else ""
        raise ProblemsError.one(f"The LoRA is incomplete: {problems[0]}{more}", str(path), AGAIN, "lora.incomplete")


def _flaw(name: str, layer: Mapping[str, torch.Tensor]) -> str:
    """What is wrong with one layer of a file, or ""."""
    kind = kind_of_keys(layer)
    if kind is not None:
        return kind.flaw(name, layer)
    near = [kind for kind in kinds().values() if layer.keys() & kind.keys]
    near = near or [kind for kind in kinds().values() if layer.keys() & set(kind.optional)]
    known = {key for kind in near for key in (*kind.keys, *kind.optional)}
    unknown = sorted(layer.keys() - known)
    if unknown:
        return f"{name}.{unknown[0]} is of an unknown kind"
    return min((kind.flaw(name, layer) for kind in near), key=len)


# ---- for diffusers and PEFT ----


def to_diffusers(lora: LoraFile, dtype: torch.dtype | None = None) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The LoRA with diffusers' and PEFT's names, with alpha / rank multiplied into B: every layer's alpha is its rank.

    diffusers 0.42 reads kohya files correctly only if all layers have one alpha; this form works for any.
    dtype    float32 by default: in 16 bits the multiplied B would be rounded again
    returns  tensors `unet.<path>.lora_A.weight`, `text_encoder.<path>.lora_B.weight` ..., and metadata
    """
    import torch

    wanted = dtype or torch.float32
    tensors: dict[str, torch.Tensor] = {}
    for name, layer in group_by_module(lora.tensors).items():
        found, kind = module_path(name), kind_of_keys(layer)
        if found is None or kind is None or kind.to_peft is None:
            what, fix = f"The LoRA has a layer of an unknown part or kind: {name}", "choose a LoRA for Stable Diffusion"
            raise ProblemsError.one(what, str(lora.path or ""), fix, "lora.unknown-layer")
        tensors |= {f"{'.'.join(found)}.{key}": value for key, value in kind.to_peft(layer, wanted).items()}
    kept = {key: value for key, value in lora.metadata.items() if key.startswith("modelspec.")}
    return tensors, {"format": "pt", **kept}
