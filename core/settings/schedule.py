"""How long training goes on, and how its rate changes."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import JsonValue, field_validator

from core.settings.base import Settings, setting
from core.settings.optimizers import Argument, parse_arguments

RISES = ("linear", "cosine", "1-sqrt")
# Further arguments of the curves, which sd-scripts hands on to transformers as they are.
ARGUMENTS: dict[str, tuple[Argument, ...]] = {
    "cosine": (Argument("num_cycles", "number", 0.5),),
    "polynomial": (Argument("lr_end", "number", 1e-7),),
    "cosine_with_min_lr": (Argument("min_lr", "number"),),
    "warmup_stable_decay": (
        Argument("warmup_type", "choice", "linear", choices=RISES),
        Argument("decay_type", "choice", "cosine", choices=RISES),
    ),
    "piecewise_constant": (Argument("step_rules"),),
}


class ScheduleSettings(Settings):
    """Length, learning-rate curve and the seed."""

    max_train_epochs: int | None = setting(
        None,
        ge=1,
        le=100000,
        title="Passes over each image",
        level="shown",
        unit="epochs",
        kohya="max_train_epochs",
        help="Epochs. Empty, with steps empty too, takes the advised length for the number of images.",
    )
    max_train_steps: int | None = setting(
        None,
        ge=1,
        le=10000000,
        title="Steps",
        level="shown",
        unit="steps",
        kohya="max_train_steps",
        help="Optimizer updates. When set, it decides and the passes are ignored.",
    )
    gradient_accumulation_steps: int = setting(
        1,
        ge=1,
        le=1024,
        title="Gradient accumulation",
        unit="batches",
        kohya="gradient_accumulation_steps",
        help="Batches whose gradients are added up before one update: a large batch in little memory.",
    )
    lr_scheduler: Literal[
        "constant",
        "constant_with_warmup",
        "cosine",
        "linear",
        "cosine_with_restarts",
        "polynomial",
        "inverse_sqrt",
        "cosine_with_min_lr",
        "warmup_stable_decay",
        "piecewise_constant",
        "adafactor",
    ] = setting(
        "constant",
        title="Trained-rate curve",
        kohya="lr_scheduler",
        labels={
            "constant": "constant",
            "constant_with_warmup": "constant with warm-up",
            "cosine": "cosine to 0",
            "linear": "linear to 0",
            "cosine_with_restarts": "cosine with restarts",
            "polynomial": "polynomial to 0",
            "inverse_sqrt": "inverse square root",
            "cosine_with_min_lr": "cosine to a lowest rate",
            "warmup_stable_decay": "constant, then decay",
            "piecewise_constant": "in steps",
            "adafactor": "AdaFactor's own",
        },
        help="How the rate changes over the run.",
    )
    lr_warmup_steps: int | float | str = setting(
        0,
        title="Warm-up",
        unit="steps",
        widget="span",
        kohya="lr_warmup_steps",
        help="The rate rises over these steps, from 0 to its full size: 100, or a part of the run, 0.1 or 10%.",
    )
    lr_decay_steps: int | float | str = setting(
        0,
        title="Decay",
        unit="steps",
        widget="span",
        kohya="lr_decay_steps",
        help="Last steps of 'constant, then decay', over which the rate falls: 100, 0.1 or 10%.",
    )
    lr_scheduler_num_cycles: float = setting(
        1,
        gt=0,
        le=10000,
        title="Cycles",
        kohya="lr_scheduler_num_cycles",
        help="How often 'cosine with restarts' starts; for 'cosine to a lowest rate' and 'constant, then decay', half waves down.",
    )
    lr_scheduler_power: float = setting(
        1,
        gt=0,
        le=100,
        title="Power",
        kohya="lr_scheduler_power",
        help="Of the polynomial: 1 is a straight line, 2 falls fast at first.",
    )
    lr_scheduler_timescale: int | None = setting(
        None,
        ge=1,
        le=10000000,
        title="Time scale",
        unit="steps",
        kohya="lr_scheduler_timescale",
        help="Of the inverse square root: a larger one falls later. Empty is the warm-up, or 10000 without one.",
    )
    lr_scheduler_min_lr_ratio: float | None = setting(
        None,
        ge=0,
        le=1,
        title="Lowest rate",
        unit="of the rate",
        kohya="lr_scheduler_min_lr_ratio",
        help="Where 'cosine to a lowest rate' and 'constant, then decay' end, as a part of the rate: 0.1.",
    )
    lr_scheduler_type: str | None = setting(
        None,
        max_length=200,
        title="Curve of torch",
        kohya="lr_scheduler_type",
        widget="line",
        help="A class of torch.optim.lr_scheduler, such as StepLR, instead of the curve above; its arguments stand below. OneCycleLR and CyclicLR also move the momentum, unless cycle_momentum=false.",
    )
    lr_scheduler_args: dict[str, JsonValue] = setting(
        default_factory=dict,
        title="Arguments of the curve",
        kohya="lr_scheduler_args",
        widget="arguments",
        help="One name=value a line: step_rules=1:100,0.1:200,0.01 for 'in steps' (rate 1 until step 100); decay_type=linear or 1-sqrt, and warmup_type, for 'constant, then decay'; lr_end, where the polynomial ends; min_lr instead of the lowest rate; num_cycles=1, whole waves, for 'cosine to 0'; or what torch's class takes.",
    )
    lr_warmup_from_zero: bool = setting(
        True,
        title="Warm-up starts at 0",
        help="As in sd-scripts: the first step has rate 0 and moves nothing. Off, the first step already has its share of the rise.",
    )
    compatibility: Literal["none", "kohya"] = setting(
        "none",
        title="Curve exactly as sd-scripts",
        labels={"none": "no", "kohya": "as sd-scripts"},
        help="Repeats old results: the polynomial ends at 1e-7 of the learning rate, not of each part's own, with several processes the warm-up is shorter by their number, and in fp16 it stands still at a step whose gradient overflowed.",
    )
    skip_non_finite: int = setting(
        0,
        ge=0,
        le=100000,
        unit="steps",
        title="Steps that may fail",
        help="A step whose loss or gradient is not a number moves nothing. This many are left out, each told with its images; the next one ends the run. 0 ends it at the first.",
    )
    seed: int | None = setting(
        None,
        ge=0,
        le=2**32 - 1,
        title="Seed",
        kohya="seed",
        help="The same seed and settings give the same result. Empty draws one and records it.",
    )

    @field_validator("lr_warmup_steps", "lr_decay_steps", mode="before")
    @classmethod
    def _span(cls, value: Any) -> Any:
        return span(value)

    @field_validator("lr_scheduler_args", mode="before")
    @classmethod
    def _from_words(cls, value: Any) -> Any:
        """sd-scripts' list of "name=value" words is taken too."""
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            return parse_arguments(value)
        return value


