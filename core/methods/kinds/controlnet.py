"""Registers the ControlNet (Zhang et al. 2023, arXiv:2302.05543), a net that is trained next to the frozen U-Net."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import lru_cache
from math import prod
from typing import TYPE_CHECKING, Any

from core import extensions
from core.families.locate import model_path
from core.settings.control import (
    CONTROLNET,
    CONTROLNET_START,
    ControlNetSettings,
    controlnet_of,
    debiased_as,
    kohya_unused,
)
from core.settings.methods import MethodSpec, Needs, Parts, Usual, register
from core.settings.optimization.optimizer import relative_steps

if TYPE_CHECKING:
    from core.methods import Method, MethodInputs
    from core.settings.job import TrainJob

RATE = f"{CONTROLNET}.control_net_lr"
RULES = "core.settings.rules.control"


def _make(inputs: MethodInputs) -> Method:
    """Return the training method; the initial ControlNet is located by name."""
    from core.methods.controlnet import ControlNetMethod

    start = controlnet_of(inputs.job).controlnet_model_name_or_path
    return ControlNetMethod(
        inputs.job, inputs.seed, model_path(start, inputs.workspace, CONTROLNET_START) if start else None
    )


def trained_numbers(job: TrainJob, family_name: str, parts: Parts) -> dict[str, int]:
    """Return {"unet": number of parameters of a ControlNet for this U-Net}. parts: of the base model; only "unet" is read"""
    shapes = trained_shapes(job, family_name, parts)
    return {"unet": sum(prod(shape) * count for shape, count in shapes.items())}


def trained_shapes(job: TrainJob, family_name: str, parts: Parts) -> Counter[tuple[int, ...]]:
    """Return {shape: number of tensors} of a ControlNet for this U-Net. parts: of the base model; only "unet" is read"""
    return _counted(json.dumps(dict(parts["unet"].config), default=str))


@lru_cache(maxsize=16)
def _counted(config: str) -> Counter[tuple[int, ...]]:
    """Return {shape: number of tensors} of a ControlNet. config: the U-Net's, as JSON"""
    from core.control.controlnet import controlnet_config, empty

    return Counter(tuple(weight.shape) for weight in empty(controlnet_config(json.loads(config))).parameters())


def _side(unet: Any, job: TrainJob) -> Any:
    """Return an empty ControlNet for this U-Net, for the memory forecast."""
    from core.control.controlnet import ControlNet, controlnet_config, empty

    return ControlNet(empty(controlnet_config(unet.config)))


def _rates(job: TrainJob) -> Mapping[str, tuple[float, str]]:
    """Return {"controlnet": (learning rate, setting's name)} by `control_net_lr`; {} if it is not set."""
    rate = controlnet_of(job).control_net_lr
    return {} if rate is None else {"controlnet": (rate, RATE)}


def control_images_needed(size: str) -> Needs:
    """Return (sentence about the images that the method needs, [[title, setting]]) for the page. size: of the saved file, as text"""
    text = "Each image needs a control image of the same name in the folder of control images, and a caption."
    return f"{text} The file is {size}.", [["Folder of control images", "dataset.conditioning_data_dir"]]


def unused(job: TrainJob) -> Iterator[tuple[str, str]]:
    """Yield (setting, reason) of settings without effect for methods with control images."""
    yield "method.prior", "ignored: the model is frozen, so the class is preserved anyway"
    yield "method.class_caption", "ignored: the model is frozen, so the class is preserved anyway"
    if relative_steps(job.optimizer):
        yield RATE, "ignored: AdaFactor sets the learning rate (relative_step)"
    yield from kohya_unused(job)


register(
    MethodSpec(
        name=CONTROLNET,
        title="ControlNet: follows control images",
        words="a ControlNet",
        changes="side model",
        make=_make,
        trains_unet=lambda job: True,
        trains_text=lambda job: False,
        trained_numbers=trained_numbers,
        trained_shapes=trained_shapes,
        usual={"unet": Usual(1e-6, 1e-5, 1e-4), "controlnet": Usual(1e-6, 1e-4, 1e-3)},  # Zhang et al.: 1e-5
        project="controlnet_train",
        saves="controlnet",
        logged={"unet": "lr", "controlnet": "lr/control_net"},
        group=CONTROLNET,
        settings=ControlNetSettings,
        rates=_rates,
        problems=extensions.later(RULES, "controlnet_problems"),
        file_problems=extensions.later("core.methods.controlnet", "file_problems"),
        unused=unused,
        debiased_as=debiased_as,
        needs=lambda job, family, size: control_images_needed("a third of the base model's size"),
        preserves_class=True,
        control_images=True,
        initial=CONTROLNET_START,
        side=_side,
    )
)
