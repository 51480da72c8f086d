"""Runs a generate job, from its settings to PNG files under outputs/images/<date>/."""

from __future__ import annotations

import os
import secrets
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.diffusion.samplers import sampler_problem
from core.families import family
from core.families.components import Components
from core.families.locate import family_of, model_path
from core.families.precision import choose_precision, use_tf32, use_threads, vae_type
from core.families.trained_size import own_guidance, trained_size
from core.families.word_weights import FIX, wrong_weight
from core.formats.detect import identify
from core.formats.hashes import HashMemo, file_sha256
from core.formats.models.checkpoint import open_vae
from core.formats.tensors.header import sniff
from core.generation.embeddings import NewWord, check_word, embeddings_attached, find_word, unused
from core.generation.image_metadata import Hashes, one_image, png_info, portable_name
from core.generation.library import find_lora
from core.generation.loras import check_file, loras_attached
from core.generation.pipeline import generate, images_at_once
from core.generation.prompt.loras import with_prompt_loras
from core.generation.prompt.states import PromptStates, Reading
from core.generation.store import ModelStore, empty_device_cache
from core.record import atomic
from core.record.cancel import CancelToken
from core.record.context import NO_REPORTS, JobContext, Outcome, Reports
from core.record.problems import Problem, ProblemsError
from core.record.regular import open_regular
from core.record.workspace import Workspace
from core.settings.generate import GenerateSettings
from core.settings.job import GenerateJob
from core.settings.model import FAMILIES, ModelSettings

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image


SEEDS = 2**32


@dataclass(frozen=True)
class Sources:
    """The files a job uses, found and identified by their headers only."""

    model: Path
    family: str
    vae: Path | None
    loras: list[Path]
    embeddings: list[NewWord] = field(default_factory=list)

    def denoiser_bytes(self) -> int:
        """Of the weights of the model's largest part, as stored."""
        kind = family(self.family)
        return kind.weight_bytes(self.model)[kind.denoiser]


def make_store() -> ModelStore:
    """The store that the engine keeps between generate jobs."""
    return ModelStore(load_model)


def load_model(
    settings: ModelSettings,
    path: Path,
    vae: Path | None,
    dtype: torch.dtype,
    vae_dtype: torch.dtype,
    device: torch.device | str,
) -> Any:
    """All parts of a model, frozen, ready to generate."""
    import torch

    from core.networks.frozen import install

    kind = family(family_of(path, settings.family))
    components = kind.load(path, dtype=dtype, device=device, vae=vae, vae_dtype=vae_dtype)
    if torch.device(device).type == "cuda":  # the layout that its convolutions prefer; results differ by rounding only
        components.denoiser.to(memory_format=torch.channels_last)
        components.vae.to(memory_format=torch.channels_last)
    if torch.device(device).type == "cpu":
        install(components.denoiser)  # as in training, so that both make the same image
    return components


def with_own_guidance(job: GenerateJob, model: Path) -> GenerateJob:
    """`job` with the model's own guidance scale if none is set."""
    if job.generate.guidance_scale is not None:
        return job
    decided = job.generate.model_copy(update={"guidance_scale": own_guidance(model)})
    return job.model_copy(update={"generate": decided})


def find_sources(job: GenerateJob, workspace: Workspace) -> Sources:
    """Find the files. All that are missing or of the wrong kind are raised together, before a model is loaded."""
    problems: list[Problem] = []
    job = _collect(problems, with_prompt_loras, job) or job
    model = _collect(problems, model_path, job.model.base_model, workspace, "model.base_model")
    name = _collect(problems, family_of, model, job.model.family) if model else None
    vae = None
    if job.model.vae:
        vae = _collect(problems, model_path, job.model.vae, workspace, "model.vae")
        if vae is not None:
            _collect(problems, open_vae, vae)
    loras = []
    for use in job.generate.loras:
        path = _collect(problems, find_lora, use.file, workspace)
        if path is not None:
            _collect(problems, check_file, path, name or "sd1")
            loras.append(path)
    words: list[NewWord] = []
    for text in job.generate.embeddings:
        word = _collect(problems, find_word, text, workspace)
        if word is not None:
            if model and name:
                _collect(problems, check_word, word, words, name, model)
            words.append(word)
    problems.extend(weight_problems(job))
    problems.extend(size_problems(job, FAMILIES[name].size_step) if name else ())
    if name and not loras:  # one may have been trained for another objective
        fits = sampler_problem(job.generate.sampler, family(name).objective, "generate.sampler")
        problems += [fits] if fits is not None else []
    if problems:
        raise ProblemsError(problems)
    assert model is not None and name is not None
    return Sources(model, name, vae, loras, words)


def size_problems(job: GenerateJob, step: int) -> Iterator[Problem]:
    """Sides that models of the family cannot have. step: their sides are multiples of it"""
    for side in ("width", "height"):
        asked = getattr(job.generate, side) or step
        if asked % step:
            what = f"Images of this model's family have sides that are multiples of {step}"
            yield Problem(what, f"generate.{side}", f"use {asked // step * step}", code="generate.size-step")


