"""How images become what is trained on. Every setting here can be set anew for a single folder (see `source.py`)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from core.settings.base import Settings, setting

Side = Annotated[int, Field(ge=64, le=8192)]
FaceSizes = Annotated[float, Field(gt=0, le=100)]


class ImageSettings(Settings):
    """Sizes, crops, changes by chance and masks."""

    resolution: Side | tuple[Side, Side] = setting(
        512,
        title="Resolution",
        unit="pixels",
        level="shown",
        kohya="resolution",
        help="Size that images are trained at: one number, or width and height. SD 1.5 was made for 512, SD 2.1 for 768, SDXL for 1024, the starter for 128.",
        costs="Memory and time grow with the number of pixels.",
    )
    more_resolutions: list[Side | tuple[Side, Side]] = setting(
        default_factory=list,
        title="Further resolutions",
        unit="pixels",
        widget="sizes",
        help="Each image also trains at these sizes, so an epoch grows by as many passes. One a line: 768, or 768 x 1024.",
    )
    train_batch_size: int = setting(
        1,
        ge=1,
        le=1024,
        title="Batch size",
        unit="images",
        level="shown",
        kohya="train_batch_size",
        help="Images trained from in one step.",
        costs="Memory grows with it; a step takes longer, an epoch less.",
    )
    enable_bucket: bool = setting(
        True,
        title="Keep image shapes",
        kohya="enable_bucket",
        help="Sorts images into sizes near their own shape, so that little is cropped. Off crops all to the resolution.",
    )
    min_bucket_reso: int = setting(
        256,
        ge=64,
        le=8192,
        title="Shortest bucket side",
        unit="pixels",
        kohya="min_bucket_reso",
        help="No bucket has a side below this. It is lowered to half the resolution where it would leave no choice.",
    )
    max_bucket_reso: int | None = setting(
        None,
        ge=64,
        le=16384,
        title="Longest bucket side",
        unit="pixels",
        kohya="max_bucket_reso",
        help="No bucket has a side above this. Empty is twice the resolution.",
    )
    bucket_reso_steps: int = setting(
        64,
        ge=8,
        le=512,
        multiple_of=8,
        title="Bucket step",
        unit="pixels",
        kohya="bucket_reso_steps",
        help="Sides of buckets are multiples of this. Smaller crops less and makes more, smaller buckets.",
    )
    bucket_no_upscale: bool = setting(
        False,
        title="Never enlarge",
        kohya="bucket_no_upscale",
        help="Images smaller than the resolution train at their own size.",
    )
    skip_image_resolution: float = setting(
        0,
        ge=0,
        le=16384,
        title="Leave out images up to",
        unit="pixels",
        kohya="skip_image_resolution",
        help="Images whose width times height is at most this number squared do not train, and are listed. 0 takes all.",
    )
    resize_interpolation: Literal["auto", "lanczos", "nearest", "bilinear", "bicubic", "area", "box"] = setting(
        "auto",
        title="Resize by",
        kohya="resize_interpolation",
        labels={"auto": "as usual"},
        help="How images are brought to their bucket's size. As usual: area to shrink, Lanczos to enlarge. Nearest is for pixel art.",
    )
    flip_aug: bool = setting(
        False,
        title="Mirror by chance",
        kohya="flip_aug",
        help="Half of the draws show the image mirrored. Not for faces with a marked side, or for writing.",
        costs="Twice the room in the latent cache.",
    )
    color_aug: bool = setting(
        False,
        title="Change colors by chance",
        kohya="color_aug",
        help="A third of the draws shift the hue or the brightness a little. Latents cannot be cached then.",
        costs="Each step encodes its images anew.",
    )
    random_crop: bool = setting(
        False,
        title="Crop by chance",
        kohya="random_crop",
        help="Each draw cuts another part of the image rather than its middle. Latents cannot be cached then.",
        costs="Each step encodes its images anew.",
    )
    face_crop_aug_range: tuple[FaceSizes, FaceSizes] | None = setting(
        None,
        title="Face crop",
        kohya="face_crop_aug_range",
        help="Smallest and largest crop in sizes of the face: with 2, 4 the face fills a half to a quarter of it. For images named _x_y_width_height by the face tool, with image shapes not kept; empty is off.",
    )
    alpha_mask: bool = setting(
        False,
        title="Transparency is a mask",
        kohya="alpha_mask",
        help="Transparent parts of an image do not count in the loss.",
    )
    alpha_color: str = setting(
        "#ffffff",
        pattern="^#[0-9a-fA-F]{6}$",
        title="Color behind transparency",
        help="Transparent images are put on this color: #ffffff is white, #000000 black.",
    )
    conditioning_data_dir: str | None = setting(
        None,
        title="Mask folder",
        widget="folder",
        kohya="conditioning_data_dir",
        help="A folder that holds, for each image, a mask of the same name: white counts, black does not.",
        names="path",
    )
    masked_loss: bool = setting(
        False,
        title="Use the masks",
        kohya="masked_loss",
        help="Only what the masks leave white counts in the loss.",
    )
    network_multiplier: float = setting(
        1.0,
        ge=-10,
        le=10,
        title="Network strength",
        kohya="network_multiplier",
        help="How strongly a LoRA takes part while it trains these images. 1 is usual.",
    )
