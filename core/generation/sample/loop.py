"""The one loop of sampling: from noise, or from an image, to the latents of an image.

Samples of a training and generated images of all kinds pass through it. An image is made in stages (`Stage`); hooks
(`Hook`) see and may change what happens at a step; guidance is `core.generation.sample.guidance`. torch's global random
generator is not used: all noise of an image comes from its seed (`core.generation.sample.noise`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from core.diffusion.samplers import (
    SAMPLERS,
    add_noise,
    config_of,
    make_sampler,
    model_input,
    sampler_step,
    start_scale,
)
from core.diffusion.schedule import TIMESTEPS
from core.diffusion.text_states import Conditioning, TextStates, join_texts
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
    composed,
    parts_of_side,
)
from core.generation.sample.guidances import make_guidance
from core.generation.sample.noise import PLAIN, ImageNoise, StartNoise, Variation
from core.record.cancel import CancelToken
from core.settings.base import SEEDS

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from core.families.base import Family


# (noisy latents [B, C, h, w], timesteps, conditioning) -> [B, C, h, w], as the families' `predict`
Predict = Callable[["Tensor", "Tensor", Conditioning], "Tensor"]
Ask = Callable[["Tensor"], "Tensor"]  # latents as the model is shown them -> its output for the prompt alone
OnStep = Callable[[int, int], None]  # (steps done, total steps)
Sizes = tuple[int, int, int, int, int, int]  # SDXL's: original height, width; crop top, left; target height, width
Begins = Literal["noise", "image", "made image", "made latents", "unfinished latents"]


@dataclass(frozen=True)
class Sampling:
    """How images are sampled, in all stages alike.

    program   "" as the samplers are published; "trainer" or "generator" as those of sd-scripts (`make_sampler`)
    guidance_kind, guidance_settings    which, and its own settings
    guidance_range  shares of the steps with guidance, from the first on, up to the second; the others follow the prompt alone
    device_noise    noise is generated on the model's device, and differs between devices; else on the CPU
    one_level_up    as its generator, an image is noised for the step before the first one that is run, where the sampler
              has an offset of its timesteps
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
        return make_guidance(
            self.guidance_kind, self.guidance_scale, self.negative_scale, self.guidance_rescale, self.guidance_settings
        )

    def guides(self, index: int, steps: int) -> bool:
        """Whether there is guidance at an evaluation (Kynkaanniemi et al. 2024, arXiv:2404.07724)."""
        first, last = self.guidance_range
        return int(first * steps) <= index < int(last * steps)

    def scheduler(self) -> Any:
        """A fresh one."""
        return make_sampler(
            self.sampler,
            self.prediction,
            self.zero_terminal_snr,
            program=self.program,
            schedule=self.schedule,
        )


@dataclass(frozen=True)
class Stage:
    """A slice of the schedule at one size.

    size       (width, height) in pixels, multiples of the family's `latent_pixels`
    steps      of the whole schedule
    run        None: from noise. Else how many of the steps, the last ones, are run from latents that are given
    begins     with: noise, the initial image, what the stage before made, enlarged as an image or as latents, or its latents
               where it ended, which the refiner finishes
    another    how far its noise is from the image's seed
    sizes      SDXL's size conditioning by the side of the guidance; what is missing or 0 is the size itself
    switch_at  None: all steps. Else the share of the noise that is removed before the refiner takes over
    anew       its first noise has nothing of the latents in it: inpainting with a strength of 1, as in diffusers' pipelines
    scores     of the refiner: the aesthetic scores that it reads with the prompt and with the other texts
    """

    size: tuple[int, int]
    steps: int = 20
    run: int | None = None
    begins: Begins = "noise"
    another: int = 0
    sizes: Mapping[str, Sizes] = field(default_factory=dict)
    switch_at: float | None = None
    anew: bool = False
    scores: tuple[float, float] = (0.0, 0.0)

    @property
    def refines(self) -> bool:
        """Whether it is the refiner's part of what the stage before began."""
        return self.begins == "unfinished latents"

    def sizes_of(self, side: str) -> tuple[float, ...]:
        """What a model reads besides the text: SDXL's sizes; of a refiner the score in place of the image's own size."""
        width, height = self.size
        plain = side.split()[0]
        high, wide, top, left, _, _ = self.sizes.get(plain, (0, 0, 0, 0, 0, 0))
        own = (self.scores[plain != POSITIVE],) if self.refines else (height, width)
        return (high or height, wide or width, top, left, *own)


