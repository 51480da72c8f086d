"""What an optimizer or a loss is usually trained with, offered in one click. Nothing of it is applied unasked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from core.settings.base import Settings, declared, value_of
from core.settings.job import TrainJob
from core.settings.optimizers import ADAFACTOR, find
from core.settings.rates import scale_factor
from core.settings.usual_rates import far_rates, short

NO_CURVE: dict[str, Any] = {
    "schedule.lr_scheduler": "constant",
    "schedule.lr_warmup_steps": 0,
    "schedule.lr_scheduler_type": None,
}
OWN_DEFAULTS: dict[str, Any] = {"optimizer.weight_decay": None, "optimizer.betas": None, "optimizer.eps": None}
ONE_RATE: dict[str, Any] = {
    "optimizer.learning_rate": 1.0,
    "optimizer.unet_lr": None,
    "optimizer.text_encoder_lr": None,
    "optimizer.loraplus_lr_ratio": None,
    "optimizer.loraplus_unet_lr_ratio": None,
    "optimizer.loraplus_text_encoder_lr_ratio": None,
    "optimizer.scale_lr": False,
}


@dataclass(frozen=True)
class Recipe:
    """Settings that go together: {dotted path: value}. why: one sentence for the button."""

    title: str
    settings: Mapping[str, Any]
    why: str


def recipes(optimizer_type: str) -> list[Recipe]:
    """The usual settings for an optimizer, best first; empty where the present ones will do."""
    entry = find(optimizer_type)
    if entry is None:
        return []
    name = entry.name.rsplit(".", 1)[-1]
    if entry.path == ADAFACTOR:
        return [_adafactor_given(), _adafactor_relative()]
    if "adapts" in entry.traits:
        free = (
            NO_CURVE
            if "averages" in entry.traits
            else {"schedule.lr_scheduler": "cosine", "schedule.lr_scheduler_type": None}
        )
        settings = {
            **OWN_DEFAULTS,
            **ONE_RATE,
            **free,
            "optimizer.optimizer_args": _adapting(entry.path, entry.arguments),
        }
        return [
            Recipe(f"{name} at rate 1", settings, "It finds the step size itself; the rate is only a factor of it.")
        ]
    if "averages" in entry.traits and "schedule" in entry.path.lower():
        arguments: dict[str, Any] = {"warmup_steps": 100} if "warmup_steps" in entry.arguments else {}
        settings = {**OWN_DEFAULTS, **NO_CURVE, "optimizer.optimizer_args": arguments}
        if "sgd" in name.lower():
            settings["optimizer.learning_rate"] = 0.01  # of a LoRA: plain gradient steps are tiny at AdamW's rates
        return [
            Recipe(
                f"{name} without a curve", settings, "Averaging takes the place of the curve; the warm-up is its own."
            )
        ]
    if "lion" in name.lower():
        settings = {**OWN_DEFAULTS, "optimizer.learning_rate": 2e-5, "optimizer.optimizer_args": {}}
        why = "Its steps all have full size: a third to a tenth of AdamW's rate (Chen et al. 2023, arXiv:2302.06675)."
        return [Recipe(f"{name} at a lower rate", settings, why)]
    return []


def recipe(optimizer_type: str) -> dict[str, Any]:
    """The first recipe's settings {dotted path: value}, or {}."""
    found = recipes(optimizer_type)
    return dict(found[0].settings) if found else {}


def _adafactor_given() -> Recipe:
    settings = {
        **OWN_DEFAULTS,
        "optimizer.optimizer_args": {"relative_step": False, "scale_parameter": False, "warmup_init": False},
        "optimizer.max_grad_norm": 0.0,
        "schedule.lr_scheduler": "constant_with_warmup",
        "schedule.lr_scheduler_type": None,
        "schedule.lr_warmup_steps": "5%",
    }
    why = "AdaFactor at the learning rate given, constant after a warm-up; it clips its updates itself."
    return Recipe("AdaFactor with a given rate", settings, why)


def _adafactor_relative() -> Recipe:
    settings = {
        **OWN_DEFAULTS,
        **NO_CURVE,
        "optimizer.optimizer_args": {"relative_step": True, "scale_parameter": True, "warmup_init": True},
        "optimizer.max_grad_norm": 0.0,
        "schedule.lr_scheduler": "adafactor",
    }
    return Recipe("AdaFactor finds the rate", settings, "Its rate follows the step and the size of the weights.")


def _adapting(path: str, known: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that sd-scripts' documents give, as far as this one has them."""
    usual: dict[str, Any] = {"decouple": True, "weight_decay": 0.01}
    if path == "prodigyopt.Prodigy":
        usual |= {"d_coef": 2.0, "use_bias_correction": True, "safeguard_warmup": True, "betas": [0.9, 0.99]}
    return {name: value for name, value in usual.items() if name in known}


HUBER = Recipe(
    "Huber's usual start",
    {"noise.loss_type": "smooth_l1", "noise.huber_schedule": "snr", "noise.huber_c": 0.1},
    "Less moved by outliers among the images; fine detail comes a little later.",
)


def constant_or_warmup(job: TrainJob) -> list[Recipe]:
    """The two things that a constant scheduler with warmup steps can mean."""
    own = job.schedule
    if own.lr_scheduler != "constant" or not own.lr_warmup_steps or own.lr_scheduler_type:
        return []
    return [
        Recipe("Constant with warmup", {"schedule.lr_scheduler": "constant_with_warmup"}, "The rate rises first."),
        Recipe("No warmup", {"schedule.lr_warmup_steps": 0}, "Full rate from the first step, as sd-scripts' constant."),
    ]


def usual_rate(job: TrainJob) -> Recipe | None:
    """The usual learning rate of this method and optimizer, where the present one is far from it."""
    far = next((each for each in far_rates(job) if each.where == "optimizer.learning_rate"), None)
    if far is None:
        return None
    start = far.usual.start / scale_factor(job, job.memory.num_processes)
    rate = float(short(start))
    return Recipe(
        f"Set {short(start)}", {"optimizer.learning_rate": rate}, "The usual rate of this method and optimizer."
    )


def changes(job: Settings, found: Recipe) -> dict[str, Any]:
    """What the recipe would change in this job: {dotted path: new value}; empty where it is followed already."""
    known = {entry.path for entry in declared(TrainJob)}
    assert set(found.settings) <= known, sorted(set(found.settings) - known)
    return {path: value for path, value in found.settings.items() if value_of(job, path) != value}
