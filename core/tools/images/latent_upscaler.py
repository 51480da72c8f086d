"""Doubles the size of images with sd-scripts' latent upscaler: Lanczos, VAE, network, VAE (reference: tools/latent_upscaler.py)."""

import glob
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import groupby, islice
from pathlib import Path
from typing import Any

from PIL import Image

from core.dataset.images.opening import BrokenImage, open_rgb
from core.dataset.sources.files import is_image, is_junk, is_label
from core.families import family
from core.families.locate import model_path, vae_problems
from core.families.vae import decode_latents, encode_image_latents, model_latents
from core.formats.models.checkpoint import open_vae
from core.generation.model.library import find
from core.generation.model.other_files import upscaler_kind
from core.generation.sample.canvas import pixels_of
from core.record import atomic
from core.record.allowed import may_reach
from core.record.context import JobContext, Outcome
from core.record.draws import normal
from core.record.lazy_torch import torch
from core.record.problems import Problem, ProblemsError, collected, problems_at, raise_if_errors
from core.record.units import count
from core.record.workspace import Workspace, display_path, resolve_path
from core.settings.tools.upscale import LatentUpscalerSettings
from core.tools.output import output_problems

GROUP = "latent_upscaler"
SIDE, SCALE = 8, 2  # images are cut to multiples of the VAE's factor
MOST_LINES = 20
WRITTEN = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}  # output formats; others become PNG
ImageAndTarget = tuple[Image.Image, Path]  # target: the file to write
Find = Callable[[str, Workspace, str], Path]  # (a setting's value, workspace, setting) -> the file


@dataclass(frozen=True)
class Plan:
    """The images to upscale, the files to write, in the same order, the VAE and the network's weights."""

    images: list[Path]
    targets: list[Path]
    vae: Path
    weights: Path

    def __str__(self) -> str:
        return f"upscale {count(len(self.images), 'image')}"


def plan(settings: LatentUpscalerSettings, workspace: Workspace) -> Plan:
    """Find the images, VAE and weights, check the outputs and return the plan. Raises ProblemsError with all problems."""
    problems: list[Problem] = []
    images = _images(settings.images, problems)
    vae = collected(problems, _file, settings.vae, "vae", "VAE", _vae_path, workspace)
    weights = collected(problems, _file, settings.weights, "weights", "weights file", _weights_path, workspace)
    folder = resolve_path(settings.output_dir) if settings.output_dir else None
    if folder is not None and os.path.exists(folder) and not os.path.isdir(folder):
        what, fix = f"{display_path(folder)} is a file", "choose a folder"
        problems.append(Problem(what, f"{GROUP}.output_dir", fix, code="upscale.not-a-folder"))
    targets = [(folder or image.parent) / _name(image) for image in images]
    size = sum(4 * SCALE * SCALE * image.stat().st_size for image in images)
    for image, target in zip(images, targets, strict=True):
        problems += output_problems(target, [image], size, f"{GROUP}.output_dir")
    duplicate = next((target for target, times in Counter(targets).items() if times > 1), None)
    if duplicate is not None:
        names = [image.name for image, target in zip(images, targets, strict=True) if target == duplicate]
        what, fix = (
            f"{' and '.join(names[:2])} would both become {duplicate.name}",
            "rename one, or upscale them one by one",
        )
        problems.append(Problem(what, f"{GROUP}.output_dir", fix, code="upscale.same-name"))
    raise_if_errors(problems)
    assert vae is not None and weights is not None
    return Plan(images, targets, vae, weights)


def _name(image: Path) -> str:
    """Return the file name of an upscaled image."""
    return f"{image.stem}_upscaled{image.suffix if image.suffix.lower() in WRITTEN else '.png'}"


def _images(setting: str | None, problems: list[Problem]) -> list[Path]:
    """Return the images of a folder, file or glob pattern, sorted by name, without masks and upscaled images.
    setting: value of the setting `images`. Adds a problem if there are none"""
    where = f"{GROUP}.images"
    if not setting:
        problems.append(Problem("No images are given", where, "choose a folder", code="upscale.no-images"))
        return []
    path = resolve_path(setting)
    paths = sorted(path.iterdir()) if os.path.isdir(path) else [Path(each) for each in sorted(glob.glob(str(path)))]
    paths = [path] if os.path.isfile(path) else paths
    images = [each for each in paths if _is_source(each) and may_reach(each)]
    if not images:
        what, fix = f"There are no images at {display_path(path)}", "choose a folder of images, or a pattern"
        problems.append(Problem(what, where, fix, code="upscale.no-images"))
    return images


def _is_source(path: Path) -> bool:
    """Return whether a file is an image to upscale: neither a mask nor already upscaled."""
    excluded = is_junk(path.name) or is_label(path.name) or path.stem.endswith("_upscaled")
    return path.is_file() and not excluded and is_image(path, path.name)


