"""Settings of the model to train or to generate with, and facts about model families."""

from dataclasses import dataclass
from typing import Literal

from core.settings.base import SAME, Settings, kohya_setting, setting

SD_SCALE, SDXL_SCALE = 0.18215, 0.13025  # scaling factors of the latents of VAEs


@dataclass(frozen=True)
class FamilyTraits:
    """Facts about a model family that need no torch. The defaults are for families that register without traits.

    objective   name of the objective that its models were trained with (core/diffusion/objectives.py)
    unused      (dotted path, reason) of settings without effect on its models
    size_step   number of pixels that image sides must be a multiple of
    single_file whether its models can be saved as a single file, not only as a diffusers folder
    unet        whether its denoiser is diffusers' U-Net: other denoisers have fewer attention implementations, and no outer and
                inner blocks
    clip        whether all its text encoders are CLIP, which textual inversion needs

    Formats of its files, for reading and for other programs:

    prediction         "epsilon" or "v" if all its models predict that; None: a file can have either
    latent_scale       scaling factor of its VAE
    resolution         side in pixels, for the metadata of its LoRAs
    two_encoders       whether there are two text encoders: embeddings have a tensor for each, LoRAs number them (lora_te1)
    penultimate        whether the second to last layer of the first text encoder is read, without the final norm
    spare_layer        whether single files contain a last text encoder layer that is not used
    linear_projections whether proj_in and proj_out of its transformers are Linear; else they are 1x1 convolutions
    convolutions_in_loras   whether kohya's LoRA files store these Linear layers as convolutions, as sd-scripts does
    original_names     whether kohya's LoRA files name the U-Net's layers as in the original code (input_blocks)
    diffusers_controlnets   whether other programs expect diffusers' names in its ControlNet files, instead of the original's
    kohya_version      sd-scripts' ss_base_model_version; "": the family's name
    """

    objective: str = "diffusion"
    unused: tuple[tuple[str, str], ...] = ()
    size_step: int = 8
    single_file: bool = True
    unet: bool = True
    clip: bool = True
    prediction: str | None = None
    latent_scale: float = SD_SCALE
    resolution: int = 512
    two_encoders: bool = False
    penultimate: bool = False
    spare_layer: bool = False
    linear_projections: bool = True
    convolutions_in_loras: bool = False
    original_names: bool = False
    diffusers_controlnets: bool = False
    kohya_version: str = ""


OTHER_FAMILY = FamilyTraits()
FAMILIES: dict[str, FamilyTraits] = {  # by name; others are added as they register
    "sd1": FamilyTraits(prediction="epsilon", linear_projections=False, kohya_version="sd_v1"),
    "sd2": FamilyTraits(spare_layer=True, convolutions_in_loras=True, kohya_version="sd_v2"),
    "sdxl": FamilyTraits(
        unused=(("model.clip_skip", "ignored: SDXL trains with the second to last layer"),),
        prediction="epsilon",
        latent_scale=SDXL_SCALE,
        resolution=1024,
        two_encoders=True,
        penultimate=True,
        original_names=True,
        diffusers_controlnets=True,
        kohya_version="sdxl_base_v1-0",
    ),
    "sdxl_refiner": FamilyTraits(prediction="epsilon", latent_scale=SDXL_SCALE),
}


def traits_of(family: str | None) -> FamilyTraits:
    """Return the traits of a family by its name; the defaults for an unknown one."""
    return FAMILIES.get(family or "", OTHER_FAMILY)


class ModelSettings(Settings):
    """The model to load, its VAE, family and prediction type."""

    base_model: str = setting(
        "models/starter",
        first="model",
        brief="A file, a folder, or a Hub name.",
        level="shown",
        widget="model",
        kohya="pretrained_model_name_or_path, ckpt",
        help="A .safetensors checkpoint, a diffusers folder, a name under models/, or a Hugging Face id such as owner/name.",
        names="path or name",
        holds="checkpoint",
    )
    vae: str | None = kohya_setting(
        None,
        title="VAE",
        hint="the model's own",
        widget="model",
        help="A VAE to use instead of the model's own: a file, a folder or a Hugging Face id. Empty uses the model's own.",
        names="path or name",
        holds="vae",
    )
    family: Literal["auto", "sd1", "sd2", "sdxl"] = setting(
        "auto",
        title="Model family",
        kohya="v2",
        labels={"sd1": "SD 1.x", "sd2": "SD 2.x", "sdxl": "SDXL"},
        help="Detected from the file. Set it only if the detection is wrong.",
    )
    prediction: Literal["auto", "epsilon", "v"] = setting(
        "auto",
        title="Prediction type",
        kohya="v_parameterization",
        labels={"epsilon": "epsilon (noise)", "v": "v-prediction"},
        source="Salimans and Ho 2022, arXiv:2202.00512",
        help="What the model was trained to predict: noise (epsilon) for most models, v for SD 2.x at 768 px. An SD 2.x file that does not state it is tested with one forward pass.",
    )
    clip_skip: int | None = kohya_setting(
        None,
        within=(1, 12),
        unit="layers",
        help="The text encoder layer to use, counted from the last. Empty or 1 is the last; many anime models use 2. SDXL always trains with the second to last, and generates with it unless this is 3 or more.",
        recorded=SAME,
    )
    compatibility: Literal["none", "sd-scripts-0.10", "sd-scripts-0.9"] = setting(
        "none",
        labels={"none": "off", "sd-scripts-0.10": "sd-scripts 0.10", "sd-scripts-0.9": "sd-scripts 0.9"},
        help="Computes like this version of sd-scripts: loss, noise, captions, scheduler, clipping and samples (all differences: docs/sd_scripts.md). Only to compare with it or to reproduce old results.",
    )

    @property
    def traits(self) -> FamilyTraits | None:
        """Traits of the model's family; None while the family is unknown ("auto")."""
        return FAMILIES.get(self.family)

    @property
    def kohya_projection(self) -> bool:
        """Whether SDXL's text projection is read from single files as in sd-scripts."""
        return self.compatibility != "none"

    def summary(self) -> str:
        """Return VAE, family, prediction type and clip skip in one line."""
        parts = [f"VAE {self.vae}" if self.vae else "own VAE"]
        parts += [f"family {self.family}"] if self.family != "auto" else []
        parts += [f"{self.prediction} prediction"] if self.prediction != "auto" else []
        return ", ".join(parts + ([f"clip skip {self.clip_skip}"] if (self.clip_skip or 1) > 1 else []))
