"""What the Generate tab's fields hold, and the jobs that come of it. Texts are kept as typed, checked at the start."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.generation.embeddings import NewWord, find_word
from core.generation.library import find_file, find_lora
from core.generation.picture_metadata import portable_name
from core.record.problems import Problem, ProblemsError
from core.record.workspace import Workspace
from core.settings.base import Declared, declared
from core.settings.check import build
from core.settings.generate import LoraUse
from core.settings.job import GenerateJob, TrainJob
from core.settings.names import without_signs
from core.settings.presets import to_values
from tabs.values import BadText, text_of, value_from

if TYPE_CHECKING:
    from tabs.context import Page

ENTRIES: dict[str, Declared] = {entry.name: entry for entry in declared(GenerateJob) if entry.group == "generate"}
EMBEDDINGS = ENTRIES["embeddings"]
FIELDS = tuple(name for name in ENTRIES if name not in ("loras", "embeddings"))
MOST_LORAS = 20
SEEDS = 2**32


def start_values(project: TrainJob | None = None) -> dict[str, Any]:
    """The fields as a first visitor finds them. The guidance is that of the samples of the job in Train: it suits the
    model."""
    values = {name: text_of(ENTRIES[name], ENTRIES[name].default) for name in FIELDS}
    if project is not None:
        values["guidance_scale"] = text_of(ENTRIES["guidance_scale"], project.samples.guidance_scale)
    return values | {"base_model": "", "loras": [], "embeddings": [], "compare": False}


def values_of(
    job: GenerateJob, before: dict[str, Any], workspace: Workspace, base: str
) -> tuple[dict[str, Any], list[Problem]]:
    """The fields that draw `job` again, and what of it is not on this machine. `base` is the model that Train holds."""
    values = before | {name: text_of(ENTRIES[name], getattr(job.generate, name)) for name in FIELDS}
    values["count"] = "1"
    notes: list[Problem] = []
    loras = []
    for use in job.generate.loras:
        try:
            path = find_lora(use.file, workspace)
            loras.append({"file": portable_name(path, workspace), "strength": use.strength})
        except ProblemsError as error:
            notes += [Problem(each.what, each.where, each.fix, "advice") for each in error.problems]
    values["loras"], values["embeddings"] = loras, []
    for text in job.generate.embeddings:
        try:
            values["embeddings"].append(find_word(text, workspace).setting(workspace))
        except ProblemsError as error:
            notes += [Problem(each.what, each.where, each.fix, "advice") for each in error.problems]
    wanted = job.model.base_model
    found = find_file(wanted, workspace)
    if found is None:
        notes.append(
            Problem(f"The model '{wanted}' is not on this machine; the chosen one is kept", "base model", "", "advice")
        )
    else:
        same = find_file(base, workspace)
        values["base_model"] = "" if same is not None and same.resolve() == found.resolve() else wanted
    return values, notes


def job_of(values: dict[str, Any], project: TrainJob) -> GenerateJob:
    """The job that the fields describe. Raises ProblemsError with everything that cannot be used."""
    problems: list[Problem] = []
    generate: dict[str, Any] = {}
    for name in FIELDS:
        entry = ENTRIES[name]
        try:
            generate[name] = value_from(entry, values.get(name))
        except BadText as error:
            problems.append(error.problem)
    generate["loras"] = [use for use in values.get("loras", []) if use.get("strength")]
    generate["embeddings"] = list(values.get("embeddings", []))
    model = to_values(project.model)
    if values.get("base_model"):
        # Another model than the one in Train: what was set for that one (VAE, prediction) does not go with it.
        model = {"base_model": str(values["base_model"]).strip()}
    given = {"generate": generate, "model": model, "memory": to_values(project.memory)}
    try:
        job = build(GenerateJob, given)
    except ProblemsError as error:
        raise ProblemsError(problems + error.problems) from None
    if problems:
        raise ProblemsError(problems)
    return job


def with_seed(job: GenerateJob) -> GenerateJob:
    """`job` with a seed of its own, so that two of them draw from the same noise."""
    if job.generate.seed is not None:
        return job
    return job.model_copy(update={"generate": job.generate.model_copy(update={"seed": secrets.randbelow(SEEDS)})})


def jobs_to_draw(job: GenerateJob, compare: bool, project: TrainJob) -> list[GenerateJob]:
    """The job, or first the same by the base model alone and then the job.

    The base of LoRAs and embeddings is the model they are drawn with, that of another model the one in Train.
    """
    if not compare:
        return [job]
    job = with_seed(job)
    if job.generate.loras or job.generate.embeddings:
        bare = job.generate.model_copy(update={"loras": [], "embeddings": []})
        return [job.model_copy(update={"generate": bare}), job]
    if job.model == project.model:
        what = "There is nothing to compare: no LoRA, embedding or other model is chosen"
        fix = "add a LoRA or an embedding, choose another model than Train has, or switch the comparison off"
        raise ProblemsError.one(what, "Compare with the base model", fix)
    return [job.model_copy(update={"model": project.model}), job]


def add_lora(values: dict[str, Any], path: Path, workspace: Workspace) -> dict[str, Any]:
    """One more LoRA at full strength; one that is there already is not added again."""
    name = portable_name(path, workspace)
    loras = list(values.get("loras", []))
    if any(use["file"] == name for use in loras):
        return values
    if len(loras) >= MOST_LORAS:
        raise ProblemsError.one(f"There are {MOST_LORAS} LoRAs already", "LoRAs", "remove one first")
    return values | {"loras": [*loras, {"file": name, "strength": 1.0}]}


def draw_with(page: Page, name: str) -> None:
    """The run's last file becomes the LoRA of Generate, with the run's base model and the guidance of its samples; the
    last whole model becomes its base model, and the last files of new words its embeddings. The prompt is a sample's."""
    files = [Path(file["path"]) for file in page.engine.snapshot(name)["files"]]
    if not files:
        raise ProblemsError.one("This run has no finished file", name, "let it save first")
    newest = max(files, key=lambda path: path.stat().st_mtime_ns if path.exists() else 0)
    kept, now = page.project.tab_state("Generate"), page.project.job
    before = kept_values(kept, now) | {"embeddings": []}
    file = portable_name(newest, page.workspace)
    try:
        job = page.engine.run_job(name)
    except (ProblemsError, OSError, ValueError):  # of another version, or damaged: its LoRA is good all the same
        job = None
    if job is not None and (prompt := _sample_prompt(job)) and before["prompt"] in _not_written(kept):
        kept, before = kept | {"prompt_of_run": prompt}, before | {"prompt": prompt}
    guidance = text_of(ENTRIES["guidance_scale"], job.samples.guidance_scale) if job is not None else ""
    if job is not None and job.method.kind == "embedding":
        words = [word.setting(page.workspace) for word in newest_words(job.embedding.words, files)]
        base = "" if job.model.base_model == now.model.base_model else job.model.base_model
        values = before | {"loras": [], "embeddings": words, "base_model": base, "guidance_scale": guidance}
        page.project.keep("Generate", kept | {"values": values})
        return
    if job is not None and job.method.whole_model:
        values = before | {"loras": [], "base_model": file, "guidance_scale": guidance}
        page.project.keep("Generate", kept | {"values": values})
        return
    values = add_lora(
        before | {"loras": [use for use in before["loras"] if use["file"] == file]}, newest, page.workspace
    )
    if job is not None:
        values["base_model"] = "" if job.model.base_model == now.model.base_model else job.model.base_model
        values["guidance_scale"] = guidance
    page.project.keep("Generate", kept | {"values": values})


