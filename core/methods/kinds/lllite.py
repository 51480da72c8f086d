"""Registers ControlNet-LLLite (kohya-ss): small networks in the frozen U-Net's attention layers, trained to follow control images."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from core import extensions
from core.families import family
from core.families.locate import model_path
from core.methods.kinds.controlnet import control_images_needed, unused
from core.settings.control import LLLITE, LLLITE_START, LLLiteSettings, lllite_of
from core.settings.methods import MethodSpec, Parts, Usual, register

if TYPE_CHECKING:
    from core.methods import Method, MethodInputs
    from core.settings.job import TrainJob

RULES = "core.settings.rules.control"


def _make(inputs: MethodInputs) -> Method:
    """Return the training method; the initial LLLite is located by name."""
    from core.methods.lllite import LLLiteMethod

    start = lllite_of(inputs.job).weights
    return LLLiteMethod(inputs.job, inputs.seed, model_path(start, inputs.workspace, LLLITE_START) if start else None)


def trained_numbers(job: TrainJob, family_name: str, parts: Parts) -> dict[str, int]:
    """Return {"unet": number of parameters of the LLLite} for the dimensions of the settings.
    parts: of the base model; only "unet" is read"""
    config = json.dumps(dict(parts["unet"].config), default=str)
    return {"unet": _counted(family_name, config, lllite_of(job).cond_emb_dim, lllite_of(job).hidden_dim)}


@lru_cache(maxsize=16)
def _counted(family_name: str, config: str, cond_emb_dim: int, network_dim: int) -> int:
    """Return the number of an LLLite's parameters. config: the U-Net's, as JSON"""
    from core.control.lllite import empty, lllite_targets

    unet = family(family_name).make_empty("unet", json.loads(config))
    net = empty(lllite_targets(unet, family_name), cond_emb_dim, network_dim)
    return sum(weight.numel() for weight in net.parameters())


def _side(unet: Any, job: TrainJob) -> Any:
    """Return an LLLite on the "meta" device in this U-Net, for the memory forecast."""
    from core.methods.lllite import attached_lllite

    return attached_lllite(unet, lllite_of(job))


def _unused(job: TrainJob) -> Iterator[tuple[str, str]]:
    """Yield (setting, reason) of settings without effect."""
    yield from unused(job)
    if lllite_of(job).weights:
        for name in ("cond_emb_dim", "hidden_dim", "zero_bias"):
            yield f"{LLLITE}.{name}", "ignored: training continues a file"


register(
    MethodSpec(
        name=LLLITE,
        title="ControlNet-LLLite: small control file",
        words="a ControlNet-LLLite",
        changes="inner network",
        make=_make,
        trains_unet=lambda job: True,
        trains_text=lambda job: False,
        trained_numbers=trained_numbers,
        usual={"unet": Usual(1e-5, 2e-4, 1e-3)},  # sd-scripts' document: 2e-4
        project="lllite_control_net_train",
        saves="lllite",
        logged={"unet": "lr"},
        group=LLLITE,
        settings=LLLiteSettings,
        problems=extensions.later(RULES, "lllite_problems"),
        file_problems=extensions.later("core.methods.lllite", "file_problems"),
        unused=_unused,
        needs=lambda job, family, size: control_images_needed("about 50 MB for SDXL"),
        preserves_class=True,
        control_images=True,
        initial=LLLITE_START,
        side=_side,
    )
)
