"""Whether CLIP's names start with `text_model.`: decided here only.

transformers 5.6 and later build `CLIPTextModel` without that prefix, while `CLIPTextModelWithProjection`, older
folders, single-file checkpoints and kohya's LoRA names have it.
"""

import re
from collections.abc import Mapping
from typing import Any

PREFIX = "text_model."
LAYER = re.compile(r"(?:^|\.)layers\.([0-9]{1,6})\.")


def full_name(name: str) -> str:
    """The name with the prefix, as in files and LoRA names."""
    return name if name.startswith((PREFIX, "text_projection.")) or name == "text_projection" else PREFIX + name


def bare_name(name: str) -> str:
    """The name without the prefix."""
    return name.removeprefix(PREFIX)


def layer_index(name: str) -> int:
    """Index of the layer that a tensor belongs to: `encoder.layers.7.mlp.fc1.bias` -> 7; -1 outside of the layers."""
    match = LAYER.search(name)
    return int(match[1]) if match else -1


def name_for(model: Any, name: str) -> str:
    """The name in this CLIP model, for any class and version."""
    return full_name(name) if hasattr(model, "text_model") else bare_name(name)


def state_for(model: Any, state: Mapping[str, Any]) -> dict[str, Any]:
    """A state dict with the names of this model."""
    return {name_for(model, name): value for name, value in state.items()}
