"""Recommended settings for an optimizer or a loss, applied with one click and never automatically."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from core.settings.base import Settings, declared, value_of
from core.settings.job import TrainJob
from core.settings.optimization.optimizers import ADAFACTOR, AUTOMAGIC, find
from core.settings.optimization.rates import scale_factor
from core.settings.optimization.usual_rates import short, unusual_rates

CONSTANT: dict[str, Any] = {
    "schedule.lr_scheduler": "constant",
    "schedule.lr_warmup_steps": 0,
    "schedule.lr_scheduler_type": None,
}
COSINE: dict[str, Any] = {"schedule.lr_scheduler": "cosine", "schedule.lr_scheduler_type": None}
ARGUMENTS = "optimizer.optimizer_args"
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
    """Settings that are applied together, {dotted path: value}. why: one sentence for the button."""

    title: str
    settings: Mapping[str, Any]
    why: str


def recipes(optimizer_type: str) -> list[Recipe]:
    """Return the recommended settings for an optimizer, best first; [] if it needs none or is unknown."""
    entry = find(optimizer_type)
    if entry is None:
        return []
    name = entry.name.rsplit(".", 1)[-1]
    if entry.path == ADAFACTOR:
        return ADAFACTORS
    if "adapts" in entry.traits:
        title, why = "with learning rate 1", "It adapts the learning rate; the value set is only a factor."
        free = CONSTANT if "averages" in entry.traits else COSINE
        settings = ONE_RATE | free | {ARGUMENTS: _adapting(entry.path, entry.arguments)}
    elif "averages" in entry.traits and "schedule" in entry.path.lower():
        title, why = "without scheduler", "Averaging replaces the scheduler; it has its own warmup."
        settings = CONSTANT | {ARGUMENTS: {"warmup_steps": 100} if "warmup_steps" in entry.arguments else {}}
        if "sgd" in name.lower():
            settings["optimizer.learning_rate"] = 0.01  # for a LoRA: SGD steps are tiny at AdamW's rates
    elif entry.path in AUTOMAGIC:
        title = "from learning rate 1e-6"
        why = "It raises and lowers its rates while it trains; the learning rate is where they start."
        settings = CONSTANT | {"optimizer.learning_rate": 1e-6, ARGUMENTS: {}}
    elif entry.path == "pytorch_optimizer.SOAP":
        why = "Preconditions the side of the rank alone. Both sides take 34 GB for SDXL at rank 16."
        return [Recipe("SOAP for a LoRA", {ARGUMENTS: {"max_precondition_dim": 256}}, why)]
    elif "lion" in name.lower():
        title = "with a lower learning rate"
        why = "Lion needs a third to a tenth of AdamW's learning rate (Chen et al. 2023, arXiv:2302.06675)."
        settings = {"optimizer.learning_rate": 2e-5, ARGUMENTS: {}}
    else:
        return []
    return [Recipe(f"{name} {title}", OWN_DEFAULTS | settings, why)]


ADAFACTORS = [
    Recipe(
        "AdaFactor with a fixed learning rate",
        {
            **OWN_DEFAULTS,
            ARGUMENTS: {"relative_step": False, "scale_parameter": False, "warmup_init": False},
            "optimizer.max_grad_norm": 0.0,
            "schedule.lr_scheduler": "constant_with_warmup",
            "schedule.lr_scheduler_type": None,
            "schedule.lr_warmup_steps": "5%",
        },
        "The learning rate as set, constant after a warmup; AdaFactor clips its own updates.",
    ),
    Recipe(
        "AdaFactor with relative steps",
        {
            **OWN_DEFAULTS,
            **CONSTANT,
            ARGUMENTS: {"relative_step": True, "scale_parameter": True, "warmup_init": True},
            "optimizer.max_grad_norm": 0.0,
            "schedule.lr_scheduler": "adafactor",
        },
        "The learning rate follows the step and the scale of the weights.",
    ),
]


def _adapting(path: str, known: Mapping[str, Any]) -> dict[str, Any]:
    """Return {name: value} of the arguments that sd-scripts' documentation recommends for an adaptive optimizer, of those in `known`.

    path    the optimizer's class, such as "prodigyopt.Prodigy"
    known   {name: ...} of the arguments that the optimizer has
    """
    usual: dict[str, Any] = {"decouple": True, "weight_decay": 0.01}
    if path == "prodigyopt.Prodigy":
        usual |= {"d_coef": 2.0, "use_bias_correction": True, "safeguard_warmup": True, "betas": [0.9, 0.99]}
    return {name: value for name, value in usual.items() if name in known}


HUBER = Recipe(
    "Huber defaults",
    {"noise.loss_type": "smooth_l1", "noise.huber_schedule": "snr", "noise.huber_c": 0.1},
    "Less sensitive to outliers among the images; fine detail appears a little later.",
)


def constant_or_warmup(job: TrainJob) -> list[Recipe]:
    """Return the two possible fixes for a constant scheduler with warmup steps; [] for other jobs."""
    schedule = job.schedule
    if schedule.lr_scheduler != "constant" or not schedule.lr_warmup_steps or schedule.lr_scheduler_type:
        return []
    return [
        Recipe(
            "Constant with warmup",
            {"schedule.lr_scheduler": "constant_with_warmup"},
            "The learning rate is warmed up first.",
        ),
        Recipe(
            "No warmup", {"schedule.lr_warmup_steps": 0}, "Full learning rate from the first step, as in sd-scripts."
        ),
    ]


def usual_rate(job: TrainJob) -> Recipe | None:
    """Return a recipe with the usual learning rate of the method and optimizer; None if the current one is not unusual."""
    unusual = next((each for each in unusual_rates(job) if each.where == "optimizer.learning_rate"), None)
    if unusual is None:
        return None
    start = unusual.usual.start / scale_factor(job, job.memory.num_processes)
    rate = float(short(start))
    return Recipe(
        f"Set {short(start)}", {"optimizer.learning_rate": rate}, "The usual value for this method and optimizer."
    )


def changes(job: Settings, recipe: Recipe) -> dict[str, Any]:
    """Return {dotted path: new value} of the settings that a recipe would change in this job; {} if already applied."""
    known = {entry.path for entry in declared(TrainJob)}
    assert set(recipe.settings) <= known, sorted(set(recipe.settings) - known)
    return {path: value for path, value in recipe.settings.items() if value_of(job, path) != value}
