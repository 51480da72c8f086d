"""The one place that knows whether CLIP's names begin with `text_model.`.

transformers 5.6 and later build `CLIPTextModel` without that level, while `CLIPTextModelWithProjection`, older folders,
single-file checkpoints and LoRA names of kohya tools keep it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

PREFIX = "text_model."


def full_name(name: str) -> str:
    """The name with the level, as files and LoRA names have it."""
    return name if name.startswith((PREFIX, "text_projection.")) else PREFIX + name


def bare_name(name: str) -> str:
    """The name without the level."""
    return name.removeprefix(PREFIX)


def name_for(model: Any, name: str) -> str:
    """The name as this CLIP model, of whichever class and version, has it."""
    return full_name(name) if hasattr(model, "text_model") else bare_name(name)


def state_for(model: Any, state: Mapping[str, Any]) -> dict[str, Any]:
    """A state dict under the names of this model."""
    return {name_for(model, name): value for name, value in state.items()}
