"""The model itself trains: DreamBooth (Ruiz et al. 2022, arXiv:2208.12242) and fine-tuning.

Both are one method. What makes DreamBooth is its dataset, a subject's images beside images of its class, and that the
text encoder trains by default.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from core import extensions
from core.settings.methods import MethodSpec, Parts, Usual, register

if TYPE_CHECKING:
    from core.methods import Method, MethodInputs
    from core.settings.job import TrainJob


def _make(inputs: MethodInputs) -> Method:
    from core.methods.full import FullMethod

    return FullMethod(inputs.job, inputs.model, inputs.vae)


def _text_trains(by_default: bool, job: TrainJob) -> bool:
    wanted, own = job.method.train_text_encoder, job.method
    return (by_default if wanted == "auto" else wanted == "yes") and own.stop_text_encoder_training != 0


def trained_numbers(job: TrainJob, family_name: str, parts: Parts) -> dict[str, int]:
    """Every number of the parts that train."""
    text = job.method.spec.trains_text(job)
    asked = {"unet": True, "text_encoder": text, "text_encoder_2": text}
    return {name: parts[name].numbers for name, trains in asked.items() if trains and name in parts}


RULES = "core.settings.rules.full_model"
TEXT_ENCODER = Usual(1e-7, 1e-6, 1e-5)
LOGGED = {"text_encoder": "lr/text_encoder1", "text_encoder_2": "lr/text_encoder2"}

register(
    MethodSpec(
        name="dreambooth",
        title="DreamBooth: full model, one subject",
        words="DreamBooth",
        changes="model",
        make=_make,
        trains_unet=lambda job: True,
        trains_text=lambda job: _text_trains(True, job),
        trained_numbers=trained_numbers,
        usual={"unet": Usual(5e-7, 2e-6, 1e-5), "text_encoder": TEXT_ENCODER},  # 1e-6 to 5e-6 in diffusers' examples
        project="dreambooth",
        saves="model",
        logged=LOGGED,
        problems=extensions.later(RULES, "problems"),
        unused=extensions.later(RULES, "unused"),
    )
)
register(
    MethodSpec(
        name="fine_tune",
        title="Fine-tuning: full model, many images",
        words="fine-tuning",
        changes="model",
        make=_make,
        trains_unet=lambda job: True,
        trains_text=lambda job: _text_trains(False, job),
        trained_numbers=trained_numbers,
        usual={"unet": Usual(5e-7, 5e-6, 2e-5), "text_encoder": TEXT_ENCODER},
        project="finetuning",
        saves="model",
        logged=LOGGED,
        problems=extensions.later(RULES, "problems"),
        unused=extensions.later(RULES, "unused"),
    )
)
