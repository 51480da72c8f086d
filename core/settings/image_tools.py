"""What the image tools do: copies at other sizes and in other formats, numbers, faces, edges."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from core.settings.base import Settings, setting

Side = Annotated[int, Field(ge=8, le=16384)]
Ratio = Annotated[float, Field(ge=1, le=20)]


class ImageToolSettings(Settings):
    """Copies of a folder's images, made in another folder. The images themselves are never changed."""

    action: Literal["resize", "crop", "convert", "number", "undo_number", "faces", "edges"] = setting(
        "resize",
        title="Tool",
        level="shown",
        labels={
            "resize": "Make smaller copies",
            "crop": "Crop to a size",
            "convert": "Change the format",
            "number": "Number the files",
            "undo_number": "Take the last numbering back",
            "faces": "Crop faces upright",
            "edges": "Draw the edges",
        },
        help="resize makes copies of at most so many pixels; crop makes all one size; convert changes the file format; number names images and captions 0001, 0002 ...; faces cuts out faces of photographs, eyes level (drawn ones are mostly missed; transparency becomes white); edges draws what a ControlNet for edges (canny) trains from.",
    )
    folder: str = setting(
        "", title="Image folder", level="shown", widget="folder", help="The images to work on.", names="path"
    )
    output: str | None = setting(
        None,
        title="Into",
        level="shown",
        widget="folder",
        help="Where the copies go. Empty is outputs/datasets/<tool>/<name of the folder>. Files that are there already are kept.",
        names="path",
    )
    recursive: bool = setting(True, title="With sub-folders", help="Also takes the images of folders inside.")
    copy_captions: bool = setting(
        True,
        title="Copy captions too",
        kohya="copy_associated_files",
        help="Each copy gets the captions of its image under its own name. Not for edges, whose captions lie with the images.",
    )
    format: Literal["png", "jpg", "webp"] = setting(
        "png",
        title="Format",
        level="shown",
        kohya="save_as_png",
        help="Of resized, cropped and converted copies. png loses nothing; jpg has no transparency, which becomes white.",
    )
    quality: int = setting(
        100,
        ge=1,
        le=100,
        title="Quality",
        help="Of jpg and webp. 100 makes a webp that loses nothing; 90 is hard to tell from it and a quarter of the size.",
    )
    max_resolution: list[Side | tuple[Side, Side]] = setting(
        default_factory=lambda: [512],
        title="Largest sizes",
        unit="pixels",
        level="shown",
        widget="sizes",
        kohya="max_resolution",
        help="For resize: a copy for each, of at most as many pixels as width times height; the shape is kept. One a line: 768, or 768 x 1024.",
    )
    divisible_by: int = setting(
        1,
        ge=1,
        le=512,
        title="Sides divisible by",
        unit="pixels",
        kohya="divisible_by",
        help="For resize: what is over is cropped at both sides. 1 crops nothing.",
    )
    interpolation: Literal["auto", "area", "lanczos", "bicubic", "bilinear", "nearest"] = setting(
        "auto",
        title="Resize by",
        kohya="interpolation",
        labels={"auto": "area to shrink, Lanczos to enlarge"},
        help="For resize, crop and faces. Nearest is for pixel art.",
    )
    crop_size: tuple[Side, Side] = setting(
        (512, 512),
        title="Crop to",
        unit="pixels",
        level="shown",
        kohya="crop_size",
        help="Width and height, for crop, and for faces with a window of a fixed size.",
    )
    crop_scaled: bool = setting(
        True,
        title="Scale before the crop",
        help="For crop: brings the image to the smallest size that covers the crop. Off cuts out of its middle as it is, and leaves out smaller ones.",
    )
    number_in_place: bool = setting(
        False,
        title="Rename the files themselves",
        help="For number: no copies; undo_number takes it back. Captions, masks and caches get the same number.",
    )
    number_prefix: str = setting(
        "",
        max_length=80,
        pattern=r'^[^/\\<>:"|?*\x00-\x1f]*$',
        title="Before the number",
        help="Such as fox_ for fox_0001.",
        names="part",
    )
    number_start: int = setting(1, ge=0, le=10**8, title="First number", help="Each folder begins with it.")
    number_digits: int = setting(4, ge=1, le=9, title="Digits", help="Shorter numbers get zeros in front.")
    face_rotate: bool = setting(
        True, title="Turn upright", kohya="rotate", help="For faces: turns the image until the eyes are level."
    )
    face_crop: Literal["none", "size", "ratio"] = setting(
        "ratio",
        title="Window around a face",
        level="shown",
        labels={"none": "the whole image", "size": "the crop size", "ratio": "by the face's size"},
        help="For faces: what is cut out. The window is moved to lie inside the image.",
    )
    face_crop_ratio: tuple[Ratio, Ratio] = setting(
        (2.0, 2.0),
        title="Window per face",
        kohya="crop_ratio",
        help="For a window by the face's size: width and height as multiples of it.",
    )
    face_resize: Literal["none", "fit", "face"] = setting(
        "none",
        title="Scale faces",
        kohya="resize_fit",
        labels={"none": "no", "fit": "the image to the window", "face": "the face to a size"},
        help="For a window of a fixed size: fit shows as much of the image as goes in; face makes all faces the size below.",
    )
    resize_face_size: int = setting(
        224,
        ge=16,
        le=4096,
        title="Size of a face",
        unit="pixels",
        kohya="resize_face_size",
        help="With faces scaled to a size.",
    )
    face_min_size: int = setting(
        32, ge=12, le=8192, title="Smallest face", unit="pixels", kohya="min_size", help="Smaller ones are left out."
    )
    face_max_size: int | None = setting(
        None, ge=12, le=16384, title="Largest face", unit="pixels", kohya="max_size", help="Larger ones are left out."
    )
    multiple_faces: bool = setting(
        True,
        title="Every face",
        kohya="multiple_faces",
        help="Off cuts out the largest face of an image only.",
    )
    face_min_score: float = setting(
        0.9,
        ge=0.3,
        le=1,
        title="Sure of a face from",
        help="Lower finds more faces, and more that are none.",
    )
    edge_low: int = setting(
        32,
        ge=0,
        le=2000,
        title="Weak edges from",
        kohya="thres1",
        source="Canny 1986",
        help="Steps of brightness that count where they go on from a strong edge.",
    )
    edge_high: int = setting(
        224,
        ge=0,
        le=2000,
        title="Strong edges from",
        kohya="thres2",
        source="Canny 1986",
        help="Steps of brightness that always count. Lower both for more lines.",
    )
