"""Conversion to sRGB and alpha: palettes, CMYK, Lab, 16 bits, ICC profiles."""

import io

import numpy as np
from PIL import Image, ImageCms

WHITE = (255, 255, 255)
BLACK = (0, 0, 0)
HIGHLIGHT = 8.0  # floats up to here are of an image in 0..1 whose highlights or resizing go beyond


def to_srgb(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """Convert a decoded image of any mode to (RGB in sRGB, alpha as L); alpha is None if every pixel is opaque."""
    profile = image.info.get("icc_profile")
    alpha: Image.Image | None = None
    if image.mode.startswith("I") or image.mode == "F":
        image, alpha = _to_eight_bits(image)
    elif image.mode == "P" or "transparency" in image.info:
        image = image.convert("RGBA")
    elif image.mode in ("La", "RGBa"):
        image = image.convert({"La": "LA", "RGBa": "RGBA"}[image.mode])
    if image.mode in ("LA", "PA", "RGBA"):
        colors = image if image.mode == "RGBA" else image.convert("RGBA")
        alpha = colors.getchannel("A")
        image = image.getchannel("L") if image.mode == "LA" else colors.convert("RGB")
    if alpha is not None and alpha.getextrema() == (255, 255):
        alpha = None
    return _from_profile(image, profile), alpha


def composite(colors: Image.Image, alpha: Image.Image | None, background: tuple[int, int, int]) -> Image.Image:
    """Composite an RGB image on a background color by alpha (L); unchanged if `alpha` is None."""
    if alpha is None:
        return colors
    return Image.composite(colors, Image.new("RGB", colors.size, background), alpha)


def color_of(text: str) -> tuple[int, int, int]:
    """Parse a hex color: "#ff8000" -> (255, 128, 0)."""
    return (int(text[1:3], 16), int(text[3:5], 16), int(text[5:7], 16))


def _to_eight_bits(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """Convert 16-bit, 32-bit and float gray to 8 bits by scaling. (Pillow's own conversion clips 16 bits to white.)

    Returns the gray image (L) and its alpha (L) if the file marks one value as transparent, else None.
    """
    unsigned, bits, white_is_zero = image.info.get("levels", (False, 0, False))
    values = np.nan_to_num(np.asarray(image).astype(np.float64), posinf=np.inf)
    if unsigned:  # Pillow reads 32 bits as signed
        values[values < 0] += 2**32
    highest = float(values.max(initial=0, where=values < np.inf))
    if image.mode.startswith("I;16"):
        white = 65535.0
    elif image.mode == "F" and highest <= HIGHLIGHT:
        white = 1.0
    else:
        white = next((usual for usual in (255.0, 32767.0 if bits == 16 else 65535.0) if highest <= usual), highest)
    shares = np.clip(values / white, 0, 1)
    gray = Image.fromarray(np.rint((1 - shares if white_is_zero else shares) * 255).astype(np.uint8))
    transparent = image.info.get("transparency")
    alpha = None if transparent is None else Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8))
    return gray, alpha


def _from_profile(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Convert to sRGB by the ICC profile; without a valid one, by Pillow's plain conversion."""
    try:
        if image.mode == "LAB":  # Pillow converts it by a profile only
            source = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
        elif profile and image.mode in ("L", "RGB", "CMYK"):
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        else:
            return image if image.mode == "RGB" else image.convert("RGB")
        converted = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ValueError):
        return image.convert("RGB")
    return converted if converted is not None else image.convert("RGB")
