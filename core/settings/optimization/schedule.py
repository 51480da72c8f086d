"""Settings of training length and learning rate scheduler."""

import math
import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator

from core.settings.base import SAME, SEED_RANGE, Seed, Settings, follows_compatibility, kohya_setting, setting
from core.settings.optimization.optimizers import Argument, Arguments

RISES = ("linear", "cosine", "1-sqrt")
# Extra scheduler arguments, which sd-scripts passes to transformers unchanged.
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
# Schedulers that fall to a minimum rate; the first two of sd-scripts, the others without compatibility.
MINIMUM = ("cosine_with_min_lr", "warmup_stable_decay")
FLOORED = ("cosine", "linear", "cosine_with_restarts", "polynomial", "inverse_sqrt", "rex")


def span(value: Any) -> int | float | str:
    """Normalize a number of steps (100), a fraction of the run (0.1) or a percentage ("10%"). Raises ValueError.

    A float of 1 or more is a number of steps, and refused if not whole: sd-scripts takes 100.0 for a hundred times the run.
    """
    wanted = "write steps (100), a fraction of the run below 1 (0.1) or a percentage (10%)"
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


Span = Annotated[int | float | str, BeforeValidator(span)]


class ScheduleSettings(Settings):
    """Training length, learning rate scheduler and seed."""

    max_train_epochs: int | None = kohya_setting(
        None,
        within=(1, 100000),
        title="Epochs",
        hint="suggested",
        first="length",
        brief="Empty uses the suggested length.",
        level="shown",
        unit="epochs",
        help="Number of times the dataset is trained. If epochs and steps are both empty, a length suggested for the number of images is used.",
    )
    max_train_steps: int | None = kohya_setting(
        None,
        within=(1, 10000000),
        title="Steps",
        first="length",
        brief="Used instead of epochs.",
        level="shown",
        unit="steps",
        help="Optimizer steps. If set, epochs are ignored; with compatibility, as in sd-scripts, epochs come first.",
    )
    gradient_accumulation_steps: int = kohya_setting(
        1,
        within=(1, 1024),
        unit="batches",
        help="Batches whose gradients are accumulated before each optimizer step: a large effective batch size with little memory.",
        recorded=SAME,
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
        "rex",
        "piecewise_constant",
        "adafactor",
    ] = kohya_setting(
        "constant",
        title="Learning rate scheduler",
        labels={
            "constant_with_warmup": "constant with warmup",
            "cosine_with_restarts": "cosine with restarts",
            "inverse_sqrt": "inverse square root",
            "cosine_with_min_lr": "cosine with min LR",
            "warmup_stable_decay": "warmup-stable-decay",
            "rex": "REX",
            "piecewise_constant": "piecewise constant",
            "adafactor": "AdaFactor",
        },
        source="REX: Chen et al. 2021, arXiv:2107.04197",
        help="How the learning rate changes over the run. Constant is a safe choice; cosine, linear and REX end at 0. REX stays high for longer and falls at the end.",
    )
    lr_warmup_steps: Span = kohya_setting(
        0,
        title="Warmup steps",
        unit="steps",
        widget="span",
        help="The learning rate rises from 0 over these steps: 100, or a fraction of the run, 0.1 or 10%.",
        recorded=SAME,
    )
    lr_decay_steps: Span = kohya_setting(
        0,
        title="Decay steps",
        unit="steps",
        widget="span",
        help="For warmup-stable-decay: the last steps, over which the learning rate falls: 100, 0.1 or 10%.",
    )
    lr_scheduler_num_cycles: float = kohya_setting(
        1,
        gt=0,
        le=10000,
        title="Scheduler cycles",
        help="Number of cycles of cosine with restarts; for cosine with min LR and warmup-stable-decay, number of half cosine waves.",
    )
    lr_scheduler_power: float = kohya_setting(
        1, gt=0, le=100, title="Scheduler power", help="For polynomial: 1 is linear, 2 falls faster at first."
    )
    lr_scheduler_timescale: int | None = kohya_setting(
        None,
        within=(1, 10000000),
        title="Scheduler timescale",
        unit="steps",
        help="For inverse square root: larger values fall later. Empty is the warmup steps, or 10000 without warmup.",
    )
    lr_scheduler_min_lr_ratio: float | None = kohya_setting(
        None,
        within=(0, 1),
        title="Min LR ratio",
        unit="of the learning rate",
        help="Where a scheduler that falls ends, as a fraction of the learning rate, such as 0.1. With sd-scripts compatibility, only of cosine with min LR and warmup-stable-decay.",
    )
    rex_d: float = setting(
        0.5,
        ge=0,
        lt=1,
        title="REX d",
        needs="lr_scheduler=rex",
        help="For REX: how long the learning rate stays high. 0 is linear, 0.5 is the paper's, 0.9 is OneTrainer's and falls late.",
    )
    lr_scheduler_type: str | None = kohya_setting(
        None,
        max_length=200,
        title="Custom torch scheduler",
        widget="line",
        help="A class of torch.optim.lr_scheduler, such as StepLR, instead of the scheduler above; its arguments go below. OneCycleLR and CyclicLR also change the momentum unless cycle_momentum=false.",
    )
    lr_scheduler_args: Arguments = kohya_setting(
        default_factory=dict,
        title="Scheduler arguments",
        widget="arguments",
        help="One name=value per line. Piecewise constant: step_rules=1:100,0.1:200,0.01 (factor 1 until step 100). Warmup-stable-decay: decay_type and warmup_type (linear, cosine, 1-sqrt). Polynomial: lr_end. Cosine with min LR: min_lr. Cosine: num_cycles=1 for whole waves. Or the arguments of the torch class.",
    )
    lr_scheduler_steps: int | None = setting(
        None,
        within=(1, 10000000),
        title="Scheduler steps",
        hint="the whole run",
        unit="steps",
        help="Length of the learning rate schedule, where it is not that of the run. A run that is trained longer keeps its earlier length here, so that the learning rate does not jump; a schedule is stretched over the new length otherwise.",
    )
    lr_scheduler_after: Literal["constant", "restart"] = setting(
        "constant",
        title="After the schedule",
        labels={"constant": "keep the last rate", "restart": "warm restart"},
        help="What follows the scheduler steps: the last learning rate, or the schedule once more over the remaining steps, with its warmup.",
    )
    lr_warmup_from_zero: bool = setting(
        True,
        title="Warmup from zero",
        help="The first step has learning rate 0 and changes nothing, as in sd-scripts. Off starts at 1/n of the learning rate for n warmup steps.",
    )
    compatibility: Literal["none", "kohya"] = follows_compatibility("none", "kohya")
    skip_non_finite: int = setting(
        0,
        within=(0, 100000),
        unit="steps",
        title="Max skipped steps (NaN/inf)",
        help="Skips steps whose loss or gradient is NaN or infinite, up to this many, and reports their images; the next one ends the run. 0 ends it at the first.",
    )
    seed: Seed = kohya_setting(
        None,
        within=SEED_RANGE,
        hint="random",
        help="The same seed and settings give the same result. Empty or -1 picks a random seed, which is saved with the run.",
    )

    @property
    def min_ratio(self) -> float:
        """Fraction of the learning rate at which a scheduler ends that otherwise falls to 0; 0 for other schedulers."""
        floored = self.lr_scheduler in FLOORED and self.compatibility != "kohya"
        return (self.lr_scheduler_min_lr_ratio or 0.0) if floored else 0.0

    @property
    def steps_in_force(self) -> int | None:
        """Number of steps if steps set the length of the training, None if epochs do. Steps take precedence over epochs; with sd-scripts'
        compatibility epochs do."""
        return None if self.compatibility == "kohya" and self.max_train_epochs else self.max_train_steps

    def summary(self) -> str:
        """Return scheduler, warmup, gradient accumulation and seed in one line."""
        warmup, batches = self.lr_warmup_steps, self.gradient_accumulation_steps
        parts = [self.label("lr_scheduler")]
        parts += [f"warmup {warmup}{' steps' if isinstance(warmup, int) else ''}"] if warmup else []
        parts += [f"{batches} batches per step"] if batches > 1 else []
        return ", ".join([*parts, f"seed {self.seed}" if self.seed is not None else "random seed"])


def steps_of(value: int | float | str, total: int) -> int:
    """Return the number of steps of a `span` in a run of `total` steps; fractions are rounded down."""
    if isinstance(value, str):
        return int(float(value.rstrip("%")) / 100 * total)
    return int(value * total) if isinstance(value, float) else value


def read_step_rules(rules: object) -> tuple[list[tuple[float, int]], float]:
    """Parse step rules: "1:10,0.1:20,0.005" -> ([(1, 10), (0.1, 20)], 0.005). Each factor applies before its step, the last one after all
    steps. Raises ValueError."""
    *parts, rest = str(rules).split(",")
    try:
        stages = [(float(factor), int(until)) for factor, until in (part.split(":") for part in parts)]
        last = float(rest)
    except ValueError:
        raise ValueError("each part is factor:step with a whole step, the last one a factor alone") from None
    if not all(map(math.isfinite, [*(factor for factor, _ in stages), last])):
        raise ValueError("a factor must be a finite number")
    if [until for _, until in stages] != sorted({until for _, until in stages}):
        raise ValueError("the steps must increase")
    return stages, last
