"""A run's base model, with one of its checkpoints at a time: predictions and images that the measures compare."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from core.assess.measures import Measure
from core.assess.target import TIMESTEPS, Checkpoint, Target
from core.dataset.buckets.batches import Placed
from core.dataset.captions.words import word_pattern
from core.dataset.images.pixels import load_bucketed
from core.diffusion.text_states import Conditioning, join_texts
from core.families import family
from core.generation.making import Maker
from core.generation.model.store import make_store
from core.generation.plan.plan import plan_of
from core.generation.plan.requests import Request
from core.generation.prompt.states import Reading
from core.generation.run import ready
from core.generation.sample.canvas import fitted, images_at_once, pixels_of
from core.generation.sample.guidance import POSITIVE
from core.generation.sample.loop import Stage
from core.record import draws
from core.record.cancel import CancelToken
from core.record.context import JobContext, Reports
from core.record.problems import Problem
from core.settings.check import build
from core.settings.job import GenerateJob
from core.settings.presets.files import to_values
from core.training.building.objective import objective_of
from core.training.loop.validation import unaugmented_caption

if TYPE_CHECKING:
    from PIL.Image import Image

    from core.diffusion.objective import Objective

SEED = 0  # of all noise
STRENGTHLESS = 0.0


@dataclass(frozen=True)
class Probe:
    """An input of the model: latents [C, h, w] in its scale, to be noised to a timestep, and a caption. item: the image's number"""

    item: int
    latents: Tensor
    caption: str
    timestep: int


@dataclass(frozen=True)
class Made:
    """A generated image. prompt: its number; latents: as the VAE encodes it, [C, h, w]"""

    prompt: int
    image: Image
    latents: Tensor


class Bench:
    """The probes, and the base model's predictions and images.

    sets      {name: probes}: "inside", "held_out": images of the dataset with their captions; "plain": the former without the
              trigger word; "outside": images that the base model made of other prompts
    base      {name: its predictions [N, C, h, w]}      images   those of the base model
    """

    def __init__(self, target: Target, context: JobContext, total: int):
        self.target, self.context, self._reports = target, context, _Once(context)
        self._store = context.store or make_store()
        self.sets: dict[str, list[Probe]] = {}
        self.base: dict[str, Tensor] = {}
        self.images: list[Made] = []
        self.prompts = [unaugmented_caption(placed) for placed in target.chosen(target.images.training)]
        self.kept: dict[str, Any] = {}  # by measures
        self._done, self._total = 0, total

    @contextmanager
    def opened(self, checkpoint: Checkpoint | None) -> Iterator[Subject]:
        """A context with the base model and a checkpoint; None: the base model alone."""
        plan = plan_of(self._job(checkpoint), self.target.workspace)
        device = self.context.device
        with ready(plan, self.target.workspace, store=self._store, device=device, reports=self._reports) as (maker, _):
            assert isinstance(maker, Maker)
            with torch.no_grad():
                yield Subject(self, maker, plan.requests[0].job, checkpoint)

    def prepare(self, measures: Sequence[Measure]) -> float:
        """Make the probes, and measure the base model; returns the seconds of a prediction."""
        target = self.target
        names = {target.set_named(name) for measure in measures for name, _ in measure.reads}
        with self.opened(None) as base:
            seconds = self._timed(base)
            images = {
                "inside": target.images.training,
                "plain": target.images.training,
                "held_out": target.images.held_out,
            }
            for name in sorted(names & images.keys()):
                chosen = target.chosen(images[name])
                captions = [unaugmented_caption(placed) for placed in chosen]
                if name == "inside" and "plain" in names:
                    captions = [with_word(caption, target.trigger) for caption in captions]
                if name == "plain":
                    captions = [without_word(caption, target.trigger) for caption in captions]
                self.sets[name] = _probes([base.encoded(load(placed, target.size)) for placed in chosen], captions)
            if "outside" in names:
                made = base.made(target.outside, 1)
                self.sets["outside"] = _probes([each.latents for each in made], target.outside)
            self.base = {name: base.predicted(name) for name in sorted(names)}
            if any(measure.images for measure in measures):
                self.images = base.made(self.prompts, target.settings.seeds)
        return seconds

    def count(self, predictions: int) -> None:
        """Report progress, and stop here if asked to."""
        self._done += predictions
        self.context.check()
        self.context.stage("assessing", min(self._done, self._total), self._total)

    def _timed(self, base: Subject) -> float:
        latents = torch.zeros(family(base.maker.components.family).latent_shape(self.target.size))
        probes = _probes([latents], [""])[:1]
        base.predict(probes)
        begun = time.perf_counter()
        base.predict(probes)
        seconds = time.perf_counter() - begun
        minutes = seconds * self._total
        self.context.say(f"{self._total:,} predictions of {seconds:.3f} s: about {_clock(minutes)}")
        return seconds

    def _job(self, checkpoint: Checkpoint | None) -> GenerateJob:
        target = self.target
        model, generate = to_values(target.job.model), dict[str, Any]()
        if checkpoint is not None and target.method == "network":
            generate["loras"] = [{"file": str(checkpoint.path)}]
        elif checkpoint is not None and target.method == "embedding":
            generate["embeddings"] = list(checkpoint.embeddings)
        elif checkpoint is not None:
            model["base_model"] = str(checkpoint.path)
        samples, (width, height) = target.job.samples, target.size
        generate |= {"width": width, "height": height, "steps": target.settings.sampling_steps, "seed": SEED}
        generate |= {
            "sampler": samples.sample_sampler,
            "guidance_scale": samples.guidance_scale,
            "prompt_weights": False,
        }
        values = {"model": model, "memory": to_values(target.job.memory), "generate": generate}
        return build(GenerateJob, values | {"prompts": {"dynamic_prompts": False}})


