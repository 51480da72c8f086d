"""Runs a generate job, from its settings to image files under outputs/images/<date>/."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.families.components import Components
from core.generation.images.metadata import one_image
from core.generation.images.output import save_image
from core.generation.making import ImageMaker, Progress, UpscaleMaker, each_image
from core.generation.model.embeddings import embeddings_attached, unused
from core.generation.model.leases import leased, refiners_of, text_cache
from core.generation.model.library import find
from core.generation.model.loras import loras_attached, loras_to_attach
from core.generation.model.other_files import networks_of, upscaler_kind
from core.generation.model.sources import Hashes, Sources, file_hashes
from core.generation.model.store import ModelStore, fingerprint, make_store
from core.generation.plan.files import marked_files
from core.generation.plan.forecast import offload_for
from core.generation.plan.hooks import Lend, finishers, prompts_of
from core.generation.plan.plan import Plan, plan_of
from core.generation.plan.requests import count_merged
from core.generation.plan.stages import only_upscales
from core.record.cancel import Cancelled
from core.record.context import NO_REPORTS, JobContext, Outcome, Reports
from core.record.units import count
from core.record.workspace import Workspace
from core.settings.job import GenerateJob


def run_task(job: GenerateJob, context: JobContext) -> Outcome:
    """Run the task `generate`: generate and save the job's images."""
    store = context.store or make_store()
    run_generate(job, context.workspace, store=store, device=context.device, reports=context)
    return Outcome()


def run_generate(
    job: GenerateJob,
    workspace: Workspace,
    *,
    store: ModelStore,
    device: str = "cpu",
    reports: Reports = NO_REPORTS,
) -> list[Path]:
    """Generate and save the job's images; return their files in order. Raises ProblemsError for an invalid job, and for an image that
    cannot be generated.

    A cancelled job raises Cancelled and keeps finished images.

    reports   receives the progress, in steps of all images
    """
    reports.stage("checking files")
    plan = plan_of(job, workspace)
    files: list[Path] = []
    try:
        with loaded_maker(plan, workspace, store=store, device=device, reports=reports) as (maker, metadata):
            _generate_all(plan, maker, metadata, reports, files)
    except Cancelled:
        raise Cancelled(f"Cancelled after {len(files)} of {count(len(plan.requests), 'image')}") from None
    return files


@contextmanager
def loaded_maker(
    plan: Plan, workspace: Workspace, *, store: ModelStore, device: str, reports: Reports
) -> Iterator[tuple[ImageMaker | UpscaleMaker, ImageMetadata]]:
    """Context with the model, LoRAs and embeddings of a plan loaded: (maker of its images, metadata to write into files).

    For upscaling alone no model is loaded.
    """
    job, sources = plan.requests[0].job, plan.sources
    hashes = file_hashes(sources, workspace, reports.cancel)
    upscalers = networks_of(store, workspace, device)
    for file in sources.upscalers:  # an unsupported one is refused before the first image
        with upscalers(file):
            pass
    if all(needs_no_model(request.job, workspace) for request in plan.requests):
        yield UpscaleMaker(upscalers), ImageMetadata(workspace, sources, hashes)
        return
    from core.generation.effects.controls.hook import nets_of

    for problem in plan.notes:
        reports.warn(problem)
    if marked := ", ".join(path.name for path in marked_files(job, sources)):
        used = "used" if job.generate.zero_terminal_snr == "on" else "turned off"
        reports.say(f"Zero terminal SNR {used}; {marked} was trained with it")
    offload = offload_for(job, sources, device)
    with leased(job, sources, store, device, reports, offload) as components:
        jobs = [request.job for request in plan.requests]
        uses = loras_to_attach([each.generate.loras for each in jobs])
        with (
            loras_attached(components, uses, sources.loras.__getitem__, count_merged(job, len(uses))) as loras,
            embeddings_attached(
                components, sources.embeddings, text_cache(job, sources, store, device, workspace, loras)
            ) as encoder,
        ):
            texts = [text for each in jobs for text in prompts_of(each)]
            for problem in [*loras.problems, *unused(encoder, sources.embeddings, *texts)]:
                reports.warn(problem)
            refiners = refiners_of(job, sources, store, device, workspace, components, offload)
            lend = _lender(store, components, sources)
            controls = nets_of(store, components, sources, workspace, reports) if sources.controls else nullcontext()
            with controls as nets, finishers(jobs, workspace, reports) as finish:
                maker = ImageMaker(components, encoder, loras, reports, upscalers, refiners, nets, lend, finish)
                yield maker, ImageMetadata(workspace, sources, hashes)


def _lender(store: ModelStore, components: Components, sources: Sources) -> Lend:
    """Return a function that leases the models of hooks: (name in the settings, loader) -> a context with the model."""

    def lend(name: str, load: Callable[[Path], Any]) -> AbstractContextManager[Any]:
        file, device = sources.hook_files[name], components.device
        key = fingerprint(file.path), device
        return store.lease("other", key, lambda: load(file.path), name=file.path.name, size=file.bytes, device=device)

    return lend


def needs_no_model(job: GenerateJob, workspace: Workspace) -> bool:
    """Return whether the job only upscales an image, with an upscaler for images."""
    file = job.hires.highres_fix_upscaler_file
    return only_upscales(job) and (not file or upscaler_kind(find("upscaler", file, workspace)) == "images")


@dataclass
class ImageMetadata:
    """What the settings written into images are derived from, besides the job."""

    workspace: Workspace
    sources: Sources
    hashes: Hashes

    def job_of(self, job: GenerateJob) -> GenerateJob:
        """Return the job that generates an image again, with portable file names."""
        return one_image(job, self.sources, self.workspace)


def _generate_all(
    plan: Plan, maker: ImageMaker | UpscaleMaker, metadata: ImageMetadata, reports: Reports, files: list[Path]
) -> None:
    """Generate and save a job's images, appending each file to `files`."""
    progress = Progress(reports, "image", len(plan.requests), plan.steps())
    origins = metadata.hashes, metadata.workspace
    for number, images in each_image(plan.requests, maker, progress):
        request = plan.requests[number]
        job, several = metadata.job_of(request.job), len(images) > 1
        if job.hires.highres_fix_save_1st and several:
            save_image(images[0], job, *origins, number=number + 1, stage="0")
        last = save_image(images[-1], job, *origins, request.name, number=number + 1, stage="1" if several else "")
        files.append(last)
        reports.generated(last, request.seed)
