"""What is trained."""

from __future__ import annotations

from typing import Literal

from core.settings.base import Settings, setting


class MethodSettings(Settings):
    """The kind of training. The form reshapes itself by it."""

    kind: Literal["lora"] = setting(
        "lora",
        title="What to train",
        level="shown",
        labels={"lora": "LoRA"},
        help="A LoRA is a small file that adds a subject or a style to a model without changing the model itself.",
        source="Hu et al. 2021, arXiv:2106.09685",
    )
