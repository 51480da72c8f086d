"""Registers DreamBooth (Ruiz et al. 2022, arXiv:2208.12242) and fine-tuning, which train the model itself.

Both are one method. DreamBooth differs by its dataset, a subject's images with regularization images of its class, and
trains the text encoder by default.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

from core import extensions
from core.settings.methods import MethodSpec, Needs, Parts, PartSize, Usual, register, spec_of

if TYPE_CHECKING:
    from core.methods import Method, MethodInputs
    from core.settings.job import TrainJob


def _make(inputs: MethodInputs) -> Method:
    """Return the training method for the inputs."""
    from core.methods.full import FullMethod

    return FullMethod(inputs.job, inputs.model, inputs.vae)


def _text_trains(by_default: bool, job: TrainJob) -> bool:
    """Return whether the text encoders train, by `train_text_encoder`; always False if they stop at step or epoch 0.
    by_default: the value where the setting is "auto" (trained or not)"""
    train, method = job.method.train_text_encoder, job.method
    stops_at_once = 0 in (method.stop_text_encoder_training, method.stop_text_encoder_epochs)
    return (by_default if train == "auto" else train == "yes") and not stops_at_once


def trained_numbers(job: TrainJob, family_name: str, parts: Parts) -> dict[str, int]:
    """Return {"unet", "text_encoder", "text_encoder_2": number of parameters} of the parts that are trained.
    parts: {name: sizes of the base model's part}"""
    return {name: part.numbers for name, part in _trained_sizes(job, parts)}


def trained_shapes(job: TrainJob, family_name: str, parts: Parts) -> Counter[tuple[int, ...]]:
    """Return {shape: number of tensors} of the trained parts. parts: {name: sizes of the base model's part}"""
    return sum((Counter(part.shapes) for _, part in _trained_sizes(job, parts)), Counter())


def _trained_sizes(job: TrainJob, parts: Parts) -> list[tuple[str, PartSize]]:
    """Return [(part, its parameter counts)] of the trained parts. parts: {name: sizes of the base model's part}"""
    text = spec_of(job).trains_text(job)
    trained = {"unet": True, "text_encoder": text, "text_encoder_2": text}
    return [(name, parts[name]) for name, trains in trained.items() if trains and name in parts]


def _dreambooth_needs(job: TrainJob, family: str, size: str) -> Needs:
    """Return (sentence about what preserves the class, followed by `size`; [[title, setting]] that this depends on) for the page."""
    sources = [source for source in job.dataset.all_sources() if source.enabled and source.role == "regularization"]
    prior_fields = [["Prior preservation", "method.prior"], ["Class caption", "method.class_caption"]]
    if job.method.prior == "model":
        return f"The frozen base model preserves the class; no regularization images are needed. {size}", prior_fields
    if sources:
        folders = "1 folder" if len(sources) == 1 else f"{len(sources)} folders"
        fields = [["Prior loss weight", "dataset.prior_loss_weight"], prior_fields[0]]
        return f"Regularization images from {folders} preserve the class. {size}", fields
    text = (
        "Without regularization images the model forgets the rest of the class: add some, or use the frozen base model."
    )
    return f"{text} {size}", [["Add regularization images", "dataset.sources"], prior_fields[0]]


def _fine_tune_needs(job: TrainJob, family: str, size: str) -> Needs:
    """Return (sentence about captions, followed by `size`; [[title, setting]]) for the page."""
    return f"Every image needs its own caption. {size}", [["Save interval", "saving.save_every_n_epochs"]]


RULES = "core.settings.rules.full_model"
TEXT_ENCODER = Usual(1e-7, 1e-6, 1e-5)

DREAMBOOTH = MethodSpec(
    name="dreambooth",
    title="DreamBooth: full model, one subject",
    words="DreamBooth",
    changes="model",
    make=_make,
    trains_unet=lambda job: True,
    trains_text=lambda job: _text_trains(True, job),
    trained_numbers=trained_numbers,
    trained_shapes=trained_shapes,
    usual={"unet": Usual(5e-7, 2e-6, 1e-5), "text_encoder": TEXT_ENCODER},  # 1e-6 to 5e-6 in diffusers' examples
    project="dreambooth",
    saves="model",
    logged={"text_encoder": "lr/text_encoder1", "text_encoder_2": "lr/text_encoder2"},
    problems=extensions.later(RULES, "problems"),
    unused=extensions.later(RULES, "unused"),
    needs=_dreambooth_needs,
)
register(DREAMBOOTH)
register(
    replace(
        DREAMBOOTH,
        name="fine_tune",
        title="Fine-tuning: full model, many images",
        words="fine-tuning",
        trains_text=lambda job: _text_trains(False, job),
        usual={"unet": Usual(5e-7, 5e-6, 2e-5), "text_encoder": TEXT_ENCODER},
        project="finetuning",
        needs=_fine_tune_needs,
    )
)
