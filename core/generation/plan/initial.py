"""Finds, opens and checks the initial images and masks of a job."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from core.dataset.sources.files import is_image_name, is_junk
from core.generation.plan.requests import Request
from core.generation.plan.stages import KOHYA_SIZE_STEP, as_sd_scripts, has_regions
from core.generation.prompt.runs import parts_of
from core.generation.sample.canvas import fitted
from core.record.problems import Problem, ProblemsError
from core.record.units import count, first_of
from core.record.workspace import resolve_path
from core.settings.generation.image_to_image import ImageToImageSettings
from core.settings.job import GenerateJob

if TYPE_CHECKING:
    from PIL.Image import Image

BLUR = 4  # pixels of mask blur, A1111's default
SHOWN = 5  # names of images without a mask in a message
IMAGE, MASK, MAP = "image_to_image.image_path", "image_to_image.mask_path", "regions.region_map"
CONTROL, GUIDE = "controls.nets", "perceptual.guide_image"


def image_files(text: str, where: str) -> list[Path]:
    """Return the image at a path, or all images in a folder, by name. Raises ProblemsError if there are none. where: the path's setting"""
    path = resolve_path(text)
    if os.path.isfile(path):
        return [path]
    listed = sorted(path.glob("*")) if os.path.isdir(path) else []
    files = [file for file in listed if is_image_name(file.name) and not is_junk(file.name)]
    if files:
        return files
    what = f"The folder '{text}' contains no images" if os.path.isdir(path) else f"'{text}' does not exist"
    raise ProblemsError.one(what, where, "choose an image, or a folder of images", "image.missing")


def opened(path: Path, where: str) -> Image:
    """Open an image upright. Raises ProblemsError for an unreadable image.

    where   the setting with the path. It decides the mode: RGB on white for an initial image, "L" on black for a mask, RGB on black
            for a region map, a control image or a guide image
    """
    from core.dataset.images.colors import BLACK, WHITE
    from core.dataset.images.opening import BrokenImage, open_decoded

    try:
        image = open_decoded(path, managed=where == IMAGE).on(WHITE if where == IMAGE else BLACK)
        return image.convert("L") if where == MASK else image
    except BrokenImage as error:
        what = f"The image {path.name} {error}"
        raise ProblemsError.one(
            what, where, "choose another image file, or remove it from its folder", "image.unreadable"
        ) from error


