"""Settings of resolution, buckets, augmentation and masks. Each dataset folder can override every one (see `source.py`)."""

from typing import Annotated, Literal

from pydantic import Field

from core.settings.base import SAME, Settings, kohya_setting, setting
from core.settings.names import NAME_PART

Side = Annotated[int, Field(ge=64, le=8192)]
FaceSizes = Annotated[float, Field(gt=0, le=100)]


class ImageSettings(Settings):
    """Resolution, buckets, augmentation and masks."""

    resolution: Side | tuple[Side, Side] = kohya_setting(
        512,
        first="step",
        brief="In pixels.",
        unit="pixels",
        level="shown",
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
    resolution_choice: Literal["each", "drawn"] = setting(
        "each",
        labels={"each": "all of them", "drawn": "one at random"},
        source="OneTrainer",
        help="With additional resolutions: an epoch shows each image at all of them, or at one picked at random for each epoch and repeat, so that epochs stay as long as with one resolution.",
    )
    train_batch_size: int = kohya_setting(
        1,
        within=(1, 1024),
        title="Batch size",
        first="step",
        brief="Images per step.",
        unit="images",
        level="shown",
        help="Images per batch. Larger is more stable; raise it as far as memory allows.",
        costs="Memory grows with it; steps take longer, epochs less time.",
    )
    enable_bucket: bool = kohya_setting(
        True,
        title="Aspect ratio bucketing",
        help="Sorts images into buckets near their own aspect ratio, so that little is cropped. Off crops all images to the resolution.",
        recorded=SAME,
    )
    min_bucket_reso: int = kohya_setting(
        256,
        within=(64, 8192),
        title="Min bucket resolution",
        unit="pixels",
        help="Shortest allowed side of a bucket. Values too high for the resolution are lowered to half of it.",
        recorded=SAME,
    )
    max_bucket_reso: int | None = kohya_setting(
        None,
        within=(64, 16384),
        title="Max bucket resolution",
        hint="twice the resolution",
        unit="pixels",
        help="Longest allowed side of a bucket. Empty is twice the resolution.",
        recorded=SAME,
    )
    bucket_reso_steps: int = kohya_setting(
        64,
        within=(8, 512),
        multiple_of=8,
        title="Bucket resolution steps",
        unit="pixels",
        help="Bucket sides are multiples of this. Smaller values crop less but make more, smaller buckets. 64 is usual.",
    )
    bucket_no_upscale: bool = kohya_setting(
        False,
        title="No upscaling",
        help="Trains images smaller than the resolution at their own size.",
        recorded=SAME,
    )
    skip_image_resolution: float = kohya_setting(
        0,
        within=(0, 16384),
        title="Skip small images",
        unit="pixels",
        help="Skips and lists images with no more pixels than this number squared. 0 uses all images.",
    )
    resize_interpolation: Literal["auto", "lanczos", "nearest", "bilinear", "bicubic", "area", "box"] = kohya_setting(
        "auto",
        title="Interpolation",
        help="Resampling method for resizing images to their bucket. auto uses area to shrink and Lanczos to enlarge; nearest is for pixel art.",
    )
    flip_aug: bool = kohya_setting(
        False,
        title="Random horizontal flip",
        section="Augmentation",
        help="Mirrors images at random, half of the time. Not for asymmetric faces or text.",
        costs="Doubles the size of the latent cache.",
        recorded=SAME,
    )
    color_aug: bool = kohya_setting(
        False,
        title="Color augmentation",
        help="Slightly shifts hue or brightness at random, a third of the time. Latents cannot be cached.",
        costs="Images are encoded at every step.",
        recorded=SAME,
    )
    random_crop: bool = kohya_setting(
        False,
        help="Crops a random part of the image instead of the center. Latents cannot be cached.",
        costs="Images are encoded at every step.",
        recorded=SAME,
    )
    face_crop_aug_range: tuple[FaceSizes, FaceSizes] | None = kohya_setting(
        None,
        title="Face crop range",
        hint="off",
        help="Smallest and largest crop as multiples of the face size: with 2, 4 the face fills a half to a quarter of the crop. For images named _x_y_width_height by the face tool, with bucketing off; blank: off.",
        recorded=SAME,
    )
    alpha_mask: bool = kohya_setting(
        False, section="Masks", help="Uses the alpha channel as a loss mask: transparent areas do not count."
    )
    alpha_color: str = setting(
        "#ffffff",
        pattern="^#[0-9a-fA-F]{6}$",
        title="Background color",
        help="Color behind transparent areas: #ffffff is white, #000000 black.",
    )
    conditioning_data_dir: str | None = kohya_setting(
        None,
        title="Mask or control images",
        widget="folder",
        help="A folder with a mask of the same name for each image: white areas count in the loss, black areas do not. ControlNet and ControlNet-LLLite read a control image for each image here instead.",
        names="path",
    )
    conditioning_suffix: str | None = setting(
        None,
        min_length=1,
        max_length=40,
        pattern=NAME_PART,
        title="Mask or control suffix",
        hint="none",
        help="Text after the image's name, such as _hint for a_hint.png next to a.png. Without a mask or control folder, files that end with it in the image folder are masks or control images and are not trained.",
        names="part",
    )
    control_interpolation: Literal["auto", "lanczos", "nearest", "bilinear", "bicubic", "area", "box"] | None = setting(
        None,
        labels={"": "as the images"},
        help="Resampling method of control images. nearest keeps lines and colors exact; area keeps the mean brightness, so thin lines fade.",
    )
    masked_loss: bool = kohya_setting(False, help="Limits the loss to the white areas of the masks.")
    network_multiplier: float = kohya_setting(
        1.0,
        within=(-10, 10),
        section="Weights",
        help="Strength of the LoRA while it trains on these images. 1 is usual.",
    )
