"""LoRA files written tensor by tensor, with the bytes that the safetensors library writes, and A1111's hashes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from core.formats.hashes import LEGACY_BYTES, LEGACY_START
from core.formats.tensors.lazy import LazyTensor
from core.formats.tensors.writer import NO_HASH, SAFE_NAMES, WEIGHTS_HASH

LEGACY_HASH = "sshs_legacy_hash"
# The library's order of the tensors of a file, then by name.
ORDER = "U64 I64 F64 F32 U32 I32 BF16 F16 U16 I16 F8_E4M3 F8_E5M2 I8 U8 BOOL".split()


def write_lora_tensors(path: Path, tensors: Mapping[str, LazyTensor], metadata: Mapping[str, str]) -> None:
    """Each tensor is read once, and none is held longer than it takes to write it. The hashes are added to the metadata."""
    import torch

    types = {name: SAFE_NAMES[tensor.type] for name, tensor in tensors.items()}
    names = sorted(tensors, key=lambda name: (ORDER.index(types[name]), name))
    listing, place = dict[str, Any](), 0
    for name in names:
        end = place + tensors[name].byte_count
        listing[name] = {"dtype": types[name], "shape": list(tensors[name].shape), "data_offsets": [place, end]}
        place = end
    hashes = _Hashes(_header(listing, {key: value for key, value in metadata.items() if key.startswith("ss_")}))
    with open(path, "wb") as handle:
        handle.write(_header(listing, {**metadata, WEIGHTS_HASH: NO_HASH, LEGACY_HASH: NO_HASH[:8]}))
        for name in names:
            for piece in tensors[name].pieces():
                content = memoryview(piece.view(torch.uint8).numpy())
                hashes.add(content)
                handle.write(content)
        handle.seek(0)
        handle.write(_header(listing, {**metadata, **hashes.as_metadata()}))


def _header(listing: Mapping[str, Any], metadata: Mapping[str, str]) -> bytes:
    whole = {"__metadata__": dict(metadata), **listing} if metadata else listing
    text = json.dumps(whole, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)  # tensors start at a multiple of 8 bytes
    return len(text).to_bytes(8, "little") + text


class _Hashes:
    """A1111's two hashes of a LoRA, both of the file with the `ss_` metadata only.

    sshs_model_hash: SHA-256 after the header. sshs_legacy_hash: 8 digits of that of 64 KiB at 1 MiB.
    """

    def __init__(self, header: bytes) -> None:
        self._place, self._whole, self._legacy = 0, hashlib.sha256(), hashlib.sha256()
        self._add_legacy(memoryview(header))

    def add(self, content: memoryview) -> None:
        self._whole.update(content)
        self._add_legacy(content)

    def _add_legacy(self, content: memoryview) -> None:
        start, end = (max(0, each - self._place) for each in (LEGACY_START, LEGACY_START + LEGACY_BYTES))
        self._legacy.update(content[start:end])
        self._place += len(content)

    def as_metadata(self) -> dict[str, str]:
        return {WEIGHTS_HASH: self._whole.hexdigest(), LEGACY_HASH: self._legacy.hexdigest()[:8]}
