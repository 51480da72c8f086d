"""Damaged entries of the caches of latents, texts and control images: each is used as it should be, or made anew."""

from __future__ import annotations

import zlib
from pathlib import Path

import torch
from safetensors.torch import save

from tests.hostile.changes import Files
from tests.hostile.model_files import Readers, entry, safetensors_bombs, safetensors_file

LATENTS = {"mean": (4, 16, 16), "logvar": (4, 16, 16)}


def _text_entry() -> bytes:
    return save({"context": torch.zeros(77, 32), "pooled": torch.zeros(32)})


def readers() -> Readers:
    from core.dataset.caches.partners import SHAPES, unpacked
    from core.dataset.caches.store import CONTROLS, read_tensors
    from core.dataset.caches.texts import TextCache
    from core.diffusion.text_states import TextStates

    def latents(path: Path) -> None:
        found = read_tensors(path, LATENTS)
        assert found is None or all(tuple(found[name].shape) == shape for name, shape in LATENTS.items())

    def texts(path: Path) -> None:
        cache = TextCache(path.parent, "model")
        place = cache._file("a fox")
        place.parent.mkdir()
        if path.is_symlink() or path.exists():
            path.rename(place)
        encode = lambda captions: TextStates(torch.zeros(len(captions), 77, 32), torch.zeros(len(captions), 32))  # noqa: E731
        cache.ensure(["a fox"], encode)
        cache.get(["a fox", "a wolf"], encode)

    def controls(path: Path) -> None:
        found = read_tensors(path, SHAPES, dtypes=CONTROLS.dtypes)
        pixels = unpacked(found["control"].numpy().tobytes(), (64, 64)) if found else None
        assert pixels is None or pixels.shape[1:] == (64, 64)

    return {"latents": latents, "texts": texts, "controls": controls}


def _control_entry(data: bytes) -> bytes:
    return save({"control": torch.frombuffer(bytearray(data), dtype=torch.uint8)})


_BAD = [
    ("bomb of zeros.safetensors", lambda: _control_entry(zlib.compress(bytes(1 << 27)))),
    ("short.safetensors", lambda: _control_entry(zlib.compress(bytes(64 * 64 * 3))[:-4])),
    ("other size.safetensors", lambda: _control_entry(zlib.compress(bytes(64 * 63 * 3)))),
    ("deep.safetensors", lambda: safetensors_file(b"[" * 60_000, b"")),
    ("other.safetensors", lambda: safetensors_file({"context": entry([1]), "mean": entry([1]), "logvar": entry([1])}, bytes(4))),
    *((f"{name}.safetensors", data) for name, data in safetensors_bombs()),
]  # fmt: skip
FAMILIES = {"caches": (Files("entry.safetensors", _text_entry, _BAD), readers)}
