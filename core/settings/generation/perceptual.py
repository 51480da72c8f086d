"""Settings of CLIP and VGG guidance."""

from typing import Any

from core.settings.base import Settings, kohya_setting, setting

CLIP, VGG = "laion/CLIP-ViT-B-32-laion2B-s34B-b79K", "timm/vgg16.tv_in1k"


def _scale(title: str, help: str) -> Any:
    """Declare the strength of a guidance; 0 is off."""
    return kohya_setting(0.0, within=(0, 1_000_000), title=title, help=f"{help} 0 is off.")


def _model(title: str, usual: str, help: str) -> Any:
    """Declare the setting for a model, with `usual` as the one for an empty field."""
    return setting(None, title=title, hint=usual, names="path or name", help=f"{help} Empty is {usual}.")


class PerceptualSettings(Settings):
    """Guidance by gradients: each step reduces the image's CLIP distance to a text or image, or its VGG distance to an image."""

    clip_guidance_scale: float = _scale(
        "CLIP guidance scale",
        "Guides images towards the text as CLIP reads it. diffusers' example uses 100.",
    )
    clip_prompt: str | None = setting(
        None,
        title="CLIP prompt",
        hint="the prompt",
        help="The text that CLIP reads, up to 75 tokens. Empty is the prompt without its weights. Prompts set it by --c TEXT.",
    )
    clip_image_guidance_scale: float = _scale(
        "CLIP image guidance scale", "Guides images towards the guide image as CLIP sees it: its content and style."
    )
    vgg16_guidance_scale: float = _scale(
        "VGG16 guidance scale",
        "Guides images towards the guide image's VGG16 features: its shapes and textures in place.",
    )
    vgg16_guidance_layer: int = kohya_setting(
        20,
        within=(0, 30),
        title="VGG16 guidance layer",
        help="Whose output is compared, counted from 0 as in torchvision. 20 is the ReLU after conv4_2; lower layers see finer textures.",
    )
    guide_image: str | None = setting(
        None,
        widget="path",
        names="path",
        hint="the control image for all",
        help="What CLIP image and VGG16 guidance compare with. Of a folder, each image made takes the next one. Empty is the control image for all ControlNets, which is sd-scripts' --guide_image_path.",
    )
    clip_model: str | None = _model(
        "CLIP model",
        CLIP,
        "A folder with config.json and weights of a CLIP model of transformers, or its name on the hub.",
    )
    vgg16_model: str | None = _model(
        "VGG16 model", VGG, "A VGG16 file with torchvision's names, or its name on the hub."
    )

    @property
    def uses_clip(self) -> bool:
        """Whether guidance by CLIP is on, with a text or an image."""
        return bool(self.clip_guidance_scale or self.clip_image_guidance_scale)

    @property
    def compares_images(self) -> bool:
        """Whether guidance by an image is on, with CLIP or VGG."""
        return bool(self.clip_image_guidance_scale or self.vgg16_guidance_scale)

    @property
    def used(self) -> bool:
        """Whether any of the guidances is on."""
        return self.uses_clip or self.compares_images
