"""The LoRAs of a prompt as settings, and back."""

from __future__ import annotations

from pathlib import Path

from core.generation.prompt.tags import FIX, LoraTag, has_tags, without_tags
from core.record.problems import Problem, ProblemsError
from core.settings.generation.generate import LoraUse
from core.settings.job import GenerateJob


def with_prompt_loras(job: GenerateJob) -> GenerateJob:
    """`job` with the LoRAs of its prompt among its LoRAs, and no longer in the prompt. Raises ProblemsError."""
    asked = job.generate
    problems: list[Problem] = []
    prompt, tags = asked.prompt, list[LoraTag]()
    try:
        prompt, tags = without_tags(asked.prompt)
    except ValueError as error:
        problems.append(Problem(f"Prompt: {error}", "generate.prompt", FIX, code="prompt.bad-lora"))
    if has_tags(asked.negative_prompt):
        what, fix = "A LoRA in the negative prompt has no effect", "write it into the prompt, with a negative strength"
        problems.append(Problem(what, "generate.negative_prompt", fix, code="prompt.lora-in-negative"))
    if problems:
        raise ProblemsError(problems)
    if not tags:
        return job
    changes = {"prompt": prompt, "loras": [*asked.loras, *map(use_of, tags)]}
    return job.model_copy(update={"generate": asked.model_copy(update=changes)})


def use_of(tag: LoraTag) -> LoraUse:
    """A LoRA of a prompt as a setting."""
    own = None if tag.text_encoder == tag.unet else tag.text_encoder
    return LoraUse(file=tag.name, strength=tag.unet, text_encoder_strength=own)


def tag_of(use: LoraUse) -> LoraTag:
    """How a prompt of other programs names this LoRA."""
    own = use.text_encoder_strength
    return LoraTag(Path(use.file).stem, use.strength, use.strength if own is None else own)
