"""The tools that write resized, cropped or converted copies of images."""

import math
from pathlib import Path
from typing import Any

from PIL import Image

from core.dataset.images.opening import DecodedImage, open_decoded
from core.dataset.images.resize import resize
from core.record.context import JobContext, Outcome
from core.settings.tools.images import ConvertSettings, CropSettings, EncodedCopySettings, ResizeSettings
from core.tools.images.folders import Copy, FolderPlan, Skip, make_copies

Box = tuple[int, int, int, int]


def do(settings: EncodedCopySettings, plan: FolderPlan, context: JobContext) -> Outcome:
    """Write the copies of all images of the folder, by the kind of `settings`. Raises ProblemsError if there are no images."""
    copies_of = COPIES[type(settings)]
    return make_copies(settings, plan, context, lambda path: copies_of(path, settings))


def resized_copies(path: Path, settings: ResizeSettings) -> tuple[list[Copy], list[str]]:
    """Return (a copy of the image for each maximum size, named `<name>+<W>x<H>`; messages about sizes left out).

    Names and sizes are those of sd-scripts' resize_images_to_resolution, which resizes the second copy from the first; here each is
    resized from the original.
    """
    opened = open_decoded(path)
    width, height = opened.colors.size
    copies: list[Copy] = []
    left_out: list[str] = []
    sizes: dict[tuple[int, int], str] = {}
    for limit in settings.max_resolution:
        max_width, max_height = (limit, limit) if isinstance(limit, int) else limit
        name = f"{max_width}x{max_height}"
        size = size_within(width, height, max_width * max_height)
        step = settings.divisible_by
        crop = (size[0] // step * step, size[1] // step * step)
        if 0 in crop:
            left_out.append(f"would be {size[0]} x {size[1]} at {name}, too small to be divisible by {step}")
            continue
        if crop in sizes:
            left_out.append(f"has the same size at {name} as at {sizes[crop]}")
            continue
        sizes[crop] = name
        image = cut(scaled(opened, size, settings.interpolation), centered_box(size, crop))
        copies.append(Copy(f"{path.stem}+{name}", image, settings.format))
    return copies, left_out


def size_within(width: int, height: int, max_pixels: int) -> tuple[int, int]:
    """Return (width, height) of the same aspect ratio with at most `max_pixels` pixels, at least 1 x 1; unchanged if it fits."""
    if width * height <= max_pixels:
        return width, height
    scale = math.sqrt(max_pixels / (width * height))
    return max(1, int(width * scale)), max(1, int(height * scale))


def cropped_copies(path: Path, settings: CropSettings) -> tuple[list[Copy], list[str]]:
    """Return ([a copy center-cropped to the crop size], []). Raises Skip for an image that is too small."""
    opened = open_decoded(path)
    width, height = opened.colors.size
    crop_size = settings.crop_size
    if settings.crop_scaled:
        scale = max(crop_size[0] / width, crop_size[1] / height)
        size = (max(crop_size[0], round(width * scale)), max(crop_size[1], round(height * scale)))
        opened = scaled(opened, size, settings.interpolation)
    elif width < crop_size[0] or height < crop_size[1]:
        raise Skip(f"is {width} x {height}, smaller than {crop_size[0]} x {crop_size[1]}")
    return [Copy(path.stem, cut(opened, centered_box(opened.colors.size, crop_size)), settings.format)], []


_PILLOW_NAMES = {"png": "PNG", "jpg": "JPEG", "webp": "WEBP"}


def converted_copies(path: Path, settings: ConvertSettings) -> tuple[list[Copy], list[str]]:
    """Return ([a copy in the output format], []). A file that has this format is copied byte for byte."""
    opened = open_decoded(path)  # also for a copy: a broken image is named, not copied
    with Image.open(path) as image:
        has_format = image.format == _PILLOW_NAMES[settings.format] and not getattr(image, "is_animated", False)
    return [Copy(path.stem, path if has_format else opened, settings.format)], []


COPIES: dict[type[EncodedCopySettings], Any] = {
    ResizeSettings: resized_copies,
    CropSettings: cropped_copies,
    ConvertSettings: converted_copies,
}


def centered_box(size: tuple[int, int], crop: tuple[int, int]) -> Box:
    """Return the box (left, top, right, bottom) of size `crop` in the center of an image of size `size`."""
    left, top = (size[0] - crop[0]) // 2, (size[1] - crop[1]) // 2
    return left, top, left + crop[0], top + crop[1]


def cut(opened: DecodedImage, box: Box) -> DecodedImage:
    """Crop an image and its alpha to a box."""
    return DecodedImage(opened.colors.crop(box), opened.alpha.crop(box) if opened.alpha else None)


def scaled(opened: DecodedImage, size: tuple[int, int], interpolation: str) -> DecodedImage:
    """Resize an image and its alpha. Transparent pixels do not bleed into their neighbors."""
    if opened.alpha is None or opened.colors.size == size:
        alpha = resize(opened.alpha, size, interpolation) if opened.alpha else None
        return DecodedImage(resize(opened.colors, size, interpolation), alpha)
    # Pillow multiplies colors by their transparency while it resizes RGBA. It has no exact area filter; box is the nearest.
    shrinks = size[0] <= opened.colors.width and size[1] <= opened.colors.height
    name = ("area" if shrinks else "lanczos") if interpolation == "auto" else interpolation
    filters = {
        "area": Image.Resampling.BOX,
        "lanczos": Image.Resampling.LANCZOS,
        "bicubic": Image.Resampling.BICUBIC,
        "bilinear": Image.Resampling.BILINEAR,
        "nearest": Image.Resampling.NEAREST,
    }
    rgba = opened.colors.convert("RGBA")
    rgba.putalpha(opened.alpha)
    rgba = rgba.resize(size, filters[name])
    return DecodedImage(rgba.convert("RGB"), rgba.getchannel("A"))