def weight_problems(job: GenerateJob) -> Iterator[Problem]:
    """Problems with weights in the prompts that are not numbers."""
    for name in ("prompt", "negative_prompt") if job.generate.prompt_weights else ():
        wrong = wrong_weight(getattr(job.generate, name))
        if wrong:
            yield Problem(
                f"{GenerateSettings.title_of(name)}: {wrong}", f"generate.{name}", FIX, code="prompt.bad-weight"
            )


def marked_files(job: GenerateJob, sources: Sources) -> list[Path]:
    """The files in use that are marked as trained with zero terminal SNR."""
    loras = [path for use, path in zip(job.generate.loras, sources.loras, strict=True) if use.used]
    files = [sources.model, *loras, *(word.path for word in sources.embeddings)]
    return [path for path in files if identify(path).zero_terminal_snr]


def uses_zero_terminal_snr(job: GenerateJob, sources: Sources) -> bool:
    """As set; "auto" follows the files."""
    asked = job.generate.zero_terminal_snr
    return bool(marked_files(job, sources)) if asked == "auto" else asked == "on"


def _collect(problems: list[Problem], look: Callable[..., Any], *given: Any) -> Any:
    """The result of `look`; None after an error, which is added to the problems."""
    try:
        return look(*given)
    except ProblemsError as error:
        problems.extend(error.problems)
        return None


def check_task(job: GenerateJob, workspace: Workspace) -> str:
    """The check of the task `generate`."""
    find_sources(job, workspace)
    return "The settings are valid."


def run_task(job: GenerateJob, context: JobContext) -> Outcome:
    """The task `generate`."""
    store = context.store or make_store()
    run_generate(job, context.workspace, store=store, device=context.device, reports=context)
    return Outcome()


def run_generate(
    job: GenerateJob,
    workspace: Workspace,
    *,
    store: ModelStore,
    device: str = "cpu",
    reports: Reports = NO_REPORTS,
) -> list[Path]:
    """Generate the job's images; returns their files in the order of their seeds.

    reports   its stage counts the steps of all images
    A cancelled job raises Cancelled and keeps finished images.
    """
    reports.stage("checking files")
    job = with_prompt_loras(job)
    sources = find_sources(job, workspace)
    hashes = file_hashes(sources, workspace, reports.cancel)
    _say_schedule(job, sources, reports)
    with leased(job, sources, store, device, reports) as components:
        paths = iter(sources.loras)  # found above, in the order of the settings
        asked = job.generate
        with (
            loras_attached(components, asked.loras, lambda _: next(paths)) as report,
            embeddings_attached(components, sources.embeddings) as words,
        ):
            _say([*report.problems, *unused(words, asked.prompt, asked.negative_prompt)], reports)
            states = words.encode(asked.prompt, asked.negative_prompt, reading_of(job))
            job = with_own_guidance(job, sources.model)
            return _all_images(Maker(job, workspace, sources, hashes, components, states, reports))


def reading_of(job: GenerateJob) -> Reading:
    """How the job's prompts are read."""
    return Reading(clip_skip=job.model.clip_skip, weighted=job.generate.prompt_weights)


def leased(
    job: GenerateJob, sources: Sources, store: ModelStore, device: str, reports: Reports
) -> AbstractContextManager[Any]:
    """The job's model, loaded in the precision that suits the device."""
    weight_bytes = sources.denoiser_bytes()
    dtype = choose_precision(job.memory, device, weight_bytes, trains=False).compute
    use_threads(device, weight_bytes)
    use_tf32(job.memory.allow_tf32)
    reports.stage("loading the model")
    return store.lease(job.model, sources.model, sources.vae, dtype, vae_type(job.memory), device)


def _say_schedule(job: GenerateJob, sources: Sources, reports: Reports) -> None:
    """Log whether zero terminal SNR was detected and is used."""
    marked = ", ".join(path.name for path in marked_files(job, sources))
    if marked:
        used = "used" if uses_zero_terminal_snr(job, sources) else "turned off"
        reports.say(f"Zero terminal SNR {used}; {marked} was trained with it")


def _say(problems: Sequence[Problem], reports: Reports) -> None:
    for problem in problems:
        reports.warn(problem)


