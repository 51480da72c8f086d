"""Settings of the tools for model files."""

from typing import Literal

from core.settings.base import Settings, setting
from core.settings.tools.fields import Precision, model_file, output_file


class InspectSettings(Settings):
    """Shows the type, metadata, hashes and damage of a model file."""

    file: str | None = model_file("A LoRA, a checkpoint or a folder.")


class ConvertLoraSettings(Settings):
    """Saves a LoRA, or each LoRA of a folder, as a copy with the names of another program."""

    file: str | None = model_file(
        "A LoRA of any program, or a folder: then every LoRA in it and below.", "lora", title="LoRA or folder"
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
    network_type: Literal["unchanged", "lora", "full"] = setting(
        "unchanged",
        level="shown",
        labels={"unchanged": "unchanged", "lora": "LoRA", "full": "full difference"},
        help="LoRA: the nearest plain LoRA of the new rank, which every program reads. Full difference: the exact change, as large as the weights. Layers that are a LoRA's keep their rank.",
    )
    base_model: str | None = model_file(
        "The model it was trained on, for a new network type of kinds whose change depends on its weights: DoRA, GLoRA, (IA)^3, OFT, Diag-OFT, BOFT.",
        "checkpoint",
        needs="network_type=lora, full",
    )
    new_rank: int = setting(
        64,
        needs="network_type=lora",
        within=(1, 1024),
        help="Highest rank of a layer that becomes a LoRA. The result says how much of the change it keeps.",
    )
    new_conv_rank: int | None = setting(
        None,
        within=(1, 1024),
        hint="as new rank",
        help="The same of 3x3 convolutions.",
        needs="network_type=lora",
    )
    drop_norms: bool = setting(
        False,
        needs="names=diffusers, diffusers_folded",
        title="Drop norms and biases",
        help="Leaves out trained norm layers and biases, for which diffusers has no names. Otherwise a LoRA that has them is refused there.",
    )
    save_precision: Precision | None = setting(
        None, level="shown", hint="unchanged", help="Dtype of the weights in the copy. Empty keeps the file's."
    )
    output: str | None = output_file(
        "A file or folder for the copies. Empty is next to each file.", hint="next to each file"
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
