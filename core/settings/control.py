"""Settings of training a ControlNet next to a frozen U-Net, or a ControlNet-LLLite in it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from core.settings.base import Settings, kohya_setting, setting

if TYPE_CHECKING:  # methods register at the end of core.settings.job
    from core.settings.job import TrainJob

CONTROLNET, LLLITE = "controlnet", "lllite"  # the methods, and their groups
CONTROLNET_START = f"{CONTROLNET}.controlnet_model_name_or_path"
LLLITE_START = f"{LLLITE}.weights"
KOHYA = ("sd1", "sd2")  # families that sd-scripts trains a ControlNet for in a way of its own
IGNORED = "ignored: sd-scripts' training of {} does not use it"
KOHYA_UNUSED = (  # noise settings that sd-scripts' training for SD 1.x and 2.x does not read (reference: controlnet, 3.2)
    "min_timestep",
    "max_timestep",
    "zero_terminal_snr",
    "ip_noise_gamma",
    "ip_noise_gamma_random_strength",
    "noise_offset_random_strength",
    "scale_v_pred_loss_like_noise_pred",
    "v_pred_like_loss",
    "debiased_estimation_loss",
)


class ControlNetSettings(Settings):
    """A ControlNet next to the frozen U-Net."""

    controlnet_model_name_or_path: str | None = kohya_setting(
        None,
        title="Initial ControlNet",
        hint="copied from the U-Net",
        widget="file",
        names="path or name",
        holds="controlnet",
        source="Zhang et al. 2023, arXiv:2302.05543",
        help="A ControlNet to continue training from: a file of any program, or a diffusers folder. Empty starts with a copy of the base model's encoder.",
    )
    control_net_lr: float | None = kohya_setting(
        None,
        gt=0,
        title="Control learning rate",
        hint="the learning rate",
        help="For the layers that the U-Net does not have: the hint embedding and the zero convolutions. They start from zero, and 1e-4 is usual; the copied encoder then trains at the learning rate, such as 1e-5.",
    )

    def summary(self) -> str:
        """Return where the ControlNet starts from, and its learning rate, in one line."""
        start = "from a file" if self.controlnet_model_name_or_path else "from the U-Net"
        return start + (f", control learning rate {self.control_net_lr:g}" if self.control_net_lr else "")


class LLLiteSettings(Settings):
    """A ControlNet-LLLite in the attention layers of the frozen U-Net."""

    cond_emb_dim: int = kohya_setting(
        32,
        within=(2, 1024),
        multiple_of=2,
        title="Embedding dimension",
        source="kohya-ss, ControlNet-LLLite",
        help="Size of each token that the control image becomes, an even number. 32 is usual; half is enough for simple control images such as depth.",
    )
    hidden_dim: int = setting(
        64,
        within=(1, 4096),
        title="Hidden dimension",
        kohya="network_dim",
        help="Size of the hidden layers in each module. 64 is usual; half is enough for simple control images such as depth.",
    )
    dropout: float = setting(
        0.0,
        ge=0,
        lt=1,
        hint="off",
        kohya="network_dropout",
        help="Dropout on the hidden layer of each module. 0.1 to 0.3 reduces overfitting.",
    )
    weights: str | None = setting(
        None,
        title="Initial LLLite",
        kohya="network_weights",
        hint="none",
        widget="file",
        names="path or name",
        holds="controlnet_lllite",
        help="A ControlNet-LLLite file to continue training from. Its dimensions replace those above.",
    )
    zero_bias: bool = setting(
        True,
        title="Zero initial bias",
        help="A new LLLite then leaves the model unchanged until its first step. Off gives the output a random bias as sd-scripts does, which shifts what each attention layer reads.",
    )

    def summary(self) -> str:
        """Return where the ControlNet-LLLite starts from, or its dimensions."""
        if self.weights:
            return "from a file"
        return f"dimensions {self.cond_emb_dim} and {self.hidden_dim}"


def trains_as_kohya(job: TrainJob, family: str) -> bool:
    """Return whether a ControlNet of this family is trained as in sd-scripts' separate script for SD 1.x and 2.x."""
    return job.model.compatibility != "none" and family in KOHYA


def debiased_as(job: TrainJob) -> str:
    """Return the prediction type that debiased estimation assumes; "" for the model's own.

    sd-scripts' training of an SDXL ControlNet assumes epsilon also for v-prediction (reference: controlnet, 3.2).
    """
    return "epsilon" if job.model.compatibility != "none" and job.model.family == "sdxl" else ""


def kohya_unused(job: TrainJob) -> Iterator[tuple[str, str]]:
    """Yield (dotted path, reason) for settings that sd-scripts' training of a ControlNet ignores, if its compatibility is on."""
    if trains_as_kohya(job, job.model.family):
        names = [*KOHYA_UNUSED, *(("multires_noise_iterations",) if job.noise.noise_offset else ())]
        yield from ((f"noise.{name}", IGNORED.format("ControlNets for SD 1.x and 2.x")) for name in names)
    if job.model.compatibility != "none":
        yield "captions.weighted_captions", IGNORED.format("ControlNets")


def controlnet_of(job: TrainJob) -> ControlNetSettings:
    """Return the job's ControlNet settings, whose group is added when the method registers."""
    settings: ControlNetSettings = getattr(job, CONTROLNET)
    return settings


def lllite_of(job: TrainJob) -> LLLiteSettings:
    """Return the job's ControlNet-LLLite settings, whose group is added when the method registers."""
    settings: LLLiteSettings = getattr(job, LLLITE)
    return settings
