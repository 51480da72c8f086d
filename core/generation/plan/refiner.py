"""Refiners: found and checked before anything is loaded. Without torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from core.families.locate import REFINER, model_path
from core.formats.detect import FAMILY_NAMES, ModelKind, identify
from core.formats.models.checkpoint import open_checkpoint
from core.formats.models.part_kinds import part_title
from core.generation.plan.stages import has_regions, sampling_of, stages_of
from core.generation.sample.loop import own_steps
from core.record.problems import Problem, ProblemsError
from core.record.workspace import Workspace
from core.settings.job import GenerateJob

FILE, SWITCH = "refiner.refiner_checkpoint", "refiner.refiner_switch_at"
NEEDED = ("unet", "text_encoder_2")


def find_refiner(name: str, workspace: Workspace, base: str | None) -> Path:
    """The file or folder of a refiner. base: the family of the model whose images it finishes; None: not known.
    Raises ProblemsError."""
    try:
        path = model_path(name, workspace, FILE)
    except ProblemsError as error:
        raise ProblemsError([replace(each, where=FILE) for each in error.problems]) from error
    check_refiner(identify(path), path)
    if base not in (None, "sdxl"):
        what = f"The refiner finishes the latents of SDXL; the base model is {FAMILY_NAMES[base]}"
        raise ProblemsError.one(what, FILE, "choose an SDXL base model, or empty the field", "refiner.other-base")
    missing = [part_title(part) for part in NEEDED if part not in open_checkpoint(path, REFINER).parts]
    if missing:
        what = f"The refiner {path.name} has no {' and no '.join(missing)}"
        raise ProblemsError.one(what, FILE, "choose a complete file", "model.missing-part")
    return path


def check_refiner(found: ModelKind, path: Path) -> None:
    """Raises ProblemsError unless an identified file or folder is a whole refiner."""
    if not is_refiner(found):
        what = f"{path.name} is not a refiner but: {found} ({found.evidence})"
        raise ProblemsError.one(what, FILE, "choose the refiner of SDXL, or empty the field", "refiner.not-a-refiner")


def is_refiner(found: ModelKind) -> bool:
    return (found.kind, found.family, found.variant) == ("checkpoint", REFINER, None)


def refiner_problems(job: GenerateJob) -> Iterator[Problem]:
    """What of one image a refiner cannot finish, before files are looked for."""
    if not job.refiner.refiner_checkpoint:
        return
    if has_regions(job):
        what = "The refiner cannot be used with regions"
        yield Problem(what, "regions.region_map", "turn one of them off", code="refiner.regions")
    if job.gradual_latent.gradual_latent_timesteps is not None:
        what, where = "The refiner cannot be used with Gradual Latent", "gradual_latent.gradual_latent_timesteps"
        yield Problem(what, where, "turn one of them off", code="refiner.gradual-latent")
    if any(use.used for use in job.generate.loras):
        what, fix = "The refiner has no LoRAs: it may undo some of what they do", "switch later, or turn it off"
        yield Problem(what, SWITCH, fix, "advice", code="refiner.loras")


def switch_problems(jobs: Sequence[GenerateJob]) -> Iterator[Problem]:
    """Of jobs whose size and schedule are decided: refiners or base models that would have no step."""
    ways = {}
    for job in jobs:
        if job.refiner.refiner_checkpoint:
            sampling, (base, refiner) = sampling_of(job, "epsilon"), stages_of(job)[-2:]
            ways[sampling, base.steps, base.run, base.switch_at] = sampling, base, refiner
    for sampling, base, refiner in ways.values():
        share = f"With {refiner.steps} steps and a switch at {refiner.switch_at:g}"
        if not own_steps(sampling, refiner):
            what, fix = f"{share}, the refiner runs no step", "lower the switch, or use more steps"
            yield Problem(what, SWITCH, fix, code="refiner.no-steps")
        elif not own_steps(sampling, base):
            what, fix = f"{share}, the base model runs no step of this strength", "raise the switch or the strength"
            yield Problem(what, SWITCH, fix, "advice", code="refiner.alone")