@dataclass(frozen=True)
class Denoiser:
    """What the loop asks: a family's numbers, and its `predict` bound to a model.

    module   the model, for what changes its layers
    """

    family: Family
    predict: Predict
    module: Any = None

    @classmethod
    def of(cls, components: Components) -> Denoiser:
        from core.families import family

        kind = family(components.family)
        return cls(
            kind, lambda noisy, timesteps, given: kind.predict(components, noisy, timesteps, given), components.denoiser
        )


class Hook:
    """Something that acts at the steps of a stage. The methods of this one do nothing."""

    def around(self) -> AbstractContextManager[Any]:
        """Entered for the stage."""
        return nullcontext()

    def before(self, at: Moment) -> None:
        """Before the model is asked."""

    def conditioned(self, at: Moment, noisy: Tensor, given: Conditioning) -> Conditioning:
        """What the model reads besides `noisy`, its input at this evaluation: rows of all sides, as those of `given`."""
        return given

    def corrected(self, at: Moment, output: Tensor, ask: Ask) -> Tensor:
        """The guided output, for the sampler's step. ask: of this moment, without what hooks add to the `conditioned`; it may be
        differentiated"""
        return output

    def step(self, at: Moment, output: Tensor) -> Tensor | None:
        """In place of the sampler's own step: the next latents, or None."""
        return None

    def after(self, at: Moment) -> None:
        """After the sampler's step: `at.latents` are the next ones, `at.timestep` is still that of this step."""


def noises_of(
    model: Denoiser,
    stage: Stage,
    seeds: Sequence[int],
    sampling: Sampling,
    device: torch.device | str = "cpu",
    variations: Sequence[Variation | None] = (),
) -> list[ImageNoise]:
    """The random numbers of each image of a stage.

    device      of the model; sd-scripts' generator draws in the model's type too
    variations  of each image; () for none
    """
    shape = model.family.latent_shape(stage.size)
    draws = stage.steps * SAMPLERS[sampling.sampler].draws
    own = [(seed + stage.another) % SEEDS for seed in seeds]
    others = [each and replace(each, seed=(each.seed + stage.another) % SEEDS) for each in variations]
    drawn: tuple[torch.device | str, torch.dtype | None] = ("cpu", None)
    if sampling.device_noise:
        sd_scripts = sampling.program == "generator" and model.module is not None
        dtype = next(model.module.parameters()).dtype if sd_scripts else None
        drawn = device, None if dtype is None or dtype.itemsize < 2 else dtype  # there is no noise in fp8
    return [
        ImageNoise(seed, shape, draws, sampling.start_noise, *drawn, variation=other)
        for seed, other in zip(own, others or [None] * len(own), strict=True)
    ]


def guidance_for(model: Denoiser, states: PromptStates, sampling: Sampling, guided: bool = True) -> Guidance:
    """How outputs are compared, also those of several prompts. guided: False for steps without guidance"""
    guidance = sampling.guidance() if guided and not model.family.reads_guidance else UNGUIDED
    return composed(guidance, states.weights) if states.parts else guidance


