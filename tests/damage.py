"""Damage as disks and power cuts do it."""

from __future__ import annotations

from pathlib import Path


def zero_tensors(path: Path) -> None:
    """A safetensors file whose header is right and whose tensors are zeros."""
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    path.write_bytes(data[:start] + bytes(len(data) - start))
