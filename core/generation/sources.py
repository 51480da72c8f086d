"""The files of a generation: found by their headers before anything is loaded, identified, and loaded."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from core.diffusion.samplers import noise_problem, sampler_problem, schedule_problem
from core.families import family
from core.families.locate import GENERATED, REFINER, family_of, model_path
from core.families.trained_size import own_guidance
from core.families.word_weights import FIX, wrong_weight
from core.formats.detect import identify
from core.formats.hashes import HashMemo, file_sha256, legacy_hash
from core.formats.models.checkpoint import open_vae
from core.formats.tensors.header import sniff
from core.generation.control_files import ControlFile, control_file, find_control_net
from core.generation.embeddings import NewWord, check_word, find_words
from core.generation.image_metadata import portable_name
from core.generation.image_record import Hashes
from core.generation.library import find_loras, named_embeddings, several_loras
from core.generation.prompt.editing import texts_of
from core.generation.prompt.loras import LORAS, with_prompt_loras
from core.generation.refiner import find_refiner
from core.generation.stages import passes_of, stages_of
from core.generation.store import ModelStore
from core.networks.block_weights import PRESETS, block_weights
from core.networks.files import check_layers
from core.record.cancel import CancelToken
from core.record.problems import Problem, ProblemsError, collected, problems_at
from core.record.regular import open_regular
from core.record.workspace import Workspace
from core.settings.blocks import has_nine_blocks
from core.settings.generation.generate import GenerateSettings
from core.settings.job import GenerateJob
from core.settings.model import FAMILIES


@dataclass(frozen=True)
class OwnFile:
    """A model that a kind of hook uses. bytes: of its weights on the device"""

    path: Path
    bytes: int


@dataclass(frozen=True)
class Sources:
    """The files of a job, found and identified by their headers only. loras, refiners, controls, others (of hooks): {name in
    the settings: file}"""

    model: Path
    family: str
    vae: Path | None
    loras: dict[str, Path]
    embeddings: list[NewWord] = field(default_factory=list)
    notes: list[Problem] = field(default_factory=list)
    refiners: dict[str, Path] = field(default_factory=dict)
    controls: dict[str, ControlFile] = field(default_factory=dict)
    others: dict[str, OwnFile] = field(default_factory=dict)


def make_store() -> ModelStore:
    """The store that the engine keeps between generate jobs."""
    return ModelStore()


def with_own_schedule(job: GenerateJob, sources: Sources) -> GenerateJob:
    """`job` with zero terminal SNR decided: on or off."""
    used = "on" if uses_zero_terminal_snr(job, sources) else "off"
    return job.model_copy(update={"generate": job.generate.model_copy(update={"zero_terminal_snr": used})})


def with_own_guidance(job: GenerateJob, model: Path) -> GenerateJob:
    """`job` with the model's own guidance scale if none is set."""
    if job.generate.guidance_scale is not None:
        return job
    decided = job.generate.model_copy(update={"guidance_scale": own_guidance(model)})
    return job.model_copy(update={"generate": decided})


