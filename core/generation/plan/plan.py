"""The plan of a generate job: one request per image, with all settings resolved and all files found, before anything is loaded."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain

from core.families.trained_size import trained_size
from core.generation.model.library import embedding_vectors
from core.generation.model.sources import Sources
from core.generation.model.wildcard_files import wildcard_lines
from core.generation.plan.checks import output_problems, problems_of, problems_with_model
from core.generation.plan.files import (
    find_sources,
    find_upscalers,
    model_problems,
    with_model_guidance,
    with_model_schedule,
)
from core.generation.plan.hooks import HOOKS, hook_files, with_hook_images
from core.generation.plan.initial import (
    IMAGE,
    mask_problems,
    opened,
    region_advice,
    size_from,
    unused_images,
    with_initial_images,
)
from core.generation.plan.requests import Request, requests_of
from core.generation.plan.stages import described, sampling_steps
from core.generation.prompt.styles import chosen_styles
from core.record.problems import Problem, ProblemsError, collected, raise_if_errors
from core.record.units import count
from core.record.workspace import Workspace, resolve_path
from core.settings.generation.prompts import PromptSettings
from core.settings.job import GenerateJob
from core.settings.model import FAMILIES


@dataclass(frozen=True)
class Plan:
    """A request for each image with all settings resolved, the model files, and advice."""

    requests: list[Request]
    sources: Sources
    notes: list[Problem]

    def steps(self) -> int:
        """Return the number of sampling steps of all images and stages."""
        return sum(sampling_steps(request.job) for request in self.requests)


def plan_of(job: GenerateJob, workspace: Workspace) -> Plan:
    """Plan a job. Raises ProblemsError with all problems of prompts, settings and files."""
    problems: list[Problem] = []
    expanded = collected(problems, requests_and_notes, job, workspace)
    if expanded is not None:
        requests, notes = expanded
        return plan_for(job, requests, workspace, notes)
    no_prompts = {"prompt": "", "negative_prompt": ""}
    without_prompts = job.with_settings(generate=no_prompts, prompts=PromptSettings(dynamic_prompts=False).model_dump())
    collected(problems, plan_for, without_prompts, requests_and_notes(without_prompts, workspace)[0], workspace)
    raise ProblemsError(dict.fromkeys(problems))


def requests_and_notes(job: GenerateJob, workspace: Workspace) -> tuple[list[Request], list[Problem]]:
    """Expand a job into one request per image, with the user's styles, wildcards and embeddings; also return advice about its prompts."""
    embeddings, styles = embedding_vectors(workspace), chosen_styles(job.prompts.styles, workspace)
    return requests_of(job, partial(wildcard_lines, workspace), embeddings, styles)


def plan_for(job: GenerateJob, requests: list[Request], workspace: Workspace, notes: Sequence[Problem] = ()) -> Plan:
    """Plan requests that use the model, VAE and output settings of `job`. Raises ProblemsError with all problems."""
    jobs = [request.job for request in requests]
    problems = [*notes, *dict.fromkeys(problem for each in jobs for problem in problems_of(each))]
    problems += output_problems(job, workspace)
    with_images = collected(problems, with_initial_images, requests) or []
    initial = [request.job for request in with_images]
    complete = collected(problems, with_hook_images, initial)
    hook_models = collected(problems, hook_files, jobs, workspace)
    sources = collected(problems, find_sources, job, workspace, jobs)
    of_hooks = (kind.advice(initial) for kind in HOOKS.values())
    of_images = (mask_problems(with_images), unused_images(jobs if initial else ()), region_advice(initial))
    problems += collected(problems, lambda: [*chain(*of_images, *of_hooks)]) or ()
    raise_if_errors(problems)
    assert complete is not None and sources is not None and hook_models is not None
    sources = replace(sources, hook_files=hook_models)
    resolved = []
    for request, each in zip(with_images, complete, strict=True):
        if (resolved_job := collected(problems, _resolved, each, sources)) is not None:
            resolved.append(replace(request, job=resolved_job))
    raise_if_errors(problems := list(dict.fromkeys(problems)))
    jobs = [request.job for request in resolved]
    problems += problems_with_model(jobs, sources, workspace)
    sources = replace(sources, upscalers=find_upscalers(jobs, sources.family, workspace, problems))
    raise_if_errors(problems)
    return Plan(resolved, sources, [*problems, *sources.notes])


def _resolved(job: GenerateJob, sources: Sources) -> GenerateJob:
    """Return the job of one image with size, guidance scale and zero terminal SNR set."""
    job = with_model_schedule(with_model_guidance(job, sources.model), sources)
    return with_size(job, trained_size(sources.model, sources.family), FAMILIES[sources.family].size_step)


def with_size(job: GenerateJob, trained: tuple[int, int], step: int) -> GenerateJob:
    """Return the job of one image with width and height set: as in its settings, else the initial image's, else `trained`.

    Inpainting "only masked" ignores the initial image's size.

    trained   (width, height) in pixels that the model was trained at
    step      sides of an initial image are rounded down to multiples of this number of pixels
    """
    settings = job.image_to_image
    initial_image, only_masked = settings.image_path, settings.inpaint_area == "masked" and settings.mask_path
    if initial_image and not only_masked:
        width, height = size_from(job, opened(resolve_path(initial_image), IMAGE).size, step)
    else:
        width, height = job.generate.width or trained[0], job.generate.height or trained[1]
    return job.with_settings(generate={"width": width, "height": height})


def check_task(job: GenerateJob, workspace: Workspace) -> str:
    """Return a summary of what a generate job would do, for --check. Raises ProblemsError if the job is invalid."""
    plan = plan_of(job, workspace)
    raise_if_errors(model_problems(plan.sources))
    settings = plan.requests[0].job.generate
    kind = "" if settings.guidance == "classic" else f" ({settings.guidance})"
    lines = [
        f"{count(len(plan.requests), 'image')} with {settings.sampler}, guidance {settings.guidance_scale:g}{kind}"
    ]
    kinds = Counter(description for request in plan.requests for description in described(request.job))
    lines += [f"{times} times {description}" if times > 1 else description for description, times in kinds.items()]
    lines += [f"{note.level}: {note.what}; {note.fix}" for note in plan.notes]
    return "\n".join([*lines, "The settings are valid."])
