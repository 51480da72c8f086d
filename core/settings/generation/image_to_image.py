"""Images made from images: what they begin with and what is repainted."""

from __future__ import annotations

from typing import Literal

from core.settings.base import Settings, kohya_setting, setting


class ImageToImageSettings(Settings):
    """An image to begin with, and a mask of what is repainted."""

    image_path: str | None = kohya_setting(
        None,
        title="Initial image",
        widget="path",
        names="path",
        help="An image, or a folder of images, to begin with instead of noise. With several, each image made takes the next one.",
    )
    mask_path: str | None = kohya_setting(
        None,
        title="Mask",
        widget="path",
        names="path",
        help="An image, or a folder with one for each initial image: white is repainted, black is kept, gray blends.",
    )
    strength: float = kohya_setting(
        0.8,
        within=(0, 1),
        title="Denoising strength",
        source="Meng et al. 2022, arXiv:2108.01073",
        help="The share of the steps that change the initial image. 0.3 keeps its shapes, 0.8 only its layout. With hires fix, the same of the second stage.",
    )
    fit: Literal["resize", "crop"] = setting(
        "resize",
        title="Other ratios",
        labels={"resize": "stretched", "crop": "cropped"},
        help="How an initial image with another ratio of its sides than the size comes to it.",
    )
