"""The sample prompts of a training, with all settings resolved."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from core.families.prompt_weights import FIX, escape_brackets
from core.generation.prompt.editing import Pass, wrong_weight_in
from core.generation.prompt.files import Entry, parse_entry, read_entries
from core.generation.prompt.loras import FIX as TAG_FIX
from core.generation.prompt.loras import without_tags
from core.generation.prompt.options import PromptLine
from core.record.problems import Problem, ProblemsError, limited, raise_if_errors
from core.record.units import count
from core.record.workspace import resolve_path
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
    """One sample. None: as in the sample settings."""

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
    """(the prompts of a training, advice about ignored parts). Raises ProblemsError for prompts that cannot be parsed.

    control  each needs a control image (`MethodTraits.control_images`)
    """
    notes: list[Problem] = []
    typed = _parsed(settings.sample_prompts, notes, "samples.sample_prompts", settings)
    from_file: list[SamplePrompt] = []
    if settings.sample_prompts_file:
        file = resolve_path(settings.sample_prompts_file)
        from_file = _parsed(read_entries(file, WHERE), notes, f"{WHERE}, {file.name}", settings)
    if settings.prompt_weights:
        edit_pass = Pass(settings.sample_steps) if reads_edits(settings) else None
        if wrong := wrong_weight_in(settings.negative_prompt, [edit_pass]):
            notes.append(_error(f"In the negative prompt, {wrong}", "samples.negative_prompt", FIX, "bad-weight"))
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
    """A caption as a sample prompt: its brackets are escaped where prompts read weights and captions do not."""
    return escape_brackets(caption) if job.samples.prompt_weights and not job.captions.weighted_captions else caption


def reads_edits(settings: SampleSettings) -> bool:
    """Whether [from:to:0.5] is prompt editing, as in Generate."""
    return settings.prompt_weights and settings.compatibility != "kohya"


def _parsed(entries: Sequence[Entry], notes: list[Problem], where: str, settings: SampleSettings) -> list[SamplePrompt]:
    lines = [parse_entry(entry, notes, where) for entry in entries]
    prompts = [sample_of(line, notes, where) for line in lines if line is not None]
    notes += _wrong_weights(prompts, where, settings) if settings.prompt_weights else ()
    return prompts


def _without_control(prompt: SamplePrompt, notes: list[Problem]) -> SamplePrompt:
    if prompt.control is not None:
        what = f"'--cn' of the prompt '{prompt.prompt[:40]}' is ignored: this training has no ControlNet"
        notes.append(_advice(what, "samples.sample_prompts", "unsupported-option"))
    return replace(prompt, control=None)


def control_image(prompt: SamplePrompt, stretched: bool = False) -> np.ndarray | None:
    """The control image at the size of the sample, float32 [3, H, W] in 0..1; None without one. Raises ProblemsError.

    stretched   as sd-scripts samples, else cropped to the sample's aspect ratio
    """
    from core.dataset.images.masks import control_for
    from core.dataset.images.opening import BrokenImage

    if prompt.control is None:
        return None
    path = resolve_path(prompt.control)
    try:
        return control_for(path, (prompt.width or 0, prompt.height or 0), stretched)
    except BrokenImage as error:
        what, fix = f"The control image {path.name} {error}", "choose another image file"
        raise ProblemsError.one(what, "samples.sample_prompts", fix, "prompts.bad-control-image") from error


def _without_loras(prompt: SamplePrompt, notes: list[Problem]) -> SamplePrompt:
    """The prompt without LoRA tags, with advice: samples use only the trained LoRA. sd-scripts reads tags as text."""
    try:
        text, tags = without_tags(prompt.prompt)
    except ValueError as error:
        what = f"In the prompt '{prompt.prompt[:40]}', {error}"
        notes.append(_error(what, "samples.sample_prompts", TAG_FIX, "bad-lora"))
        return prompt
    ignored = "is ignored: samples use only the LoRA being trained"
    notes += [_advice(f"{tag} {ignored}", "samples.sample_prompts", "lora") for tag in tags]
    return replace(prompt, prompt=text)


def _wrong_weights(prompts: Iterable[SamplePrompt], where: str, settings: SampleSettings) -> Iterator[Problem]:
    for each in prompts:
        edit_pass = Pass(each.steps or settings.sample_steps) if reads_edits(settings) else None
        for text in (each.prompt, each.negative or ""):
            if wrong := wrong_weight_in(text, [edit_pass]):
                yield _error(f"In the prompt '{text[:40]}', {wrong}", where, FIX, "bad-weight")


def filled(
    prompts: Iterable[SamplePrompt],
    settings: SampleSettings,
    size: tuple[int, int],
    guidance: float = 7.5,
    step: int = 8,
) -> list[SamplePrompt]:
    """The prompts with all values set. Seeds count up from the settings' seed, so that each prompt keeps its own.

    size, guidance   (width, height) and guidance scale if neither prompt nor settings set them
    step             sides are rounded down to multiples of it
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
    """A line as one sample; `notes` gets advice about options that only Generate supports."""
    seeds = line.values.get("seeds", (None,))
    for name in [name for name in line.values if name not in {*FIELDS, "seeds"}]:
        what = f"'{name.rpartition('.')[2]}' of the prompt '{line.text[:40]}' is ignored: samples do not follow it"
        notes.append(_advice(what, where, "unsupported-option"))
    values = {FIELDS[name]: value for name, value in line.values.items() if name in FIELDS}
    return SamplePrompt(line.text, seed=seeds[0], **values)


def _advice(what: str, where: str, slug: str) -> Problem:
    return Problem(what, where, "remove it", "advice", code=f"prompts.{slug}")


def _error(what: str, where: str, fix: str, slug: str) -> Problem:
    return Problem(what, where, fix, code=f"prompts.{slug}")