def conditioning(
    model: Denoiser,
    states: PromptStates,
    stage: Stage,
    guidance: Guidance,
    scale: float,
    count: int,
    control: Tensor | None = None,
) -> Conditioning:
    """What the model reads: one row for each side of the guidance and image, sides outermost.

    control   one control image for all, float32 [3, H, W] in 0..1; all sides see it
    """
    import torch

    texts = {NEGATIVE: states.negative, POSITIVE: states.positive, EMPTY: states.empty}
    texts |= dict(zip(parts_of_side(POSITIVE, len(states.parts)), states.parts, strict=True))
    sides = [side.replace(PERTURBED, POSITIVE) for side in guidance.sides]
    read = join_texts([_each(texts[side] or states.negative, count) for side in sides])
    device = read.context.device
    sizes = torch.tensor([stage.sizes_of(side) for side in sides], dtype=torch.float32, device=device)
    rows = count * len(sides)
    scales = torch.full((rows,), scale, device=device) if model.family.reads_guidance else None
    shown = None if control is None else control.expand(rows, *control.shape)
    return Conditioning(read, sizes.repeat_interleave(count, 0), scales, shown)


def _each(text: TextStates, count: int) -> TextStates:
    """One text for all images, or one for each."""
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
    """The latents of one image for each of `noises` after a stage, as the model is shown them: float32 [B, C, h, w].

    states    one text for all images or one for each, on the denoiser's device
    latents   what a stage begins with that does not begin with noise, [B, C, h, w]: without noise, or as noisy as the stage
              before left them where it `refines`
    on_step   (steps done, steps of the stage); samplers that ask twice in a step count it once
    """
    import torch

    width, height = stage.size
    assert not (width % model.family.latent_pixels or height % model.family.latent_pixels), "sizes are multiples"
    device = states.positive.context.device
    scheduler = sampling.scheduler()
    scheduler.set_timesteps(stage.steps, device=device)
    with torch.no_grad(), ExitStack() as around:
        first, now = _begin(scheduler, stage, noises, sampling, latents, device)
        left, own = scheduler.timesteps[first:], own_part(scheduler, stage, first)
        steps = steps_of(stage)
        at = Moment(scheduler, noises, own.start, len(left), scheduler.timesteps[0], now)
        read = _Reads(model, states, stage, sampling, len(noises), control)
        for hook in hooks:
            around.enter_context(hook.around())
        for at.index in own:
            at.timestep = left[at.index]
            if cancel is not None:
                cancel.check()
            for hook in hooks:
                hook.before(at)
            guidance, given = read.at(at)
            output = _guided(model, guidance, given, at, hooks)
            for hook in hooks:
                output = hook.corrected(at, output, lambda noisy: model.predict(noisy, at.timestep, read.alone(at)))
            at.latents = _next(at, output, hooks)
            for hook in hooks:
                hook.after(at)
            if on_step is not None:
                on_step((at.index + 1 - own.start) * steps // len(own), steps)
    return at.latents


@dataclass
class _Reads:
    """What the model reads at each evaluation: as `denoise` is given it, made once for each text."""

    model: Denoiser
    states: PromptStates
    stage: Stage
    sampling: Sampling
    images: int
    control: Tensor | None
    made: dict[Any, tuple[Guidance, Conditioning]] = field(default_factory=dict)

    def at(self, at: Moment) -> tuple[Guidance, Conditioning]:
        """(the guidance, the conditioning of its sides)"""
        return self._of(self._now(at), self.sampling.guides(at.index, at.steps))

    def alone(self, at: Moment) -> Conditioning:
        """The conditioning of the prompt alone."""
        return self._of(self._now(at), None)[1]

    def _now(self, at: Moment) -> PromptStates:
        return self.states.at(at.index * whole_steps(self.stage) // at.steps)

    def _of(self, now: PromptStates, guided: bool | None) -> tuple[Guidance, Conditioning]:
        key = id(now), guided
        if key not in self.made:
            now = replace(now, parts=()) if guided is None else now
            guidance = UNGUIDED if guided is None else guidance_for(self.model, now, self.sampling, guided)
            scale = self.sampling.guidance_scale
            given = conditioning(self.model, now, self.stage, guidance, scale, self.images, self.control)
            self.made[key] = guidance, given
        return self.made[key]


def whole_steps(stage: Stage) -> int:
    """The steps that are run of a schedule, by the base model and the refiner together."""
    return stage.steps if stage.run is None else stage.run


def steps_of(stage: Stage) -> int:
    """The steps that a stage runs; where the refiner takes over, as many as for timesteps at equal distances."""
    run = whole_steps(stage)
    if stage.switch_at is None:
        return run
    before = max(round(stage.steps * stage.switch_at) - (stage.steps - run), 0)
    return run - before if stage.refines else before


def own_part(scheduler: Any, stage: Stage, first: int) -> range:
    """Which of the image's evaluations are the stage's own, counted from `first`.

    The refiner begins at the first timestep below the share of noise that is left, as in diffusers (`denoising_end`,
    `denoising_start`), but never within a step that evaluates twice.
    """
    count = len(scheduler.timesteps) - first
    if stage.switch_at is None:
        return range(count)
    known = config_of(scheduler).get("num_train_timesteps", TIMESTEPS)
    before = int((scheduler.timesteps >= round(known - stage.switch_at * known)).sum())
    switch = max(before - before % getattr(scheduler, "order", 1) - first, 0)
    return range(switch, count) if stage.refines else range(switch)


def own_steps(sampling: Sampling, stage: Stage) -> int:
    """How many evaluations a stage has with its sampler: 0 where the refiner takes over too early or too late."""
    scheduler = sampling.scheduler()
    scheduler.set_timesteps(stage.steps)
    return len(own_part(scheduler, stage, _places(scheduler, stage, sampling)[0]))


def _begin(
    scheduler: Any,
    stage: Stage,
    noises: Sequence[ImageNoise],
    sampling: Sampling,
    latents: Tensor | None,
    device: torch.device,
) -> tuple[int, Tensor]:
    """(the first evaluation of the image, the latents for the first one of the stage)"""
    import torch

    first, noised = _places(scheduler, stage, sampling)
    begins = first + own_part(scheduler, stage, first).start
    starts_late = stage.refines or (stage.run is not None and sampling.program != "generator")
    if starts_late and hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(begins)
    if stage.refines:
        assert latents is not None, "a refiner continues latents"
        return first, latents.to(device)
    if stage.run is None:
        return first, (torch.stack([noise.start for noise in noises]) * start_scale(scheduler)).to(device)
    assert latents is not None, "only noise begins without latents"
    if sampling.program != "generator" and not stage.run:  # nothing would take noise away
        return first, latents.to(device)
    noise = torch.stack([each.of_image()[0] for each in noises]).to(device)
    return first, noise * start_scale(scheduler) if stage.anew else add_noise(scheduler, latents, noise, noised)


def _places(scheduler: Any, stage: Stage, sampling: Sampling) -> tuple[int, int]:
    """(the first evaluation of the image, the one whose noise an initial image is given)"""
    if stage.run is None:
        return 0, 0
    if sampling.program != "generator":
        first = (stage.steps - stage.run) * getattr(scheduler, "order", 1)
        return first, min(first, len(scheduler.timesteps) - 1)
    offset = config_of(scheduler).get("steps_offset", 0) if sampling.one_level_up else 0
    noised = min(stage.run + offset, stage.steps)
    return max(stage.steps - noised + offset, 0), -max(noised, 1)


def _guided(model: Denoiser, guidance: Guidance, given: Conditioning, at: Moment, hooks: Sequence[Hook]) -> Tensor:
    import torch

    at.sides = sides = guidance.sides
    noisy = model_input(at.sampler, torch.cat([at.latents] * len(sides)), at.timestep)
    for hook in hooks:
        given = hook.conditioned(at, noisy, given)
    with guidance.around(model.module, at):
        outputs = model.predict(noisy, at.timestep, given).float().chunk(len(sides))
    return guidance.combine(dict(zip(sides, outputs, strict=True)), at)


def _next(at: Moment, output: Tensor, hooks: Sequence[Hook]) -> Tensor:
    for hook in hooks:
        own = hook.step(at, output)
        if own is not None:
            return own
    return sampler_step(at.sampler, output, at.timestep, at.latents, [noise.sampler for noise in at.noises])
