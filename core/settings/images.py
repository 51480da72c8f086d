"""Resolution, buckets, augmentation and masks. Each folder can override every setting here (see `source.py`)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from core.settings.base import Settings, setting

Side = Annotated[int, Field(ge=64, le=8192)]
FaceSizes = Annotated[float, Field(gt=0, le=100)]


class ImageSettings(Settings):
    """Resolution, buckets, augmentation and masks."""

    resolution: Side | tuple[Side, Side] = setting(
        512,
        title="Resolution",
        first="step",
        brief="In pixels.",
        unit="pixels",
        level="shown",
        kohya="resolution",
        help="Training resolution: one number, or width and height. SD 1.5 was trained at 512, SD 2.1 at 768, SDXL at 1024, the starter model at 128.",
        costs="Memory and time grow with the number of pixels.",
    )
    more_resolutions: list[Side | tuple[Side, Side]] = setting(
        default_factory=list,
        title="Additional resolutions",
        section="Sizes",
        unit="pixels",
        widget="sizes",
        help="Each image is also trained at these sizes, which makes epochs longer. One per line: 768, or 768 x 1024.",
    )
    train_batch_size: int = setting(
        1,
        ge=1,
        le=1024,
        title="Batch size",
        first="step",
        brief="Images per step.",
        unit="images",
        level="shown",
        kohya="train_batch_size",
        help="Images per batch. Larger is more stable; raise it as far as memory allows.",
        costs="Memory grows with it; steps take longer, epochs less time.",
    )
    enable_bucket: bool = setting(
        True,
        title="Aspect ratio bucketing",
        kohya="enable_bucket",
        help="Sorts images into buckets near their own aspect ratio, so that little is cropped. Off crops all images to the resolution.",
    )
    min_bucket_reso: int = setting(
        256,
        ge=64,
        le=8192,
        title="Min bucket resolution",
        unit="pixels",
        kohya="min_bucket_reso",
        help="Shortest allowed side of a bucket. Values too high for the resolution are lowered to half of it.",
    )
    max_bucket_reso: int | None = setting(
        None,
        ge=64,
        le=16384,
        title="Max bucket resolution",
        hint="twice the resolution",
        unit="pixels",
        kohya="max_bucket_reso",
        help="Longest allowed side of a bucket. Empty is twice the resolution.",
    )
    bucket_reso_steps: int = setting(
        64,
        ge=8,
        le=512,
        multiple_of=8,
        title="Bucket resolution steps",
        unit="pixels",
        kohya="bucket_reso_steps",
        help="Bucket sides are multiples of this. Smaller values crop less but make more, smaller buckets. 64 is usual.",
    )
    bucket_no_upscale: bool = setting(
        False,
        title="No upscaling",
        kohya="bucket_no_upscale",
        help="Trains images smaller than the resolution at their own size.",
    )
    skip_image_resolution: float = setting(
        0,
        ge=0,
        le=16384,
        title="Skip small images",
        unit="pixels",
        kohya="skip_image_resolution",
        help="Skips and lists images with no more pixels than this number squared. 0 uses all images.",
    )
    resize_interpolation: Literal["auto", "lanczos", "nearest", "bilinear", "bicubic", "area", "box"] = setting(
        "auto",
        title="Interpolation",
        kohya="resize_interpolation",
        labels={"auto": "auto"},
        help="Resampling method for resizing images to their bucket. auto uses area to shrink and Lanczos to enlarge; nearest is for pixel art.",
    )
    flip_aug: bool = setting(
        False,
        title="Random horizontal flip",
        section="Augmentation",
        kohya="flip_aug",
        help="Mirrors images at random, half of the time. Not for asymmetric faces or text.",
        costs="Doubles the size of the latent cache.",
    )
    color_aug: bool = setting(
        False,
        title="Color augmentation",
        kohya="color_aug",
        help="Slightly shifts hue or brightness at random, a third of the time. Latents cannot be cached.",
        costs="Images are encoded at every step.",
    )
    random_crop: bool = setting(
        False,
        title="Random crop",
        kohya="random_crop",
        help="Crops a random part of the image instead of the center. Latents cannot be cached.",
        costs="Images are encoded at every step.",
    )
    face_crop_aug_range: tuple[FaceSizes, FaceSizes] | None = setting(
        None,
        title="Face crop range",
        hint="off",
        kohya="face_crop_aug_range",
        help="Smallest and largest crop as multiples of the face size: with 2, 4 the face fills a half to a quarter of the crop. For images named _x_y_width_height by the face tool, with bucketing off; empty is off.",
    )
    alpha_mask: bool = setting(
        False,
        title="Alpha mask",
        section="Masks",
        kohya="alpha_mask",
        help="Uses the alpha channel as a loss mask: transparent areas do not count.",
    )
    alpha_color: str = setting(
        "#ffffff",
        pattern="^#[0-9a-fA-F]{6}$",
        title="Background color",
        help="Color behind transparent areas: #ffffff is white, #000000 black.",
    )
    conditioning_data_dir: str | None = setting(
        None,
        title="Mask folder",
        widget="folder",
        kohya="conditioning_data_dir",
        help="A folder with a mask of the same name for each image: white areas count in the loss, black areas do not.",
        names="path",
    )
    masked_loss: bool = setting(
        False,
        title="Masked loss",
        kohya="masked_loss",
        help="Limits the loss to the white areas of the masks.",
    )
    network_multiplier: float = setting(
        1.0,
        ge=-10,
        le=10,
        title="Network multiplier",
        section="Weights",
        kohya="network_multiplier",
        help="Strength of the LoRA while it trains on these images. 1 is usual.",
    )
