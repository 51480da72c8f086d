"""Registry of training methods, with the facts about each that need no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol

from core import extensions
from core.record.problems import Problem
from core.settings.base import Settings
from core.settings.growth import add_choice, add_group
from core.settings.method import OF_METHODS, TRAITS, Changes, MethodSettings, MethodTraits

if TYPE_CHECKING:  # methods register at the end of core.settings.job and import this module
    from core.record.workspace import Workspace
    from core.settings.job import TrainJob

MARGIN = 3  # a rate this many times outside the usual range gets advice


@dataclass(frozen=True)
class Usual:
    """Usual range of a learning rate, `low` to `high`; `start` is a good first value."""

    low: float
    start: float
    high: float

    def times(self, low: float, start: float, high: float) -> Usual:
        """Return the range with `low`, `start` and `high` multiplied by the argument of the same name."""
        return Usual(self.low * low, self.start * start, self.high * high)

    def deviation(self, rate: float) -> str:
        """Return "above" or "below" if `rate` is more than MARGIN times outside the usual range, else ""."""
        if not rate > self.low / MARGIN * (1 - 1e-9):
            return "below"
        return "above" if rate > self.high * MARGIN * (1 + 1e-9) else ""


class PartSize(Protocol):
    """Size of a model part as read from its header.

    numbers  number of parameters
    config   content of config.json
    shapes   {shape: number of tensors}
    """

    @property
    def numbers(self) -> int: ...
    @property
    def config(self) -> Mapping[str, Any]: ...
    @property
    def shapes(self) -> Mapping[tuple[int, ...], int]: ...


Parts = Mapping[str, PartSize]
Needs = tuple[str, list[list[str]]]


@dataclass(frozen=True)
class MethodSpec:
    """A training method: facts, and functions that implement its parts.

    name, title      in presets; on the page
    words            in messages: "a LoRA"
    changes          what trains: a network on the frozen model, the model itself, embeddings of its text encoders, a model next to the
                     U-Net, or a small network in it; determines `traits`
    make             (core.methods.MethodInputs) -> core.methods.Method; imports torch only when called
    trains_unet, trains_text    (job) -> whether that part is to be trained, whatever its learning rate
    trained_numbers  (job, family's name, {part: PartSize}) -> {part: number of trained parameters}
    trained_shapes   (as trained_numbers) -> {shape: number of trained tensors}, for the optimizer's state; {} if not known
    usual            {"unet" or "text_encoder": usual learning rates with AdamW}
    group            name of the job's group with settings for this method only; "" for none
    settings         model of that group, if the job does not declare it
    saves            kind of the saved file in core.formats.model_spec
    project          the trackers' project name, as in sd-scripts' script for the method
    logged           {part: name of its learning rate in trackers}; others are lr/PART
    losses_logged    names of a step's and an epoch's loss in trackers, as in sd-scripts' script for the method
    problems         (job) -> problems in addition to those of every method
    file_problems    (job, workspace) -> problems of the files that the method's settings name
    rates            (job) -> {part: (learning rate, path of its setting)} of parts besides U-Net and text encoders
    side             (denoiser, job) -> module next to or in the denoiser, which computes `Conditioning.added` from (noisy latents,
                     timesteps, Conditioning) and counts in the memory forecast; None for other methods
    unused           (job) -> (dotted path, reason) of settings without effect; those of the groups noise and captions are ignored
    debiased_as      (job of a known family) -> the prediction type that debiased estimation assumes; "": the model's own
    needs            (job, family's title, size of a checkpoint as text) -> (sentence for the page, [[label, path] of fields that it
                     names])
    preserves_class  whether the model itself does not change, so that it needs no prior preservation
    control_images   whether it reads a control image with each image and sample
    initial          dotted path of the setting that names weights to start from, if not the traits'
    """

    name: str
    title: str
    words: str
    changes: Changes
    make: Callable[[Any], Any]
    trains_unet: Callable[[TrainJob], bool]
    trains_text: Callable[[TrainJob], bool]
    trained_numbers: Callable[[TrainJob, str, Parts], dict[str, int]]
    usual: Mapping[str, Usual]
    project: str
    saves: Literal["lora", "embedding", "model", "controlnet", "lllite"]
    trained_shapes: Callable[[TrainJob, str, Parts], Mapping[tuple[int, ...], int]] = lambda job, family, parts: {}
    logged: Mapping[str, str] = field(default_factory=dict)
    losses_logged: tuple[str, str] = ("loss", "loss/epoch")
    group: str = ""
    settings: type[Settings] | None = None
    problems: Callable[[TrainJob], Iterable[Problem]] = lambda job: ()
    file_problems: Callable[[TrainJob, Workspace], Iterable[Problem]] = lambda job, workspace: ()
    rates: Callable[[TrainJob], Mapping[str, tuple[float, str]]] = lambda job: {}
    side: Callable[[Any, TrainJob], Any] | None = None
    unused: Callable[[TrainJob], Iterable[tuple[str, str]]] = lambda job: ()
    debiased_as: Callable[[TrainJob], str] = lambda job: ""
    needs: Callable[[TrainJob, str, str], Needs] = lambda job, family, size: ("", [])
    preserves_class: bool = False
    control_images: bool = False
    initial: str = ""

    @property
    def traits(self) -> MethodTraits:
        """Traits of the method, from `changes`, `control_images` and `initial`."""
        traits = TRAITS[self.changes]
        return replace(traits, control_images=self.control_images, initial=self.initial or traits.initial)


METHODS: dict[str, MethodSpec] = {}


def methods() -> dict[str, MethodSpec]:
    """Return {name: method} of all registered methods, after loading extensions."""
    extensions.load()
    return METHODS


def spec_of(job: TrainJob) -> MethodSpec:
    """Return the training method of a job."""
    return methods()[job.method.kind]


def in_force(job: TrainJob, family: str) -> TrainJob:
    """Return the job with the noise and caption settings that its method does not use for `family` reset to their defaults."""
    unused = {path for path, _ in spec_of(job).unused(job.with_settings(model={"family": family}))}
    changes = {}
    for group in ("noise", "captions"):
        fields = type(getattr(job, group)).model_fields
        changes[group] = {name: field.default for name, field in fields.items() if f"{group}.{name}" in unused}
    return job.with_settings(**changes)


def chosen_by(spec: MethodSpec) -> str:
    """Return the setting that shows the method's group: "method.kind" if the group has the method's name, else "" (always shown)."""
    return "method.kind" if spec.group == spec.name else ""


def register(spec: MethodSpec) -> None:
    """Register a training method for the page, presets, the command line and trainings."""
    METHODS[spec.name], OF_METHODS[spec.name] = spec, spec.traits
    add_choice(MethodSettings, "kind", spec.name, spec.title)
    if spec.settings is not None:
        add_group(MethodSettings, spec.group, spec.settings, spec.title.partition(":")[0], chosen_by(spec))