def _sample_prompt(job: TrainJob) -> str:
    """The run's first sample prompt: it holds the words that were learnt."""
    from core.generation.sample_prompts import parse_line

    found = [parse_line(line, [], "samples.sample_prompts") for line in job.samples.sample_prompts]
    return next((each.prompt for each in found if each is not None and each.prompt), "")


def _not_written(kept: dict[str, Any]) -> tuple[str, ...]:
    """The prompts that no person wrote: none, the one of a first visit, and that of the run drawn with before."""
    return "", str(ENTRIES["prompt"].default), str(kept.get("prompt_of_run", ""))


def newest_words(words: Sequence[str], files: Sequence[Path]) -> list[NewWord]:
    """Each word with its last file: those of the second word and on end in "-WORD", the first word has the others."""
    found = []
    there = sorted((path for path in files if path.exists()), key=lambda path: -path.stat().st_mtime_ns)
    for number, word in enumerate(words):
        own = [path for path in there if _word_of(path, words) == number]
        found += [NewWord(word, path) for path in own[:1]]
    return found


def _word_of(path: Path, words: Sequence[str]) -> int:
    return next(
        (number for number, word in enumerate(words) if number and path.stem.endswith(f"-{without_signs(word)}")), 0
    )


def change_lora(values: dict[str, Any], number: int, strength: str | None) -> dict[str, Any]:
    """Another strength for one of them, or None to remove it."""
    loras = list(values.get("loras", []))
    if not 0 <= number < len(loras):
        return values
    if strength is None:
        return values | {"loras": loras[:number] + loras[number + 1 :]}
    bounds = "use a number from -10 to 10"
    try:
        wanted = LoraUse(file=loras[number]["file"], strength=float(strength))
    except ValueError:
        raise ProblemsError.one(f"The strength is '{strength[:40]}'", "LoRAs", bounds) from None
    loras[number] = {"file": wanted.file, "strength": wanted.strength}
    return values | {"loras": loras}


def kept_values(state: dict[str, Any], project: TrainJob | None = None) -> dict[str, Any]:
    """The fields as the project kept them; what an older or damaged file lacks takes its start value."""
    values = start_values(project)
    kept = state.get("values", {})
    values |= {name: kept[name] for name in values if name in kept and isinstance(kept[name], type(values[name]))}
    values["loras"] = [use for use in values["loras"] if _is_use(use)]
    values["embeddings"] = [text for text in values["embeddings"] if isinstance(text, str)]
    return values


def _is_use(use: Any) -> bool:
    try:
        LoraUse.model_validate(use)
    except ValueError:
        return False
    return True


def signature(job: GenerateJob) -> tuple[Any, ...]:
    """What two pictures share when they differ in nothing but their LoRAs and embeddings."""
    asked = job.generate
    fields: Sequence[str] = (
        "prompt",
        "negative_prompt",
        "width",
        "height",
        "steps",
        "guidance_scale",
        "seed",
        "sampler",
    )
    return (*(getattr(asked, name) for name in fields), job.model.base_model, job.model.vae, job.model.clip_skip)
