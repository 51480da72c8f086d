"""Settings of the tools for model files."""

from __future__ import annotations

from typing import Literal

from core.settings.base import Settings, setting


class InspectSettings(Settings):
    """Shows the type, metadata, hashes and damage of a model file."""

    file: str | None = setting(
        None,
        level="shown",
        help="A LoRA, a checkpoint or a folder.",
        names="path or name",
        holds="lora, checkpoint, embedding, vae, upscaler",
    )


class ConvertLoraSettings(Settings):
    """Saves a LoRA, or each LoRA of a folder, as a copy with the names of another program."""

    file: str | None = setting(
        None,
        title="LoRA or folder",
        level="shown",
        help="A LoRA of any program, or a folder: then every LoRA in it and below.",
        names="path or name",
        holds="lora",
    )
    names: Literal["kohya", "diffusers", "diffusers_folded"] = setting(
        "kohya",
        level="shown",
        labels={
            "kohya": "kohya",
            "diffusers": "diffusers (PEFT)",
            "diffusers_folded": "diffusers, folded alpha",
        },
        help="Names of the tensors in the copy: kohya's for A1111, Forge, ComfyUI and sd-scripts. diffusers (PEFT) keeps the weights as they are, with ranks and alphas in the metadata, so that the way back gives the same bits. A folded alpha is multiplied into the weights, for programs that read no metadata.",
    )
    save_precision: Literal["fp32", "fp16", "bf16"] | None = setting(
        None, level="shown", hint="unchanged", help="Dtype of the weights in the copy. Empty keeps the file's."
    )
    output: str | None = setting(
        None, level="shown", help="A file or folder for the copies. Empty is next to each file.", names="path"
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
