"""Registers textual inversion (Gal et al. 2022, arXiv:2208.01618), which trains embeddings of new tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

from core import extensions
from core.families.locate import model_path
from core.settings.methods import MethodSpec, Needs, Parts, Usual, register
from core.settings.model import traits_of

if TYPE_CHECKING:
    from core.methods import Method, MethodInputs
    from core.settings.job import TrainJob

START = "embedding.embedding_weights"
RULES = "core.settings.rules.embedding"


def _make(inputs: MethodInputs) -> Method:
    """Return the training method; the initial embedding is located by name."""
    from core.methods.embedding import EmbeddingMethod

    start = inputs.job.embedding.embedding_weights
    return EmbeddingMethod(inputs.job, model_path(start, inputs.workspace, START) if start else None)


def trained_numbers(job: TrainJob, family_name: str, parts: Parts) -> dict[str, int]:
    """Return {"text_encoder", "text_encoder_2": trained parameters} of the model's encoders, assuming eight vectors per token, more than is
    usual.
    parts: {name: sizes of the base model's part}"""
    rows = max(1, len(job.embedding.words)) * 8
    texts = [name for name in ("text_encoder", "text_encoder_2") if name in parts]
    return {name: rows * int(parts[name].config.get("hidden_size", 768)) for name in texts}


def _needs(job: TrainJob, family: str, size: str) -> Needs:
    """Return (sentence about what is trained; no settings) for the page."""
    encoders = "both text encoders" if traits_of(job.model.family).two_encoders else "the text encoder"
    text = f"The embedding is trained in {encoders}; the model is frozen. The file is a few kilobytes."
    if not job.embedding.words:
        text = "Enter a new token, and a known word close in meaning. " + text
    return text, []


register(
    MethodSpec(
        name="embedding",
        title="Textual inversion: embedding",
        words="textual inversion",
        changes="embedding",
        make=_make,
        trains_unet=lambda job: False,
        trains_text=lambda job: True,
        trained_numbers=trained_numbers,
        usual={"text_encoder": Usual(5e-4, 5e-3, 1e-2)},  # Gal et al.: 5e-3; diffusers: 5e-4
        project="textual_inversion",
        saves="embedding",
        logged={"text_encoder": "lr", "text_encoder_2": "lr/text_encoder2"},
        group="embedding",
        problems=extensions.later(RULES, "problems"),
        file_problems=extensions.later("core.training.checks.embedding_file", "problems"),
        unused=extensions.later(RULES, "unused"),
        needs=_needs,
        preserves_class=True,
    )
)
