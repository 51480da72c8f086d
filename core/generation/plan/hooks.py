"""Registry of the hooks that act during sampling (ControlNet, regions, masks ...). Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core import extensions
from core.record.lazy_torch import Tensor
from core.record.problems import Problem, collected, raise_if_errors
from core.settings.base import Settings
from core.settings.generation.generate import GenerateSettings
from core.settings.growth import add_group

if TYPE_CHECKING:
    from PIL.Image import Image

    from core.families.base import Family
    from core.families.components import Components
    from core.generation.model.loras import Strength
    from core.generation.model.other_files import Nets
    from core.generation.model.sources import HookFile, Sources
    from core.generation.sample.canvas import Canvas
    from core.generation.sample.loop import Hook, Stage
    from core.generation.sample.noise import ImageNoise
    from core.networks.network import Network
    from core.record.context import Reports
    from core.record.workspace import Workspace
    from core.settings.job import GenerateJob


# (name in the settings, load: its path -> model) -> a context with the model
Lend = Callable[[str, Callable[[Path], Any]], AbstractContextManager[Any]]

# (job, canvas) -> the canvas' image with its masked area generated
Inpaint = Callable[["GenerateJob", "Canvas"], "Image"]
# (inpaint, job of one image, the finished image) -> the image, perhaps changed
Finish = Callable[[Inpaint, "GenerateJob", "Image"], "Image"]


@dataclass(frozen=True)
class HookInputs:
    """Inputs from which a hook is created, for one stage of a batch of B images.

    job                   job of the first image; the others differ only in prompt and seed
    noises                random numbers of each image
    latents               initial latents of a stage with a strength, without noise, [B, C, h, w]
    canvas                the initial image and mask, prepared for the stage
    sides                 guidance sides in batch order ("negative", "positive" ...); the denoiser's batch has B rows for each
    show                  called with each preview, a JPEG
    networks, strengths   of the attached LoRAs, in order
    by_use                {index in the job's `generate.loras`: its network}
    nets                  leases the job's ControlNets and LLLites
    prompts               prompt of each image
    lend                  leases the models in `HookKind.files`
    """

    job: GenerateJob
    stage: Stage
    components: Components
    family: Family
    noises: Sequence[ImageNoise]
    latents: Tensor | None
    canvas: Canvas | None
    sides: Sequence[str]
    show: Callable[[bytes], None]
    networks: Sequence[Network] = ()
    strengths: Sequence[Strength] = ()
    by_use: Mapping[int, Network] = field(default_factory=dict)
    nets: Nets | None = None
    prompts: Sequence[str] = ()
    lend: Lend | None = None


@dataclass(frozen=True)
class HookKind:
    """A kind of hook that acts during sampling, with all that the plan of a job asks of it.

    name, title      of its settings group
    make             creates the hook of a stage; returns None if the settings do not use it
    settings         settings class to add to generate jobs under `name`; None: it uses existing groups
    problems         (job of one image) -> problems of its settings, before files are searched
    file_problems    (job of one image, its files, workspace) -> problems of its files, and with the model
    advice           (jobs of all images, before folders are resolved) -> advice about them together
    images           (jobs of all images) -> the jobs with one image each from a folder, in turn
    files            (jobs of all images, workspace) -> {name in the settings: model file to load}
    differentiates   (job of one image) -> whether it takes gradients through denoiser and VAE
    inline           {inline option of prompts such as "control": name of the setting in its group}
    of_refiner       whether it also acts during a refiner's steps
    texts            (job of one image) -> further prompts, in which embeddings can be named
    finisher         (jobs of all images, workspace, reports) -> a context with a function that changes finished images
    """

    name: str
    title: str
    make: Callable[[HookInputs], Hook | None]
    settings: type[Settings] | None = None
    problems: Callable[[GenerateJob], Iterable[Problem]] = lambda job: ()
    file_problems: Callable[[GenerateJob, Sources, Workspace], Iterable[Problem]] = lambda job, sources, workspace: ()
    advice: Callable[[Sequence[GenerateJob]], Iterable[Problem]] = lambda jobs: ()
    images: Callable[[Sequence[GenerateJob]], list[GenerateJob]] = list
    files: Callable[[Sequence[GenerateJob], Workspace], Mapping[str, HookFile]] = lambda jobs, workspace: {}
    differentiates: Callable[[GenerateJob], bool] = lambda job: False
    inline: Mapping[str, str] = field(default_factory=dict)
    of_refiner: bool = False
    texts: Callable[[GenerateJob], Iterable[str]] = lambda job: ()
    finisher: Callable[[Sequence[GenerateJob], Workspace, Reports], AbstractContextManager[Finish]] | None = None


HOOKS: dict[str, HookKind] = {}


def register(kind: HookKind) -> None:
    """Register a kind of hook and add its settings group to generate jobs."""
    HOOKS[kind.name] = kind
    if kind.settings is not None:
        add_group(GenerateSettings, kind.name, kind.settings, kind.title)


def hooks_of(inputs: HookInputs) -> list[Hook]:
    """Create the hooks of a stage, in registration order. In a refiner's stage only those with `of_refiner`."""
    extensions.load()
    created = [kind.make(inputs) for kind in HOOKS.values() if kind.of_refiner or not inputs.stage.refines]
    return [hook for hook in created if hook is not None]


def with_hook_images(jobs: Sequence[GenerateJob]) -> list[GenerateJob]:
    """Return the jobs with folders of images in hooks' settings replaced by one image each. Raises ProblemsError for unreadable images."""
    for kind in HOOKS.values():
        jobs = kind.images(jobs)
    return list(jobs)


def hook_files(jobs: Sequence[GenerateJob], workspace: Workspace) -> dict[str, HookFile]:
    """Return {name in the settings: model file} for all hooks of these jobs. Raises ProblemsError for missing files."""
    problems: list[Problem] = []
    files: dict[str, HookFile] = {}
    for kind in HOOKS.values():
        files |= collected(problems, kind.files, jobs, workspace) or {}
    raise_if_errors(problems)
    return files


def prompts_of(job: GenerateJob) -> list[str]:
    """Return prompt and negative prompt of one image, followed by the prompts in its hooks' settings."""
    further = [text for kind in HOOKS.values() for text in kind.texts(job)]
    return [job.generate.prompt, job.generate.negative_prompt, *further]


@contextmanager
def finishers(jobs: Sequence[GenerateJob], workspace: Workspace, reports: Reports) -> Iterator[list[Finish]]:
    """Context with the functions that change finished images (the detailer), in registration order."""
    with ExitStack() as stack:
        kinds = (kind.finisher for kind in HOOKS.values())
        yield [stack.enter_context(each(jobs, workspace, reports)) for each in kinds if each is not None]


def differentiates(job: GenerateJob) -> bool:
    """Return whether any hook takes gradients through denoiser and VAE for this job."""
    return any(kind.differentiates(job) for kind in HOOKS.values())


def inline_setting(option: str) -> str | None:
    """Return "group.setting" for an inline option of prompts that a hook defines, else None. The last registered hook wins."""
    kinds = reversed(HOOKS.values())
    return next((f"{kind.name}.{kind.inline[option]}" for kind in kinds if option in kind.inline), None)


def _lazy_functions(module: str, **roles: str) -> dict[str, Any]:
    """Return {field of HookKind: lazily imported function} for functions in a module of core/generation/effects.
    roles: field of HookKind -> name of the function"""
    return {role: extensions.later(f"core.generation.effects.{module}", name) for role, name in roles.items()}


def _register_built_in(name: str, title: str, module: str, **more: Any) -> None:
    """Register a hook whose `make` is the function hook_of in a module of core/generation/effects. more: other fields of HookKind"""
    register(HookKind(name, title, **_lazy_functions(module, make="hook_of"), **more))


_register_built_in("preview", "Preview", "preview", of_refiner=True)  # first, so that it sees the model's input latents
_register_built_in("lora_steps", "Step ranges of LoRAs", "lora_steps")
_register_built_in("gradual_latent", "Gradual Latent", "gradual_latent")
_register_built_in("deep_shrink", "Deep Shrink", "deep_shrink")  # after Gradual Latent, which changes the latents' size
_of_controls = _lazy_functions(
    "controls.checks",
    problems="control_problems",
    file_problems="control_file_problems",
    advice="unused_images",
    images="with_control_images",
)
_register_built_in("controls", "ControlNet", "controls.hook", **_of_controls, inline={"control": "control_image"})
_of_perceptual = _lazy_functions(
    "perceptual.checks",
    problems="problems_of",
    file_problems="file_problems",
    images="with_guide_images",
    files="files_of",
)
_register_built_in(
    "perceptual",  # after ControlNets, whose control image may be its guide image
    "CLIP and VGG guidance",
    "perceptual.hook",
    **_of_perceptual,
    differentiates=lambda job: job.perceptual.used,
    inline={"clip_prompt": "clip_prompt"},
)
_register_built_in("regions", "Regions", "regions")
_register_built_in("repaint", "Mask", "inpaint", of_refiner=True)
_of_detailer = {role: role for role in ("problems", "file_problems", "files", "texts")}
register(
    HookKind(
        "detailer", "Detailer", lambda inputs: None, **_lazy_functions("detailer", finisher="Detailer", **_of_detailer)
    )
)
