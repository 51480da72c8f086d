"""Settings of the image tools: resize, crop, convert, number, crop faces."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from core.settings.base import Both, Settings, kohya_setting, setting
from core.settings.names import NAME_PART
from core.settings.tools.fields import output_folder

Side = Annotated[int, Field(ge=8, le=16384)]
Size = Annotated[tuple[Side, Side], Both]
Ratio = Annotated[float, Field(ge=1, le=20)]
Interpolation = Annotated[
    Literal["auto", "area", "lanczos", "bicubic", "bilinear", "nearest"],
    kohya_setting(
        title="Interpolation",
        help="Resampling method. auto uses area to shrink and Lanczos to enlarge; nearest is for pixel art.",
    ),
]


def _crop_size(help: str, needs: str = "") -> Any:
    """Declare the (width, height) in pixels that images are cropped to."""
    return setting(
        (512, 512), title="Crop size", unit="pixels", level="shown", kohya="crop_size", help=help, needs=needs
    )


class FolderSettings(Settings):
    """The folder of images that a tool works on."""

    tool: ClassVar[str]  # its name

    folder: str = setting(
        "", title="Image folder", level="shown", widget="folder", help="The images to process.", names="path"
    )


class CopySettings(FolderSettings):
    """Output folder of a tool that saves copies of images; the images themselves are not changed."""

    output: str | None = output_folder(
        "Where copies are saved. Empty is outputs/datasets/<tool>/<folder name>. Existing files are kept.",
        hint="in outputs/datasets",
    )
    recursive: bool = setting(True, title="Include subfolders", help="Also processes the images in subfolders.")


class CaptionedCopySettings(CopySettings):
    """Copies of images, with or without their captions."""

    copy_captions: bool = setting(
        True, kohya="copy_associated_files", help="Copies each image's captions under its new name."
    )


class EncodedCopySettings(CaptionedCopySettings):
    """Copies of images in a chosen file format."""

    format: Literal["png", "jpg", "webp"] = setting(
        "png",
        title="Output format",
        level="shown",
        kohya="save_as_png",
        help="PNG is lossless; JPEG has no transparency, which becomes white.",
    )
    quality: int = setting(
        100,
        needs="format=jpg, webp",
        within=(1, 100),
        help="For JPEG and WebP. 100 makes WebP lossless; 90 is hard to tell from it at a quarter of the size.",
    )


class ResizeSettings(EncodedCopySettings):
    """Limits the number of pixels of each image."""

    tool = "resize"
    max_resolution: list[Side | tuple[Side, Side]] = kohya_setting(
        default_factory=lambda: [512],
        title="Max resolutions",
        unit="pixels",
        level="shown",
        widget="sizes",
        help="Makes a copy for each size, with at most width times height pixels and the same aspect ratio. One per line: 768, or 768 x 1024.",
    )
    divisible_by: int = kohya_setting(
        1, within=(1, 512), unit="pixels", help="Crops width and height to multiples of this number. 1 crops nothing."
    )
    interpolation: Interpolation = "auto"


class CropSettings(EncodedCopySettings):
    """Crops all images to one size."""

    tool = "crop"
    crop_size: Size = _crop_size("Width and height of the copies.")
    crop_scaled: bool = setting(
        True,
        title="Resize before crop",
        help="First resizes the image so that it just covers the crop size. Off crops the center at the original size and skips smaller images.",
    )
    interpolation: Interpolation = "auto"


class ConvertSettings(EncodedCopySettings):
    """Changes the file format of images."""

    tool = "convert"


class NumberSettings(CaptionedCopySettings):
    """Renames images and their captions to 0001, 0002 ..."""

    tool = "number"
    number_in_place: bool = setting(
        False,
        title="Rename in place",
        help="Renames the files instead of copying them; 'Undo numbering' reverts it. Captions, masks and caches are renamed too.",
    )
    number_prefix: str = setting(
        "",
        max_length=80,
        pattern=NAME_PART,
        title="Name prefix",
        help="Text before the number, such as fox_ for fox_0001.",
        names="part",
    )
    number_start: int = setting(
        1, within=(0, 10**8), title="First number", help="Numbering starts here in each folder."
    )
    number_digits: int = setting(4, within=(1, 9), title="Digits", help="Shorter numbers are padded with zeros.")


class UndoNumberSettings(FolderSettings):
    """Restores the names of files in a folder that was numbered in place."""

    tool = "undo_number"


class FaceSettings(CaptionedCopySettings):
    """Crops and levels faces in photos. Faces in drawings are mostly missed; transparency becomes white."""

    tool = "faces"
    crop_size: Size = _crop_size("Width and height of face crops of a fixed size.", "face_crop=size")
    interpolation: Interpolation = "auto"
    face_rotate: bool = setting(
        True, title="Align eyes", kohya="rotate", help="Rotates the image until the eyes are level."
    )
    face_crop: Literal["none", "size", "ratio"] = setting(
        "ratio",
        level="shown",
        labels={"none": "whole image", "size": "fixed size", "ratio": "relative to the face"},
        help="What to crop. The crop is shifted to stay inside the image.",
    )
    face_crop_ratio: Annotated[tuple[Ratio, Ratio], Both] = setting(
        (2.0, 2.0),
        needs="face_crop=ratio",
        kohya="crop_ratio",
        help="For crops relative to the face: width and height as multiples of the face size.",
    )
    face_resize: Literal["none", "fit", "face"] = setting(
        "none",
        title="Face scaling",
        kohya="resize_fit",
        labels={"none": "none", "fit": "fit image to crop", "face": "scale face to size"},
        help="For crops of a fixed size: 'fit' shows as much of the image as possible; 'scale face' makes all faces the size below.",
    )
    resize_face_size: int = kohya_setting(
        224,
        needs="face_crop=size; face_resize=face",
        within=(16, 4096),
        title="Face size",
        unit="pixels",
        help="The size that faces are scaled to.",
    )
    face_min_size: int = setting(
        32, within=(12, 8192), title="Min face size", unit="pixels", kohya="min_size", help="Smaller faces are skipped."
    )
    face_max_size: int | None = setting(
        None,
        within=(12, 16384),
        title="Max face size",
        unit="pixels",
        kohya="max_size",
        help="Larger faces are skipped.",
    )
    multiple_faces: bool = kohya_setting(
        True, title="All faces", help="Crops every face in an image. Off crops only the largest."
    )
    face_min_score: float = setting(
        0.9,
        within=(0.3, 1),
        title="Face detection threshold",
        help="Minimum detection score. Lower values find more faces and more false positives.",
    )
