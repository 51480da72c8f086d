"""Writes a loaded model, trained or merged, as a file or folder that other programs read."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from core.families import family
from core.families.components import Components
from core.families.layout import Layout
from core.formats.models.whole_model import Form, ModelFacts, form_of, write_model
from core.record.problems import Problem


def modules_of(components: Components, layout: Layout) -> dict[str, Any]:
    """Return {name: module} of the loaded parts: "vae", "text_encoder", "text_encoder_2" and "unet".

    The denoiser of every family is named "unet", as in sd-scripts' names for training (`unet_lr`, `lora_unet`).
    """
    modules = {"unet": components.denoiser, "vae": components.vae}
    modules |= dict(zip(layout.text_encoders, components.text_encoders, strict=False))
    return {name: module for name, module in modules.items() if module is not None}


def save_model(
    components: Components,
    target: Path | str,
    trained: Iterable[str],
    *,
    form: Form | None = None,
    vae: Path | str | None = None,
    dtype: torch.dtype | None = None,
    facts: ModelFacts | None = None,
    kohya_projection: bool = False,
) -> list[Problem]:
    """Write the model with its trained parts; the others are copied from the file or folder it was loaded from.

    trained  names of the parts to write from memory, as in `modules_of`
    form     format of the output; None: that of the source
    Other arguments and the returned advice: see core.formats.models.whole_model.write_model.
    """
    layout = family(components.family).layout
    modules = modules_of(components, layout)
    assert components.source is not None or form is not None, "a model from nowhere has no form of its own"
    return write_model(
        target,
        {layout.denoiser if name == "unet" else name: modules[name].state_dict() for name in trained},
        family=components.family,
        form=form or form_of(components.source or target),
        published=layout.published,
        source=components.source,
        vae=vae,
        dtype=dtype,
        facts=facts or ModelFacts(prediction=components.prediction),
        kohya_projection=kohya_projection,
    )
