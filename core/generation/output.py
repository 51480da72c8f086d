"""Writes generated images: named, complete or not at all, and never over another file."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from core.generation.image_metadata import Hashes, png_info
from core.record import atomic
from core.record.workspace import Workspace
from core.settings.job import GenerateJob

if TYPE_CHECKING:
    from PIL.Image import Image


def save_image(image: Image, job: GenerateJob, hashes: Hashes, workspace: Workspace, name: str | None = None) -> Path:
    """Write an image and its settings to outputs/images/<date>/<time>_<seed>.png: complete or not at all, replacing none.

    name   in place of time and seed, as a prompt says it
    """
    now = time.localtime()
    folder = workspace.images / time.strftime("%Y-%m-%d", now)
    content = BytesIO()
    image.save(content, format="PNG", pnginfo=png_info(job, hashes))
    path = _reserve(folder, _plain(name) or f"{time.strftime('%H%M%S', now)}_{job.generate.seed}")
    try:
        atomic.write_bytes(path, content.getvalue())
    except BaseException:
        atomic.remove(path)  # the empty file that reserved the name
        raise
    return path


def _plain(name: str | None) -> str:
    """A name from a prompt without folder and ending, and without what files cannot have in their names."""
    stem = Path((name or "").replace("\\", "/")).name
    stem = stem.rsplit(".", 1)[0] if stem.lower().endswith((".png", ".jpg", ".jpeg", ".webp")) else stem
    return "".join(each for each in stem if each.isalnum() or each in " ._-()+,")[:120].strip(" .")


def _reserve(folder: Path, stem: str) -> Path:
    """An empty file with an unused name: stem.png, stem-2.png, ..."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in _names(folder, stem):
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        except FileExistsError:
            continue
        return path
    raise AssertionError("the names never end")


def _names(folder: Path, stem: str) -> Iterator[Path]:
    yield folder / f"{stem}.png"
    number = 2
    while True:
        yield folder / f"{stem}-{number}.png"
        number += 1