def span(value: Any) -> int | float | str:
    """Steps (100), a part of the run below 1 (0.1) or a percentage ("10%") in its plain form. Raises ValueError.

    A number with a point from 1 up is steps when it is whole, and refused when it is not: sd-scripts takes the 100.0 of a
    config file for a hundred times the run.
    """
    wanted = "write steps (100), a part of the run below 1 (0.1) or a percentage (10%)"
    if isinstance(value, str):
        text = value.strip()
        percent = re.fullmatch(r"(\d+(?:\.\d+)?)\s*%", text)
        if percent and float(percent[1]) <= 100:
            return f"{percent[1]}%"
        if re.fullmatch(r"\d+(?:\.\d*)?(?:[eE]-?\d+)?|\.\d+", text):
            return span(float(text)) if not text.isdigit() else span(int(text))
        raise ValueError(wanted)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 10_000_000:
        raise ValueError(wanted)
    if isinstance(value, float) and value >= 1:
        if not value.is_integer():
            raise ValueError(wanted)
        return int(value)
    return value if value else 0


def steps_of(value: int | float | str, total: int) -> int:
    """A span as steps of a run of `total` steps; a part of it is cut to whole steps."""
    if isinstance(value, str):
        return int(float(value.rstrip("%")) / 100 * total)
    return int(value * total) if isinstance(value, float) else value


def read_step_rules(rules: object) -> tuple[list[tuple[float, int]], float]:
    """ "1:10,0.1:20,0.005" -> ([(1, 10), (0.1, 20)], 0.005): a factor holds while the step is below its number, the last
    one from there on. Raises ValueError for anything else."""
    *parts, last = [part.strip() for part in str(rules).split(",")]
    found = []
    for part in parts:
        factor, sign, until = part.partition(":")
        if not sign:
            raise ValueError(f"'{part}' has not the form factor:step")
        found.append((float(factor), int(until)))
    if [until for _, until in found] != sorted({until for _, until in found}):
        raise ValueError("the steps must grow")
    return found, float(last)
