"""Registers LoRA (Hu et al. 2021, arXiv:2106.09685) and related networks, which are trained on the frozen model."""

from __future__ import annotations

import json
from collections import Counter
from functools import lru_cache
from math import prod
from typing import TYPE_CHECKING

from core import extensions
from core.networks.kinds import settings_as_text, settings_from_text
from core.settings.methods import MethodSpec, Parts, Usual, register

if TYPE_CHECKING:
    from core.methods import Method, MethodInputs
    from core.settings.job import TrainJob


def _make(inputs: MethodInputs) -> Method:
    """Return the training method for the inputs."""
    from core.methods.network import NetworkMethod

    return NetworkMethod(inputs.job, inputs.seed, inputs.files)


def trained_numbers(job: TrainJob, family_name: str, parts: Parts) -> dict[str, int]:
    """Return {part: number of trained parameters}, counted on a network over a model on the "meta" device.
    parts: {"unet", "text_encoder" ...: sizes of the base model's part}"""
    by_part = _shapes(job, family_name, parts)
    return {part: sum(prod(shape) * count for shape, count in shapes.items()) for part, shapes in by_part.items()}


def trained_shapes(job: TrainJob, family_name: str, parts: Parts) -> Counter[tuple[int, ...]]:
    """Return {shape: number of trained tensors}. parts: as in `trained_numbers`"""
    return sum(_shapes(job, family_name, parts).values(), Counter())


def _shapes(job: TrainJob, family_name: str, parts: Parts) -> dict[str, Counter[tuple[int, ...]]]:
    """Return {part: {shape: number of trained tensors}}. parts: as in `trained_numbers`"""
    configs = tuple((name, json.dumps(part.config, default=str)) for name, part in parts.items() if name != "vae")
    return _counted(family_name, settings_as_text(job), configs)


@lru_cache(maxsize=64)
def _counted(
    family_name: str, settings: str, configs: tuple[tuple[str, str], ...]
) -> dict[str, Counter[tuple[int, ...]]]:
    """Return {part: {shape: number of trained tensors}}.

    settings   of the network, as text from `described`
    configs    (part, its config as JSON)
    """
    from core.networks.layers import meta_targets
    from core.networks.network import Network

    network, kind_settings = settings_from_text(settings)
    models = {name: json.loads(config) for name, config in configs}
    targets = meta_targets(family_name, models, norms=network.train_norm)
    by_part = Network.create(targets, network, 0, kind_settings=kind_settings).parameters_by_part()
    return {part: Counter(tuple(weight.shape) for weight in weights) for part, weights in by_part.items()}


register(
    MethodSpec(
        name="lora",
        title="LoRA: small adapter file",
        words="a LoRA",
        changes="network",
        make=_make,
        trains_unet=lambda job: job.network.train_unet,
        trains_text=lambda job: job.network.train_text_encoder,
        trained_numbers=trained_numbers,
        trained_shapes=trained_shapes,
        # sd-scripts' documents (1e-4 to 1e-3) and its presets
        usual={"unet": Usual(3e-5, 1e-4, 1e-3), "text_encoder": Usual(1e-5, 5e-5, 1e-3)},
        project="network_train",
        saves="lora",
        losses_logged=("loss/current", "loss/epoch_average"),
        logged={"text_encoder": "lr/textencoder", "text_encoder_2": "lr/textencoder2"},
        group="network",
        file_problems=extensions.later("core.training.building.network_files", "network_problems"),
    )
)
