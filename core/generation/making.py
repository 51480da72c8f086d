"""Generates images with a loaded model: batches of images that differ only in prompt and seed, stage after stage."""

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
from core.generation.effects.inpaint import canvas_of, is_inpainting_model, with_mask_input
from core.generation.model.embeddings import PromptEncoder
from core.generation.model.leases import Refiner
from core.generation.model.loras import LorasInUse
from core.generation.model.other_files import Leased
from core.generation.model.store import empty_device_cache
from core.generation.plan.hooks import Finish, HookInputs, Lend, differentiates, hooks_of
from core.generation.plan.initial import IMAGE, opened
from core.generation.plan.requests import Request
from core.generation.plan.stages import (
    as_sd_scripts,
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
from core.generation.sample.noise import ImageNoise, mixed_noise
from core.record.context import NO_REPORTS, Reports
from core.record.lazy_torch import Tensor, torch
from core.record.workspace import resolve_path
from core.settings.generation.generate import LoraUse
from core.settings.job import GenerateJob

if TYPE_CHECKING:
    from PIL.Image import Image

    from core.generation.model.other_files import Nets


@dataclass
class BatchResult:
    """The results of a batch so far.

    latents     latents after each stage, [B, C, h, w]
    images      decoded images of the stages, a list of B images each; latents that are not decoded have none
    canvas      initial image of the current stage
    initial     its initial latents without noise, [B, C, h, w]; None if it starts from noise
    inpainted   initial image of all stages in place of the settings' file (detailer); None: the file
    noises      random numbers of each image, with which a refiner continues
    """

    latents: list[Tensor] = field(default_factory=list)
    images: list[list[Image]] = field(default_factory=list)
    canvas: Canvas | None = None
    initial: Tensor | None = None
    inpainted: Canvas | None = None
    noises: Sequence[ImageNoise] = ()


@dataclass
class Progress:
    """The reported progress of a job's images.

    name                      of one image, in the singular
    images, steps             total numbers
    images_done, steps_done   generated or skipped
    batch                     indices of the requests being generated
    """

    reports: Reports
    name: str
    images: int
    steps: int
    images_done: int = 0
    steps_done: int = 0
    batch: Sequence[int] = ()

    def show(self, batch_size: int = 0, step: int = 0, steps: int = 0) -> None:
        """Report the images being generated. batch_size: their number; step, steps: completed and total steps of each"""
        first = min(self.images_done + 1, self.images)
        last = min(self.images_done + max(batch_size, 1), self.images)
        which = f"{self.name}s {first} to {last}" if last > first else f"{self.name} {first}"
        done = min(self.steps_done + batch_size * step, self.steps)
        self.reports.stage(f"generating {which} of {self.images}", done, self.steps, step, steps)

    def add(self, images: int, steps: int) -> None:
        """Count images as done. steps: their sampling steps together"""
        self.images_done, self.steps_done = self.images_done + images, self.steps_done + steps


def each_image(
    requests: Sequence[Request],
    maker: ImageMaker | UpscaleMaker,
    progress: Progress,
    existing: Iterable[int] = (),
    max_batch_size: int | None = None,
    smaller_batch: Callable[[int], int] = lambda batch_size: batch_size // 2,
) -> Iterator[tuple[int, list[Image]]]:
    """Generate images in order; yield (index of its request, its image after each stage).

    existing         indices of requests whose images exist. They count for batches, since rounding depends on the batch size: an
                     image generated later equals the one generated at once
    max_batch_size   largest batch; None: the settings' batch size, or as many as fit
    smaller_batch    (batch size that did not fit) -> the next size to try

    Raises Cancelled, and the error of a batch, whose indices are in `progress.batch`.
    """
    finished, start = set(existing), 0
    progress.show()
    while start < len(requests):
        for batch in maker.batches(requests[start:], max_batch_size):
            numbers = range(start, start + len(batch))
            missing = [number for number in numbers if number not in finished]
            if missing:
                progress.reports.cancel.check()
                progress.batch, steps = numbers, sampling_steps(batch[0].job)
                batch_result = maker.make_if_fits(batch, partial(progress.show, len(missing), steps=steps))
                if batch_result is None:
                    max_batch_size = smaller_batch(len(batch))
                    break
                for number in missing:
                    yield number, [images[number - start] for images in batch_result.images]
                    progress.add(1, steps)
                progress.show()
            start += len(batch)


class UpscaleMaker:
    """Upscales initial images without generating, so that no model is loaded. upscaler: leases the networks of upscaler files"""

    def __init__(self, upscaler: Leased):
        self.upscaler = upscaler

    def batches(self, requests: Sequence[Request], most: int | None = None) -> Iterator[list[Request]]:
        """Yield each request as its own batch."""
        yield from ([request] for request in requests)

    def make(self, batch: Sequence[Request], on_step: Callable[[int], None] = lambda done: None) -> BatchResult:
        """Upscale the initial image of the batch's only request. `on_step` is not called."""
        job = batch[0].job
        image = opened(resolve_path(job.image_to_image.image_path or ""), IMAGE)
        size, file = stages_of(job)[-1].size, job.hires.highres_fix_upscaler_file
        with self.upscaler(file) if file else nullcontext() as network:
            images = network.images([image], size) if network else enlarged([image], job, size)
        return BatchResult(images=[images])

    make_if_fits = make


class ImageMaker:
    """Generates images with a model and its attached LoRAs and embeddings."""

    def __init__(
        self,
        components: Components,
        encoder: PromptEncoder,
        loras: LorasInUse,
        reports: Reports = NO_REPORTS,
        upscaler: Leased | None = None,
        refiner: Refiner | None = None,
        nets: Nets | None = None,
        lend: Lend | None = None,
        finish: Sequence[Finish] = (),
    ):
        """Arguments:

        encoder    encodes prompts, with the attached embeddings
        upscaler   leases the networks of upscaler files
        refiner    leases the refiner of a job
        nets       leases ControlNets
        lend       leases the models of hooks
        finish     functions that change finished images, in order

        None: the job does not need it.
        """
        self.components, self.kind = components, family(components.family)
        self.model = Denoiser.of(components)
        self.encoder, self.loras, self.reports = encoder, loras, reports
        self.upscaler = upscaler or (lambda file: nullcontext())
        self.refiner, self.nets, self.lend, self.finish = refiner, nets, lend, finish

    # -- batches

    def batches(self, requests: Sequence[Request], max_batch_size: int | None = None) -> Iterator[list[Request]]:
        """Yield batches of requests that differ only in prompt and seed, in order.
        max_batch_size: None: the settings' batch size, else as many as fit into memory"""
        for _, batchable in groupby(requests, self._batch_key):
            remaining = list(batchable)
            job = remaining[0].job
            size = stages_of(job)[-1].size
            fits = 1 if differentiates(job) else images_at_once(self.components, *size)
            batch_size = max_batch_size or job.generate.batch_size or fits
            while remaining:
                yield remaining[:batch_size]
                remaining = remaining[batch_size:]

    def _batch_key(self, request: Request) -> Any:
        """Return a key that is equal for requests that can share a batch: all settings but prompt and seed, and the number of tokens."""
        job = request.job
        reading, (sides, weights) = reading_of(job, self.kind.name), self._texts(job)
        all_texts = [text for side in sides for text in texts_of(side, passes_of(job))]
        tokens = reading.tokens(all_texts, lambda text: self.kind.count_tokens(self.components, text))
        ignored = {"prompt": "", "negative_prompt": "", "seed": None, "variation_seed": None}
        return job.with_settings(generate=ignored), tokens, weights

    # -- one batch

    def make(
        self,
        batch: Sequence[Request],
        on_step: Callable[[int], None] = lambda done: None,
        decoded: bool = True,
        inpainted: Canvas | None = None,
    ) -> BatchResult:
        """Generate the images of a batch of requests that differ only in prompt and seed.

        on_step     called with the number of completed steps, of all stages
        decoded     False: return latents only
        inpainted   initial image in place of the settings' file; the result is then not changed by `finish`
        """
        job = batch[0].job
        self.loras.set_strengths(job.generate.loras)
        stages = stages_of(job)
        edited = any(has_edits(side) for each in batch for side in self._texts(each.job)[0])
        passes = passes_of(job) if edited else [None] * len(stages)
        states = {edit_pass: self._states_of(self.encoder, batch, edit_pass) for edit_pass in dict.fromkeys(passes)}
        result, steps_before = BatchResult(inpainted=inpainted), 0
        for stage, edit_pass in zip(stages, passes, strict=True):
            progress = partial(lambda before, done, steps: on_step(before + done), steps_before)
            latents = (
                self._refined(stage, edit_pass, batch, result, progress)
                if stage.refines
                else self._stage(stage, edit_pass, batch, states[edit_pass], result, progress)
            )
            result.latents.append(latents)
            steps_before += steps_of(stage)
        if decoded:
            self._decode(result)
            if result.canvas is not None:
                result.images[-1] = [result.canvas.pasted(image) for image in result.images[-1]]
            for finish in self.finish if inpainted is None else ():
                finished = zip(batch, result.images[-1], strict=True)
                result.images[-1] = [finish(self._inpaint, each.job, image) for each, image in finished]
        return result

    def _inpaint(self, job: GenerateJob, canvas: Canvas) -> Image:
        """Return the canvas' image with its masked area generated (`hooks.Inpaint`, for the detailer)."""
        return self.make([Request(job)], inpainted=canvas).images[-1][0]

    def make_if_fits(self, batch: Sequence[Request], on_step: Callable[[int], None]) -> BatchResult | None:
        """Generate a batch, or return None if several images together run out of memory. A single image raises.
        on_step: called with the number of completed steps, of all stages"""
        try:
            return self.make(batch, on_step)
        except torch.OutOfMemoryError:
            if len(batch) == 1:
                raise
        empty_device_cache()
        self.reports.say(f"{len(batch)} images at once do not fit into memory; continuing with fewer")
        return None

    def sampling(self, job: GenerateJob) -> Sampling:
        """Return how the job's images are sampled with this model."""
        return sampling_of(job, self.components.prediction, self.components.family)

    def _stage(
        self,
        stage: Stage,
        edit_pass: Pass | None,
        batch: Sequence[Request],
        states: PromptStates,
        result: BatchResult,
        on_step: Callable[[int, int], None],
    ) -> Tensor:
        """Run a stage of the base model and return its latents; sets canvas, initial latents and noises in `result`.

        edit_pass   for prompt editing, from `passes_of`
        on_step     (completed steps, steps of the stage)
        """
        job = batch[0].job
        sampling = self.sampling(job)
        seeds, variations = [each.seed for each in batch], [each.variation for each in batch]
        noises = noises_of(self.model, stage, seeds, sampling, self.components.device, variations)
        result.noises, result.canvas = noises, result.inpainted
        if result.canvas is None and job.image_to_image.image_path:
            result.canvas = canvas_of(job, stage.size)
        result.initial = self._initial_latents(stage, batch, noises, result)
        hook_inputs = self._inputs(
            job,
            stage,
            self.components,
            result,
            networks=self.loras.networks,
            strengths=self.loras.strengths,
            by_use=self.loras.by_use,
            nets=self.nets,
            prompts=[schedule(request.job.generate.prompt, edit_pass)[-1][1] for request in batch],
            lend=self.lend,
        )
        model = self.model
        if is_inpainting_model(self.components):
            model = with_mask_input(model, self.components, stage, noises, result.canvas)
        return self._denoised(model, states, hook_inputs, sampling, result.initial, on_step)

    def _refined(
        self,
        stage: Stage,
        edit_pass: Pass | None,
        batch: Sequence[Request],
        result: BatchResult,
        on_step: Callable[[int, int], None],
    ) -> Tensor:
        """Run the refiner's stage and return its latents: the last latents, continued with the same noise and a new scheduler.

        edit_pass   for prompt editing, from `passes_of`
        on_step     (completed steps, steps of the stage)
        """
        assert self.refiner is not None, "the plan of a job with a refiner knows it"
        job = batch[0].job
        with self.refiner(job) as (refiner, encoder):
            sampling = replace(self.sampling(job), prediction=refiner.prediction)
            states = self._states_of(encoder, batch, edit_pass)
            model = replace(refiner, vae=self.components.vae, vae_config=self.components.vae_config)  # by previews
            hook_inputs = self._inputs(job, stage, model, result)
            return self._denoised(Denoiser.of(refiner), states, hook_inputs, sampling, result.latents[-1], on_step)

    def _inputs(
        self, job: GenerateJob, stage: Stage, model: Components, result: BatchResult, **lent: Any
    ) -> HookInputs:
        """Return the inputs of a stage's hooks. lent: further fields of `HookInputs`, which a refiner does not have"""
        sides = self.sampling(job).guidance().sides
        canvas, latents, show = result.canvas, result.initial, self.reports.preview
        return HookInputs(
            job, stage, model, family(model.family), result.noises, latents, canvas, sides=sides, show=show, **lent
        )

    def _denoised(
        self,
        model: Denoiser,
        states: PromptStates,
        hook_inputs: HookInputs,
        sampling: Sampling,
        latents: Tensor | None,
        on_step: Callable[[int, int], None],
    ) -> Tensor:
        """Sample a stage with all its hooks and return its latents. on_step: (completed steps, steps of the stage)"""
        hooks, cancel = hooks_of(hook_inputs), self.reports.cancel
        stage, noises = hook_inputs.stage, hook_inputs.noises
        return denoise(
            model, states, stage, noises, sampling, latents=latents, hooks=hooks, on_step=on_step, cancel=cancel
        )

    def _initial_latents(
        self, stage: Stage, batch: Sequence[Request], noises: Sequence[ImageNoise], result: BatchResult
    ) -> Tensor | None:
        """Return a stage's initial latents without noise, [B, C, h, w]; None for a stage that starts from noise."""
        job = batch[0].job
        if stage.begins == "noise":
            return None
        if stage.begins == "previous latents":
            if job.hires.highres_fix_save_1st:
                self._decode(result)
            height, width = self.kind.latent_shape(stage.size)[1:]
            upscale = upscaler_of(job).latents
            assert upscale is not None
            return upscale(result.latents[-1], (height, width))
        if stage.begins == "image":
            assert result.canvas is not None
            images = [result.canvas.visible] * len(batch)
        else:
            self._decode(result)
            images = result.images[-1]
        file = job.hires.highres_fix_upscaler_file if stage.begins == "previous image" else None
        with self.upscaler(file) if file else nullcontext() as network:
            if stage.begins == "previous image":
                images = network.images(images, stage.size) if network else enlarged(images, job, stage.size)
            latents = torch.cat(
                [
                    encoded(self.components.vae, self.kind, pixels_of(image), noise.image_noise()[1])
                    for image, noise in zip(images, noises, strict=True)
                ]
            ).to(self.components.device)
            if network:
                latents = network.latents(latents, self.components.vae.config.scaling_factor)
        content = job.image_to_image.masked_content
        if stage.begins != "image" or result.canvas is None or result.canvas.mask is None or "latent" not in content:
            return latents
        mask = mask_of(result.canvas.mask, self.kind.latent_shape(stage.size), as_sd_scripts(job)).to(latents.device)
        noise = mixed_noise(noises, latents.device) if content == "latent_noise" else 0
        return (1 - mask) * latents + mask * noise

    def _decode(self, result: BatchResult) -> None:
        """Decode the last latents and append the images to `result.images`."""
        vae, cancel, warn = self.components.vae, self.reports.cancel, self.reports.warn
        result.images.append(decode(vae, result.latents[-1], self.kind.decode_latents, cancel=cancel, warn=warn))

    # -- prompts

    def _texts(self, job: GenerateJob) -> tuple[tuple[str, ...], tuple[float, ...]]:
        """Return (the texts to encode, the weights of the prompts between AND).

        Texts are the prompts between AND, the negative prompt and, if the guidance needs it, an empty one.
        """
        prompt = job.generate.prompt
        parts = weighted_parts(prompt)
        if has_regions(job):  # without weights, which sd-scripts reads as text
            plain = parts_of(prompt) if as_sd_scripts(job) else [text for text, _ in parts]
            parts = [(part, 1.0) for part in plain]
        if len(parts) == 1:
            parts = [(prompt, 1.0)]
        empty = [""] if EMPTY in self.sampling(job).guidance().sides else []
        sides = (*(text for text, _ in parts), job.generate.negative_prompt, *empty)
        return sides, tuple(weight for _, weight in parts)

    def _states_of(self, encoder: PromptEncoder, batch: Sequence[Request], edit_pass: Pass | None) -> PromptStates:
        """Return the text conditioning of a batch."""
        return _joined_over_steps([self._states_of_one(encoder, request.job, edit_pass) for request in batch])

    def _states_of_one(self, encoder: PromptEncoder, job: GenerateJob, edit_pass: Pass | None) -> PromptStates:
        """Return the text conditioning of one image, with that of later steps in `later` (prompt editing). Equal texts are encoded once."""
        texts, weights = self._texts(job)
        all_texts = [text for side in texts for text in texts_of(side, passes_of(job))]
        encoded: dict[tuple[str, ...], PromptStates] = {}
        times = []
        for begin, sides in at_steps(texts, edit_pass):
            if sides not in encoded:
                encoded[sides] = self._encoded(encoder, job, sides, weights, all_texts)
            times.append((begin, encoded[sides]))
        return replace(times[0][1], later=tuple(times[1:]))

    def _encoded(
        self,
        encoder: PromptEncoder,
        job: GenerateJob,
        sides: Sequence[str],
        weights: tuple[float, ...],
        all_texts: Sequence[str],
    ) -> PromptStates:
        """Encode one image's texts at a step, with its LoRAs. With regions, each sub-prompt is encoded with its own LoRA only.

        sides, weights   from `_texts`
        all_texts        the texts of all steps, to whose length these are padded
        """
        reading, count, uses = reading_of(job, self.kind.name), len(weights), job.generate.loras
        encode = partial(encoder.encode_each, sides, reading, all_texts)
        if encoder is self.encoder:
            self.loras.set_strengths(uses)
        if not has_regions(job):
            each = encode()
            positive, others = tuple(each[:count]), each[count:]
            states = PromptStates.of([positive[0], *others])
            return replace(states, parts=positive, weights=weights) if count > 1 else states
        if as_sd_scripts(job) and self.kind.name == "sdxl":  # it ignores the text encoders' layers of SDXL's LoRAs
            self.loras.set_strengths(with_divided_text_strengths(uses, count))
            each = encode()
            self.loras.set_strengths(uses)
            return PromptStates.of([_joined_subprompts(each[:count]), *each[count:]])
        parts: list[TextStates] = []
        for number in range(count):  # each with the text encoders' changes of its own LoRA alone
            self.loras.set_strengths(text_strength_of_one(uses, number))
            parts.append(encode()[number])
        self.loras.set_strengths(text_strength_of_one(uses, None))
        others = encode()[count:]
        self.loras.set_strengths(uses)
        return PromptStates.of([_joined_subprompts(parts), *others])


def _joined_over_steps(images: Sequence[PromptStates]) -> PromptStates:
    """Return the text conditioning of a batch, at all steps, from that of each image."""
    joined: dict[tuple[int, ...], PromptStates] = {}
    times = []
    for begin in sorted({0, *(begin for image in images for begin, _ in image.later)}):
        states = [image.at(begin) for image in images]
        key = tuple(map(id, states))
        if key not in joined:
            joined[key] = _joined_at_step(states)
        times.append((begin, joined[key]))
    return replace(times[0][1], later=tuple(times[1:]))


def _joined_at_step(images: Sequence[PromptStates]) -> PromptStates:
    """Return the text conditioning of a batch at one step, from that of each image."""
    positive, negative = (join_texts([getattr(image, side) for image in images]) for side in ("positive", "negative"))
    empty = [image.empty for image in images if image.empty is not None]
    parts = tuple(join_texts(list(same)) for same in zip(*(image.parts for image in images), strict=True))
    return PromptStates(positive, negative, join_texts(empty) if empty else None, parts, images[0].weights)


def _joined_subprompts(parts: Sequence[TextStates]) -> TextStates:
    """Join the states of an image's sub-prompts, with the pooled vector of the last one."""
    return replace(join_texts(parts), pooled=parts[-1].pooled)


def with_divided_text_strengths(uses: Sequence[LoraUse], count: int) -> list[LoraUse]:
    """Return entries of `generate.loras` with their text encoder strengths divided by `count`."""
    return [
        use.model_copy(update={"text_encoder_strength": strength / count})
        for use in uses
        for strength in [use.strength if use.text_encoder_strength is None else use.text_encoder_strength]
    ]


def text_strength_of_one(uses: Sequence[LoraUse], number: int | None) -> list[LoraUse]:
    """Return entries of `generate.loras` with text encoder strength 0, except the one at index `number` (None: no exception)."""
    return [
        use if index == number else use.model_copy(update={"text_encoder_strength": 0.0})
        for index, use in enumerate(uses)
    ]
