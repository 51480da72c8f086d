"""Finds and checks the CLIP and VGG models and guide images of a generation before anything is loaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from core.diffusion.samplers import make_sampler
from core.families.locate import model_path
from core.formats.detect import FAMILY_NAMES
from core.formats.models.checkpoint import Part, folder_part, weight_files
from core.formats.models.part_config import RULES
from core.formats.models.part_kinds import TEXT_FIELDS, PartKind
from core.formats.tensors.header import read_header
from core.generation.model.sources import HookFile
from core.generation.plan.initial import GUIDE, image_files, opened
from core.generation.plan.stages import has_regions
from core.record.bounded_json import read_json_object
from core.record.problems import Problem, ProblemsError, raise_any, raise_if_errors
from core.settings.generation.perceptual import CLIP, VGG
from core.settings.model import FAMILIES
from core.settings.samples import SAMPLER_LABELS

if TYPE_CHECKING:
    from core.generation.model.sources import Sources
    from core.record.workspace import Workspace
    from core.settings.job import GenerateJob

CONVOLUTIONS = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)  # of VGG16's features, 3 x 3 each
IMAGE_FIELDS = frozenset(
    (
        *("hidden_size", "intermediate_size", "projection_dim", "num_hidden_layers", "num_attention_heads"),
        *("num_channels", "image_size", "patch_size", "hidden_act", "layer_norm_eps"),
    )
)
CLIP_WHERE, VGG_WHERE = "perceptual.clip_model", "perceptual.vgg16_model"


def _is_valid_config(config: object) -> bool:
    """Return whether the text or vision config of a CLIP model has valid values."""
    rules = RULES | dict.fromkeys(("image_size", "patch_size", "num_channels"), RULES["hidden_size"])
    return isinstance(config, Mapping) and all(rules[name](value) for name, value in config.items() if name in rules)


CLIP_KIND = PartKind(
    "CLIPModel",
    "transformers.models.clip.modeling_clip",
    needed=("text_config", "vision_config"),
    config=("transformers.models.clip.configuration_clip", "CLIPConfig"),
    checks={"text_config": _is_valid_config, "vision_config": _is_valid_config},
)


def clip_name(job: GenerateJob) -> str:
    """Return the CLIP model in the settings, or the default."""
    return job.perceptual.clip_model or CLIP


def vgg_name(job: GenerateJob) -> str:
    """Return the VGG16 model in the settings, or the default."""
    return job.perceptual.vgg16_model or VGG


def files_of(jobs: Sequence[GenerateJob], workspace: Workspace) -> dict[str, HookFile]:
    """Return {name in the settings: file} of the CLIP and VGG models in use. Raises ProblemsError for missing or wrong files."""
    clips = {clip_name(job) for job in jobs if job.perceptual.uses_clip}
    nets = {vgg_name(job) for job in jobs if job.perceptual.vgg16_guidance_scale}
    files, problems = {}, []
    for names, where, find in ((clips, CLIP_WHERE, _clip_file), (nets, VGG_WHERE, _vgg_file)):
        for name in sorted(names):
            try:
                files[name] = find(model_path(name, workspace, where))
            except ProblemsError as error:
                problems += [replace(each, where=where) for each in error.problems]
    raise_if_errors(problems)
    return files


def _clip_file(path: Path) -> HookFile:
    """Return the CLIP model in a folder with its bytes in fp32. Raises ProblemsError unless it is complete."""
    from core.families.loading import part_problems

    part = clip_part(path)
    raise_any(part_problems(part, CLIP_KIND, "CLIP"))
    return HookFile(path, sum(4 * prod(location.entry.shape) for location in part.locations.values()))


def clip_part(folder: Path) -> Part:
    """Open the CLIP model in a folder of transformers by its headers. Raises ProblemsError for other folders."""
    config = read_json_object(folder / "config.json") if (folder / "config.json").is_file() else {}
    if config.get("model_type") != "clip":
        what, fix = f"{folder.name} is not a folder of a CLIP model", f"choose one such as {CLIP}"
        raise ProblemsError.one(what, CLIP_WHERE, fix, "perceptual.not-clip")
    text, image = (
        {key: value for key, value in dict(config.get(half) or {}).items() if key in fields}
        for half, fields in (("text_config", TEXT_FIELDS), ("vision_config", IMAGE_FIELDS))
    )
    sizes = {"projection_dim": config["projection_dim"]} if "projection_dim" in config else {}
    return replace(folder_part(folder, {"text_config": text, "vision_config": image, **sizes}, CLIP_KIND), name="clip")


def _vgg_file(path: Path) -> HookFile:
    """Return the VGG16 weights in a file or a folder, with the bytes of their feature layers in fp32. Raises ProblemsError for others."""
    file = weight_files(path)[0] if path.is_dir() else path
    shapes, inputs = vgg_shapes(file), 3
    for number in CONVOLUTIONS:
        outputs, *kernel = shapes.get(f"features.{number}.weight", (0,))
        if kernel != [inputs, 3, 3] or shapes.get(f"features.{number}.bias") != (outputs,):
            what, fix = f"{path.name} is not a VGG16: its layer {number} differs", f"choose one such as {VGG}"
            raise ProblemsError.one(what, VGG_WHERE, fix, "perceptual.not-vgg")
        inputs = outputs
    return HookFile(file, sum(4 * prod(shape) for name, shape in shapes.items() if name.startswith("features.")))


def vgg_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """Return {key: shape} of the tensors in a file, from its header."""
    return {name: tuple(entry.shape) for name, entry in read_header(file)[0].items()}


# -- problems


def problems_of(job: GenerateJob) -> Iterator[Problem]:
    """Yield problems of one image's CLIP and VGG guidance settings, before files are searched."""
    settings = job.perceptual
    if settings.compares_images and not (settings.guide_image or job.controls.control_image):
        what, fix = "CLIP image and VGG16 guidance need a guide image", "choose one, or set their scales to 0"
        yield Problem(what, GUIDE, fix, code="perceptual.no-image")
    if settings.guide_image and not settings.compares_images:
        what, fix = "The guide image has no effect: its guidance scales are 0", "raise one, or remove the image"
        yield Problem(what, GUIDE, fix, "advice", code="perceptual.image-alone")
    if settings.clip_prompt and not settings.clip_guidance_scale:
        what, fix = "The CLIP prompt has no effect: the CLIP guidance scale is 0", "raise it, or remove the CLIP prompt"
        yield Problem(what, "perceptual.clip_prompt", fix, "advice", code="perceptual.prompt-alone")
    if not settings.used:
        return
    if has_regions(job):
        what, fix = "CLIP and VGG guidance cannot be used with regions", "turn one of them off"
        yield Problem(what, "regions.region_map", fix, code="perceptual.regions")
    if job.generation_memory.offload == "layers":
        what = "CLIP and VGG guidance need the whole U-Net on the GPU: gradients cannot be computed layer by layer"
        yield Problem(what, "generation_memory.offload", "choose another offload", code="perceptual.offload")


