"""Runs a generate job, from its settings to image files under outputs/images/<date>/."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from core.families import family
from core.families.trained_size import trained_size
from core.generation.checks import problems_of
from core.generation.embeddings import embeddings_attached, unused
from core.generation.image_metadata import Hashes, one_image
from core.generation.initial import IMAGE, MAP, MASK, image_files, opened, size_from
from core.generation.library import wildcard_lines
from core.generation.loras import loras_attached, together
from core.generation.making import Maker, steps_of
from core.generation.output import save_image
from core.generation.requests import Request, merged_of, requests_of
from core.generation.sources import (
    Sources,
    file_hashes,
    find_sources,
    leased,
    make_store,
    marked_files,
    with_own_guidance,
    with_own_schedule,
)
from core.generation.stages import described, stages_of
from core.generation.store import ModelStore
from core.record.context import NO_REPORTS, JobContext, Outcome, Reports
from core.record.problems import Problem, raise_if_errors
from core.record.units import count
from core.record.workspace import Workspace, resolve_path
from core.settings.job import GenerateJob
from core.settings.model import FAMILIES


@dataclass(frozen=True)
class Plan:
    """What a job will make, before anything is loaded: a request for each image, with everything decided."""

    requests: list[Request]
    sources: Sources
    notes: list[Problem]

    def steps(self) -> int:
        return sum(steps_of(stage) for request in self.requests for stage in stages_of(request.job))


def plan_of(job: GenerateJob, workspace: Workspace) -> Plan:
    """Raises ProblemsError with all that is wrong with the prompts, and then with all that is wrong with the files."""
    requests, notes = requests_of(job, partial(wildcard_lines, workspace))
    wrong = [problem for request in requests for problem in problems_of(request.job)]
    notes = [*notes, *dict.fromkeys(wrong)]
    raise_if_errors(notes)
    requests = with_initial_images(requests)
    sources = find_sources(job, workspace, [request.job for request in requests])
    shrunk = [request.job for request in requests if request.job.deep_shrink.ds_depth_1 is not None]
    blocks = _input_blocks(sources) if shrunk else None
    raise_if_errors([problem for job in shrunk for problem in problems_of(job, blocks)])
    decided = [replace(request, job=_decided(request.job, sources)) for request in requests]
    return Plan(decided, sources, [*notes, *sources.notes])


def _input_blocks(sources: Sources) -> int:
    """How many input blocks its models have."""
    kind = family(sources.family)
    return 0 if kind.input_blocks is None else len(kind.input_blocks(kind.make_empty(kind.denoiser)))


def with_initial_images(requests: Sequence[Request]) -> list[Request]:
    """Each with one image and one mask of those that its settings name, in turn."""
    found = []
    for number, request in enumerate(requests):
        given = request.job.image_to_image
        own: dict[str, str] = {}
        for name, text, where in (("image_path", given.image_path, IMAGE), ("mask_path", given.mask_path, MASK)):
            files = image_files(text, where) if text else []
            own |= {name: str(files[number % len(files)])} if files else {}
        if request.job.regions.region_map:
            image_files(request.job.regions.region_map, MAP)
        changed = given.model_copy(update=own)
        found.append(replace(request, job=request.job.model_copy(update={"image_to_image": changed})))
    return found


def _decided(job: GenerateJob, sources: Sources) -> GenerateJob:
    """A job of one image with its size, its guidance and its schedule."""
    job = with_own_schedule(with_own_guidance(job, sources.model), sources)
    return with_size(job, trained_size(sources.model, sources.family), FAMILIES[sources.family].size_step)


def with_size(job: GenerateJob, trained: tuple[int, int], step: int) -> GenerateJob:
    """A job of one image with its size: as set, else that of its initial image, else of the model (`trained`)."""
    first = job.image_to_image.image_path
    if first:
        width, height = size_from(job, opened(resolve_path(first), IMAGE).size, step)
    else:
        width, height = job.generate.width or trained[0], job.generate.height or trained[1]
    return job.model_copy(update={"generate": job.generate.model_copy(update={"width": width, "height": height})})


def check_task(job: GenerateJob, workspace: Workspace) -> str:
    """The check of the task `generate`: what would be made."""
    plan = plan_of(job, workspace)
    asked = plan.requests[0].job.generate
    lines = [f"{count(len(plan.requests), 'image')} with {asked.sampler}, guidance {asked.guidance_scale:g}"]
    kinds: dict[str, int] = {}
    for request in plan.requests:
        for line in described(request.job):
            kinds[line] = kinds.get(line, 0) + 1
    lines += [f"{times} times {line}" if times > 1 else line for line, times in kinds.items()]
    return "\n".join([*lines, "The settings are valid."])


def run_task(job: GenerateJob, context: JobContext) -> Outcome:
    """The task `generate`."""
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
    """Generate the job's images; returns their files in order.

    reports   its stage counts the steps of all images
    A cancelled job raises Cancelled and keeps finished images.
    """
    reports.stage("checking files")
    plan = plan_of(job, workspace)
    sources = plan.sources
    hashes = file_hashes(sources, workspace, reports.cancel)
    _say_schedule(plan, reports)
    with leased(job, sources, store, device, reports) as components:
        uses = together([request.job.generate.loras for request in plan.requests])
        with (
            loras_attached(components, uses, sources.loras.__getitem__, merged_of(job, len(uses))) as loras,
            embeddings_attached(components, sources.embeddings) as words,
        ):
            texts = [
                text for each in plan.requests for text in (each.job.generate.prompt, each.job.generate.negative_prompt)
            ]
            for problem in [*plan.notes, *loras.problems, *unused(words, *texts)]:
                reports.warn(problem)
            maker = Maker(components, words, loras, reports=reports)
            return _all_images(plan, maker, Written(workspace, sources, hashes, reports))


@dataclass
class Written:
    """Where finished images go."""

    workspace: Workspace
    sources: Sources
    hashes: Hashes
    reports: Reports

    def job_of(self, job: GenerateJob) -> GenerateJob:
        """The job that generates one of the images again, with names that hold on other machines."""
        asked, sources = job.generate, self.sources
        return one_image(
            job,
            seed=asked.seed or 0,
            width=asked.width or 0,
            height=asked.height or 0,
            workspace=self.workspace,
            lora_paths=sources.loras,
            model_path=sources.model,
            vae_path=sources.vae,
            embeddings=[word.setting(self.workspace) for word in sources.embeddings],
            zero_terminal_snr=asked.zero_terminal_snr == "on",
        )


def _all_images(plan: Plan, maker: Maker, written: Written) -> list[Path]:
    """The files of a job's images, a few generated at a time."""
    reports, total = written.reports, len(plan.requests)
    files: list[Path] = []
    steps, done = plan.steps(), 0

    def progress(generating: int = 0, steps_done: int = 0) -> None:
        text = f"generating image {min(len(files) + 1, total)} of {total}"
        reports.stage(text, done + generating * steps_done, steps)

    progress()
    left, most = list(plan.requests), None
    while left:
        batch = next(maker.batches(left, most))
        made = maker.make_if_it_fits(batch, partial(progress, len(batch)))
        if made is None:
            most = 1
            continue
        for place, request in enumerate(batch):
            job = written.job_of(request.job)
            if job.hires.highres_fix_save_1st and len(made.images) > 1:
                save_image(made.images[0][place], job, written.hashes, written.workspace)
            files.append(save_image(made.images[-1][place], job, written.hashes, written.workspace, request.name))
            reports.generated(files[-1], request.seed)
        done += len(batch) * sum(steps_of(stage) for stage in stages_of(batch[0].job))
        left = left[len(batch) :]
        progress()
    return files


def _say_schedule(plan: Plan, reports: Reports) -> None:
    """Log whether zero terminal SNR was detected and is used."""
    job = plan.requests[0].job
    marked = ", ".join(path.name for path in marked_files(job, plan.sources))
    if marked:
        used = "used" if job.generate.zero_terminal_snr == "on" else "turned off"
        reports.say(f"Zero terminal SNR {used}; {marked} was trained with it")
