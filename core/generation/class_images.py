"""Generates regularization images with the base model into a folder: only the missing ones, each written atomically."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.families import family
from core.families.prompt_weights import runs_of
from core.formats.hashes import HashMemo, file_sha256
from core.generation.class_plan import (
    ClassPlan,
    Manifest,
    Size,
    image_name,
    manifest_for,
    missing,
    plan_class_images,
    seed_of,
)
from core.generation.images.output import encoded_image
from core.generation.making import ImageMaker, Progress, each_image
from core.generation.model.embeddings import PromptEncoder
from core.generation.model.leases import leased, text_cache
from core.generation.model.loras import LorasInUse
from core.generation.model.sources import Hashes, Sources, file_hashes
from core.generation.model.store import ModelStore, make_store
from core.generation.plan.files import find_sources, uses_zero_terminal_snr, with_model_guidance, with_model_schedule
from core.generation.plan.forecast import offload_for
from core.generation.plan.requests import Request
from core.generation.plan.stages import sampling_steps
from core.generation.run import ImageMetadata
from core.generation.sample.canvas import images_at_once
from core.record import atomic
from core.record.cancel import CancelToken
from core.record.context import NO_REPORTS, JobContext, Outcome, Reports
from core.record.workspace import Workspace, display_path
from core.settings.generation.generate import GenerateSettings
from core.settings.generation.output import OutputSettings
from core.settings.job import ClassImagesJob, GenerateJob

if TYPE_CHECKING:
    from PIL.Image import Image


def run_task(job: ClassImagesJob, context: JobContext) -> Outcome:
    """Run the task `class_images`: generate the missing regularization images."""
    store = context.store or make_store()
    make_class_images(job, context.workspace, store=store, device=context.device, reports=context)
    return Outcome()


def make_class_images(
    job: ClassImagesJob,
    workspace: Workspace,
    *,
    store: ModelStore,
    device: str = "cpu",
    reports: Reports = NO_REPORTS,
) -> list[Path]:
    """Generate the missing regularization images; return their files in order of generation. Raises ProblemsError for an invalid job,
    and Cancelled.

    A cancelled or interrupted job keeps finished images; running it again generates the others, byte for byte as they would have been.
    """
    reports.stage("scanning the dataset")
    plan = plan_class_images(job, workspace)
    base, sources = _base_of(job, plan, workspace)
    reports.stage("looking for files")
    hashes = file_hashes(sources, workspace, reports.cancel)
    manifest, advice = manifest_for(plan, settings_of(base, job, sources, hashes, workspace, reports.cancel))
    for problem in advice:
        reports.warn(problem)
    number = plan.to_generate
    todo = missing(plan.folder, manifest, number)
    reports.say(_summary(plan, number, len(todo)))
    files: list[Path] = []
    if todo:
        plan.folder.mkdir(parents=True, exist_ok=True)
        manifest.write(plan.folder)
        with leased(base, sources, store, device, reports, offload_for(base, sources, device)) as components:
            loras = LorasInUse()
            cache = text_cache(base, sources, store, device, workspace, loras)
            maker = ImageMaker(components, PromptEncoder(components, {}, set(), cache), loras, reports)
            metadata = ImageMetadata(workspace, sources, hashes)
            files = _MissingImages(plan, manifest, base, maker, metadata).all_images(
                todo, job.class_images.batch, job.captions.caption_extension
            )
    folder = display_path(plan.folder)
    reports.say(f"The regularization images are in {folder}", fix=f"set dataset.reg_data_dir to {folder}")
    return files


def _base_of(job: ClassImagesJob, plan: ClassPlan, workspace: Workspace) -> tuple[GenerateJob, Sources]:
    """Return (the generate job with the model's guidance scale and schedule, its files). Raises ProblemsError for missing and unfit
    files."""
    base = generate_job(job, plan)
    sources = find_sources(base, workspace)
    return with_model_schedule(with_model_guidance(base, sources.model), sources), sources


def _summary(plan: ClassPlan, number: int, todo: int) -> str:
    """Return a sentence about how many images exist and how many will be generated.

    number   images of the plan that this program generates
    todo     those of them that are missing
    """
    existing = plan.number - number
    text = f"{todo} of {plan.number} regularization images to generate"
    text = text if todo else f"All {plan.number} regularization images already exist"
    return text + (f", including {existing} images of your own" if existing > 0 else "")


def generate_job(job: ClassImagesJob, plan: ClassPlan) -> GenerateJob:
    """Return the generate job for the images, without size and seed."""
    settings = job.class_images
    generate = GenerateSettings(
        prompt=plan.prompt,
        negative_prompt=settings.negative_prompt,
        steps=settings.steps,
        guidance_scale=settings.guidance_scale,
        sampler=settings.sampler,
        prompt_weights=job.captions.weighted_captions,  # the prompt is the class caption, parsed as in training
    )
    return GenerateJob(
        model=job.model.model_copy(update={"compatibility": "none"}),
        generate=generate,
        memory=job.memory,
        output=OutputSettings(preview_every_n_steps=None),
    )


def settings_of(
    base: GenerateJob,
    job: ClassImagesJob,
    sources: Sources,
    hashes: Hashes,
    workspace: Workspace,
    cancel: CancelToken | None,
) -> dict[str, Any]:
    """Return the settings that all images of a folder share, {name in class_plan.TITLES: value}: "prompt", "seed", "sampler", "steps",
    "model" ...

    "model" and "vae" are SHA-256 hashes; "vae" is None for the model's own. "prompt_weights" and "zero_terminal_snr" are True, or None
    for off: manifests of earlier versions lack them.
    """
    settings = base.generate
    weighs = settings.prompt_weights and any(
        runs_of(text) != [(text, 1.0)] for text in (settings.prompt, settings.negative_prompt)
    )
    return {
        "prompt": settings.prompt,
        "negative_prompt": settings.negative_prompt,
        "seed": job.class_images.seed,
        "sampler": settings.sampler,
        "steps": settings.steps,
        "guidance_scale": settings.guidance_scale,
        "clip_skip": job.model.clip_skip,
        "prediction": job.model.prediction,
        "model": hashes.model,
        "vae": _vae_hash(sources, workspace, cancel),
        "prompt_weights": weighs or None,
        "zero_terminal_snr": uses_zero_terminal_snr(base, sources) or None,
    }


def _vae_hash(sources: Sources, workspace: Workspace, cancel: CancelToken | None) -> str | None:
    """Return the SHA-256 of a separate VAE; None if the model's own is used."""
    if sources.vae is None:
        return None
    memo, path = HashMemo.of(workspace), sources.vae
    if path.is_dir():
        return family(sources.family).digest(sources.model, "vae", vae=path, memo=memo, cancel=cancel)
    return memo.get("sha256", [path], lambda: file_sha256(path, cancel))


class _MissingImages:
    """Generates a folder's missing images, in fixed groups of one size.

    A group is generated as a whole even if only some of its images are missing: rounding depends on the batch, and the
    folder must get the same bytes however often the job was interrupted.
    """

    def __init__(
        self, plan: ClassPlan, manifest: Manifest, job: GenerateJob, maker: ImageMaker, metadata: ImageMetadata
    ):
        """job: the generate job of all images, without size and seed"""
        self.plan, self.manifest, self.job = plan, manifest, job
        self.maker, self.metadata = maker, metadata

    def all_images(self, todo: Sequence[int], batch: int | None, caption_extension: str) -> list[Path]:
        """Generate the images with the indices in `todo`; return their files.

        batch               batch size; None: as in the manifest, else as many as fit
        caption_extension   ending of caption files; "auto" is ".txt"
        """
        ending = ".txt" if caption_extension == "auto" else caption_extension
        indices = [index for group in self._groups(todo, batch) for index in group]
        remaining, files = set(todo), list[Path]()

        def one_by_one(batch_size: int) -> int:
            """Store a batch size of 1 for the sizes of the remaining images, and return it."""
            self._store_batch_sizes({self.manifest.sizes[index]: 1 for index in remaining})
            return 1

        steps = len(todo) * sampling_steps(self.job)
        progress = Progress(self.maker.reports, "regularization image", len(todo), steps)
        existing = [number for number, index in enumerate(indices) if index not in remaining]
        requests = [self._request(index) for index in indices]
        for number, images in each_image(requests, self.maker, progress, existing, smaller_batch=one_by_one):
            files.append(self._save(indices[number], images[-1], ending))
            remaining.remove(indices[number])
        return files

    def _groups(self, todo: Sequence[int], batch: int | None) -> list[list[int]]:
        """Return the groups of image indices that contain missing images, ordered by their first missing image.

        todo    indices of the missing images
        batch   size of a group; None: as in the manifest, else as many as fit into memory
        """
        sizes, groups, at_once, todo_set = self.manifest.sizes, list[list[int]](), dict[Size, int](), set(todo)
        for size in dict.fromkeys(sizes[index] for index in todo):
            number = batch or self.manifest.at_once.get(_name(size)) or images_at_once(self.maker.components, *size)
            of_size = [index for index, other in enumerate(sizes) if other == size]
            chunks = (of_size[start : start + number] for start in range(0, len(of_size), number))
            groups += [chunk for chunk in chunks if todo_set & set(chunk)]
            at_once[size] = number
        self._store_batch_sizes(at_once)
        return sorted(groups, key=lambda group: min(todo_set & set(group)))

    def _store_batch_sizes(self, at_once: Mapping[Size, int]) -> None:
        """Store {(width, height): batch size} in the manifest. Called before images of these sizes are generated."""
        named = {_name(size): number for size, number in at_once.items()}
        if named.items() - self.manifest.at_once.items():
            self.manifest.at_once |= named
            self.manifest.write(self.plan.folder)

    def _job_of(self, index: int) -> GenerateJob:
        """Return the generate job of image `index`, with its size and seed."""
        width, height = self.manifest.sizes[index]
        changes = {"width": width, "height": height, "seed": seed_of(self.manifest.settings["seed"], index)}
        return self.job.with_settings(generate=changes)

    def _request(self, index: int) -> Request:
        """Return the request of image `index`, with the batch size of its image size."""
        batch_size = self.manifest.at_once[_name(self.manifest.sizes[index])]
        return Request(self._job_of(index).with_settings(generate={"batch_size": batch_size}))

    def _save(self, index: int, image: Image, ending: str) -> Path:
        """Write the caption of image `index`, then the image: an existing image counts as finished. Return its path.

        ending   of the caption file, such as ".txt"
        """
        path, job = self.plan.folder / image_name(index), self._job_of(index)
        if self.plan.caption and not path.with_suffix(ending).exists():
            atomic.write_text(path.with_suffix(ending), self.plan.caption + "\n")
        atomic.write_bytes(path, encoded_image(image, self.metadata.job_of(job), self.metadata.hashes, "png"))
        self.maker.reports.generated(path, job.generate.seed or 0)
        return path


def _name(size: Size) -> str:
    """Return an image size as in the manifest, "512x768"."""
    return f"{size[0]}x{size[1]}"


def check_task(job: ClassImagesJob, workspace: Workspace) -> str:
    """Return a summary of what a class_images job would do, for --check. Raises ProblemsError if the job is invalid."""
    plan = plan_class_images(job, workspace)
    base, sources = _base_of(job, plan, workspace)
    hashes = file_hashes(sources, workspace, None)
    manifest, _ = manifest_for(plan, settings_of(base, job, sources, hashes, workspace, None))
    todo = missing(plan.folder, manifest, plan.to_generate)
    counts = Counter(manifest.sizes[index] for index in todo)
    sizes = ", ".join(f"{count} of {width} x {height}" for (width, height), count in sorted(counts.items()))
    text = f"{len(todo)} of {plan.number} regularization images of '{plan.prompt}' would be generated"
    return f"{text}{': ' + sizes if sizes else ''}, in {display_path(plan.folder)}"
