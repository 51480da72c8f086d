"""The optimizers on offer and their parameter groups."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from core.record.problems import ProblemsError

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

    from core.settings.optimizer import OptimizerSettings

Group = dict[str, Any]  # "name", "params", "lr": what a torch optimizer takes


def parameter_groups(settings: OptimizerSettings, parts: Mapping[str, Sequence[nn.Parameter]]) -> list[Group]:
    """One group per part that learns, text encoder first as sd-scripts orders them; a rate of 0 leaves a part out.

    Parameters of a part left out stop asking for gradients, so nothing is computed for them and they do not count in
    the gradient's norm. They are still saved with the network.
    """
    own = {"text_encoder": settings.text_encoder_lr, "unet": settings.unet_lr}
    groups: list[Group] = []
    for part in ("text_encoder", "unet"):
        rate = own[part]
        lr = settings.learning_rate if rate is None else rate
        parameters = list(parts.get(part, ()))
        if lr != 0 and parameters:
            groups.append({"name": part, "params": parameters, "lr": lr})
        else:
            for parameter in parameters:
                parameter.requires_grad_(False)
    if not groups:
        raise ProblemsError.one(
            "Nothing would be trained: every part is off or has a learning rate of 0",
            "optimizer.learning_rate, unet_lr, text_encoder_lr",
            "switch on a part under Network and give it a learning rate above 0",
        )
    return groups


def build_optimizer(settings: OptimizerSettings, groups: Sequence[Group]) -> Optimizer:
    """The optimizer over these groups. Each group keeps its own rate in `initial_lr` for the learning-rate curve."""
    rates = [group["lr"] for group in groups]
    if not all(math.isfinite(rate) for rate in rates):
        raise ProblemsError.one(
            f"A learning rate is no number: {rates}", "optimizer", "give a finite rate, for example 1e-4"
        )
    with_initial = [{**group, "initial_lr": group["lr"]} for group in groups]
    return OPTIMIZERS[settings.optimizer_type](settings, with_initial)


def adamw(settings: OptimizerSettings, groups: Sequence[Group]) -> Optimizer:
    """torch's AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101) in its fused form, on the CPU too."""
    import torch

    return torch.optim.AdamW(
        groups,
        lr=settings.learning_rate,
        betas=settings.betas,
        eps=settings.eps,
        weight_decay=settings.weight_decay,
        fused=True,
    )


def adamw_8bit(settings: OptimizerSettings, groups: Sequence[Group]) -> Optimizer:
    """AdamW with its two moments in 8 bits, block by block (Dettmers et al. 2022, arXiv:2110.02861). Tensors of fewer
    than 4096 elements keep 32 bits, as sd-scripts has it (the library's default)."""
    try:
        from bitsandbytes.optim.adamw import AdamW8bit
    except (
        Exception
    ) as error:  # a library without a build for this machine fails in many ways: ImportError, OSError, RuntimeError
        raise ProblemsError.one(
            f"The 8-bit AdamW needs bitsandbytes, which does not work here ({type(error).__name__}: {error})",
            "optimizer.optimizer_type",
            "choose AdamW, or install bitsandbytes for this machine",
        ) from error
    optimizer: Optimizer = AdamW8bit(  # type: ignore[no-untyped-call]
        groups, lr=settings.learning_rate, betas=settings.betas, eps=settings.eps, weight_decay=settings.weight_decay
    )
    return optimizer


OPTIMIZERS: dict[str, Callable[[OptimizerSettings, Sequence[Group]], Optimizer]] = {
    "AdamW": adamw,
    "AdamW8bit": adamw_8bit,
}