class Subject:
    """The model with a checkpoint. checkpoint: None for the base model; folder: of files that belong to the results"""

    def __init__(self, bench: Bench, maker: Maker, job: GenerateJob, checkpoint: Checkpoint | None):
        self.bench, self.maker, self.job, self.checkpoint = bench, maker, job, checkpoint
        self._known: dict[tuple[str, float], Tensor] = {}

    def predicted(self, name: str, strength: float = 1.0) -> Tensor:
        """The predictions [N, C, h, w] of a set of probes, each computed once."""
        key = self.bench.target.set_named(name), strength
        if key not in self._known:
            self._known[key] = self.predict(self.bench.sets[key[0]], strength)
        return self._known[key]

    def predict(self, probes: Sequence[Probe], strength: float = 1.0) -> Tensor:
        """Predictions [N, C, h, w], float32 on the CPU, in the form of the objective's target."""
        components, kind = self.maker.components, self.maker.kind
        self.maker.loras.use([use.model_copy(update={"strength": strength}) for use in self.job.generate.loras])
        captions = list(dict.fromkeys(probe.caption for probe in probes))
        reading = Reading(clip_skip=self.job.model.clip_skip, weighted=False, as_trained=True)
        states = dict(zip(captions, self.maker.encoder.encode_each(captions, reading), strict=True))
        found, size = [], self.bench.target.size
        for start in range(0, len(probes), at_once := images_at_once(components, *size)):
            some = probes[start : start + at_once]
            x0, noise, at = (each.to(components.device) for each in _inputs(some))
            noisy = self.objective.noised(x0, noise, at)
            texts = join_texts([states[probe.caption] for probe in some])
            sizes = torch.tensor([Stage(size).sizes_of(POSITIVE)] * len(some), dtype=torch.float32, device=noisy.device)
            scales = torch.ones(len(some), device=noisy.device) if kind.reads_guidance else None
            output = kind.predict(components, noisy, at, Conditioning(texts, sizes, scales)).float()
            found.append(self.objective.form(output, noisy, at).cpu())
            self.bench.count(len(some))
        return torch.cat(found)

    def targets(self, name: str) -> Tensor:
        """What a perfect model would predict for a set of probes, [N, C, h, w]."""
        x0, noise, at = _inputs(self.bench.sets[self.bench.target.set_named(name)])
        device = self.maker.components.device
        return self.objective.target(x0.to(device), noise.to(device), at.to(device)).float().cpu()

    def made(self, prompts: Sequence[str], seeds: int) -> list[Made]:
        """Images of each prompt with seeds 0, 1 ..."""
        generate, requests = self.job.generate, []
        for prompt in prompts:
            for seed in range(seeds):
                changes = {"prompt": prompt.replace(" AND ", " and "), "seed": seed}
                requests.append(Request(self.job.model_copy(update={"generate": generate.model_copy(update=changes)})))
        made: list[Made] = []
        for batch in self.maker.batches(requests):
            result = self.maker.make(batch)
            for image in result.images[-1]:
                made.append(Made(len(made) // seeds, image, self.encoded(image)))
            self.bench.count(2 * len(batch) * generate.steps)
        return made

    @cached_property
    def images(self) -> list[Made]:
        """Its images of captions of the dataset."""
        return self.made(self.bench.prompts, self.bench.target.settings.seeds)

    def encoded(self, image: Image) -> Tensor:
        """The mean latents [C, h, w] of an image, in the model's scale, on the CPU."""
        vae, kind = self.maker.components.vae, self.maker.kind
        mean, _ = kind.encode_image_latents(vae, pixels_of(image))
        return kind.model_latents(vae.config, mean)[0].float().cpu()

    @cached_property
    def objective(self) -> Objective:
        return objective_of(self.bench.target.job, self.bench.context, self.maker.components)


def load(placed: Placed, size: tuple[int, int]) -> Image:
    """A training image in its bucket, at the size of the comparison."""
    image = load_bucketed(placed.image.path, placed.placement, images=placed.concept.images)
    return fitted(image, size, "crop")


def with_word(caption: str, word: str) -> str:
    return caption if word_pattern([word]).search(caption) else f"{word}, {caption}"


def without_word(caption: str, word: str) -> str:
    """A caption without the trigger word, and without the comma that it leaves."""
    parts = (" ".join(word_pattern([word]).sub(" ", part).split()) for part in caption.split(","))
    return ", ".join(part for part in parts if part)


def _probes(latents: Sequence[Tensor], captions: Sequence[str]) -> list[Probe]:
    """Each image at each of the timesteps."""
    rows = enumerate(zip(latents, captions, strict=True))
    return [Probe(item, each, caption, at) for item, (each, caption) in rows for at in TIMESTEPS]


def _inputs(probes: Sequence[Probe]) -> tuple[Tensor, Tensor, Tensor]:
    """(latents, noise, timesteps) of a batch."""
    noises = [draws.normal(probe.latents.shape, SEED, "assess", probe.item, probe.timestep) for probe in probes]
    timesteps = torch.tensor([probe.timestep for probe in probes])
    return torch.stack([probe.latents for probe in probes]), torch.stack(noises), timesteps


def relative_change(now: Tensor, before: Tensor) -> list[float]:
    """|now - before| / |before| of each prediction of [N, C, h, w]."""
    return [float(each) for each in (now - before).flatten(1).norm(dim=1) / before.flatten(1).norm(dim=1)]


def by_image(values: Sequence[float]) -> list[float]:
    """The mean over the timesteps of each image."""
    number = len(TIMESTEPS)
    return [sum(values[start : start + number]) / number for start in range(0, len(values), number)]


class _Once(Reports):
    """Passes on each warning of the generations once, and no stages."""

    def __init__(self, context: JobContext):
        self._context, self._said = context, set[str]()
        self._warned: set[Problem] = set()

    def warn(self, problem: Problem) -> None:
        if problem not in self._warned and problem.code != "embedding.unused":
            self._warned.add(problem)
            self._context.warn(problem)

    @property
    def cancel(self) -> CancelToken:
        return self._context.cancel


def _clock(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{max(1, round(seconds))} s"