def find_sources(job: GenerateJob, workspace: Workspace, images: Sequence[GenerateJob] = ()) -> Sources:
    """Find the files of a job. Raises ProblemsError with all that are missing or do not fit, before a model is loaded.

    images   the jobs of the single images, if known: each prompt of a file may name its own LoRAs
    """
    problems: list[Problem] = []
    asked = list(images) or [collected(problems, with_prompt_loras, job) or job]
    model = collected(problems, model_path, job.model.base_model, workspace, "model.base_model")
    name = collected(problems, family_of, model, job.model.family, GENERATED) if model else None
    vae = None
    if job.model.vae:
        vae = collected(problems, model_path, job.model.vae, workspace, "model.vae")
        if vae is not None:
            collected(problems, open_vae, vae)
    problems += lora_problems(asked, name)
    fits, loras, notes = problems_at(LORAS)(check_layers), dict[str, Path](), list[Problem]()
    for file in dict.fromkeys(use.file for one in asked for use in one.generate.loras):
        paths = collected(problems, find_loras, file, workspace)
        if paths:
            collected(problems, fits, paths[0], name or "sd1")
            loras[file] = paths[0]
            notes += several_loras(file, paths)
    refiners: dict[str, Any] = {
        file: collected(problems, find_refiner, file, workspace, name)
        for file in dict.fromkeys(one.refiner.refiner_checkpoint for one in asked)
        if file
    }
    controls: dict[str, ControlFile] = {}
    for file in dict.fromkeys(use.file for one in asked for use in one.controls.used):
        path = collected(problems, find_control_net, file, workspace)
        net = collected(problems, control_file, path, name, model) if path is not None else None
        if net is not None:
            controls[file] = net
    words: list[NewWord] = []
    for text in job.generate.embeddings:
        for word in collected(problems, find_words, text, workspace) or ():
            if model and name:
                collected(problems, check_word, word, words, name, model)
            words.append(word)
    if model and name:
        words += _words_in(asked, words, name, model, workspace, loras.values(), notes)
    problems += [problem for one in asked for problem in image_problems(one, name, bool(loras))]
    if problems:
        raise ProblemsError(list(dict.fromkeys(problems)))
    assert model is not None and name is not None
    if words and refiners:
        what = "The refiner reads the names of embeddings as plain words"
        notes.append(
            Problem(
                what, "refiner.refiner_checkpoint", "switch later, or turn it off", "advice", code="refiner.embeddings"
            )
        )
    return Sources(model, name, vae, loras, words, notes, refiners, controls)


def model_problems(sources: Sources) -> list[Problem]:
    """What loading the models would refuse, from their headers alone."""
    found = family(sources.family).problems(sources.model, sources.vae)
    return found + [each for path in sources.refiners.values() for each in family(REFINER).problems(path)]


def _words_in(
    asked: Sequence[GenerateJob],
    chosen: Sequence[NewWord],
    name: str,
    model: Path,
    workspace: Workspace,
    loras: Iterable[Path],
    notes: list[Problem],
) -> list[NewWord]:
    """The embeddings under models/ and in LoRA files that prompts name and that are not chosen; for those that do not fit, `notes`
    gets advice."""
    texts = [text for one in asked for text in (one.generate.prompt, one.generate.negative_prompt)]
    found: list[NewWord] = []
    for word in (NewWord(*each) for each in named_embeddings(texts, workspace, loras)):
        if any(
            (word.path, word.token) == (other.path, other.token) or word.word.casefold() == other.word.casefold()
            for other in (*chosen, *found)
        ):
            continue
        try:
            check_word(word, (), name, model)
            found.append(word)
        except ProblemsError as error:
            notes += [replace(problem, level="advice") for problem in error.problems]
    return found


def image_problems(job: GenerateJob, family_name: str | None, has_loras: bool) -> Iterator[Problem]:
    """Problems of one image's prompts, size and sampler with a model of the family; None: not known."""
    asked = job.generate
    yield from weight_problems(job)
    found = [schedule_problem(asked.sampler, asked.schedule_type, "generate.schedule_type")]
    if family_name:
        yield from size_problems(job, FAMILIES[family_name].size_step)
        if not has_loras:  # one may have been trained for another objective
            found.append(sampler_problem(asked.sampler, family(family_name).objective, "generate.sampler"))
    if any(stage.run is not None for stage in stages_of(job)):
        found.append(noise_problem(asked.sampler, "generate.sampler"))
    yield from (problem for problem in found if problem is not None)


def size_problems(job: GenerateJob, step: int) -> Iterator[Problem]:
    """Sides that are not multiples of `step`, as models of the family need."""
    for side in ("width", "height"):
        asked = getattr(job.generate, side) or step
        if asked % step:
            what = f"Images of this model's family have sides that are multiples of {step}"
            yield Problem(what, f"generate.{side}", f"use {asked // step * step}", code="generate.size-step")


