"""Settings of the optimizer and the learning rates."""

from typing import Annotated, Any, Literal

from pydantic import Field

from core.record.units import number_text
from core.settings.base import SAME, Settings, follows_compatibility, kohya_setting, setting
from core.settings.optimization.optimizers import ADAFACTOR, COMMON, Arguments, Entry, find

LORA_PLUS = ("loraplus_lr_ratio", "loraplus_unet_lr_ratio", "loraplus_text_encoder_lr_ratio")
Beta = Annotated[float, Field(ge=0, lt=1)]


class OptimizerSettings(Settings):
    """The optimizer and its learning rates."""

    optimizer_type: str = setting(
        "AdamW",
        max_length=200,
        title="Optimizer",
        level="shown",
        kohya="optimizer_type, use_8bit_adam, use_lion_optimizer",
        widget="optimizer",
        source="AdamW: Loshchilov and Hutter 2019, arXiv:1711.05101; 8 bits: Dettmers et al. 2022, arXiv:2110.02861",
        help="AdamW works for everything; AdamW8bit uses a quarter of its optimizer memory; Prodigy finds the learning rate automatically. A name from sd-scripts or torch, or a path such as pytorch_optimizer.CAME.",
    )
    learning_rate: float = kohya_setting(
        1e-4,
        first="step",
        brief="Optimizer step size.",
        level="shown",
        help="1e-4 for a LoRA of SD 1.5, 2e-6 for a full model, 5e-3 for an embedding. Too high damages the model, too low has no effect.",
    )
    unet_lr: float | None = kohya_setting(
        None,
        title="U-Net learning rate",
        hint="learning rate",
        section="Learning rates",
        help="Empty uses the learning rate; 0 freezes the U-Net.",
    )
    text_encoder_lr: float | tuple[float, float] | None = setting(
        None,
        title="Text encoder learning rate",
        hint="learning rate",
        kohya="text_encoder_lr, learning_rate_te, learning_rate_te1, learning_rate_te2",
        help="Empty uses the learning rate; half of it is usual. 0 freezes the text encoder. Two numbers are for SDXL's two text encoders.",
    )
    scale_lr: bool = kohya_setting(
        False,
        title="Scale learning rate",
        help="Multiplies every learning rate by batch size, gradient accumulation steps and number of processes. The summary shows the product.",
    )
    loraplus_lr_ratio: float | None = kohya_setting(
        None,
        gt=0,
        le=1000,
        title="LoRA+ LR ratio",
        hint="off",
        section="LoRA+",
        source="Hayou et al. 2024, arXiv:2402.12354",
        help="Multiplies the learning rate of the LoRA's up matrices. The paper suggests 16; blank: off.",
    )
    loraplus_unet_lr_ratio: float | None = kohya_setting(
        None, gt=0, le=1000, title="LoRA+ U-Net LR ratio", help="Replaces the LoRA+ LR ratio for the U-Net."
    )
    loraplus_text_encoder_lr_ratio: float | None = kohya_setting(
        None,
        gt=0,
        le=1000,
        title="LoRA+ text encoder LR ratio",
        help="Replaces the LoRA+ LR ratio for the text encoders.",
    )
    optimizer_args: Arguments = kohya_setting(
        default_factory=dict,
        title="Optimizer arguments",
        section="Optimizer",
        widget="arguments",
        help="Further arguments of the optimizer, one name=value per line, such as d_coef=2. Unknown names are reported.",
    )
    weight_decay: float | None = setting(
        None,
        within=(0, 10),
        hint="optimizer's default",
        kohya="optimizer_args",
        help="Pulls weights toward zero at every step. Empty is the optimizer's default: 0.01 for AdamW, 0 for most others.",
    )
    betas: tuple[Beta, Beta] | None = setting(
        None,
        hint="optimizer's default",
        kohya="optimizer_args",
        help="Decay rates of the moving averages of the gradients and their squares. Empty is the optimizer's default, mostly 0.9 and 0.999.",
    )
    eps: float | None = setting(
        None,
        gt=0,
        le=1,
        title="Epsilon",
        hint="optimizer's default",
        kohya="optimizer_args",
        help="Added to the denominator for numerical stability. Empty is the optimizer's default.",
    )
    max_grad_norm: float = kohya_setting(
        1.0,
        within=(0, 1e6),
        title="Max gradient norm",
        section="Gradients",
        help="Gradient clipping: limits the norm over all trained weights together. 1 is usual; 0 is off.",
        recorded=SAME,
    )
    compatibility: Literal["none", "kohya"] = follows_compatibility("none", "kohya")

    @property
    def clips_as_kohya(self) -> bool:
        """Whether the gradient norm for clipping covers the same weights as in sd-scripts."""
        return self.compatibility == "kohya" and self.max_grad_norm > 0

    # -- learning rates by part

    @property
    def unet_rate(self) -> float:
        """Learning rate of the U-Net, by default the main one."""
        return self.learning_rate if self.unet_lr is None else self.unet_lr

    @property
    def text_rates(self) -> tuple[float, float]:
        """Learning rates of the first and the second text encoder."""
        rate = self.learning_rate if self.text_encoder_lr is None else self.text_encoder_lr
        return rate if isinstance(rate, tuple) else (rate, rate)

    def rate_of(self, part: str) -> float:
        """Return the learning rate of "unet", "text_encoder" or "text_encoder_2"; other parts have the main learning rate."""
        if part == "unet":
            return self.unet_rate
        if part.startswith("text_encoder"):
            return self.text_rates[1 if part.endswith("2") else 0]
        return self.learning_rate

    def plus_ratio(self, part: str) -> float:
        """Return the LoRA+ ratio of a part: the learning rate multiplier of its up matrices, 1 if not set."""
        part_ratio = self.loraplus_unet_lr_ratio if part == "unet" else self.loraplus_text_encoder_lr_ratio
        return next((ratio for ratio in (part_ratio, self.loraplus_lr_ratio) if ratio is not None), 1.0)

    def summary(self) -> str:
        """Return the optimizer and the learning rates in one line."""
        rates, of_text = [("learning rate", self.learning_rate), ("U-Net", self.unet_lr)], self.text_encoder_lr
        numbers = of_text if isinstance(of_text, tuple) else (of_text,) if of_text is not None else ()
        parts = [f"{name} {number_text(rate)}" for name, rate in rates if rate is not None]
        parts += [f"text encoder {', '.join(map(number_text, numbers))}"] if numbers else []
        return ", ".join([self.label("optimizer_type"), *parts])


