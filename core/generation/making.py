"""Makes images on a loaded model: several that differ only in prompt and seed at once, stage after stage."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING, Any

from core.diffusion.text_states import TextStates, join_texts
from core.families import family
from core.families.components import Components
from core.generation.effects.inpaint import canvas_of, mixed_noise, reading_mask, reads_mask
from core.generation.model.leases import Refiner
from core.generation.model.loras import LorasInUse
from core.generation.model.other_files import Leased
from core.generation.model.store import empty_device_cache
from core.generation.model.words import Words
from core.generation.plan.hooks import Lend, Making, differentiates, hooks_of
from core.generation.plan.initial import IMAGE, opened
from core.generation.plan.requests import Request
from core.generation.plan.stages import (
    as_generator,
    has_regions,
    passes_of,
    reading_of,
    sampling_of,
    sampling_steps,
    stages_of,
)
from core.generation.plan.upscalers import enlarged, upscaler_of
from core.generation.prompt.editing import Pass, at_steps, has_edits, schedule, texts_of
from core.generation.prompt.runs import parts_of, weighted_parts
from core.generation.prompt.states import PromptStates
from core.generation.sample.canvas import Canvas, decode, encoded, images_at_once, mask_of, pixels_of
from core.generation.sample.guidance import EMPTY
from core.generation.sample.loop import Denoiser, Sampling, Stage, denoise, noises_of, steps_of
from core.generation.sample.noise import ImageNoise
from core.record.context import NO_REPORTS, Reports
from core.record.workspace import resolve_path
from core.settings.generation.generate import LoraUse
from core.settings.job import GenerateJob

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from core.generation.model.other_files import Nets


@dataclass(frozen=True)
class Texts:
    """The texts of an image: the prompts between AND, the negative prompt and, if the guidance needs it, an empty one.

    weights   of the prompts between AND
    """

    sides: tuple[str, ...]
    weights: tuple[float, ...]


@dataclass
class Made:
    """What became of a batch: the latents after each stage, [B, C, h, w]; the image of each request and stage so far.

    canvas, begun, noises   of the stage that is made now: its initial image, the latents that it began with, and the random
                            numbers of each image, which a refiner continues with
    """

    latents: list[Tensor] = field(default_factory=list)
    images: list[list[Image]] = field(default_factory=list)
    canvas: Canvas | None = None
    begun: Tensor | None = None
    noises: Sequence[ImageNoise] = ()


@dataclass
class Progress:
    """The progress of images, as it is reported.

    name                     of one image, in the singular
    images, steps            in all
    images_done, steps_done  of these, generated or given up
    batch                    numbers of the requests in work
    """

    reports: Reports
    name: str
    images: int
    steps: int
    images_done: int = 0
    steps_done: int = 0
    batch: Sequence[int] = ()

    def show(self, together: int = 0, step: int = 0, steps: int = 0) -> None:
        """Report the images in work. together: how many; step, steps: how far each of them is"""
        first, last = (min(self.images_done + number, self.images) for number in (1, max(together, 1)))
        which = f"{self.name}s {first} to {last}" if last > first else f"{self.name} {first}"
        done = min(self.steps_done + together * step, self.steps)
        self.reports.stage(f"generating {which} of {self.images}", done, self.steps, step, steps)

    def add(self, images: int, steps: int) -> None:
        """Count images as done, after so many steps of all."""
        self.images_done, self.steps_done = self.images_done + images, self.steps_done + steps


def each_image(
    requests: Sequence[Request],
    maker: Maker | Enlarger,
    progress: Progress,
    existing: Iterable[int] = (),
    most: int | None = None,
    fewer: Callable[[int], int] = lambda batch_size: batch_size // 2,
) -> Iterator[tuple[int, list[Image]]]:
    """(number of a request, its image after each stage), in order, in batches of as many as fit into memory.

    existing  numbers of the requests whose images exist. Batches are those of all requests, since rounding depends on the
              size of a batch: what is generated later equals what would have been generated at once
    most      largest batch; None: as the settings say, or as many as fit
    fewer     (size of a batch that did not fit) -> the size to try
    Raises Cancelled, and the error of a batch; `progress.batch` is that batch.
    """
    finished, start = set(existing), 0
    progress.show()
    while start < len(requests):
        for batch in maker.batches(requests[start:], most):
            numbers = range(start, start + len(batch))
            missing = [number for number in numbers if number not in finished]
            if missing:
                progress.reports.cancel.check()
                progress.batch, steps = numbers, sampling_steps(batch[0].job)
                result = maker.make_if_it_fits(batch, partial(progress.show, len(missing), steps=steps))
                if result is None:
                    most = fewer(len(batch))
                    break
                for number in missing:
                    yield number, [images[number - start] for images in result.images]
                    progress.add(1, steps)
                progress.show()
            start += len(batch)


class Enlarger:
    """Upscales initial images and generates nothing, so that no model is loaded. upscaler: lends the networks of files"""

    def __init__(self, upscaler: Leased):
        self.upscaler = upscaler

    def batches(self, requests: Sequence[Request], most: int | None = None) -> Iterator[list[Request]]:
        yield from ([request] for request in requests)

    def make(self, batch: Sequence[Request], on_step: Callable[[int], None] = lambda done: None) -> Made:
        job = batch[0].job
        image = opened(resolve_path(job.image_to_image.image_path or ""), IMAGE)
        size, file = stages_of(job)[-1].size, job.hires.highres_fix_upscaler_file
        with self.upscaler(file) if file else nullcontext() as network:
            made = network.images([image], size) if network else enlarged([image], job, size)
        return Made(images=[made])

    make_if_it_fits = make


class Maker:
    """Makes images with a model, its LoRAs attached and its words known."""

    def __init__(
        self,
        components: Components,
        words: Words,
        loras: LorasInUse,
        reports: Reports = NO_REPORTS,
        upscaler: Leased | None = None,
        refiner: Refiner | None = None,
        nets: Nets | None = None,
        lend: Lend | None = None,
    ):
        """upscaler, refiner, nets, lend: lend the networks of upscaler files, refiners, ControlNets, models of hooks; None: there
        are none"""
        self.components, self.kind = components, family(components.family)
        self.model = Denoiser.of(components)
        self.words, self.loras, self.reports = words, loras, reports
        self.upscaler = upscaler or (lambda file: nullcontext())
        self.refiner, self.nets, self.lend = refiner, nets, lend

    # -- which images are made together

    def batches(self, requests: Sequence[Request], most: int | None = None) -> Iterator[list[Request]]:
        """Those that are alike but for prompt and seed, in their order, as many as fit. most: not more than so many"""
        for _, alike in groupby(requests, self._alike):
            left = list(alike)
            job = left[0].job
            size = stages_of(job)[-1].size
            fits = 1 if differentiates(job) else images_at_once(self.components, *size)
            number = most or job.generate.batch_size or fits
            while left:
                yield left[:number]
                left = left[number:]

    def _alike(self, request: Request) -> Any:
        job = request.job
        reading, texts = reading_of(job, self.kind.name), self._texts(job)
        every = [text for side in texts.sides for text in texts_of(side, passes_of(job))]
        tokens = reading.tokens(every, lambda text: self.kind.count_tokens(self.components, text))
        plain = {"prompt": "", "negative_prompt": "", "seed": None, "variation_seed": None}
        return job.model_copy(update={"generate": job.generate.model_copy(update=plain)}), tokens, texts.weights

    # -- one batch

    def make(
        self, batch: Sequence[Request], on_step: Callable[[int], None] = lambda done: None, decoded: bool = True
    ) -> Made:
        """The images of requests that are alike. on_step: given the steps done, of all stages"""
        job = batch[0].job
        self.loras.use(job.generate.loras)
        stages = stages_of(job)
        changes = any(has_edits(side) for each in batch for side in self._texts(each.job).sides)
        passes = passes_of(job) if changes else [None] * len(stages)
        states = {during: self._states_of(self.words, batch, during) for during in dict.fromkeys(passes)}
        made, before = Made(), 0
        for stage, during in zip(stages, passes, strict=True):
            progress = _from(before, on_step)
            done = (
                self._refined(stage, during, batch, made, progress)
                if stage.refines
                else self._stage(stage, during, batch, states[during], made, progress)
            )
            made.latents.append(done)
            before += steps_of(stage)
        if decoded:
            self._decode(made, job)
            if made.canvas is not None:
                made.images[-1] = [made.canvas.pasted(image) for image in made.images[-1]]
        return made

    def make_if_it_fits(self, batch: Sequence[Request], on_step: Callable[[int], None]) -> Made | None:
        """None if several images together ran out of memory; a single one raises as usual."""
        import torch

        try:
            return self.make(batch, on_step)
        except torch.OutOfMemoryError:
            if len(batch) == 1:
                raise
        empty_device_cache()
        self.reports.say(f"{len(batch)} images at once do not fit into memory; continuing with fewer")
        return None

    def sampling(self, job: GenerateJob) -> Sampling:
        return sampling_of(job, self.components.prediction)

    def _stage(
        self,
        stage: Stage,
        during: Pass | None,
        batch: Sequence[Request],
        states: PromptStates,
        made: Made,
        on_step: Callable[[int, int], None],
    ) -> Tensor:
        job = batch[0].job
        sampling = self.sampling(job)
        seeds, variations = [each.seed for each in batch], [each.variation for each in batch]
        noises = noises_of(self.model, stage, seeds, sampling, self._device(), variations)
        made.noises, made.canvas = noises, canvas_of(job, stage.size) if job.image_to_image.image_path else None
        made.begun = self._begun(stage, batch, noises, made)
        sides, networks, show = sampling.guidance().sides, self.loras.networks, self.reports.preview
        making = Making(job, stage, self.components, self.kind, noises, made.begun, made.canvas, sides, networks, show)
        prompts = [schedule(request.job.generate.prompt, during)[-1][1] for request in batch]
        making = replace(making, strengths=self.loras.strengths, by_use=self.loras.by_use)
        making = replace(making, nets=self.nets, prompts=prompts, lend=self.lend)
        model = self.model
        if reads_mask(self.components):
            model = reading_mask(model, self.components, stage, noises, made.canvas)
        return self._denoised(model, states, making, sampling, made.begun, on_step)

    def _refined(
        self,
        stage: Stage,
        during: Pass | None,
        batch: Sequence[Request],
        made: Made,
        on_step: Callable[[int, int], None],
    ) -> Tensor:
        """The last latents, finished by the refiner: it continues with their noise, and the sampler's history begins anew."""
        assert self.refiner is not None, "the plan of a job with a refiner knows it"
        job = batch[0].job
        with self.refiner(job) as (refiner, words):
            sampling = replace(self.sampling(job), prediction=refiner.prediction)
            states = self._states_of(words, batch, during)
            seen = replace(refiner, vae=self.components.vae, vae_config=self.components.vae_config)  # by previews
            sides, show = sampling.guidance().sides, self.reports.preview
            kind = family(refiner.family)
            making = Making(job, stage, seen, kind, made.noises, made.begun, made.canvas, sides, (), show)
            return self._denoised(Denoiser.of(refiner), states, making, sampling, made.latents[-1], on_step)

    def _denoised(
        self,
        model: Denoiser,
        states: PromptStates,
        making: Making,
        sampling: Sampling,
        latents: Tensor | None,
        on_step: Callable[[int, int], None],
    ) -> Tensor:
        return denoise(
            model,
            states,
            making.stage,
            making.noises,
            sampling,
            latents=latents,
            hooks=hooks_of(making),
            on_step=on_step,
            cancel=self.reports.cancel,
        )

    def _begun(self, stage: Stage, batch: Sequence[Request], noises: Sequence[ImageNoise], made: Made) -> Tensor | None:
        """The latents that a stage with a strength begins with."""
        import torch

        job = batch[0].job
        if stage.begins == "noise":
            return None
        if stage.begins == "made latents":
            height, width = self.kind.latent_shape(stage.size)[1:]
            upscale = upscaler_of(job).latents
            assert upscale is not None
            return upscale(made.latents[-1], (height, width))
        if stage.begins == "image":
            assert made.canvas is not None
            images = [made.canvas.shown] * len(batch)
        else:
            self._decode(made, job)
            images = made.images[-1]
        file = job.hires.highres_fix_upscaler_file if stage.begins == "made image" else None
        with self.upscaler(file) if file else nullcontext() as network:
            if stage.begins == "made image":
                images = network.images(images, stage.size) if network else enlarged(images, job, stage.size)
            latents = torch.cat(
                [
                    encoded(self.components.vae, self.kind, pixels_of(image), noise.of_image()[1])
                    for image, noise in zip(images, noises, strict=True)
                ]
            ).to(self._device())
            if network:
                latents = network.latents(latents, self.components.vae.config.scaling_factor)
        content = job.image_to_image.masked_content
        if stage.begins != "image" or made.canvas is None or made.canvas.mask is None or "latent" not in content:
            return latents
        mask = mask_of(made.canvas.mask, self.kind.latent_shape(stage.size), as_generator(job)).to(latents.device)
        return (1 - mask) * latents + (mask * mixed_noise(noises, latents) if content == "latent_noise" else 0)

    def _decode(self, made: Made, job: GenerateJob) -> None:
        """The images of the last latents."""
        made.images.append(
            decode(
                self.components.vae,
                made.latents[-1],
                self.kind.decode_latents,
                cancel=self.reports.cancel,
                warn=self.reports.warn,
            )
        )

    def _device(self) -> str:
        return self.components.device

    # -- prompts

    def _texts(self, job: GenerateJob) -> Texts:
        prompt = job.generate.prompt
        parts = [(part, 1.0) for part in parts_of(prompt)] if has_regions(job) else weighted_parts(prompt)
        if len(parts) == 1:
            parts = [(prompt, 1.0)]
        empty = [""] if EMPTY in self.sampling(job).guidance().sides else []
        sides = (*(text for text, _ in parts), job.generate.negative_prompt, *empty)
        return Texts(sides, tuple(weight for _, weight in parts))

    def _states_of(self, words: Words, batch: Sequence[Request], during: Pass | None) -> PromptStates:
        return _joined([self._states_of_one(words, request.job, during) for request in batch])

    def _states_of_one(self, words: Words, job: GenerateJob, during: Pass | None) -> PromptStates:
        """With those of later steps, each encoded once."""
        texts = self._texts(job)
        every = [text for side in texts.sides for text in texts_of(side, passes_of(job))]
        found: dict[tuple[str, ...], PromptStates] = {}
        times = []
        for begin, sides in at_steps(texts.sides, during):
            if sides not in found:
                found[sides] = self._encoded(words, job, replace(texts, sides=sides), every)
            times.append((begin, found[sides]))
        return replace(times[0][1], later=tuple(times[1:]))

    def _encoded(self, words: Words, job: GenerateJob, texts: Texts, every: Sequence[str]) -> PromptStates:
        """every: the texts of all steps, whose length the states have"""
        reading, count, uses = reading_of(job, self.kind.name), len(texts.weights), job.generate.loras
        if words is self.words:
            self.loras.use(uses)
        if not has_regions(job):
            read = words.encode_each(texts.sides, reading, every)
            positive, others = tuple(read[:count]), read[count:]
            states = PromptStates.of([positive[0], *others])
            return replace(states, parts=positive, weights=texts.weights) if count > 1 else states
        if as_generator(job) and self.kind.name == "sdxl":  # it does not know the text encoders' layers of SDXL's LoRAs
            self.loras.use(weaker(uses, count))
            read = words.encode_each(texts.sides, reading, every)
            self.loras.use(uses)
            return PromptStates.of([_coupled(read[:count]), *read[count:]])
        parts: list[TextStates] = []
        for number in range(count):  # each with the text encoders' changes of its own LoRA alone
            self.loras.use(only(uses, number))
            parts.append(words.encode_each(texts.sides, reading, every)[number])
        self.loras.use(only(uses, None))
        others = words.encode_each(texts.sides, reading, every)[count:]
        self.loras.use(uses)
        return PromptStates.of([_coupled(parts), *others])


