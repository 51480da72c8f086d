"""The sampling loop: from noise or an initial image to the latents of an image.

Samples during training and generated images of all kinds use it. An image is generated in stages (`Stage`); hooks (`Hook`)
act at each step; guidance is in `core.generation.sample.guidance`. torch's global random generator is not used: all
noise of an image comes from its seed (`core.generation.sample.noise`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from core.diffusion.samplers import (
    SAMPLERS,
    add_noise,
    make_sampler,
    model_input,
    sampler_step,
    start_scale,
)
from core.diffusion.schedule import TIMESTEPS
from core.diffusion.text_states import Conditioning, TextStates, join_texts
from core.families import family
from core.families.components import Components
from core.generation.prompt.states import PromptStates
from core.generation.sample.guidance import (
    EMPTY,
    NEGATIVE,
    PERTURBED,
    POSITIVE,
    UNGUIDED,
    Guidance,
    Moment,
    at_any_scale,
    composed,
    parts_of_side,
)
from core.generation.sample.guidances import make_guidance
from core.generation.sample.noise import PLAIN, ImageNoise, StartNoise, Variation, mixed_noise
from core.record.cancel import CancelToken
from core.record.lazy_torch import Tensor, torch
from core.settings.base import SEEDS

if TYPE_CHECKING:
    from core.families.base import Family


# (noisy latents [B, C, h, w], timesteps, conditioning) -> [B, C, h, w], as the families' `predict`
Predict = Callable[[Tensor, Tensor, Conditioning], Tensor]
Ask = Callable[[Tensor], Tensor]  # the model's input latents -> its output for the prompt alone
OnStep = Callable[[int, int], None]  # (steps done, total steps)
Sizes = tuple[int, int, int, int, int, int]  # SDXL's: original height, width; crop top, left; target height, width
Begins = Literal["noise", "image", "previous image", "previous latents", "unfinished latents"]


@dataclass(frozen=True)
class Sampling:
    """How images are sampled, in all stages.

    guidance_kind, guidance_settings   name of the guidance kind, and its settings group
    guidance_range   fractions (start, end) of the steps with guidance; other steps use the prompt alone
    prediction       what the model predicts: "epsilon", "v" ...
    schedule         noise schedule; "own" is the sampler's
    program          "" for samplers as published; "trainer" or "generator" for those of sd-scripts (`make_sampler`)
    one_level_up     as in sd-scripts' generator, an initial image is noised for the step before the first one that runs, if
                     the sampler has a timestep offset
    start_noise      noise offset and pyramid noise of the initial noise
    device_noise     True: noise is generated on the model's device, and differs between devices; False: on the CPU
    """

    sampler: str = "ddim"
    guidance_scale: float = 7.5
    negative_scale: float | None = None
    guidance_rescale: float = 0.0
    guidance_kind: str = "classic"
    guidance_settings: Any = None
    guidance_range: tuple[float, float] = (0.0, 1.0)
    prediction: str = "epsilon"
    zero_terminal_snr: bool = False
    schedule: str = "own"
    program: str = ""
    one_level_up: bool = False
    start_noise: StartNoise = PLAIN
    device_noise: bool = False

    def guidance(self) -> Guidance:
        """Return a new guidance for one stage. CFG++ samplers have guidance at scales up to 1 too."""
        guidance = make_guidance(
            self.guidance_kind, self.guidance_scale, self.negative_scale, self.guidance_rescale, self.guidance_settings
        )
        cfg_pp = guidance is UNGUIDED and SAMPLERS[self.sampler].cfg_pp
        return at_any_scale(self.guidance_scale) if cfg_pp else guidance

    def guides(self, index: int, steps: int) -> bool:
        """Return whether evaluation `index` of `steps` has guidance (Kynkaanniemi et al. 2024, arXiv:2404.07724)."""
        start, end = self.guidance_range
        return int(start * steps) <= index < int(end * steps)

    def scheduler(self) -> Any:
        """Create a scheduler of diffusers for these settings."""
        return make_sampler(
            self.sampler,
            self.prediction,
            self.zero_terminal_snr,
            program=self.program,
            schedule=self.schedule,
        )


@dataclass(frozen=True)
class Stage:
    """A part of the sampling of an image, at one size and with one model.

    size              (width, height) in pixels, multiples of the family's `latent_pixels`
    steps             steps of the whole schedule
    run               number of steps, at the end of the schedule, that run from initial latents; None: all steps, from noise
    begins            starting point: noise, the initial image, the previous stage's result upscaled as image or as latents, or
                      its unfinished latents, which the refiner continues
    seed_offset       added to the image's seed for the noise of this stage
    sizes             {guidance side: SDXL size conditioning}; missing sides and zeros mean the image's size
    switch_at         fraction of the noise that is removed before the refiner takes over; None: no refiner
    from_pure_noise   the initial noise contains nothing of the latents (inpainting at strength 1, as in diffusers)
    scores            aesthetic scores of the refiner for the prompt and for other texts
    """

    size: tuple[int, int]
    steps: int = 20
    run: int | None = None
    begins: Begins = "noise"
    seed_offset: int = 0
    sizes: Mapping[str, Sizes] = field(default_factory=dict)
    switch_at: float | None = None
    from_pure_noise: bool = False
    scores: tuple[float, float] = (0.0, 0.0)

    @property
    def refines(self) -> bool:
        """Whether this is the refiner's stage, which continues the previous one."""
        return self.begins == "unfinished latents"

    def sizes_of(self, side: str) -> tuple[float, ...]:
        """Return the additional conditioning of a guidance side: SDXL's six sizes; for a refiner the score instead of the target size."""
        width, height = self.size
        kind = side.split()[0]
        high, wide, top, left, _, _ = self.sizes.get(kind, (0, 0, 0, 0, 0, 0))
        tail = (self.scores[kind != POSITIVE],) if self.refines else (height, width)
        return (high or height, wide or width, top, left, *tail)