def job_arguments(settings: OptimizerSettings) -> dict[str, Any]:
    """Return {name: value} of the optimizer arguments that a job sets: optimizer_args, and settings of the same name (COMMON)."""
    common = {name: getattr(settings, name) for name in COMMON if getattr(settings, name) is not None}
    return {
        **{name: list(value) if isinstance(value, tuple) else value for name, value in common.items()},
        **settings.optimizer_args,
    }


def arguments_in_force(settings: OptimizerSettings, entry: Entry) -> dict[str, Any]:
    """Return {name: value} of the optimizer's arguments: those that its catalog entry implies, then the job's. Lists become tuples, as the
    libraries expect."""
    arguments = {**entry.implied, **job_arguments(settings)}
    return {name: tuple(value) if isinstance(value, list) else value for name, value in arguments.items()}


def optimizer_sentence(settings: OptimizerSettings) -> str:
    """Return the optimizer's class and arguments as in sd-scripts' metadata: "torch.optim.adamw.AdamW(eps=1e-06)"."""
    entry = find(settings.optimizer_type)
    name = settings.optimizer_type if entry is None else entry.definition or entry.path
    arguments = job_arguments(settings) if entry is None else arguments_in_force(settings, entry)
    pairs = ((key, tuple(value) if isinstance(value, list) else value) for key, value in arguments.items())
    return f"{name}({','.join(f'{key}={value}' for key, value in pairs)})"


def relative_steps(settings: OptimizerSettings) -> bool:
    """Return whether AdaFactor sets the learning rate itself (relative_step, its default); False for other optimizers."""
    entry = find(settings.optimizer_type)
    return entry is not None and entry.path == ADAFACTOR and bool(settings.optimizer_args.get("relative_step", True))
