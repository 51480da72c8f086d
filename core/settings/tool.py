"""Small jobs on files."""

from __future__ import annotations

from typing import Literal

from core.settings.base import Settings, setting


class ToolSettings(Settings):
    """Which tool, and on what."""

    name: Literal["inspect", "export_diffusers", "download"] = setting(
        "inspect",
        title="Tool",
        level="shown",
        labels={
            "inspect": "Inspect a file",
            "export_diffusers": "Export a LoRA for diffusers",
            "download": "Download a model",
        },
        help="inspect says what a model file is and shows its metadata; export_diffusers writes a LoRA in diffusers' form; download fetches a model into models/.",
    )
    file: str | None = setting(None, title="File", level="shown", help="The file to read.", names="path or name")
    output: str | None = setting(
        None,
        title="Output",
        level="shown",
        help="Where export_diffusers writes. Empty is beside the file.",
        names="path",
    )
    hub_id: str | None = setting(
        None,
        title="Model to download",
        level="shown",
        help="sd15, sd21, sdxl, sdxl-vae, a hub id (owner/name or owner/name/file.safetensors), or the https link of a model file.",
        names="download",
    )
