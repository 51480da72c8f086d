"""Write a loaded model, trained or merged, as a file or folder that other programs read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from core.families import family
from core.families.components import Components
from core.families.layout import Layout
from core.formats.models.whole_model import Form, ModelFacts, form_of, write_model
from core.record.problems import Problem

State = Mapping[str, torch.Tensor]


def modules_of(components: Components, layout: Layout) -> dict[str, Any]:
    """The loaded parts: "vae", "text_encoder", "text_encoder_2" ..., and "unet", as sd-scripts calls the denoiser of every
    family where it trains (`unet_lr`, `lora_unet`)."""
    found = {"unet": components.denoiser, "vae": components.vae}
    found |= dict(zip(layout.text_encoders, components.text_encoders, strict=False))
    return {name: module for name, module in found.items() if module is not None}


def save_model(
    components: Components,
    target: Path | str,
    trained: Iterable[str],
    *,
    form: Form | None = None,
    states: Mapping[str, State] | None = None,
    vae: Path | str | None = None,
    dtype: torch.dtype | None = None,
    facts: ModelFacts | None = None,
    kohya_projection: bool = False,
) -> list[Problem]:
    """Write the model with the parts that trained; the others are copied from the model it was loaded from.

    trained  names of parts whose weights in memory are written        states  weights to write in place of theirs (averages)
    form     None: that of the source
    See core.formats.models.whole_model.write_model for the rest, which also returns the advice.
    """
    layout = family(components.family).layout
    modules = modules_of(components, layout)
    parts: dict[str, State] = {name: modules[name].state_dict() for name in trained} | dict(states or {})
    assert components.source is not None or form is not None, "a model from nowhere has no form of its own"
    return write_model(
        target,
        {layout.denoiser if name == "unet" else name: state for name, state in parts.items()},
        family=components.family,
        form=form or form_of(components.source or target),
        published=layout.published,
        source=components.source,
        vae=vae,
        dtype=dtype,
        facts=facts or ModelFacts(prediction=components.prediction),
        kohya_projection=kohya_projection,
    )
