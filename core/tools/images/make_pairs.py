"""The tool that makes ControlNet training pairs: images that the base model generates from captions, with captions and control images."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL.Image import Image

from core.control.hints import black_hints
from core.control.hints.by_model import HintMaker
from core.control.hints.models import checked_model
from core.dataset.captions.encodings import decode_text
from core.dataset.captions.history import MAX_CAPTION_BYTES
from core.dataset.sources.files import CAPTION_EXTENSIONS, extension, is_junk, printable, walk_folders
from core.generation.images.metadata import read_image_metadata
from core.generation.images.output import encoded_image
from core.generation.making import Progress, each_image
from core.generation.model.store import make_store
from core.generation.plan.plan import Plan as GenerationPlan
from core.generation.plan.plan import plan_for
from core.generation.plan.requests import Request
from core.generation.prompt.files import MAX_BYTES, MAX_PROMPTS
from core.generation.run import ImageMetadata, loaded_maker
from core.record import atomic
from core.record.bounded_json import read_json_object
from core.record.cancel import Cancelled
from core.record.context import JobContext, Outcome
from core.record.draws import integer
from core.record.problems import Problem, ProblemsError, at_setting, collected, raise_if_errors
from core.record.regular import read_regular
from core.record.run_folder import safe_name
from core.record.units import count
from core.record.workspace import Workspace, display_path, resolve_path, typed_path
from core.settings.generation.generate import GenerateSettings
from core.settings.generation.output import OutputSettings
from core.settings.generation.prompts import PromptSettings
from core.settings.hints import BY_MODEL
from core.settings.job import GenerateJob
from core.settings.model import ModelSettings
from core.settings.tools.hints import MakePairsSettings
from core.tools.images.folders import not_a_folder_problem
from core.tools.images.hints import write_hint

GROUP = "make_pairs"
MANIFEST = "pairs.json"  # in the output folder: the settings of its pairs
UNCOMPARED = {"captions", "output", "number"}  # may change while pairs are added; captions are compared pair by pair
CAPTIONS, MODEL = f"{GROUP}.captions", f"{GROUP}.hint_model"


@dataclass(frozen=True)
class Pair:
    """An image to generate, and the paths of its image, caption and control image."""

    request: Request
    image: Path
    caption: Path
    hint: Path

    @property
    def is_complete(self) -> bool:
        """Whether the pair exists: its image, which is written last, and its control image."""
        return self.image.exists() and self.hint.exists()

    @property
    def has_other_caption(self) -> bool:
        """Whether the image was generated from another caption, by its metadata (the caption file may have been edited)."""
        record = collected([], read_image_metadata, self.image)  # None if it cannot be read
        job = record.job if record is not None else None
        return job is not None and job.generate.prompt != self.request.job.generate.prompt


@dataclass(frozen=True)
class Plan:
    """All pairs, their folder, and the plan of the images' generation."""

    pairs: list[Pair]
    output: Path
    generation: GenerationPlan

    @property
    def missing(self) -> list[Pair]:
        """The pairs that do not exist yet."""
        return [pair for pair in self.pairs if not pair.is_complete]

    def __str__(self) -> str:
        pairs = f"{len(self.missing)} of {count(len(self.pairs), 'pair')}"
        return f"{pairs} would be generated in {display_path(self.output)}"


def do(settings: MakePairsSettings, plan: Plan, context: JobContext) -> Outcome:
    """Generate the missing pairs. A stopped job that is started again makes the others, equal up to rounding."""
    workspace, store = context.workspace, context.store or make_store()
    todo, state, written = plan.missing, "done", 0
    black: list[str] = []
    try:
        if todo:
            plan.output.mkdir(parents=True, exist_ok=True)
            atomic.write_json(plan.output / MANIFEST, _settings(settings))
            generation = replace(plan.generation, requests=[pair.request for pair in todo])
            with (
                loaded_maker(generation, workspace, store=store, device=context.device, reports=context) as (
                    maker,
                    writer,
                ),
                HintMaker(workspace, MODEL, context.cancel) as hints,
            ):
                progress = Progress(context, "pair", len(todo), generation.steps())
                for number, images in each_image(generation.requests, maker, progress):
                    pair = todo[number]
                    _write(pair, images[-1], settings, hints, writer, black)
                    written += 1
                    context.generated(pair.image, pair.request.seed)
                    context.check()
    except Cancelled:
        if not written:
            raise
        state = "stopped"
    if black:
        context.warn(black_hints(black, CAPTIONS))
    return _outcome(state, plan.output, written, len(plan.pairs) - len(todo), black)


