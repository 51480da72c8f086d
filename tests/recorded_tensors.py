"""Reads recorded tensors (tests/vectors): safetensors files in an xz envelope, which takes half the room."""

from __future__ import annotations

import lzma
from pathlib import Path

from safetensors.torch import load
from torch import Tensor


def recorded_tensors(path: Path) -> dict[str, Tensor]:
    """Those of PATH.xz."""
    return load(lzma.decompress(path.with_name(f"{path.name}.xz").read_bytes()))
