"""The LoRAs of a prompt as settings, and back."""

from __future__ import annotations

from pathlib import Path

from core.generation.prompt.tags import FIX, IN_NEGATIVE, TO_PROMPT, LoraTag, has_tags, without_tags
from core.record.problems import Problem, ProblemsError
from core.settings.generation.generate import LoraUse
from core.settings.job import GenerateJob

LORAS = "generate.loras"


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
        problems.append(Problem(IN_NEGATIVE, "generate.negative_prompt", TO_PROMPT, code="prompt.lora-in-negative"))
    if problems:
        raise ProblemsError(problems)
    if not tags:
        return job
    changes = {"prompt": prompt, "loras": [*asked.loras, *(use_of(tag, asked.steps) for tag in tags)]}
    return job.model_copy(update={"generate": asked.model_copy(update=changes)})


def use_of(tag: LoraTag, steps: int) -> LoraUse:
    """A LoRA of a prompt as a setting. steps: of an image"""
    own = None if tag.text_encoder == tag.unet else tag.text_encoder
    first, end = tag.steps
    return LoraUse(
        file=tag.name,
        strength=tag.unet,
        text_encoder_strength=own,
        block_weights=tag.block_weights,
        start_at=min(first / steps, 1.0),
        end_at=1.0 if end is None else min(end / steps, 1.0),
    )


def tag_of(use: LoraUse, steps: int) -> LoraTag:
    """How a prompt of other programs names this LoRA. steps: of an image"""
    own = use.text_encoder_strength
    first, end = round(use.start_at * steps), None if use.end_at == 1 else round(use.end_at * steps)
    text_encoder = use.strength if own is None else own
    return LoraTag(Path(use.file).stem, use.strength, text_encoder, use.block_weights, (first, end))
