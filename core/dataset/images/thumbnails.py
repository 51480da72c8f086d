"""Thumbnails of images for the page, created once per version of the file."""

import base64
import hashlib
import os
from io import BytesIO
from pathlib import Path

from PIL import Image

from core.dataset.images.opening import BrokenImage, open_rgb
from core.record.atomic import write_bytes
from core.record.stamps import stamp


def thumbnail(path: Path | str, size: int, thumbs_dir: Path | str) -> Path | bytes:
    """Return the path of an image's JPEG thumbnail of at most `size` pixels a side; the JPEG's bytes if writing fails.

    Created once per version of the file: the name is a hash of path, size and time. Raises BrokenImage.
    """
    try:
        length, changed = stamp(path)
    except OSError as error:
        raise BrokenImage("is missing or a broken link") from error
    state = f"{os.path.abspath(path)}\x1f{length}\x1f{changed}\x1f{size}"
    name = hashlib.sha256(state.encode("utf-8", "surrogateescape")).hexdigest()[:40]
    target = Path(thumbs_dir) / name[:2] / f"{name}.jpg"
    if os.path.exists(target):
        return target
    image = open_rgb(path, draft=(2 * size, 2 * size))
    image.thumbnail((size, size), Image.Resampling.LANCZOS)
    jpeg = BytesIO()
    image.save(jpeg, "JPEG", quality=85)
    try:
        write_bytes(target, jpeg.getvalue())
    except OSError:
        return jpeg.getvalue()
    return target


def jpeg_url(image: Image.Image, size: int) -> str:
    """Return an RGB image as a data URL: a JPEG of at most `size` pixels a side, without metadata. Scales `image` in place."""
    image.thumbnail((size, size), Image.Resampling.LANCZOS)
    jpeg = BytesIO()
    image.save(jpeg, "JPEG", quality=90)
    return "data:image/jpeg;base64," + base64.b64encode(jpeg.getvalue()).decode("ascii")