def _outcome(state: str, output: Path, written: int, existing: int, black: list[str]) -> Outcome:
    """Return the outcome. `state`: "done" or "stopped"; `existing`: number of pairs that already existed."""
    line = f"{count(written, 'pair')} generated in {display_path(output)}"
    line += f"; {existing} were there already" if existing else ""
    line += "; start again to make the rest" if state == "stopped" else ""
    folders = {"images": printable(output / "images"), "control": printable(output / "control")}
    facts: dict[str, Any] = {"output": printable(output), "written": written, "kept": existing, "pairs": folders}
    return Outcome(state, [line], facts | {"black": black})


def plan(settings: MakePairsSettings, workspace: Workspace) -> Plan:
    """Plan the pairs. Raises ProblemsError with all problems, at the tool's settings."""
    problems: list[Problem] = []
    texts = collected(problems, _captions, settings.captions)
    if settings.preprocessor == BY_MODEL:
        collected(problems, checked_model, settings.hint_model, workspace, MODEL)
    base, captions = _job(settings), texts or [""]
    requests = [_request(base, captions, settings.seed, number) for number in range(settings.number or len(captions))]
    generation = collected(problems, plan_for, base, requests, workspace)
    output = _output(settings, workspace)
    if (problem := not_a_folder_problem(output, f"{GROUP}.output")) is not None:
        problems.append(problem)
    raise_if_errors([_at_tool_setting(problem) for problem in problems])
    assert generation is not None
    pairs = []
    for number, request in enumerate(generation.requests, 1):
        name = f"{number:05d}"
        image = output / "images" / f"{name}.png"
        pairs.append(Pair(request, image, image.with_suffix(".txt"), output / "control" / f"{name}.png"))
    raise_if_errors(_different_settings(settings, pairs, output))
    return Plan(pairs, output, generation)


def _settings(settings: MakePairsSettings) -> dict[str, Any]:
    """Return {name: value in JSON types} of the settings that all pairs of a folder must share: all but UNCOMPARED."""
    return settings.model_dump(mode="json", exclude=UNCOMPARED)


def _different_settings(settings: MakePairsSettings, pairs: Sequence[Pair], output: Path) -> list[Problem]:
    """Return the problem of existing pairs that were made with other settings or captions: a folder never mixes them."""
    complete = [pair for pair in pairs if pair.is_complete]
    if not complete:
        return []
    manifest = output / MANIFEST
    before = read_json_object(manifest) if manifest.exists() else {}  # earlier versions wrote none
    different = [name for name, value in _settings(settings).items() if name in before and before[name] != value]
    titles = [settings.title_of(name) for name in different]
    titles += ["Captions"] if any(pair.has_other_caption for pair in complete) else []
    if not titles:
        return []
    what = f"The folder has {count(len(complete), 'pair')} that other settings made: {', '.join(titles)}"
    fix = "choose another folder, or the earlier settings"
    return [Problem(what, f"{GROUP}.output", fix, code="pairs.other-settings")]


def _at_tool_setting(problem: Problem) -> Problem:
    """Return a problem of the generate job at the tool's setting of the same name; a problem of a file at `base_model`."""
    if os.path.isabs(problem.where):
        return at_setting(f"{GROUP}.base_model", [problem])[0]
    name = problem.where.rpartition(".")[2]
    return replace(problem, where=f"{GROUP}.{name}") if name in MakePairsSettings.model_fields else problem