@dataclass(frozen=True)
class Denoiser:
    """The denoiser for the sampling loop: a family, and its `predict` with a loaded model.
    module: the denoiser's module, for code that changes its layers"""

    family: Family
    predict: Predict
    module: Any = None

    @classmethod
    def of(cls, components: Components) -> Denoiser:
        """Create the denoiser of a loaded model."""
        kind = family(components.family)
        return cls(
            kind, lambda noisy, timesteps, texts: kind.predict(components, noisy, timesteps, texts), components.denoiser
        )


class Hook:
    """Base class of what acts at the steps of a stage. Its methods change nothing."""

    def around(self) -> AbstractContextManager[Any]:
        """Return a context that is open during the stage."""
        return nullcontext()

    def before(self, at: Moment) -> None:
        """Act before each evaluation of the model."""

    def conditioned(self, at: Moment, noisy: Tensor, conditioning: Conditioning) -> Conditioning:
        """Return the conditioning for this evaluation.

        noisy          the model's input latents for all guidance sides
        conditioning   its other inputs, with the same rows
        """
        return conditioning

    def corrected(self, at: Moment, output: Tensor, ask: Ask) -> Tensor:
        """Return the guided output, corrected, for the sampler's step.
        ask: (model's input latents) -> its output for the prompt alone, without what hooks add in `conditioned`; differentiable"""
        return output

    def step(self, at: Moment, output: Tensor) -> Tensor | None:
        """Return the next latents instead of the sampler's step, or None to let the sampler step. output: guided and corrected"""
        return None

    def after(self, at: Moment) -> None:
        """Act after the sampler's step: `at.latents` are the next ones, `at.timestep` is still that of this step."""


def noises_of(
    model: Denoiser,
    stage: Stage,
    seeds: Sequence[int],
    sampling: Sampling,
    device: torch.device | str = "cpu",
    variations: Sequence[Variation | None] = (),
) -> list[ImageNoise]:
    """Return the random numbers of each image for a stage.

    seeds        seed of each image
    device       the model's device, used with `sampling.device_noise`; sd-scripts' generator then draws in the model's dtype
    variations   variation of each image; () for none
    """
    shape = model.family.latent_shape(stage.size)
    draws = stage.steps * SAMPLERS[sampling.sampler].draws
    stage_seeds = [(seed + stage.seed_offset) % SEEDS for seed in seeds]
    stage_variations = [each and replace(each, seed=(each.seed + stage.seed_offset) % SEEDS) for each in variations]
    target: tuple[torch.device | str, torch.dtype | None] = ("cpu", None)
    if sampling.device_noise:
        sd_scripts = sampling.program == "generator" and model.module is not None
        dtype = next(model.module.parameters()).dtype if sd_scripts else None
        target = device, None if dtype is None or dtype.itemsize < 2 else dtype  # there is no noise in fp8
    return [
        ImageNoise(seed, shape, draws, sampling.start_noise, *target, variation=variation)
        for seed, variation in zip(stage_seeds, stage_variations or [None] * len(stage_seeds), strict=True)
    ]


def conditioning(
    model: Denoiser,
    states: PromptStates,
    stage: Stage,
    guidance: Guidance,
    scale: float,
    count: int,
    control: Tensor | None = None,
) -> Conditioning:
    """Return the model's conditioning: for each guidance side, one row per image.

    scale     guidance scale, for guidance-distilled models
    count     number of images B
    control   one control image for all rows, float32 [3, H, W] in 0..1
    """
    texts = {NEGATIVE: states.negative, POSITIVE: states.positive, EMPTY: states.empty}
    texts |= dict(zip(parts_of_side(POSITIVE, len(states.parts)), states.parts, strict=True))
    sides = [side.replace(PERTURBED, POSITIVE) for side in guidance.sides]
    batch = join_texts([_per_image(texts[side] or states.negative, count) for side in sides])
    device = batch.context.device
    sizes = torch.tensor([stage.sizes_of(side) for side in sides], dtype=torch.float32, device=device)
    rows = count * len(sides)
    scales = torch.full((rows,), scale, device=device) if model.family.reads_guidance else None
    hints = None if control is None else control.expand(rows, *control.shape)
    return Conditioning(batch, sizes.repeat_interleave(count, 0), scales, hints)


