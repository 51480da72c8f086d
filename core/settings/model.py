"""The model that training starts from, or that draws."""

from __future__ import annotations

from typing import Literal

from core.settings.base import Settings, setting


class ModelSettings(Settings):
    """Which weights to start from."""

    base_model: str = setting(
        "models/starter",
        title="Base model",
        level="shown",
        widget="model",
        kohya="pretrained_model_name_or_path",
        help="A .safetensors checkpoint, a diffusers folder, a name under models/, or a hub id such as owner/name.",
        names="path or name",
    )
    vae: str | None = setting(
        None,
        title="VAE",
        widget="model",
        kohya="vae",
        help="Another VAE than the model's own: a file, a folder or a hub id. Empty keeps the model's.",
        names="path or name",
    )
    family: Literal["auto", "sd1", "sd2", "sdxl"] = setting(
        "auto",
        title="Model family",
        kohya="v2",
        labels={"auto": "detect", "sd1": "SD 1.x", "sd2": "SD 2.x", "sdxl": "SDXL"},
        help="Detected from the file. Set it only when the detection is wrong.",
    )
    prediction: Literal["auto", "epsilon", "v"] = setting(
        "auto",
        title="Prediction type",
        kohya="v_parameterization",
        labels={"auto": "detect", "epsilon": "epsilon (noise)", "v": "v"},
        source="Salimans and Ho 2022, arXiv:2202.00512",
        help="What the model was trained to predict: most models the noise (epsilon), SD 2.x at 768 px v. An SD 2.x file "
        "that does not say is found out by one pass.",
    )
    clip_skip: int | None = setting(
        None,
        ge=1,
        le=12,
        unit="layers",
        title="Clip skip",
        kohya="clip_skip",
        help="Which text-encoder layer is read, counted from the last. Empty or 1 is the last; many anime models use 2. "
        "SDXL ignores it: it always reads the last but one.",
    )
    compatibility: Literal["none", "kohya"] = setting(
        "none",
        title="SDXL files exactly as sd-scripts",
        labels={"none": "no", "kohya": "as sd-scripts"},
        help="sd-scripts reads one matrix of SDXL's second text encoder turned over when the model is a single file, so its LoRAs train with another summary of the caption than other programs draw with. Choose it to repeat old results only.",
    )

    @property
    def kohya_projection(self) -> bool:
        """Whether SDXL's text projection is read from single files as sd-scripts reads it."""
        return self.compatibility == "kohya"