def _output(settings: MakePairsSettings, workspace: Workspace) -> Path:
    """Return the folder for the pairs: the setting, else one named after the captions and the preprocessor."""
    if output := typed_path(settings.output):
        return output
    preprocessor = Path(settings.hint_model).stem if settings.preprocessor == BY_MODEL else settings.preprocessor
    return workspace.datasets / "pairs" / safe_name(f"{resolve_path(settings.captions).stem}_{preprocessor}")


def _captions(text: str) -> list[str]:
    """Return the captions: lines of a file, or texts of a folder's caption files. Raises ProblemsError for a missing file or folder, and
    for none or more than MAX_PROMPTS captions."""
    path = resolve_path(text) if text else Path()
    if not text or not os.path.exists(path):
        what = f"There is no file or folder '{text}'" if text else "No captions are chosen"
        fix = "choose a text file with a caption on each line, or a folder of captions"
        raise ProblemsError.one(what, CAPTIONS, fix, "pairs.no-captions")
    if path.is_dir():
        files = {each.with_suffix(""): each for each in _caption_files(path)}
        lines = [" ".join(decode_text(read_regular(each, MAX_CAPTION_BYTES)).text.split()) for each in files.values()]
    else:
        lines = [line.strip() for line in decode_text(read_regular(path, MAX_BYTES)).text.splitlines()]
    captions = [line for line in lines if line]
    if not captions or len(captions) > MAX_PROMPTS:
        what = f"'{text}' has {count(len(captions), 'caption')}" if captions else f"'{text}' has no captions"
        raise ProblemsError.one(what, CAPTIONS, f"choose one with 1 to {MAX_PROMPTS:,}", "pairs.captions")
    return captions


def _caption_files(folder: Path) -> Iterator[Path]:
    """Yield every caption file below the folder, sorted by name, without system files."""
    for parent, folders, names in walk_folders(folder):
        folders[:] = sorted(name for name in folders if not is_junk(name))
        captions = (name for name in sorted(names) if extension(name) in CAPTION_EXTENSIONS and not is_junk(name))
        yield from (parent / name for name in captions)


def _job(settings: MakePairsSettings) -> GenerateJob:
    """Return the generate job that all images share. As in training, brackets and braces in captions have no meaning."""
    names = ("negative_prompt", "width", "height", "steps", "guidance_scale")
    return GenerateJob(
        model=ModelSettings(base_model=settings.base_model),
        generate=GenerateSettings(prompt_weights=False, **{name: getattr(settings, name) for name in names}),
        prompts=PromptSettings(dynamic_prompts=False),
        output=OutputSettings(preview_every_n_steps=None),
    )


def _request(base: GenerateJob, captions: Sequence[str], seed: int, number: int) -> Request:
    """Return the request of the image `number`: the captions in rotation, and a seed drawn from `seed`."""
    changes = {"prompt": captions[number % len(captions)], "seed": integer(0, 2**32, seed, "pair", number)}
    return Request(base.with_settings(generate=changes))


def _write(
    pair: Pair, image: Image, settings: MakePairsSettings, hints: HintMaker, writer: ImageMetadata, black: list[str]
) -> None:
    """Write a pair; the image last, which marks it as complete. `black`: gets the name of an image with an all-black control image."""
    hint_settings = settings.model_copy(
        update={"hint_seed": integer(0, 2**32, settings.hint_seed, "hint", pair.image.name)}
    )
    job = pair.request.job
    for path in (pair.image, pair.hint):
        path.parent.mkdir(parents=True, exist_ok=True)
    hint = hints.make(np.asarray(image.convert("RGB")), hint_settings)
    if not hint.any():
        black.append(pair.image.name)
    write_hint(hint, pair.hint)
    atomic.write_text(pair.caption, job.generate.prompt + "\n")
    atomic.write_bytes(pair.image, encoded_image(image, writer.job_of(job), writer.hashes, "png"))
