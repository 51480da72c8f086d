"""Names generated images and writes them atomically, never over another file."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from core.generation.images.metadata import exif_of, png_info
from core.generation.model.sources import Hashes
from core.generation.plan.checks import FIELD, root_of
from core.record import atomic
from core.record.workspace import Workspace, last_part
from core.settings.job import GenerateJob
from core.settings.names import bad_name

if TYPE_CHECKING:
    from PIL.Image import Image

LONGEST, LONGEST_BYTES = 120, 200  # characters and bytes of a name; drives take 255 bytes, with number and extension
ENDINGS = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}
ENDING_OF = {"png": ".png", "jpeg": ".jpg", "webp": ".webp"}


def save_image(
    image: Image,
    job: GenerateJob,
    hashes: Hashes,
    workspace: Workspace,
    name: str | None = None,
    *,
    number: int = 1,
    stage: str = "",
) -> Path:
    """Write an image with its settings atomically, without replacing a file; return its path. Raises OSError.

    name     file name from the prompt (--f) instead of the pattern; its ending selects the format
    number   of the image in its job, from 1
    stage    with hires fix: "0" or "1" in numbered names, as in sd-scripts
    """
    now = time.localtime()
    kind = ENDINGS.get(Path(name or "").suffix.lower(), job.output.image_format)
    folder = root_of(job, workspace)
    folders, file_pattern = job.output.folder_pattern, job.output.file_pattern.replace("\\", "/")
    for part in [*folders.replace("\\", "/").split("/"), *file_pattern.split("/")[:-1]]:
        if part_name := _filled_pattern(part, job, now, number):
            folder /= part_name
    content = encoded_image(image, job, hashes, kind)
    path = _reserve(folder, _file_stem(name, job, now, number, stage), ENDING_OF[kind])
    try:
        atomic.write_bytes(path, content)
    except BaseException:
        atomic.remove(path)  # the empty file that reserved the name
        raise
    return path


def encoded_image(image: Image, job: GenerateJob, hashes: Hashes, kind: str) -> bytes:
    """Return the content of an image file with the image's settings. kind: "png", "jpeg" or "webp" (with the settings' quality)"""
    content, settings = BytesIO(), job.output
    if kind == "png":
        image.save(content, format="PNG", pnginfo=png_info(job, hashes))
    elif kind == "jpeg":
        image.save(content, "JPEG", quality=settings.image_quality, subsampling=0, exif=exif_of(job, hashes))
    else:
        lossless = settings.webp_lossless
        quality = 100 if lossless else settings.image_quality
        image.save(content, "WEBP", lossless=lossless, quality=quality, exact=lossless, exif=exif_of(job, hashes))
    return content.getvalue()


def _file_stem(name: str | None, job: GenerateJob, now: time.struct_time, number: int, stage: str) -> str:
    """Return a file name without ending: the prompt's (`name`), the initial image's, a number, or the pattern's.

    number   of the image in its job, from 1
    stage    put before the number in numbered names
    """
    stem = _plain_stem(name)
    if not stem and job.output.use_original_file_name and job.image_to_image.image_path:
        stem = _plain_stem(job.image_to_image.image_path)
    if not stem and job.output.sequential_file_name:
        stem = f"im_{stage}{number:06d}"
    pattern = job.output.file_pattern.replace("\\", "/").rpartition("/")[2]
    return stem or _filled_pattern(pattern, job, now, number) or "image"


def _filled_pattern(pattern: str, job: GenerateJob, now: time.struct_time, number: int) -> str:
    """Return a file or folder name: the pattern with its fields such as [seed] filled in. number: of the image in its job, from 1"""
    settings = job.generate
    values = {
        "date": time.strftime("%Y-%m-%d", now),
        "time": time.strftime("%H%M%S", now),
        "seed": settings.seed,
        "prompt": _safe_name(settings.prompt)[:80].rstrip(),
        "model": Path(job.model.base_model).name.removesuffix(".safetensors"),
        "sampler": settings.sampler,
        "steps": settings.steps,
        "cfg": "" if settings.guidance_scale is None else f"{settings.guidance_scale:g}",
        "width": settings.width,
        "height": settings.height,
        "number": f"{number:05d}",
    }
    return _safe_name(FIELD.sub(lambda match: str(values.get(match[1], "")), pattern))


def _plain_stem(name: str | None) -> str:
    """Return a name from a prompt or a path, without folder and image ending, as a valid file name."""
    file_name = last_part(name or "")
    return _safe_name(file_name.rsplit(".", 1)[0] if Path(file_name).suffix.lower() in ENDINGS else file_name)


def _safe_name(text: str) -> str:
    """Return the text as a file name: only characters that all file systems allow, shortened, and not reserved on Windows."""
    name = "".join(each for each in text if each.isalnum() or each in " ._-()+,")[:LONGEST]
    name = name.encode()[:LONGEST_BYTES].decode("utf-8", "ignore").strip(" .")
    return f"_{name}" if name and bad_name(name) else name


def _reserve(folder: Path, stem: str, ending: str) -> Path:
    """Create an empty file with an unused name, stem.png, stem-2.png ..., and return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in atomic.numbered(stem, ending):
        path = folder / name
        with suppress(FileExistsError):
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
            return path
    raise AssertionError("the numbers never end")
