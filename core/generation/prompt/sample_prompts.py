"""The sample prompts of a training run, from settings and file, with all values resolved."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from core.families.prompt_weights import FIX, escape_brackets
from core.generation.prompt.editing import Pass, wrong_weight_in
from core.generation.prompt.files import Entry, parse_entry, read_entries
from core.generation.prompt.loras import FIX as TAG_FIX
from core.generation.prompt.loras import split_tags
from core.generation.prompt.options import PromptLine
from core.generation.prompt.runs import AND
from core.generation.prompt.wildcards import has_variants
from core.record.problems import Problem, ProblemsError, limited, raise_if_errors
from core.record.units import count
from core.record.workspace import display_path, resolve_path
from core.settings.base import SEEDS
from core.settings.samples import SampleSettings

if TYPE_CHECKING:
    import numpy as np

    from core.settings.job import TrainJob

WHERE = "samples.sample_prompts_file"
# setting of an option in a prompt -> field of SamplePrompt
FIELDS = {
    "generate.negative_prompt": "negative",
    "generate.width": "width",
    "generate.height": "height",
    "generate.steps": "steps",
    "generate.guidance_scale": "guidance",
    "generate.sampler": "sampler",
    "control": "control",
}


@dataclass(frozen=True)
class SamplePrompt:
    """A sample prompt with its options. None: the value of the sample settings.

    guidance   guidance scale
    control    path of the control image
    """

    prompt: str
    negative: str | None = None
    width: int | None = None
    height: int | None = None
    seed: int | None = None
    steps: int | None = None
    guidance: float | None = None
    sampler: str | None = None
    control: str | None = None


def read_prompts(settings: SampleSettings, control: bool = False) -> tuple[list[SamplePrompt], list[Problem]]:
    """Return (the sample prompts of a training run, advice about ignored options). Raises ProblemsError for invalid prompts.
    control: True: the method trains on control images, so each prompt must name one"""
    notes: list[Problem] = []
    typed = _parsed(settings.sample_prompts, notes, "samples.sample_prompts", settings)
    from_file: list[SamplePrompt] = []
    if settings.sample_prompts_file:
        file = resolve_path(settings.sample_prompts_file)
        from_file = _parsed(read_entries(file, WHERE), notes, f"{WHERE}, {file.name}", settings)
        if not from_file:
            what, fix = "The file contains no prompts", "write one prompt per line, or leave the setting empty"
            notes.append(Problem(what, f"{WHERE}, {file.name}", fix, "warning", code="prompts.none"))
    if settings.prompt_weights:
        edit_pass = Pass(settings.sample_steps) if reads_edits(settings) else None
        if error := wrong_weight_in(settings.negative_prompt, [edit_pass]):
            notes.append(_error(f"In the negative prompt, {error}", "samples.negative_prompt", FIX, "bad-weight"))
    prompts = [*typed, *from_file]
    if not control:
        prompts = [_without_control(each, notes) for each in prompts]
    elif missing := [each.prompt for each in prompts if each.control is None]:
        what = f"{len(missing)} of {count(len(prompts), 'sample prompt')} without a control image: '{missing[0][:40]}'"
        notes.append(
            _error(what, "samples.sample_prompts", "give each a control image: --cn and its file", "no-control-image")
        )
    if settings.compatibility == "none":
        prompts = [_without_loras(each, notes) for each in prompts]
    raise_if_errors(notes)
    return prompts, limited(notes)


def as_prompt(job: TrainJob, caption: str) -> str:
    """Return a caption as a sample prompt, with its brackets escaped if sample prompts parse weights and captions do not."""
    return escape_brackets(caption) if job.samples.prompt_weights and not job.captions.weighted_captions else caption


def reads_edits(settings: SampleSettings) -> bool:
    """Return whether sample prompts parse prompt editing such as [from:to:0.5]."""
    return settings.prompt_weights and settings.compatibility != "kohya"


def _parsed(entries: Sequence[Entry], notes: list[Problem], where: str, settings: SampleSettings) -> list[SamplePrompt]:
    """Parse lines and tables into sample prompts. notes: receives errors of options and weights, and advice"""
    lines = [parse_entry(entry, notes, where) for entry in entries]
    prompts = [sample_of(line, notes, where) for line in lines if line is not None]
    unread = [each.prompt for each in prompts if has_variants(each.prompt) or AND.search(each.prompt)]
    notes += [
        _advice(f"Braces, wildcards and AND in '{text[:40]}' are read as text in samples", where, "text")
        for text in unread
    ]
    notes += _wrong_weights(prompts, where, settings) if settings.prompt_weights else ()
    return prompts


def _without_control(prompt: SamplePrompt, notes: list[Problem]) -> SamplePrompt:
    """Return the prompt without its control image. notes: receives advice if it has one"""
    if prompt.control is not None:
        what = f"'--cn' of the prompt '{prompt.prompt[:40]}' is ignored: this training has no ControlNet"
        notes.append(_advice(what, "samples.sample_prompts", "unsupported-option"))
    return replace(prompt, control=None)


def control_image(prompt: SamplePrompt, stretched: bool = False) -> np.ndarray | None:
    """Return the control image resized to the sample's size, float32 [3, H, W] in 0..1, or None if the prompt names none.

    Raises ProblemsError for an unreadable image.

    stretched   ignore the aspect ratio, as sd-scripts does for samples; otherwise crop to the sample's aspect ratio
    """
    from core.dataset.images.masks import control_for
    from core.dataset.images.opening import BrokenImage

    if prompt.control is None:
        return None
    path = resolve_path(prompt.control)
    try:
        return control_for(path, (prompt.width or 0, prompt.height or 0), stretched)
    except BrokenImage as error:
        what = f"The control image {display_path(path)} {error}"
        fix = "choose another image file; relative paths count from the project folder"
        raise ProblemsError.one(what, "samples.sample_prompts", fix, "prompts.bad-control-image") from error


def _without_loras(prompt: SamplePrompt, notes: list[Problem]) -> SamplePrompt:
    """Remove the LoRA tags of a sample prompt: samples use only the LoRA being trained. notes: receives advice, or the error of a tag"""
    try:
        text, tags = split_tags(prompt.prompt)
    except ValueError as error:
        what = f"In the prompt '{prompt.prompt[:40]}', {error}"
        notes.append(_error(what, "samples.sample_prompts", TAG_FIX, "bad-lora"))
        return prompt
    ignored = "is ignored: samples use only the LoRA being trained"
    notes += [_advice(f"{tag} {ignored}", "samples.sample_prompts", "lora") for tag in tags]
    return replace(prompt, prompt=text)


def _wrong_weights(prompts: Iterable[SamplePrompt], where: str, settings: SampleSettings) -> Iterator[Problem]:
    """Yield an error for each prompt and negative prompt with an invalid weight."""
    for each in prompts:
        edit_pass = Pass(each.steps or settings.sample_steps) if reads_edits(settings) else None
        for text in (each.prompt, each.negative or ""):
            if error := wrong_weight_in(text, [edit_pass]):
                yield _error(f"In the prompt '{text[:40]}', {error}", where, FIX, "bad-weight")


def filled(
    prompts: Iterable[SamplePrompt],
    settings: SampleSettings,
    size: tuple[int, int],
    guidance: float = 7.5,
    step: int = 8,
) -> list[SamplePrompt]:
    """Return sample prompts with all values set. Prompts without a seed get the settings' seed plus their index.

    size       (width, height) in pixels if neither prompt nor settings set it
    guidance   guidance scale if neither prompt nor settings set it
    step       width and height are rounded down to multiples of this number
    """
    guidance = guidance if settings.guidance_scale is None else settings.guidance_scale
    width, height = settings.width or size[0], settings.height or size[1]
    return [
        replace(
            each,
            negative=settings.negative_prompt if each.negative is None else each.negative,
            width=(each.width or width) // step * step,
            height=(each.height or height) // step * step,
            seed=(settings.seed + index) % SEEDS if each.seed is None else each.seed,
            steps=each.steps or settings.sample_steps,
            guidance=guidance if each.guidance is None else each.guidance,
            sampler=each.sampler or settings.sample_sampler,
        )
        for index, each in enumerate(prompts)
    ]


def sample_of(line: PromptLine, notes: list[Problem], where: str) -> SamplePrompt:
    """Convert a parsed prompt into a sample prompt with its first seed. notes: receives advice about options that samples do not support"""
    seeds = line.values.get("seeds", (None,))
    for name in [name for name in line.values if name not in {*FIELDS, "seeds"}]:
        what = f"'{name.rpartition('.')[2]}' of the prompt '{line.text[:40]}' is ignored: samples do not follow it"
        notes.append(_advice(what, where, "unsupported-option"))
    values = {FIELDS[name]: value for name, value in line.values.items() if name in FIELDS}
    return SamplePrompt(line.text, seed=seeds[0], **values)


def _advice(what: str, where: str, slug: str) -> Problem:
    """Return advice to remove an option, with the code "prompts.<slug>"."""
    return Problem(what, where, "remove it", "advice", code=f"prompts.{slug}")


def _error(what: str, where: str, fix: str, slug: str) -> Problem:
    """Return an error with the code "prompts.<slug>"."""
    return Problem(what, where, fix, code=f"prompts.{slug}")
