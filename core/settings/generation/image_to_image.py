"""Settings of image to image and inpainting."""

from typing import Literal

from core.settings.base import Settings, kohya_setting, setting


class ImageToImageSettings(Settings):
    """The initial image, and the mask of the area to repaint."""

    image_path: str | None = kohya_setting(
        None,
        title="Initial image",
        widget="path",
        hint="none",
        names="path",
        help="An image, or a folder of images, to begin with instead of noise. With several, each image made takes the next one.",
    )
    mask_path: str | None = kohya_setting(
        None,
        title="Mask",
        widget="path",
        hint="none",
        names="path",
        help="An image, or a folder with one for each initial image, of its name or in the same order: white is repainted, black kept, gray blends.",
    )
    strength: float = kohya_setting(
        0.8,
        within=(0, 1),
        title="Denoising strength",
        source="Meng et al. 2022, arXiv:2108.01073",
        help="How much of the noise the initial image is given, and about the share of the steps that run. 0.3 keeps its shapes, 0.8 only its layout. With hires fix, also that of the second stage.",
    )
    mask_blur: int | None = setting(
        None,
        within=(0, 256),
        unit="pixels",
        hint="4",
        source="A1111",
        help="Softens the edge of the mask, so that what is repainted blends in. 4 is usual; with the compatibility of sd-scripts, empty is 0.",
    )
    mask_invert: bool = setting(
        False, title="Invert mask", help="Repaints what is black in the mask and keeps what is white."
    )
    inpaint_area: Literal["whole", "masked"] = setting(
        "whole",
        labels={"whole": "whole image", "masked": "only masked"},
        source="A1111",
        help="Only masked cuts out the masked area, generates it at the full width and height, and pastes it back: more detail in a small area, such as a face. The image keeps its size.",
    )
    mask_padding: int = setting(
        32,
        within=(0, 1024),
        unit="pixels",
        title="Padding",
        source="A1111",
        help="How much around the masked area is cut out with it, so that the model sees what it belongs to. For only masked.",
    )
    masked_content: Literal["original", "fill", "latent_noise", "latent_nothing"] = setting(
        "original",
        labels={"latent_noise": "latent noise", "latent_nothing": "latent nothing"},
        source="A1111",
        help="What the masked area begins with: the image itself, the blurred colors around it, noise, or nothing. All but original need a denoising strength near 1.",
    )
    fit: Literal["resize", "crop"] = setting(
        "resize",
        title="Resize mode",
        labels={"resize": "just resize", "crop": "crop and resize"},
        source="A1111",
        help="How an initial image of another aspect ratio is fitted to the size: stretched, or cropped at its longer side.",
    )
