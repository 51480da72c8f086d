"""Settings of the tools that convert whole models and their VAEs."""

from typing import Annotated, Any, Literal

from core.settings.base import Settings, setting
from core.settings.tools.fields import Precision, model_file, output_file

MODEL_HELP = "A .safetensors or .ckpt checkpoint, or a diffusers folder."


ModelFile = Annotated[str | None, model_file(MODEL_HELP, "checkpoint", title="Model")]
SavePrecision = Annotated[
    Precision | None,
    setting(
        title="Precision",
        level="shown",
        hint="as stored",
        help="Precision of the weights. fp16 and bf16 take half the space of fp32. Empty keeps each tensor's own, fp8 too.",
    ),
]


def _output(ending: str) -> Any:
    """Declare the output file or folder; by default it is next to the model and ends in `ending`."""
    return output_file(
        "File or folder of the result. An existing one is never overwritten.",
        title="Output",
        hint=f"next to the model, ending in {ending}",
    )


class ConvertModelSettings(Settings):
    """Converts a checkpoint (SD 1.x, SD 2.x, SDXL) between a single file and a diffusers folder, or to another precision."""

    file: ModelFile = None
    save_model_as: Literal["safetensors", "ckpt", "diffusers_safetensors", "diffusers"] = setting(
        "safetensors",
        title="Format",
        level="shown",
        labels={
            "safetensors": ".safetensors file",
            "ckpt": ".ckpt file",
            "diffusers_safetensors": "diffusers folder",
            "diffusers": "diffusers folder with .bin files",
        },
        help="A single file for A1111, Forge and ComfyUI; a folder for diffusers. What has no place in a folder is kept in its atelier_extra.safetensors.",
    )
    save_precision: SavePrecision = None
    ema: Literal["keep", "drop", "use"] = setting(
        "keep",
        title="EMA weights",
        labels={"use": "use in place of the U-Net's weights"},
        help="Older .ckpt files also hold an average of the U-Net's weights. Dropping it halves the file; using it is often better for images.",
    )
    vae: str | None = setting(
        None,
        needs="!no_vae",
        title="VAE",
        names="path or name",
        holds="vae, checkpoint",
        widget="file",
        hint="the model's own",
        help="A VAE file or folder, or another checkpoint, whose VAE replaces the model's.",
    )
    no_vae: bool = setting(
        False, title="Leave out the VAE", help="For programs that load the VAE separately. The file is smaller."
    )
    text_projection: Literal["correct", "kohya"] = setting(
        "correct",
        labels={"correct": "correct", "kohya": "as sd-scripts"},
        help="SDXL only. sd-scripts does not transpose the second text encoder's projection between files and folders, so such models differ. Choose it to match, or to undo, a conversion of sd-scripts.",
    )
    prediction: Literal["auto", "epsilon", "v"] = setting(
        "auto",
        title="Prediction type",
        labels={"auto": "as the model says", "epsilon": "epsilon", "v": "v-prediction"},
        help="Written into a folder's scheduler and the metadata. SD 2.x files do not say it: 768 px models predict v, 512 px models epsilon.",
    )
    variant: Literal["fp16", "bf16"] | None = setting(
        None,
        needs="save_model_as=diffusers_safetensors, diffusers",
        hint="none",
        help="Goes into the names of a folder's weight files (model.fp16.safetensors), as diffusers' `variant` expects.",
    )
    family: Literal["auto", "sd1", "sd2", "sdxl", "sdxl_refiner"] = setting(
        "auto",
        title="Model family",
        labels={
            "auto": "detect",
            "sd1": "SD 1.x",
            "sd2": "SD 2.x",
            "sdxl": "SDXL",
            "sdxl_refiner": "SDXL refiner",
        },
        help="Only for a model whose family is not detected.",
    )
    weights_hash: bool = setting(
        False,
        needs="save_model_as=safetensors; !no_metadata",
        title="Hash of the weights",
        help="Adds the SHA-256 of the weights to the metadata of a .safetensors file (sshs_model_hash, AutoV3). Takes some seconds for a large model.",
    )
    no_metadata: bool = setting(
        False,
        help="Leaves out the model's metadata, modelspec and hashes.",
    )
    output: str | None = _output("_converted")


class BakeVaeSettings(Settings):
    """Writes a copy of a checkpoint with another VAE, in the same format unless the output ends in .safetensors or .ckpt."""

    file: ModelFile = None
    vae: str | None = model_file(
        "A VAE file or folder, or a checkpoint that has it.", "vae, checkpoint", title="VAE", widget="file"
    )
    save_precision: SavePrecision = None
    output: str | None = _output("_baked")


class ExtractVaeSettings(Settings):
    """Writes the VAE of a checkpoint to a file or folder of its own."""

    file: ModelFile = None
    layout: Literal["single_file", "diffusers"] = setting(
        "single_file",
        title="Format",
        level="shown",
        labels={"single_file": ".safetensors file", "diffusers": "diffusers folder"},
        help="A file with the original key names for A1111, Forge and ComfyUI; a folder for diffusers.",
    )
    save_precision: SavePrecision = None
    family: Literal["auto", "sd1", "sdxl"] = setting(
        "auto",
        labels={"auto": "detect", "sd1": "SD 1.x and 2.x", "sdxl": "SDXL"},
        help="For a VAE file of its own, which does not say its family: a folder states the scaling factor.",
    )
    output: str | None = _output("_vae")
