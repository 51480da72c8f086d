"""Parameter groups of an optimizer: weights and their learning rates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from core.record.lazy_torch import nn
from core.record.problems import ProblemsError

if TYPE_CHECKING:
    from core.settings.optimization.optimizer import OptimizerSettings

Group = dict[str, Any]  # "name", "params", "lr", as for a torch optimizer
ORDER = ("text_encoder", "text_encoder_2", "unet")  # sd-scripts' order; other parts follow


@dataclass(frozen=True)
class Trainable:
    """Weights that share a learning rate.

    part        "unet", "text_encoder", "text_encoder_2", or a part of a method, which has the general learning rate
    parameters  the weights
    role        "plus" for LoRA+'s higher rate; else "plain"
    name        of the group in logs; "": the name of the part
    factor      multiplies the part's rate (block-wise rates)
    rate        replaces the part's rate and factor (block_lr of full training); None keeps them
    """

    part: str
    parameters: Sequence[nn.Parameter]
    role: str = "plain"
    name: str = ""
    factor: float = 1.0
    rate: float | None = None


def parameter_groups(
    settings: OptimizerSettings,
    parts: Mapping[str, Sequence[nn.Parameter]] | Sequence[Trainable],
    scale: float = 1.0,
) -> list[Group]:
    """Return one optimizer group for all weights of a name and rate, text encoders first. Raises ProblemsError if no weights are left.

    Weights with a rate of 0 are excluded and get requires_grad False, so no gradient is computed and they do not count in the gradient
    norm. They are still saved with the network.

    parts   {part: weights}, or Trainables if a part has several rates
    scale   factor of every rate (scale_lr)
    """
    trainables = (
        [Trainable(part, weights) for part, weights in parts.items()] if isinstance(parts, Mapping) else list(parts)
    )
    groups: dict[str, Group] = {}
    for trainable in sorted(trainables, key=lambda each: ORDER.index(each.part) if each.part in ORDER else len(ORDER)):
        rate = rate_of(settings, trainable) * scale
        if rate == 0:
            for parameter in trainable.parameters:
                parameter.requires_grad_(False)
        elif trainable.parameters:
            name = trainable.name or trainable.part
            name += " plus" if trainable.role == "plus" and settings.plus_ratio(trainable.part) != 1 else ""
            group = groups.setdefault(name, {"name": name, "params": [], "lr": rate})
            if group["lr"] != rate:
                raise ValueError(f"the group {name} has two rates, {group['lr']} and {rate}")
            group["params"].extend(trainable.parameters)
    if not groups:
        what = "No part is trained: each is off or has a learning rate of 0"
        where = "optimizer.learning_rate, unet_lr, text_encoder_lr"
        fix = "turn on a part and set its learning rate above 0"
        raise ProblemsError.one(what, where, fix, "training.nothing-to-train")
    return list(groups.values())


def weights_of(groups: Sequence[Group]) -> list[Any]:
    """Return the weights of all groups, in order."""
    return [weight for group in groups for weight in group["params"]]


def rate_of(settings: OptimizerSettings, trainable: Trainable) -> float:
    """Return the learning rate of weights, before scale_lr and the schedule."""
    rate = settings.rate_of(trainable.part) * trainable.factor if trainable.rate is None else trainable.rate
    return rate * settings.plus_ratio(trainable.part) if trainable.role == "plus" else rate