def _file(name: str | None, setting: str, title: str, find: Find, workspace: Workspace) -> Path:
    """Return the file that a setting names. Raises ProblemsError if it is not given or not found.

    setting   name without the group
    title     of the file, for the message
    find      (name, workspace, setting) -> path
    """
    where = f"{GROUP}.{setting}"
    if not name:
        raise ProblemsError.one(f"No {title} is given", where, "choose a file", f"upscale.no-{setting}")
    with problems_at(where):
        return find(name, workspace, where)


def _vae_path(name: str, workspace: Workspace, where: str) -> Path:
    """Return the path of a VAE. Raises ProblemsError for a file without a VAE, and for one of another family than SD 1.x and 2.x."""
    path = model_path(name, workspace, where)
    if wrong := vae_problems(open_vae(path), "sd1", where):
        raise ProblemsError([replace(each, level="error") for each in wrong])
    return path


def _weights_path(name: str, workspace: Workspace, where: str) -> Path:
    """Return the path of the network's weights. Raises ProblemsError for weights of another kind of upscaler."""
    path = find("upscaler", name, workspace, where=where)
    if upscaler_kind(path, where) != "latents":
        fix = "choose the weights of sd-scripts' latent upscaler"
        what = f"{path.name} upscales images, not latents"
        raise ProblemsError.one(what, display_path(path), fix, "upscale.other-weights")
    return path


def do(settings: LatentUpscalerSettings, plan: Plan, context: JobContext) -> Outcome:
    """Crop each image to multiples of 8 and write it at twice that size. Broken images are skipped and reported."""
    from core.families.loading import load_vae
    from core.generation.model.upscaling_networks import load_network

    context.stage("loading the VAE and the network")
    vae = load_vae(family("sd1").layout, plan.vae, context.device, context.cancel)
    network = load_network(plan.weights, "latents", context.device)
    written: list[str] = []
    skipped: list[str] = []
    for batch in _batches(_cropped_images(plan, skipped), settings.batch_size):
        context.check()
        context.stage("upscaling", len(written), len(plan.images))
        steps = range(0, len(batch), settings.vae_batch_size)
        latents = torch.cat([_latents(vae, batch[n : n + settings.vae_batch_size], settings.seed) for n in steps])
        with torch.inference_mode():
            latents = network(latents.to(context.device))
        written += _write_images(vae, latents, [target for _, target in batch], settings.vae_batch_size)
    saved = [f"Saved: {display_path(Path(path))}" for path in written[:MOST_LINES]]
    lines = [*skipped, *saved, f"{count(len(written), 'image')} upscaled"]
    return Outcome(lines=lines, facts={"written": written, "skipped": skipped})


def _cropped_images(plan: Plan, skipped: list[str]) -> Iterator[ImageAndTarget]:
    """Yield (image cropped to multiples of 8, file to write). Skipped images are added to `skipped` with the reason."""
    for path, target in zip(plan.images, plan.targets, strict=True):
        try:
            image = open_rgb(path)
        except (BrokenImage, OSError) as error:
            skipped.append(f"{path.name} {error}")
            continue
        width, height = image.width - image.width % SIDE, image.height - image.height % SIDE
        if width and height:
            yield image.crop((0, 0, width, height)), target
        else:
            skipped.append(f"{path.name} is smaller than {SIDE} pixels")


def _batches(images: Iterator[ImageAndTarget], size: int) -> Iterator[list[ImageAndTarget]]:
    """Yield batches of at most `size` consecutive images of equal dimensions."""
    for _, same_size in groupby(images, key=lambda item: item[0].size):
        while batch := list(islice(same_size, size)):
            yield batch


def _latents(vae: Any, images: list[ImageAndTarget], seed: int) -> Any:
    """Return latents [B, 4, h, w] of the images enlarged by Lanczos, sampled from the VAE's posterior."""
    large = [image.resize((SCALE * image.width, SCALE * image.height), Image.Resampling.LANCZOS) for image, _ in images]
    mean, logvar = encode_image_latents(vae, torch.cat([pixels_of(image) for image in large]))
    noise = torch.cat([normal(mean[:1].shape, seed, "latent_upscaler", target.stem) for _, target in images])
    return mean + torch.exp(logvar / 2) * noise.to(mean.device)


def _write_images(vae: Any, latents: Any, targets: list[Path], batch: int) -> list[str]:
    """Decode latents [N, 4, h, w], `batch` at a time, and write the images. Returns the paths."""
    for start in range(0, len(targets), batch):
        pixels = decode_latents(vae, model_latents(vae.config, latents[start : start + batch]))
        bytes_ = ((pixels.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()
        for values, target in zip(bytes_, targets[start : start + batch], strict=True):
            with atomic.open_atomic(target) as temporary:
                Image.fromarray(values).save(temporary, quality=95)
    return [str(target) for target in targets]
