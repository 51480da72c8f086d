"""Predictions and images of a run's base model, alone or with one checkpoint at a time, for the measures to compare."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from itertools import count
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from core.assess.measures import Measure
from core.assess.target import SEEDS, TIMESTEPS, Checkpoint, Target, one_timestep_each
from core.assess.trigger import with_word, without_word
from core.dataset.buckets.batches import Placed
from core.dataset.images.pixels import load_bucketed
from core.diffusion.text_states import Conditioning, join_texts
from core.generation.making import ImageMaker
from core.generation.model.store import make_store
from core.generation.plan.plan import plan_of
from core.generation.plan.requests import Request
from core.generation.prompt.states import Reading
from core.generation.run import loaded_maker
from core.generation.sample.canvas import fitted, images_at_once, pixels_of
from core.generation.sample.guidance import POSITIVE
from core.generation.sample.loop import Stage
from core.record import draws
from core.record.context import JobContext
from core.record.units import clock
from core.settings.check import build
from core.settings.job import GenerateJob
from core.settings.presets.files import to_values
from core.training.building.objective import objective_of
from core.training.loop.validation import unaugmented_caption

if TYPE_CHECKING:
    from PIL.Image import Image

    from core.diffusion.objective import Objective


AT_ONCE = 16  # predictions or images in a batch, at most


class Probe(NamedTuple):
    """An input of the denoiser: scaled latents [C, h, w], still to be noised to `timestep`, with their caption. `item`: image index."""

    item: int
    latents: Tensor
    caption: str
    timestep: int


class Bench:
    """Fixed inputs of the denoiser, and the base model's outputs for them.

    sets   {set name: probes}. "inside" and "held_out": images of the dataset with their captions; "plain": as "inside" without the
           trigger word; "outside": images that the base model generated from unrelated prompts
    base   the base model; its cached predictions and images outlive the loaded weights
    memo   results that several measures share, by name
    """

    base: Subject

    def __init__(self, target: Target, context: JobContext, total: int):
        """`total`: the number of predictions to make, for the progress report."""
        self.target, self.context, self._store = target, context, context.store or make_store()
        self.prompts = [unaugmented_caption(placed) for placed in target.evenly_spaced(target.training)]
        self.sets: dict[str, list[Probe]] = {}
        self.memo: dict[str, Any] = {}
        self._done, self._total = 0, total

    @contextmanager
    def opened(self, checkpoint: Checkpoint | None) -> Iterator[Subject]:
        """Context that loads the base model with `checkpoint` (None: the base model alone) and yields it. Raises ProblemsError."""
        plan, device = plan_of(self._job(checkpoint), self.target.workspace), self.context.device
        with loaded_maker(plan, self.target.workspace, store=self._store, device=device, reports=self.context) as (
            maker,
            _,
        ):
            assert isinstance(maker, ImageMaker)
            with torch.no_grad():
                yield Subject(self, maker, plan.requests[0].job, checkpoint)

    def prepare(self, measures: Sequence[Measure]) -> None:
        """Build the input sets that `measures` read, run the base model on them, and report the estimated time left."""
        target = self.target
        names = {target.set_named(name) for measure in measures for name, _ in measure.reads}
        with self.opened(None) as self.base:
            begun = time.perf_counter()
            for name in sorted(names):
                self.sets[name] = self._probes(name, "plain" in names)
                self.base.predicted(name)
            if any(measure.images for measure in measures):
                self.base.latents_by_prompt()
        left = self._total - self._done
        seconds = left * (time.perf_counter() - begun) / max(self._done, 1)
        self.context.say(f"{left:,} of {self._total:,} predictions left: about {clock(seconds)}")

    def _probes(self, name: str, add_trigger: bool) -> list[Probe]:
        """Return the inputs of the set `name` (see `Bench`), each image at every one of TIMESTEPS.
        add_trigger: whether captions of "inside" get the trigger word where it is missing"""
        target, word = self.target, self.target.trigger
        if name == "outside":
            captions, images = target.outside, [image for image, _ in self.base.generate(target.outside, 1)]
        else:
            chosen = target.evenly_spaced(target.held_out if name == "held_out" else target.training)
            captions = [unaugmented_caption(placed) for placed in chosen]
            images = [load(placed, target.size) for placed in chosen]
        if name == "plain":
            captions = [without_word(caption, word) for caption in captions]
        elif name == "inside" and add_trigger:
            captions = [with_word(caption, word) for caption in captions]
        rows = list(enumerate(zip(map(self.base.encoded, images), captions, strict=True)))
        return [Probe(item, latents, caption, at) for item, (latents, caption) in rows for at in TIMESTEPS]

    def changes(self, subject: Subject, name: str, strength: float = 1.0) -> list[float]:
        """Return |prediction - base prediction| / |base prediction| (L2 norms) of each probe of the set `name`."""
        base = self.base.predicted(name).flatten(1)
        change = (subject.predicted(name, strength).flatten(1) - base).norm(dim=1)
        return [float(each) for each in change / base.norm(dim=1)]

    def block_changes(self, subject: Subject, name: str, block_weights: str) -> list[float]:
        """Return |prediction - prediction with `block_weights`| / |base prediction| (L2 norms) of each image of the set `name`.

        Each image is predicted at one of TIMESTEPS, in rotation (see `one_timestep_each`).
        """
        probes = self.sets[self.target.set_named(name)]
        other = torch.cat(list(subject.predictions(one_timestep_each(probes), block_weights=block_weights)))
        rows = one_timestep_each(range(len(probes)))
        change = (subject.predicted(name)[rows] - other).flatten(1).norm(dim=1)
        return [float(each) for each in change / self.base.predicted(name)[rows].flatten(1).norm(dim=1)]

    def losses(self, subject: Subject, set_name: str, strength: float = 1.0) -> list[float]:
        """Return the mean squared error of each prediction of a set. `set_name` may be "fit", see `Target.set_named`."""
        x0, noise, timesteps = inputs(self.sets[self.target.set_named(set_name)], self.context.device)
        target = subject.objective.target(x0, noise, timesteps).float().cpu()
        errors = (subject.predicted(set_name, strength) - target).square().flatten(1).mean(dim=1)
        return [float(each) for each in errors]

    def report_predictions(self, predictions: int) -> None:
        """Add `predictions` to those made, and report progress. Raises Cancelled after a stop."""
        self._done += predictions
        self.context.check()
        self.context.stage("assessing, prediction", min(self._done, self._total), self._total)

    def _job(self, checkpoint: Checkpoint | None) -> GenerateJob:
        """Return the settings of a generation with the base model and `checkpoint` (None: the base model alone)."""
        target, (width, height) = self.target, self.target.size
        model, samples = to_values(target.job.model), target.job.samples
        generate: dict[str, Any] = {"width": width, "height": height, "seed": 0, "prompt_weights": False}
        generate |= {"steps": target.settings.sampling_steps, "guidance_scale": samples.guidance_scale}
        generate |= {"sampler": samples.sample_sampler}
        if checkpoint is not None and target.kind == "network":
            generate["loras"] = [{"file": str(checkpoint.path)}]
        elif checkpoint is not None and target.kind == "embedding":
            generate |= {"embeddings": list(checkpoint.embeddings), "prompt": target.trigger}
        elif checkpoint is not None:
            model["base_model"] = str(checkpoint.path)
        values = {"model": model, "memory": to_values(target.job.memory), "generate": generate}
        return build(GenerateJob, values | {"prompts": {"dynamic_prompts": False}})


class Subject:
    """The loaded base model with a checkpoint (None: without one). Cached predictions and images remain after the weights are released."""

    def __init__(self, bench: Bench, maker: ImageMaker, job: GenerateJob, checkpoint: Checkpoint | None):
        """`maker`: the loaded model; `job`: settings of a generation with `checkpoint`."""
        self.bench, self.maker, self.job, self.checkpoint = bench, maker, job, checkpoint
        self._at_once = images_at_once(maker.components, *bench.target.size, AT_ONCE)
        self._predictions: dict[tuple[str, float], Tensor] = {}

    def predicted(self, name: str, strength: float = 1.0) -> Tensor:
        """Return the predictions of a set of probes in the form of the training target: [N, C, h, w], float32, on the CPU. Computed
        once."""
        key = self.bench.target.set_named(name), strength
        if key not in self._predictions:
            self._predictions[key] = torch.cat(list(self.predictions(self.bench.sets[key[0]], strength)))
        return self._predictions[key]

    def predictions(
        self, probes: Sequence[Probe], strength: float = 1.0, block_weights: str | None = None
    ) -> Iterator[Tensor]:
        """Yield the predictions of `probes` in batches [B, C, h, w], float32, on the CPU, in the form of the training target.
        block_weights: the LoRA's weight in each block, comma-separated; None: 1 everywhere"""
        components, kind, size = self.maker.components, self.maker.kind, self.bench.target.size
        update = {"strength": strength, "block_weights": block_weights}
        self.maker.loras.set_strengths([use.model_copy(update=update) for use in self.job.generate.loras])
        captions = list(dict.fromkeys(probe.caption for probe in probes))
        reading = Reading(clip_skip=self.job.model.clip_skip, weighted=False, as_trained=True)
        states = dict(zip(captions, self.maker.encoder.encode_each(captions, reading), strict=True))
        for part in (probes[start : start + self._at_once] for start in range(0, len(probes), self._at_once)):
            x0, noise, at = inputs(part, components.device)
            noisy = self.objective.noised(x0, noise, at)
            sizes = torch.tensor([Stage(size).sizes_of(POSITIVE)] * len(part), dtype=torch.float32, device=noisy.device)
            guidance = torch.ones(len(part), device=noisy.device) if kind.reads_guidance else None
            texts = join_texts([states[probe.caption] for probe in part])
            output = kind.predict(components, noisy, at, Conditioning(texts, sizes, guidance)).float()
            self.bench.report_predictions(len(part))
            yield self.objective.form(output, noisy, at).cpu()

    def generate(self, prompts: Sequence[str], seeds: int) -> list[tuple[Image, str]]:
        """Return [(image, prompt)]: each prompt with seeds 0 to `seeds` - 1. A prompt that is listed again continues with the next
        seeds."""
        settings, images = self.job.generate, list[Any]()
        used: dict[str, Iterator[int]] = {prompt: count() for prompt in prompts}
        seeded = [(prompt, next(used[prompt])) for prompt in prompts for _ in range(seeds)]
        changes = ({"prompt": prompt.replace(" AND ", " and "), "seed": seed} for prompt, seed in seeded)
        requests = [self.job.with_settings(generate=each) for each in changes]
        for batch in self.maker.batches([Request(job) for job in requests], self._at_once):
            images += self.maker.make(batch).images[-1]
            self.bench.report_predictions(2 * len(batch) * settings.steps)
        return [(image, prompt) for image, (prompt, _) in zip(images, seeded, strict=True)]

    @cached_property
    def images(self) -> list[tuple[Image, str]]:
        """[(image, caption)]: SEEDS images for each of the bench's captions, generated once."""
        return self.generate(self.bench.prompts, SEEDS)

    def latents_by_prompt(self) -> list[list[Tensor]]:
        """Return the latents [C, h, w] of the generated images, SEEDS for each caption."""
        return [self._latents[start : start + SEEDS] for start in range(0, len(self._latents), SEEDS)]

    @cached_property
    def _latents(self) -> list[Tensor]:
        """Latents [C, h, w] of `images`, in the same order."""
        return [self.encoded(image) for image, _ in self.images]

    def encoded(self, image: Image) -> Tensor:
        """Return the mean latents [C, h, w] of an image, scaled as the model expects, float32, on the CPU."""
        vae, kind = self.maker.components.vae, self.maker.kind
        mean, _ = kind.encode_image_latents(vae, pixels_of(image))
        return kind.model_latents(vae.config, mean)[0].float().cpu()

    @cached_property
    def objective(self) -> Objective:
        """The training objective of the run, for the loaded components."""
        return objective_of(self.bench.target.job, self.bench.context, self.maker.components)


def load(placed: Placed, size: tuple[int, int]) -> Image:
    """Return a training image, cropped to its bucket and then to `size` (width, height)."""
    return fitted(load_bucketed(placed.image.path, placed.placement, images=placed.concept.images), size, "crop")


def inputs(probes: Sequence[Probe], device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Return (latents, noise, timesteps) of a batch on `device`: [B, C, h, w] twice, and [B]. Noise depends on image and timestep alone."""
    noises = [draws.normal(probe.latents.shape, 0, "assess", probe.item, probe.timestep) for probe in probes]
    timesteps = torch.tensor([probe.timestep for probe in probes])
    return (
        torch.stack([probe.latents for probe in probes]).to(device),
        torch.stack(noises).to(device),
        timesteps.to(device),
    )
