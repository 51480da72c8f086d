"""Fields that several tools have: the model files they read, the file they write."""

from typing import Any, Literal

from core.settings.base import setting

Precision = Literal["fp32", "fp16", "bf16"]
ANY_MODEL = "lora, checkpoint, embedding, controlnet, controlnet_lllite, vae, upscaler"


def model_file(help: str, holds: str = ANY_MODEL, **about: Any) -> Any:
    """A model file, by its path or its name. holds: its kinds."""
    return setting(None, level="shown", names="path or name", holds=holds, help=help, **about)


def model_files(help: str, holds: str, **about: Any) -> Any:
    """Several, one per line."""
    return setting(default_factory=list, level="shown", names="path or name", holds=holds, help=help, **about)


def output_file(help: str, **about: Any) -> Any:
    """Where the result is written."""
    return setting(None, level="shown", names="path", help=help, **about)
