"""Settings that several tools declare: the model files they read, the file they write."""

from typing import Any, Literal

from core.settings.base import setting

Precision = Literal["fp32", "fp16", "bf16"]
ANY_MODEL = "lora, checkpoint, embedding, controlnet, controlnet_lllite, vae, upscaler"


def model_file(help: str, holds: str = ANY_MODEL, **about: Any) -> Any:
    """Declare a setting that names a model file, by path or name. holds: accepted kinds, comma-separated"""
    return setting(None, level="shown", names="path or name", holds=holds, help=help, **about)


def model_files(help: str, holds: str, **about: Any) -> Any:
    """Declare a setting that names several model files, one per line. holds: accepted kinds, comma-separated"""
    return setting(default_factory=list, level="shown", names="path or name", holds=holds, help=help, **about)


def output_file(help: str, **about: Any) -> Any:
    """Declare the setting for the path that a tool writes to."""
    return setting(None, level="shown", names="path", help=help, **about)


def output_folder(help: str, **about: Any) -> Any:
    """Declare the setting for the folder that a tool writes its files to."""
    return output_file(help, title="Output folder", widget="folder", **about)
