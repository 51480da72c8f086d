"""The registry of training objectives, by name. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from core import extensions
from core.diffusion.objective import Diffusion
from core.settings.base import Settings
from core.settings.growth import add_choice, add_group
from core.settings.methods import spec_of
from core.settings.noise import OBJECTIVES as TRAITS
from core.settings.noise import TIMESTEP_SETTINGS, NoiseSettings, ObjectiveTraits

if TYPE_CHECKING:
    from core.diffusion.objective import Objective
    from core.settings.job import TrainJob


@dataclass(frozen=True)
class ObjectiveKind:
    """A registered training objective.

    name       in presets
    title      on the page
    make       (job of a known family, prediction type, device) -> the objective
    settings   model of the objective's settings group, which has its name; None without
    uses       settings of the group `noise` that the objective reads; the page marks the others as unused
    """

    name: str
    title: str
    make: Callable[[TrainJob, str, str], Objective]
    settings: type[Settings] | None = None
    uses: frozenset[str] = TIMESTEP_SETTINGS


OBJECTIVES: dict[str, ObjectiveKind] = {}


def register(kind: ObjectiveKind, *, choice: bool = True) -> None:
    """Register an objective. choice: True: users can select it for any model; False: only model families use it"""
    OBJECTIVES[kind.name] = kind
    TRAITS[kind.name] = ObjectiveTraits(kind.title, kind.uses)
    if choice:
        add_choice(NoiseSettings, "objective", kind.name, kind.title)
    if kind.settings is not None:
        add_group(NoiseSettings, kind.name, kind.settings, kind.title)


def make_objective(job: TrainJob, default: str, prediction: str, device: str) -> Objective:
    """Return the objective of a run: the one that the settings select, else `default`, the model family's.
    prediction: prediction type, "epsilon" or "v", for the objective diffusion"""
    extensions.load()
    name = default if job.noise.objective == "auto" else job.noise.objective
    return OBJECTIVES[name].make(job, prediction, device)


def _diffusion(job: TrainJob, prediction: str, device: str) -> Objective:
    """Return the objective of denoising diffusion for a job of a known family."""
    return Diffusion(job.noise, prediction, device, spec_of(job).debiased_as(job))


ALL = frozenset(NoiseSettings.model_fields)
register(ObjectiveKind("diffusion", "Denoising diffusion", _diffusion, uses=ALL), choice=False)
