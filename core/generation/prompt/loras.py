"""LoRA tags in prompts: <lora:name:0.8>, as in A1111, Forge and ComfyUI; parsed into settings and written back. Opens no file."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from core.record.problems import Problem, raise_if_errors
from core.settings.generation.generate import LoraUse
from core.settings.job import GenerateJob

LORAS = "generate.loras"
MOST_TAGS, LARGEST = 50, 10.0
ORDER = ("te", "unet")  # of two unnamed strengths, in A1111 and Forge
FIX = "write <lora:name:0.8>, or <lora:name:0.5:0.8> for text encoder 0.5 and U-Net 0.8"
IN_NEGATIVE = "A LoRA in the negative prompt has no effect"
TO_PROMPT = "write it into the prompt, with a negative strength"
STEPS = re.compile(r"(\d{1,4})?-(\d{1,4})?")
_TAG = re.compile(r"<(?:lora|lyco):([^<>]*)>", re.IGNORECASE)
_BLOCKS = re.compile(r"[A-Z][A-Z\d.]*|[^,]*,.*")  # block weights without "lbw=", as LBW's first versions have them
_OPEN = re.compile(r"<(?:lora|lyco):[^<>\s,]*+(?=[^<>]*+(?:<|\Z))", re.IGNORECASE)


@dataclass(frozen=True)
class LoraTag:
    """A LoRA tag of a prompt.

    name                 file name of the LoRA, without its ending
    unet, text_encoder   strengths; 1 is as trained
    block_weights        strengths by block, as in the LBW (LoRA Block Weight) extension; None: all 1
    steps                (first step that uses the LoRA, counted from 0; first step that no longer does, None: no end), as in LBW
    """

    name: str
    unet: float = 1.0
    text_encoder: float = 1.0
    block_weights: str | None = None
    steps: tuple[int, int | None] = (0, None)

    def __str__(self) -> str:
        """Write the tag so that every program reads it: two strengths are named, since their order differs between programs."""
        values = f"{self.unet:g}" if self.unet == self.text_encoder else f"unet={self.unet:g}:te={self.text_encoder:g}"
        values += f":lbw={self.block_weights}" if self.block_weights else ""
        first, end = self.steps
        values += f":step={first}-{'' if end is None else end}" if self.steps != (0, None) else ""
        return f"<lora:{self.name}:{values}>"


def strengths(unet: float, text_encoder: float | None) -> str:
    """Return the text of a LoRA's strength: "0.8", or "0.8 / 0.5" if the text encoder's differs."""
    return f"{unet:g}" + ("" if text_encoder in (None, unet) else f" / {text_encoder:g}")


def has_tags(text: str) -> bool:
    """Return whether a text contains a LoRA tag, valid or not."""
    return _TAG.search(text) is not None


def split_tags(prompt: str) -> tuple[str, list[LoraTag]]:
    """Return (the prompt without its tags, the tags): "a fox <lora:ink:0.8>" -> ("a fox", [LoraTag("ink", 0.8, 0.8)]).

    Of two unnamed strengths the first is the text encoder's (default 1) and the second the U-Net's (default: the first); `te=` and
    `unet=` name them in any order. Raises ValueError with a message for users.
    """
    bodies = _TAG.findall(prompt)
    if len(bodies) > MOST_TAGS:
        raise ValueError(f"there are {len(bodies)} LoRAs; {MOST_TAGS} is the limit")
    return remove_tags(prompt), [_parse_tag(body) for body in bodies]


def tag_spans(prompt: str) -> Iterator[tuple[int, int, LoraTag | str]]:
    """Yield (start, end, tag) for each LoRA tag of a prompt; for an invalid one its error message instead of the tag."""
    for match in _TAG.finditer(prompt):
        try:
            yield *match.span(), _parse_tag(match[1])
        except ValueError as error:
            yield *match.span(), str(error)


def unclosed_tags(prompt: str) -> list[tuple[int, int]]:
    """Return (start, end) of each LoRA tag that is not closed, which is read as text."""
    return [match.span() for match in _OPEN.finditer(prompt)]


def remove_tags(prompt: str) -> str:
    """Remove all LoRA tags, valid or not. The text around a tag is unchanged, as in A1111: "a, , b" and "a,, b" have different tokens."""
    return _TAG.sub("", prompt).strip() if has_tags(prompt) else prompt


def _parse_tag(body: str) -> LoraTag:
    """Parse the body of a tag, such as "ink:0.8". Raises ValueError with a message for users."""
    name, *values = (part.strip() for part in body.split(":"))
    if not name:
        raise ValueError(f"<lora:{body[:40]}> has no LoRA name")
    strengths: dict[str, float] = {}
    blocks: str | None = None
    steps: tuple[int, int | None] = (0, None)
    for part in values:
        key, has_key, text = part.partition("=")
        key = key.strip().lower() if has_key else next((each for each in ORDER if each not in strengths), "")
        if not has_key and strengths and blocks is None and _BLOCKS.fullmatch(part):
            blocks = part
        elif has_key and key == "lbw" and blocks is None:
            blocks = text.strip()
        elif has_key and key == "step" and steps == (0, None):
            steps = _parse_steps(text, body)
        elif has_key and key in ("start", "stop"):
            steps = _parse_steps(
                f"{text.strip()}-{steps[1] or ''}" if key == "start" else f"{steps[0]}-{text.strip()}", body
            )
        elif key in ORDER and key not in strengths:
            strengths[key] = _parse_strength(text if has_key else part, body)
        else:
            raise ValueError(f"'{part[:40]}' in <lora:{body[:40]}> is not valid")
    text_encoder = strengths.get("te", 1.0)
    return LoraTag(name, strengths.get("unet", text_encoder), text_encoder, blocks, steps)


def _parse_steps(text: str, body: str) -> tuple[int, int | None]:
    """Parse a step range: "0-12" -> (0, 12), "5-" -> (5, None), without an end. Raises ValueError for other texts.
    body: the tag, for the message"""
    match = STEPS.fullmatch(text.strip())
    if match is None or not any(match.groups()):
        raise ValueError(f"'{text[:20]}' in <lora:{body[:40]}> is not a range of steps such as 0-12")
    first, end = match.groups()
    return int(first or 0), None if end is None else int(end)


def _parse_strength(text: str, body: str) -> float:
    """Parse a strength from -10 to 10. Raises ValueError for other texts and numbers. body: the tag, for the message"""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not abs(number) <= LARGEST:
        raise ValueError(f"the strength '{text[:20]}' in <lora:{body[:40]}> is not a number from -10 to 10")
    return number


def with_prompt_loras(job: GenerateJob) -> GenerateJob:
    """Move the LoRA tags of the job's prompt into `generate.loras`. Raises ProblemsError for invalid tags."""
    settings = job.generate
    problems: list[Problem] = []
    prompt, tags = settings.prompt, list[LoraTag]()
    try:
        prompt, tags = split_tags(settings.prompt)
    except ValueError as error:
        problems.append(Problem(f"Prompt: {error}", "generate.prompt", FIX, code="prompt.bad-lora"))
    if has_tags(settings.negative_prompt):
        problems.append(Problem(IN_NEGATIVE, "generate.negative_prompt", TO_PROMPT, code="prompt.lora-in-negative"))
    raise_if_errors(problems)
    if not tags:
        return job
    changes = {"prompt": prompt, "loras": [*settings.loras, *(use_of(tag, settings.steps) for tag in tags)]}
    return job.with_settings(generate=changes)


def use_of(tag: LoraTag, steps: int) -> LoraUse:
    """Convert a LoRA tag into an entry of `generate.loras`. steps: sampling steps of the image, since tags count steps"""
    text_strength = None if tag.text_encoder == tag.unet else tag.text_encoder
    first, end = tag.steps
    return LoraUse(
        file=tag.name,
        strength=tag.unet,
        text_encoder_strength=text_strength,
        block_weights=tag.block_weights,
        start_at=min(first / steps, 1.0),
        end_at=1.0 if end is None else min(end / steps, 1.0),
    )


def tag_of(use: LoraUse, steps: int) -> LoraTag:
    """Convert an entry of `generate.loras` into a LoRA tag. steps: sampling steps of the image, since tags count steps"""
    text_strength = use.text_encoder_strength
    first, end = round(use.start_at * steps), None if use.end_at == 1 else round(use.end_at * steps)
    text_encoder = use.strength if text_strength is None else text_strength
    return LoraTag(Path(use.file).stem, use.strength, text_encoder, use.block_weights, (first, end))
