"""The detailer: inpaints faces, hands or persons of a finished image at full size and pastes them back."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Self

from core.control.detectors import DETECTORS, Box, Find, lowest_confidence
from core.formats.onnx.file import check_onnx
from core.generation.effects.inpaint import only_masked
from core.generation.model.sources import HookFile
from core.generation.plan.files import size_problems, weight_problems
from core.generation.plan.hooks import Inpaint
from core.generation.plan.initial import blurred
from core.generation.plan.stages import as_sd_scripts, detail_size, least_strength
from core.generation.prompt.loras import has_tags
from core.generation.sample.canvas import Box as Pixels
from core.record.problems import Problem, ProblemsError, collected, problems_at, raise_if_errors
from core.record.units import count
from core.record.workspace import resolve_path
from core.settings.base import SEEDS
from core.settings.generation.detailer import DetailerSettings
from core.settings.job import GenerateJob
from core.settings.model import FAMILIES
from core.settings.named import leads_out

if TYPE_CHECKING:
    from PIL.Image import Image

    from core.generation.model.sources import Sources
    from core.record.context import Reports
    from core.record.workspace import Workspace

FILE, DETECTOR = "detailer.ad_model_file", "detailer.ad_model"
FOLDER = "detectors"  # in models/
TRIAL = 64, 64  # (width, height) of an image that detector files are tried on
SEPARATOR, WHOLE, SKIP = re.compile(r"\s*\[SEP\]\s*"), "[PROMPT]", "[SKIP]"
# Groups that act on the whole image only
WHOLE_IMAGE_GROUPS = "hires detailer deep_shrink gradual_latent refiner controls perceptual regions sizes".split()


# -- checks


def problems(job: GenerateJob) -> Iterator[Problem]:
    """Yield problems of one image's detailer settings, before files are searched."""
    settings = job.detailer
    if not settings.used:
        return
    if settings.ad_mask_min_ratio >= settings.ad_mask_max_ratio:
        what, fix = "No area is between the min and the max area ratio", "make the min smaller than the max"
        yield Problem(what, "detailer.ad_mask_min_ratio", fix, code="detailer.area")
    steps, strength = settings.ad_steps or job.generate.steps, settings.ad_denoising_strength
    if not strength or (as_sd_scripts(job) and not int(steps * strength)):
        what = f"With {steps} steps, a detailer denoising strength of {strength:g} runs no steps"
        fix = f"use at least {least_strength(steps):g}, or more steps"
        yield Problem(what, "detailer.ad_denoising_strength", fix, code="detailer.no-steps")
    for name, text in (("ad_prompt", settings.ad_prompt), ("ad_negative_prompt", settings.ad_negative_prompt)):
        if has_tags(text or ""):
            what, fix = f"{settings.title_of(name)}: LoRAs are the image's", "write the LoRA into the image's prompt"
            yield Problem(what, f"detailer.{name}", fix, code="detailer.lora")
        if text:
            for each in weight_problems(job.with_settings(generate={"prompt": text, "negative_prompt": ""})):
                yield Problem(each.what, f"detailer.{name}", each.fix, code=each.code)
    if not settings.ad_model_file:
        missing: list[Problem] = []
        collected(missing, problems_at(DETECTOR)(DETECTORS[settings.ad_model].check))
        yield from missing


def file_problems(job: GenerateJob, sources: Sources, workspace: Workspace) -> Iterator[Problem]:
    """Yield errors of inpainting sizes that the model cannot generate."""
    sides = ("detailer.ad_inpaint_width", "detailer.ad_inpaint_height") if job.detailer.used else ()
    yield from size_problems(job, FAMILIES[sources.family].size_step, sides)


def files(jobs: Sequence[GenerateJob], workspace: Workspace) -> dict[str, HookFile]:
    """Return {name in the settings: detector file} of all jobs. Detectors run on the CPU and need no VRAM. Raises ProblemsError as
    `detector_file`."""
    named_files = dict.fromkeys((job.detailer.ad_model_file, job.detailer.ad_model_classes or "") for job in jobs)
    problems: list[Problem] = []
    paths = {name: collected(problems, detector_file, name, kinds, workspace) for name, kinds in named_files if name}
    raise_if_errors(problems)
    return {name: HookFile(path, bytes=0) for name, path in paths.items() if path is not None}


