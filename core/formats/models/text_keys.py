"""Adds or removes the prefix "text_model." of CLIP's tensor names; only this file decides who has it.

transformers 5.6 and later build `CLIPTextModel` without the prefix; `CLIPTextModelWithProjection`, older folders, single files and
kohya's LoRA names have it.
"""

import re
from collections.abc import Mapping
from typing import Any

PREFIX = "text_model."
LAYER = re.compile(r"(?:^|\.)layers\.([0-9]{1,6})\.")


def full_name(name: str) -> str:
    """Return the name with "text_model.", as in files and LoRA names; `text_projection` never gets it."""
    return name if name.startswith((PREFIX, "text_projection.")) or name == "text_projection" else PREFIX + name


def bare_name(name: str) -> str:
    """Return the name without "text_model."."""
    return name.removeprefix(PREFIX)


def layer_index(name: str) -> int:
    """Return the index of the layer that a tensor belongs to, -1 outside of the layers: "encoder.layers.7.mlp.fc1.bias" -> 7."""
    match = LAYER.search(name)
    return int(match[1]) if match else -1


def name_for(model: Any, name: str) -> str:
    """Return the name of a tensor in this CLIP model, with or without "text_model." depending on its class and version."""
    return full_name(name) if hasattr(model, "text_model") else bare_name(name)


def state_for(model: Any, state: Mapping[str, Any]) -> dict[str, Any]:
    """Return the state dict with the names of this CLIP model."""
    return {name_for(model, name): value for name, value in state.items()}