def size_from(job: GenerateJob, image: tuple[int, int], step: int) -> tuple[int, int]:
    """Return (width, height) in pixels of the result for an initial image of size `image` (width, height).

    The width and height in the settings; if one is set, the other by the image's aspect ratio; if none, the image's size. Rounded
    down to multiples of `step` (with compatibility "kohya" KOHYA_SIZE_STEP), at least one of them.
    """
    step = KOHYA_SIZE_STEP if as_sd_scripts(job) else step
    width, height = job.generate.width, job.generate.height
    if width and not height:
        height = round(image[1] * width / image[0])
    elif height and not width:
        width = round(image[0] * height / image[1])
    size = width or image[0], height or image[1]
    return max(size[0] // step, 1) * step, max(size[1] // step, 1) * step


def blur_of(job: GenerateJob) -> int:
    """Return the radius of the mask blur in pixels: as set, else A1111's default, or 0 with compatibility "kohya"."""
    blur = job.image_to_image.mask_blur
    return (0 if as_sd_scripts(job) else BLUR) if blur is None else blur


def read_mask(settings: ImageToImageSettings, size: tuple[int, int]) -> Image:
    """Return the mask in mode "L", white where it is repainted, resized to `size` (width, height)."""
    from PIL import ImageOps

    mask = fitted(opened(resolve_path(settings.mask_path or ""), MASK), size, "resize")
    return ImageOps.invert(mask) if settings.mask_invert else mask


def blurred(mask: Image, radius: int) -> Image:
    """Return a mask with Gaussian blur. radius: in pixels; 0 keeps the mask"""
    from PIL import ImageFilter

    return mask.filter(ImageFilter.GaussianBlur(radius)) if radius else mask


def with_initial_images(requests: Sequence[Request]) -> list[Request]:
    """Return the requests with one initial image and one mask each; images of a folder are used in turn. Raises ProblemsError for missing
    images, and for folders whose masks do not fit the images, see `masks_of`."""
    listed, resolved = cache(_images_and_masks), []
    for number, request in enumerate(requests):
        settings = request.job.image_to_image
        images, masks = listed(settings.image_path, settings.mask_path)
        named = (("image_path", images), ("mask_path", masks))
        files_of_image = {name: str(files[number % len(files)]) for name, files in named if files}
        resolved.append(replace(request, job=request.job.with_settings(image_to_image=files_of_image)))
    for text in filter(None, dict.fromkeys(request.job.regions.region_map for request in requests)):
        for file in image_files(text, MAP):
            opened(file, MAP)
    return resolved


def _images_and_masks(image: str | None, mask: str | None) -> tuple[list[Path], list[Path]]:
    """Return the initial images and the masks at two paths; of two folders, each mask in its image's place."""
    images, masks = (image_files(text, where) if text else [] for text, where in ((image, IMAGE), (mask, MASK)))
    return images, masks_of(images, masks) if len(images) > 1 and len(masks) > 1 else masks


def masks_of(images: Sequence[Path], masks: Sequence[Path]) -> list[Path]:
    """Return the masks in the order of their images: those of the same names (A1111), else in the order of the names (sd-scripts).
    Raises ProblemsError for images without a mask."""
    by_stem = {mask.stem: mask for mask in masks}
    missing = [image.name for image in images if image.stem not in by_stem]
    if len(by_stem) == len(masks) and not missing:
        return [by_stem[image.stem] for image in images]
    if len(images) != len(masks):
        what = f"There are {count(len(images), 'initial image')}, but {count(len(masks), 'mask')}"
    elif 0 < len(missing) < len(images):
        what = f"No mask has the name of {first_of(missing, SHOWN)}"
    else:
        return list(masks)
    fix = "choose a folder with one mask for each image, of the image's name, or one mask for all"
    raise ProblemsError.one(what, MASK, fix, "generate.mask-count")


def unused_images(jobs: Sequence[GenerateJob]) -> Iterator[Problem]:
    """Yield advice about folders with more initial images than images are generated. jobs: of all images, before folders are resolved"""
    for text in dict.fromkeys(job.image_to_image.image_path for job in jobs):
        number = len(image_files(text, IMAGE)) if text else 0
        if number > len(jobs):
            what, fix = f"Only {len(jobs)} of the {number} initial images are used", f"generate {number} images"
            yield Problem(what, "generate.count", fix, "advice", code="generate.unused-images")


def region_advice(jobs: Sequence[GenerateJob]) -> Iterator[Problem]:
    """Yield advice about region maps without an area of its own for each prompt. Raises ProblemsError for unreadable maps."""
    by_channel = [job for job in jobs if has_regions(job) and not job.regions.network_regional_mask_max_color_codes]
    for text, prompts in sorted(
        {(job.regions.region_map or "", len(parts_of(job.generate.prompt))) for job in by_channel}
    ):
        path = resolve_path(text)
        areas = dict(zip(("red", "green", "blue")[:prompts], opened(path, MAP).split(), strict=False))
        what, missing = "", [color for color, area in areas.items() if area.getbbox() is None]
        if missing:
            what = f"{path.name} has no {' and no '.join(missing)}: prompts without an area act on the whole image"
        elif len({area.tobytes() for area in areas.values()}) == 1:
            what = f"{path.name} is gray: all prompts act on the same area"
        if what:
            fix = "paint red where the first prompt acts, green for the second, blue for the third"
            yield Problem(what, MAP, fix, "advice", code="generate.region-colors")


def mask_problems(requests: Sequence[Request]) -> Iterator[Problem]:
    """Yield problems of the masks. Raises ProblemsError for unreadable images."""
    for job in {request.job.image_to_image.model_dump_json(): request.job for request in requests}.values():
        settings = job.image_to_image
        if not settings.image_path or not settings.mask_path:
            continue
        image, path = opened(resolve_path(settings.image_path), IMAGE).size, resolve_path(settings.mask_path)
        mask_size = opened(path, MASK).size
        yield from mask_size_advice(path, mask_size, image)
        mask, blur = read_mask(settings, image), blur_of(job)
        if mask.getbbox() is not None and blurred(mask, blur).getbbox() is None:
            what = f"A blur of {blur} pixels leaves nothing of the mask {path.name}"
            yield Problem(what, "image_to_image.mask_blur", "use a smaller one", code="generate.mask-blurred")
        if mask.getbbox() is None:
            color = "white" if settings.mask_invert else "black"
            what = f"The mask {path.name} is all {color}: nothing would be repainted"
            fix = "paint what is repainted white, or turn Invert mask " + ("off" if settings.mask_invert else "on")
            yield Problem(what, MASK, fix, code="generate.mask-empty")


def mask_size_advice(path: Path, size: tuple[int, int], image: tuple[int, int]) -> Iterator[Problem]:
    """Yield advice if the size of a mask differs from its image's. path: the mask; size, image: (width, height) of mask and image"""
    if size != image:
        method = "resized" if size[0] * image[1] == size[1] * image[0] else "stretched"
        what = f"The mask {path.name} is {size[0]} x {size[1]}, the image {image[0]} x {image[1]}: it is {method}"
        yield Problem(what, MASK, "paint it at the image's size", "advice", code="generate.mask-size")
