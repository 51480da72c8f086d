"""The plan of a generate job: every image with all settings decided, before anything is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from core.families import family
from core.families.locate import REFINER
from core.families.trained_size import trained_size
from core.generation.model.library import wildcard_lines, word_vectors
from core.generation.model.sources import Sources
from core.generation.model.upscaler_files import file_problems
from core.generation.plan.checks import guidance_problems, output_problems, problems_of, stage_problems
from core.generation.plan.files import find_sources, model_problems, with_own_guidance, with_own_schedule
from core.generation.plan.hooks import hook_advice, hook_file_problems, hook_files, with_hook_images
from core.generation.plan.initial import IMAGE, mask_problems, opened, size_from, with_initial_images
from core.generation.plan.refiner import switch_problems
from core.generation.plan.requests import Request, requests_of
from core.generation.plan.stages import described, own_settings, sampling_steps
from core.generation.prompt.styles import chosen_styles
from core.record.problems import Problem, ProblemsError, collected, raise_if_errors
from core.record.units import count
from core.record.workspace import Workspace, resolve_path
from core.settings.generation.prompts import PromptSettings
from core.settings.job import GenerateJob
from core.settings.model import FAMILIES


@dataclass(frozen=True)
class Plan:
    """A request for each image with everything decided, the files, and advice."""

    requests: list[Request]
    sources: Sources
    notes: list[Problem]

    def steps(self) -> int:
        """Sampling steps of all images and stages."""
        return sum(sampling_steps(request.job) for request in self.requests)


def plan_of(job: GenerateJob, workspace: Workspace) -> Plan:
    """The plan of a job. Raises ProblemsError with all problems of prompts, settings and files."""
    problems: list[Problem] = []
    asked = collected(problems, asked_of, job, workspace)
    if asked is not None:
        requests, notes = asked
        return plan_for(job, requests, workspace, notes)
    empty = {"generate": job.generate.model_copy(update={"prompt": "", "negative_prompt": ""})}
    rest = job.model_copy(update=empty | {"prompts": PromptSettings(dynamic_prompts=False)})
    collected(problems, plan_for, rest, asked_of(rest, workspace)[0], workspace)
    raise ProblemsError(dict.fromkeys(problems))


def asked_of(job: GenerateJob, workspace: Workspace) -> tuple[list[Request], list[Problem]]:
    """The images of a job and advice about its prompts, with the styles, wildcards and embeddings of this machine."""
    words, styles = word_vectors(workspace), chosen_styles(job.prompts.styles, workspace)
    return requests_of(job, partial(wildcard_lines, workspace), words, styles)


def plan_for(job: GenerateJob, requests: list[Request], workspace: Workspace, notes: Sequence[Problem] = ()) -> Plan:
    """The plan of requests that use one model. job: names that model. Raises ProblemsError as `plan_of`"""
    wrong = [problem for request in requests for problem in problems_of(request.job)]
    notes = [*notes, *dict.fromkeys(wrong), *output_problems(job, workspace)]
    begun = collected(notes, with_initial_images, requests)
    shown = collected(notes, with_hook_images, [each.job for each in begun]) if begun is not None else None
    others = collected(notes, hook_files, [request.job for request in requests], workspace)
    masks = collected(notes, lambda: list(mask_problems(begun or ())))
    sources = collected(notes, find_sources, job, workspace, [request.job for request in requests])
    notes += masks or ()
    raise_if_errors(notes)
    assert begun is not None and shown is not None and sources is not None and others is not None
    sources = replace(sources, others=others)
    requests = [replace(request, job=job) for request, job in zip(begun, shown, strict=True)]
    shrunk = [request.job for request in requests if request.job.deep_shrink.ds_depth_1 is not None]
    blocks = _input_blocks(sources) if shrunk else None
    raise_if_errors([problem for job in shrunk for problem in problems_of(job, blocks)])
    guided = {
        (one.job.generate.guidance, own_settings(one.job), one.job.refiner.refiner_checkpoint): one.job
        for one in requests
    }
    notes += [each for job in guided.values() for each in guidance_problems(job, family(sources.family))]
    refined = [job for job in guided.values() if job.refiner.refiner_checkpoint]
    notes += [each for job in refined for each in guidance_problems(job, family(REFINER))]
    notes += dict.fromkeys(each for one in requests for each in hook_file_problems(one.job, sources, workspace))
    raise_if_errors(notes)
    wrong = [each for one in requests for each in file_problems(one.job, sources.family, workspace)]
    raise_if_errors(list(dict.fromkeys(wrong)))
    decided = [replace(request, job=_decided(request.job, sources)) for request in requests]
    kind = family(sources.family)
    raise_if_errors(list(dict.fromkeys(each for one in decided for each in stage_problems(one.job, kind))))
    notes += [*switch_problems([one.job for one in decided]), *hook_advice([one.job for one in begun])]
    raise_if_errors(notes)
    return Plan(decided, sources, [*notes, *sources.notes])


def _input_blocks(sources: Sources) -> int:
    """Number of U-Net input blocks for Deep Shrink; 0 if the family has none."""
    kind = family(sources.family)
    return 0 if kind.input_blocks is None else len(kind.input_blocks(kind.make_empty(kind.denoiser)))


def _decided(job: GenerateJob, sources: Sources) -> GenerateJob:
    """The job of one image with size, guidance scale and zero terminal SNR decided."""
    job = with_own_schedule(with_own_guidance(job, sources.model), sources)
    return with_size(job, trained_size(sources.model, sources.family), FAMILIES[sources.family].size_step)


def with_size(job: GenerateJob, trained: tuple[int, int], step: int) -> GenerateJob:
    """The job of one image with its size decided: as set, else the initial image's, else the model's (`trained`). "Only masked"
    uses the model's size."""
    given = job.image_to_image
    first, alone = given.image_path, given.inpaint_area == "masked" and given.mask_path
    if first and not alone:
        width, height = size_from(job, opened(resolve_path(first), IMAGE).size, step)
    else:
        width, height = job.generate.width or trained[0], job.generate.height or trained[1]
    return job.model_copy(update={"generate": job.generate.model_copy(update={"width": width, "height": height})})


def check_task(job: GenerateJob, workspace: Workspace) -> str:
    """What the task `generate` would do, for --check. Raises ProblemsError."""
    plan = plan_of(job, workspace)
    raise_if_errors(model_problems(plan.sources))
    asked = plan.requests[0].job.generate
    kind = "" if asked.guidance == "classic" else f" ({asked.guidance})"
    lines = [f"{count(len(plan.requests), 'image')} with {asked.sampler}, guidance {asked.guidance_scale:g}{kind}"]
    kinds: dict[str, int] = {}
    for request in plan.requests:
        for line in described(request.job):
            kinds[line] = kinds.get(line, 0) + 1
    lines += [f"{times} times {line}" if times > 1 else line for line, times in kinds.items()]
    lines += [f"{note.level}: {note.what}; {note.fix}" for note in plan.notes]
    return "\n".join([*lines, "The settings are valid."])