def file_problems(job: GenerateJob, sources: Sources, workspace: Workspace) -> Iterator[Problem]:
    """Yield errors of a model family or sampler that CLIP and VGG guidance do not support."""
    if not job.perceptual.used:
        return
    if FAMILIES[sources.family].objective != "diffusion":
        what = f"CLIP and VGG guidance do not work with {FAMILY_NAMES[sources.family]} models"
        yield Problem(what, "perceptual.clip_guidance_scale", "turn it off", code="perceptual.family")
    elif not hasattr(make_sampler(job.generate.sampler), "alphas_cumprod"):
        what = f"CLIP and VGG guidance do not work with the sampler {SAMPLER_LABELS[job.generate.sampler]}"
        yield Problem(what, "generate.sampler", "choose another sampler", code="perceptual.sampler")


def with_guide_images(jobs: Sequence[GenerateJob]) -> list[GenerateJob]:
    """Return the jobs with one guide image each; images of a folder are used in turn. Raises ProblemsError for missing and unreadable
    images."""
    jobs_with_images, listed, checked = [], cache(image_files), set()
    for number, job in enumerate(jobs):
        settings = job.perceptual
        text = settings.guide_image or job.controls.control_image
        if not settings.compares_images or not text:
            jobs_with_images.append(job)
            continue
        files = listed(text, GUIDE)
        file = files[number % len(files)]
        if file not in checked:
            opened(file, GUIDE)
            checked.add(file)
        jobs_with_images.append(job.with_settings(perceptual={"guide_image": str(file)}))
    return jobs_with_images