def _per_image(text: TextStates, count: int) -> TextStates:
    """Return the text states with one row for each of `count` images."""
    return text.each(lambda tensor: tensor.expand(count, *tensor.shape[1:]) if len(tensor) == 1 else tensor)


def denoise(
    model: Denoiser,
    states: PromptStates,
    stage: Stage,
    noises: Sequence[ImageNoise],
    sampling: Sampling,
    *,
    latents: Tensor | None = None,
    control: Tensor | None = None,
    hooks: Sequence[Hook] = (),
    on_step: OnStep | None = None,
    cancel: CancelToken | None = None,
) -> Tensor:
    """Run a stage and return its latents, one image for each of `noises`, in the model's scale: float32 [B, C, h, w].

    states    text conditioning, one text for all images or one for each, on the denoiser's device
    latents   initial latents of a stage that does not start from noise, [B, C, h, w]: without noise, or with the noise
              that the previous stage left if it `refines`
    control   one control image for all, float32 [3, H, W] in 0..1
    on_step   (completed steps, steps of the stage); samplers with two evaluations per step count both as one
    """
    width, height = stage.size
    assert not (width % model.family.latent_pixels or height % model.family.latent_pixels), "sizes are multiples"
    device = states.positive.context.device
    scheduler = sampling.scheduler()
    scheduler.set_timesteps(stage.steps, device=device)
    with torch.no_grad(), ExitStack() as contexts:
        first, start_latents = _prepare(scheduler, stage, noises, sampling, latents, device)
        timesteps, evaluations = scheduler.timesteps[first:], stage_evaluations(scheduler, stage, first)
        steps = steps_of(stage)
        at = Moment(scheduler, noises, evaluations.start, len(timesteps), scheduler.timesteps[0], start_latents)
        inputs = _Inputs(model, states, stage, sampling, len(noises), control)
        for hook in hooks:
            contexts.enter_context(hook.around())
        for at.index in evaluations:
            at.timestep = timesteps[at.index]
            if cancel is not None:
                cancel.check()
            for hook in hooks:
                hook.before(at)
            guidance, conditioned = inputs.at(at)
            output = _guided(model, guidance, conditioned, at, hooks)
            for hook in hooks:
                output = hook.corrected(at, output, lambda noisy: model.predict(noisy, at.timestep, inputs.prompt(at)))
            at.latents = _next_latents(at, output, hooks)
            for hook in hooks:
                hook.after(at)
            if on_step is not None:
                on_step((at.index + 1 - evaluations.start) * steps // len(evaluations), steps)
    return at.latents


@dataclass
class _Inputs:
    """Guidance and conditioning of a stage at each evaluation, computed once for each text.

    images    number of images B
    control   one control image for all, float32 [3, H, W] in 0..1
    """

    model: Denoiser
    states: PromptStates
    stage: Stage
    sampling: Sampling
    images: int
    control: Tensor | None
    cached: dict[Any, tuple[Guidance, Conditioning]] = field(default_factory=dict)

    def at(self, at: Moment) -> tuple[Guidance, Conditioning]:
        """Return (guidance, conditioning of its sides) for this evaluation."""
        return self._cached(self._states_now(at), self.sampling.guides(at.index, at.steps))

    def prompt(self, at: Moment) -> Conditioning:
        """Return the conditioning of the prompt alone, without guidance, for this evaluation."""
        return self._cached(self._states_now(at), None)[1]

    def _states_now(self, at: Moment) -> PromptStates:
        """Return the text conditioning for this evaluation (prompt editing)."""
        return self.states.at(at.index * total_steps(self.stage) // at.steps)

    def _cached(self, states: PromptStates, guided: bool | None) -> tuple[Guidance, Conditioning]:
        """Return (guidance, conditioning of its sides) for text conditioning.
        guided: True: a step with guidance; False: a step without; None: the prompt alone, also without the prompts joined by AND"""
        key = id(states), guided
        if key not in self.cached:
            states = replace(states, parts=()) if guided is None else states
            guidance = self.sampling.guidance() if guided and not self.model.family.reads_guidance else UNGUIDED
            guidance = composed(guidance, states.weights) if states.parts else guidance
            scale = self.sampling.guidance_scale
            inputs = conditioning(self.model, states, self.stage, guidance, scale, self.images, self.control)
            self.cached[key] = guidance, inputs
        return self.cached[key]


def total_steps(stage: Stage) -> int:
    """Return the number of steps that the base model and the refiner run together."""
    return stage.steps if stage.run is None else stage.run


def steps_of(stage: Stage) -> int:
    """Return the number of steps that a stage runs; with a refiner an estimate for evenly spaced timesteps."""
    run = total_steps(stage)
    if stage.switch_at is None:
        return run
    base_steps = max(round(stage.steps * stage.switch_at) - (stage.steps - run), 0)
    return run - base_steps if stage.refines else base_steps


def stage_evaluations(scheduler: Any, stage: Stage, first: int) -> range:
    """Return the range of evaluations that belong to the stage, counted from `first`, the first evaluation of the image.

    The refiner starts at the first timestep below the remaining noise fraction, as in diffusers (`denoising_end`,
    `denoising_start`), but never within a step with two evaluations.
    """
    count = len(scheduler.timesteps) - first
    if stage.switch_at is None:
        return range(count)
    trained = scheduler.config.get("num_train_timesteps", TIMESTEPS)
    before = int((scheduler.timesteps >= round(trained - stage.switch_at * trained)).sum())
    switch = max(before - before % getattr(scheduler, "order", 1) - first, 0)
    return range(switch, count) if stage.refines else range(switch)


def evaluation_count(sampling: Sampling, stage: Stage) -> int:
    """Return the number of evaluations of a stage: 0 if the refiner takes over too early or too late."""
    scheduler = sampling.scheduler()
    scheduler.set_timesteps(stage.steps)
    return len(stage_evaluations(scheduler, stage, _first_evaluations(scheduler, stage, sampling)[0]))


def _prepare(
    scheduler: Any,
    stage: Stage,
    noises: Sequence[ImageNoise],
    sampling: Sampling,
    latents: Tensor | None,
    device: torch.device,
) -> tuple[int, Tensor]:
    """Prepare a stage; return (index of the image's first evaluation in the schedule, the latents [B, C, h, w] to start with)."""
    first, noised = _first_evaluations(scheduler, stage, sampling)
    stage_start = first + stage_evaluations(scheduler, stage, first).start
    starts_late = stage.refines or (stage.run is not None and sampling.program != "generator")
    if starts_late and hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(stage_start)
    if stage.refines:
        assert latents is not None, "a refiner continues latents"
        return first, latents.to(device)
    if stage.run is None:
        return first, (torch.stack([noise.start for noise in noises]) * start_scale(scheduler)).to(device)
    assert latents is not None, "only noise begins without latents"
    if sampling.program != "generator" and not stage.run:  # nothing would take noise away
        return first, latents.to(device)
    noise = mixed_noise(noises, device)
    return first, noise * start_scale(scheduler) if stage.from_pure_noise else add_noise(
        scheduler, latents, noise, noised
    )


def _first_evaluations(scheduler: Any, stage: Stage, sampling: Sampling) -> tuple[int, int]:
    """Return (index of the image's first evaluation in the schedule, index whose noise level is added to an initial image)."""
    if stage.run is None:
        return 0, 0
    if sampling.program != "generator":
        first = (stage.steps - stage.run) * getattr(scheduler, "order", 1)
        return first, min(first, len(scheduler.timesteps) - 1)
    offset = scheduler.config.get("steps_offset", 0) if sampling.one_level_up else 0
    noised_steps = min(stage.run + offset, stage.steps)
    return max(stage.steps - noised_steps + offset, 0), -max(noised_steps, 1)


def _guided(
    model: Denoiser, guidance: Guidance, conditioning: Conditioning, at: Moment, hooks: Sequence[Hook]
) -> Tensor:
    """Evaluate the model for all guidance sides and return the guided output [B, C, h, w]; sets `at.sides` and `at.unguided`."""
    at.sides = sides = guidance.sides
    noisy = model_input(at.scheduler, torch.cat([at.latents] * len(sides)), at.timestep)
    for hook in hooks:
        conditioning = hook.conditioned(at, noisy, conditioning)
    with guidance.around(model.module, at):
        rows = model.predict(noisy, at.timestep, conditioning).float().chunk(len(sides))
    outputs = dict(zip(sides, rows, strict=True))
    at.unguided = outputs.get(NEGATIVE)
    return guidance.combine(outputs, at)


def _next_latents(at: Moment, output: Tensor, hooks: Sequence[Hook]) -> Tensor:
    """Return the next latents: those of the first hook that returns any, else of the sampler's step."""
    for hook in hooks:
        latents = hook.step(at, output)
        if latents is not None:
            return latents
    draws = [noise.sampler for noise in at.noises]
    return sampler_step(at.scheduler, output, at.timestep, at.latents, draws, at.unguided)