def _joined(each: Sequence[PromptStates]) -> PromptStates:
    """Those of several images, at all steps."""
    found: dict[tuple[int, ...], PromptStates] = {}
    times = []
    for begin in sorted({0, *(begin for one in each for begin, _ in one.later)}):
        now = [one.at(begin) for one in each]
        key = tuple(map(id, now))
        if key not in found:
            found[key] = _together(now)
        times.append((begin, found[key]))
    return replace(times[0][1], later=tuple(times[1:]))


def _together(each: Sequence[PromptStates]) -> PromptStates:
    """Those of several images at one step."""
    positive, negative = (join_texts([getattr(one, side) for one in each]) for side in ("positive", "negative"))
    empty = [one.empty for one in each if one.empty is not None]
    parts = tuple(join_texts(list(same)) for same in zip(*(one.parts for one in each), strict=True))
    return PromptStates(positive, negative, join_texts(empty) if empty else None, parts, each[0].weights)


def _coupled(parts: Sequence[TextStates]) -> TextStates:
    """The states of all sub-prompts of one image, with the last one's pooled vector."""
    return replace(join_texts(parts), pooled=parts[-1].pooled)


def weaker(uses: Sequence[LoraUse], parts: int) -> list[LoraUse]:
    """The LoRAs with a part of their strength on the text encoders."""
    return [
        use.model_copy(
            update={
                "text_encoder_strength": (
                    use.strength if use.text_encoder_strength is None else use.text_encoder_strength
                )
                / parts
            }
        )
        for use in uses
    ]


def only(uses: Sequence[LoraUse], number: int | None) -> list[LoraUse]:
    """The LoRAs with the text encoders' strength of one alone."""
    return [
        use if at == number else use.model_copy(update={"text_encoder_strength": 0.0}) for at, use in enumerate(uses)
    ]


def _from(before: int, on_step: Callable[[int], None]) -> Callable[[int, int], None]:
    return lambda done, steps: on_step(before + done)