def lora_problems(asked: Sequence[GenerateJob], family_name: str | None) -> Iterator[Problem]:
    """Invalid block weights, and empty step ranges."""
    sdxl = None if family_name is None else has_nine_blocks(family_name)
    for use in [use for one in asked for use in one.generate.loras]:
        try:
            block_weights(use.block_weights or "ALL", sdxl)
        except ValueError as error:
            fix = f"use a name ({', '.join(PRESETS)}), or as many numbers as the model has blocks"
            yield Problem(f"{use.file}: {error}", LORAS, fix, code="lora.block-weights")
        if use.start_at >= use.end_at:
            what = f"{use.file} starts at {use.start_at:g} of the steps and ends at {use.end_at:g}"
            yield Problem(what, LORAS, "use a later end, or turn it off", code="lora.step-range")


def weight_problems(job: GenerateJob) -> Iterator[Problem]:
    """Prompt weights that are not numbers."""
    for name in ("prompt", "negative_prompt") if job.generate.prompt_weights else ():
        texts = texts_of(getattr(job.generate, name), passes_of(job))
        wrong = next(filter(None, map(wrong_weight, texts)), "")
        if wrong:
            yield Problem(
                f"{GenerateSettings.title_of(name)}: {wrong}", f"generate.{name}", FIX, code="prompt.bad-weight"
            )


def marked_files(job: GenerateJob, sources: Sources) -> list[Path]:
    """The files in use that are marked as trained with zero terminal SNR."""
    loras = [sources.loras[use.file] for use in job.generate.loras if use.used]
    files = [sources.model, *loras, *(word.path for word in sources.embeddings)]
    return [path for path in files if identify(path).zero_terminal_snr]


def uses_zero_terminal_snr(job: GenerateJob, sources: Sources) -> bool:
    """Whether zero terminal SNR is used: as set, or with "auto" if one of the files is marked."""
    asked = job.generate.zero_terminal_snr
    return bool(marked_files(job, sources)) if asked == "auto" else asked == "on"


def file_hashes(sources: Sources, workspace: Workspace, cancel: CancelToken | None) -> Hashes:
    """The hashes by which other programs identify the files, cached until a file changes."""
    memo = HashMemo(workspace.private / "hashes.json")
    model = _model_hash(sources.model, sources.family, memo, cancel)
    loras = {}
    for path in sources.loras.values():
        digest = memo.get("tensors sha256", [path], partial(tensors_sha256, path, cancel))
        loras[portable_name(path, workspace)] = digest
    refiners = {
        portable_name(path, workspace): _model_hash(path, REFINER, memo, cancel) for path in sources.refiners.values()
    }
    embeddings = {
        word.word: memo.get("sha256", [word.path], partial(file_sha256, word.path, cancel))
        for word in sources.embeddings
    }
    nets = {net.path for net in sources.controls.values() if net.path.is_file()}
    controls = {portable_name(path, workspace): legacy_hash(path) for path in nets}
    return Hashes(model, loras, embeddings, refiners, controls)


def _model_hash(path: Path, family_name: str, memo: HashMemo, cancel: CancelToken | None) -> str:
    """SHA-256 of a file; of a folder, which other programs do not hash, of its denoiser's weights."""
    if path.is_dir():
        return family(family_name).digest(path, "denoiser", memo=memo, cancel=cancel)
    return memo.get("sha256", [path], lambda: file_sha256(path, cancel))


def tensors_sha256(path: Path, cancel: CancelToken | None = None) -> str:
    """SHA-256 of a safetensors file without its header, so that edited metadata keeps it: A1111's hash of a LoRA
    (`sshs_model_hash`). For a pickle, of the whole file."""
    if sniff(path) != "safetensors":
        return file_sha256(path, cancel)
    with open_regular(path) as handle:
        (header,) = struct.unpack("<Q", handle.read(8))
    return file_sha256(path, cancel, start=8 + header)
