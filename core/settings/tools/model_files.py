"""Settings of the tools for model files."""

from __future__ import annotations

from core.settings.base import Settings, setting


class InspectSettings(Settings):
    """Shows the type, metadata, hashes and damage of a model file."""

    file: str | None = setting(None, level="shown", help="A LoRA, a checkpoint or a folder.", names="path or name")


class ExportSettings(Settings):
    """Saves a LoRA as a copy that diffusers and PEFT load correctly whatever its alphas are."""

    file: str | None = setting(None, title="LoRA", level="shown", help="The LoRA to export.", names="path or name")
    output: str | None = setting(
        None, level="shown", help="Where the copy is saved. Empty is beside the file.", names="path"
    )


class DownloadSettings(Settings):
    """Downloads a model into the models folder. An interrupted download resumes where it stopped."""

    hub_id: str | None = setting(
        None,
        title="Model to download",
        level="shown",
        help="A name from Get a model (sdxl, illustrious, noobai, pony ...), a Hugging Face id (owner/name or owner/name/file.safetensors), or the https link of a model file.",
        names="download",
    )