def detector_file(name: str, classes: str, workspace: Workspace) -> Path:
    """Return the ONNX file of a detector. Raises ProblemsError if it is missing, not ONNX, or lacks one of the classes.

    name      a path, or a name below models/ or models/detectors
    classes   the setting `ad_model_classes`: names of classes to detect
    """
    from core.control.detectors.yolo import class_numbers

    models = workspace.models
    inside = [] if leads_out(name) else [models / FOLDER / name, models / name.removeprefix("models/")]
    path = next((path for path in [*inside, resolve_path(name)] if os.path.isfile(path)), None)
    if path is None:
        what, fix = f"There is no detector '{name}'", f"choose an .onnx file, or put it into models/{FOLDER}"
        raise ProblemsError.one(what, FILE, fix, "detailer.no-file")
    if path.suffix.lower() != ".onnx":
        what = f"The detector {path.name} is not an ONNX file"
        fix = f"export it: yolo export model={path.name} format=onnx"
        raise ProblemsError.one(what, FILE, fix, "detailer.not-onnx")
    with problems_at(FILE):
        check_onnx(path, "hint-model")
    class_numbers(path, classes)
    return path


def texts(job: GenerateJob) -> Iterable[str]:
    """Return the prompts in the detailer's settings."""
    settings = job.detailer
    return [text for text in (settings.ad_prompt, settings.ad_negative_prompt) if text and settings.used]


# -- on finished images


class Detailer(ExitStack):
    """Inpaints detections in finished images. A context that closes the detectors it has opened."""

    def __init__(self, jobs: Sequence[GenerateJob], workspace: Workspace, reports: Reports):
        super().__init__()
        self._workspace, self._reports = workspace, reports
        self._finders: dict[tuple[str, str], Find] = {}  # by detector and classes
        used = (job.detailer for job in jobs if job.detailer.ad_model_file)
        self._tried = {(each.ad_model_file, each.ad_model_classes): each for each in used}

    def __enter__(self) -> Self:
        """Try the detector files on an empty image, so that one that cannot run is refused before the first image."""
        from PIL import Image as pillow

        try:
            for settings in self._tried.values():
                self._find(settings, pillow.new("RGB", TRIAL))
        except BaseException:
            self.close()
            raise
        return super().__enter__()

    def __call__(self, inpaint: Inpaint, job: GenerateJob, image: Image) -> Image:
        """Inpaint the detections in an image, one after another. Without detections, warn and return the image unchanged; also if the job's
        detailer is off.
        inpaint: (job, canvas) -> the canvas' image with its masked area generated"""
        settings = job.detailer
        if not settings.used:
            return image
        detections = self._find(settings, image)
        boxes = boxes_to_detail(detections, image.size, settings)
        if not boxes:
            what, code = "found nothing", "detailer.none-found"
            fix = "lower the detector confidence, or choose another detector"
            if detections:
                what, code = f"left out {count(len(detections), 'detection')}", "detailer.all-left-out"
                fix = "change the area ratios or the mask dilation"
            what = f"The detailer {what} in the image with seed {job.generate.seed}, which is unchanged"
            self._reports.warn(Problem(what, DETECTOR, fix, "advice", code=code))
        for number, box in enumerate(boxes):
            if (part := job_of(job, number)) is None:
                continue
            self._reports.stage(f"detailing {number + 1} of {len(boxes)}", number, len(boxes))
            mask = blurred(box_mask(box, image.size), settings.ad_mask_blur)
            if mask.getbbox() is None:
                what = f"A blur of {settings.ad_mask_blur} pixels leaves nothing of detection {number + 1}"
                fix = "use less"
                self._reports.warn(Problem(what, "detailer.ad_mask_blur", fix, "advice", code="detailer.mask-blurred"))
                continue
            image = inpaint(part, only_masked(image, mask, settings.ad_inpaint_only_masked_padding, detail_size(job)))
        return image

    def _find(self, settings: DetailerSettings, image: Image) -> Sequence[Box]:
        """Return the boxes that the detector of these settings finds in an image."""
        key = settings.ad_model_file or settings.ad_model, settings.ad_model_classes or ""
        if key not in self._finders:
            if settings.ad_model_file:
                from core.control.detectors.yolo import YoloDetector

                path = detector_file(*key, self._workspace)
                self._finders[key] = self.enter_context(YoloDetector(path, FILE, self._reports.cancel, key[1])).find
            else:
                self._finders[key] = self.enter_context(DETECTORS[settings.ad_model].open())
        return self._finders[key](image, lowest_confidence(settings))