class Maker:
    """Generates images of one job, several of one size at once."""

    def __init__(
        self,
        job: GenerateJob,
        workspace: Workspace,
        sources: Sources,
        hashes: Hashes,
        components: Components,
        states: PromptStates,
        reports: Reports,
    ):
        self.job, self.workspace, self.sources, self.hashes = job, workspace, sources, hashes
        self.components, self.states, self.reports = components, states, reports
        self.zero_terminal_snr = uses_zero_terminal_snr(job, sources)

    def generate_if_it_fits(
        self, seeds: Sequence[int], width: int, height: int, on_step: Callable[[int], None]
    ) -> list[Image] | None:
        """None if several images together ran out of memory; a single one raises as usual. on_step: given the steps done."""
        import torch

        asked, chosen = self.job.generate, self.job.model.prediction
        try:
            return generate(
                self.components,
                self.states,
                seeds=seeds,
                width=width,
                height=height,
                sampler=asked.sampler,
                steps=asked.steps,
                guidance_scale=asked.guidance_scale or 0.0,
                prediction=None if chosen == "auto" else chosen,
                zero_terminal_snr=self.zero_terminal_snr,
                on_step=lambda done, _total: on_step(done),
                cancel=self.reports.cancel,
            )
        except torch.OutOfMemoryError:
            if len(seeds) == 1:
                raise
        empty_device_cache()
        self.reports.say("Several images at once do not fit into memory; continuing one by one")
        return None

    def job_of(self, seed: int, width: int, height: int) -> GenerateJob:
        """The job that generates one of the images again."""
        return one_image(
            self.job,
            seed=seed,
            width=width,
            height=height,
            workspace=self.workspace,
            lora_paths=self.sources.loras,
            model_path=self.sources.model,
            vae_path=self.sources.vae,
            embeddings=[word.setting(self.workspace) for word in self.sources.embeddings],
            zero_terminal_snr=self.zero_terminal_snr,
        )


def _all_images(maker: Maker) -> list[Path]:
    """The files of a job's images, a few generated at a time."""
    asked, components, reports = maker.job.generate, maker.components, maker.reports
    width, height = trained_size(maker.sources.model, components.family)
    width, height = asked.width or width, asked.height or height
    first = asked.seed if asked.seed is not None else secrets.randbelow(SEEDS)
    left = [(first + number) % SEEDS for number in range(asked.count)]
    files: list[Path] = []
    at_once = images_at_once(components, width, height)

    def progress(generating: int = 0, steps: int = 0) -> None:
        text = f"generating image {min(len(files) + 1, asked.count)} of {asked.count}"
        reports.stage(text, len(files) * asked.steps + generating * steps, asked.count * asked.steps)

    progress()
    while left:
        seeds = left[:at_once]
        images = maker.generate_if_it_fits(seeds, width, height, partial(progress, len(seeds)))
        if images is None:
            at_once = 1
            continue
        for seed, image in zip(seeds, images, strict=True):
            files.append(save_image(image, maker.job_of(seed, width, height), maker.hashes, maker.workspace))
            reports.generated(files[-1], seed)
        left = left[len(seeds) :]
    progress()
    return files


def save_image(image: Image, job: GenerateJob, hashes: Hashes, workspace: Workspace) -> Path:
    """Write an image and its settings to outputs/images/<date>/<time>_<seed>.png: complete or not at all, replacing none."""
    now = time.localtime()
    folder = workspace.images / time.strftime("%Y-%m-%d", now)
    content = BytesIO()
    image.save(content, format="PNG", pnginfo=png_info(job, hashes))
    path = _reserve(folder, f"{time.strftime('%H%M%S', now)}_{job.generate.seed}")
    try:
        atomic.write_bytes(path, content.getvalue())
    except BaseException:
        atomic.remove(path)  # the empty file that reserved the name
        raise
    return path


def _reserve(folder: Path, stem: str) -> Path:
    """An empty file with an unused name: stem.png, stem-2.png, ..."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in _names(folder, stem):
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        except FileExistsError:
            continue
        return path
    raise AssertionError("the names never end")


def _names(folder: Path, stem: str) -> Iterator[Path]:
    yield folder / f"{stem}.png"
    number = 2
    while True:
        yield folder / f"{stem}-{number}.png"
        number += 1


def file_hashes(sources: Sources, workspace: Workspace, cancel: CancelToken | None) -> Hashes:
    """The hashes by which other programs identify the files; computed once until a file changes."""
    memo = HashMemo(workspace.private / "hashes.json")
    if sources.model.is_dir():  # other programs do not hash folders: use the denoiser's weights
        kind = family(sources.family)
        model = kind.digest(sources.model, kind.denoiser, memo=memo, cancel=cancel)
    else:
        model = memo.get("sha256", [sources.model], lambda: file_sha256(sources.model, cancel))
    loras = {}
    for path in sources.loras:
        digest = memo.get("tensors sha256", [path], partial(tensors_sha256, path, cancel))
        loras[portable_name(path, workspace)] = digest
    embeddings = {
        word.word: memo.get("sha256", [word.path], partial(file_sha256, word.path, cancel))
        for word in sources.embeddings
    }
    return Hashes(model, loras, embeddings)


def tensors_sha256(path: Path, cancel: CancelToken | None = None) -> str:
    """SHA-256 of a file without its header, so that a changed comment keeps it: what A1111 shows for a LoRA
    (`sshs_model_hash`). For a pickle, of the whole file."""
    if sniff(path) != "safetensors":
        return file_sha256(path, cancel)
    with open_regular(path) as handle:
        (header,) = struct.unpack("<Q", handle.read(8))
    return file_sha256(path, cancel, start=8 + header)
