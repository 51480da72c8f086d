"""Settings of the preview and the files of generated images."""

from typing import Literal

from core.settings.base import Settings, kohya_setting, setting

FIELDS = "[date] [time] [seed] [prompt] [model] [sampler] [steps] [cfg] [width] [height] [number]"


class OutputSettings(Settings):
    """Preview, and the format, names and folder of image files."""

    image_format: Literal["png", "jpeg", "webp"] = setting(
        "png",
        title="File format",
        labels={"png": "PNG", "jpeg": "JPEG", "webp": "WebP"},
        help="All of them hold the settings of the image. JPEG and WebP are smaller; PNG and lossless WebP keep every pixel.",
    )
    image_quality: int = setting(
        95,
        within=(1, 100),
        title="Quality",
        help="Quality of JPEG and WebP. 90 to 95 is usual; higher values make larger files.",
    )
    webp_lossless: bool = setting(False, title="Lossless WebP", help="Keeps every pixel.")
    folder_pattern: str = setting(
        "[date]",
        max_length=300,
        title="Folder name",
        help=f"Subfolder of the output folder. Fields: {FIELDS}; / starts another subfolder. Empty writes directly into the output folder.",
    )
    file_pattern: str = setting(
        "[time]_[seed]",
        max_length=300,
        title="File name",
        help=f"Fields: {FIELDS}; [number] counts the images of a job. A name that is taken gets -2, -3 and so on.",
    )
    outdir: str | None = kohya_setting(
        None,
        title="Output folder",
        widget="folder",
        names="path",
        hint="outputs/images",
        help="Where images are written. The gallery shows those of its own folder.",
    )
    sequential_file_name: bool = kohya_setting(
        False, title="Numbered file names", help="Names images im_000001, im_000002 and so on, as sd-scripts does."
    )
    use_original_file_name: bool = kohya_setting(
        False, title="Name of the initial image", help="Names images after the initial image."
    )
    preview_every_n_steps: int | None = setting(
        2,
        within=(1, 1000),
        title="Preview every",
        unit="steps",
        hint="off",
        help="Shows an approximation of the image while it is made, at most four times a second. Blank: off.",
    )