def boxes_to_detail(boxes: Sequence[Box], size: tuple[int, int], settings: DetailerSettings) -> list[Pixels]:
    """Select, sort, dilate and round the boxes to inpaint.

    Keeps boxes of an allowed area, at most the `ad_mask_k_largest` largest, in the order of `ad_bbox_sortby`.

    boxes     (left, top, right, bottom) in pixels, also beyond the image
    size      (width, height) of the image
    returns   boxes in whole pixels inside the image
    """
    whole = size[0] * size[1]
    low, high = settings.ad_mask_min_ratio * whole, settings.ad_mask_max_ratio * whole
    fitting = [box for box in boxes if low <= min(area(box), whole) <= high]
    if settings.ad_mask_k_largest:
        largest = sorted(fitting, key=area, reverse=True)[: settings.ad_mask_k_largest]
        fitting = [box for box in fitting if box in largest]
    match settings.ad_bbox_sortby:
        case "left":
            fitting.sort(key=lambda box: box[0])
        case "center":
            fitting.sort(key=lambda box: math.hypot(box[0] + box[2] - size[0], box[1] + box[3] - size[1]))
        case "area":
            fitting.sort(key=area, reverse=True)
    dilated = [_dilated_in_pixels(box, size, settings.ad_dilate_erode / 2) for box in fitting]
    return [box for box in dilated if box[0] < box[2] and box[1] < box[3]]


def area(box: Box) -> float:
    """Return the area of a box in square pixels."""
    return (box[2] - box[0]) * (box[3] - box[1])


def _dilated_in_pixels(box: Box, size: tuple[int, int], margin: float) -> Pixels:
    """Return a box dilated by `margin` pixels on each side, rounded outward, within an image of `size` (width, height)."""
    left, top = max(math.floor(box[0] - margin), 0), max(math.floor(box[1] - margin), 0)
    return left, top, min(math.ceil(box[2] + margin), size[0]), min(math.ceil(box[3] + margin), size[1])


def box_mask(box: Pixels, size: tuple[int, int]) -> Image:
    """Return a mask of `size` (width, height) in mode "L" that is white in the box."""
    from PIL import Image as pillow

    mask = pillow.new("L", size)
    mask.paste(255, box)
    return mask


def job_of(job: GenerateJob, number: int) -> GenerateJob | None:
    """Return the job that inpaints detection `number` (from 0) of an image, or None if its prompt is [SKIP].

    The job's image and mask paths are placeholders: the canvas is passed separately.
    """
    settings, image = job.detailer, job.generate
    prompt = _prompt(settings.ad_prompt, image.prompt, number)
    if SKIP in prompt:
        return None
    first_seed = (image.seed or 0) if settings.ad_seed is None else settings.ad_seed
    width, height = detail_size(job)
    generate = {
        "prompt": prompt,
        "negative_prompt": _prompt(settings.ad_negative_prompt, image.negative_prompt, number),
        "width": width,
        "height": height,
        "steps": settings.ad_steps or image.steps,
        "guidance_scale": image.guidance_scale if settings.ad_cfg_scale is None else settings.ad_cfg_scale,
        "seed": (first_seed + number) % SEEDS,
        "variation_strength": 0.0,
    }
    initial = {
        "image_path": "detection",  # names nothing: the canvas is given
        "mask_path": "detection",
        "strength": settings.ad_denoising_strength,
        "inpaint_area": "masked",
        "masked_content": "original",
    }
    inpaint_job = job.model_copy(update={name: type(getattr(job, name))() for name in WHOLE_IMAGE_GROUPS})
    return inpaint_job.with_settings(generate=generate, image_to_image=initial)


def _prompt(text: str | None, image_prompt: str, number: int) -> str:
    """Return the prompt of detection `number` (from 0) in a text split at [SEP]; the last part is for all further detections.

    text           the detailer's prompt, with [PROMPT] for the image's
    image_prompt   the image's prompt, used if the part is empty
    """
    parts = SEPARATOR.split(text or "")
    return parts[min(number, len(parts) - 1)].replace(WHOLE, image_prompt) or image_prompt
