"""File tools."""

from __future__ import annotations

from typing import Literal

from core.settings.base import Settings, setting


class ToolSettings(Settings):
    """Inspect, export or download a model file."""

    name: Literal["inspect", "export_diffusers", "download"] = setting(
        "inspect",
        title="Tool",
        level="shown",
        labels={
            "inspect": "Inspect a file",
            "export_diffusers": "Export a LoRA for diffusers",
            "download": "Download a model",
        },
        help="inspect shows the type and metadata of a model file; export_diffusers saves a LoRA in diffusers format; download fetches a model into models/.",
    )
    file: str | None = setting(None, title="File", level="shown", help="The file to read.", names="path or name")
    output: str | None = setting(
        None,
        title="Output",
        level="shown",
        help="Where export_diffusers saves. Empty is beside the file.",
        names="path",
    )
    hub_id: str | None = setting(
        None,
        title="Model to download",
        level="shown",
        help="sd15, sd21, sdxl, sdxl-vae, a Hugging Face id (owner/name or owner/name/file.safetensors), or the https link of a model file.",
        names="download",
    )
