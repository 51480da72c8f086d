"""Settings of the template for images without captions, and settings that all captioners share."""

from typing import Literal

from pydantic import Field

from core.settings.base import Job, Settings, kohya_setting, setting
from core.settings.dataset.captions import CaptionSettings
from core.settings.dataset.dataset import DatasetSettings


class CaptionWriteSettings(Settings):
    """Captions for images without one, from a template."""

    write_missing: str | None = setting(
        None,
        title="Caption for uncaptioned images",
        level="shown",
        help="Caption to write for each image without one; {words} stands for the folder's class tokens. Empty only reports.",
    )


class CaptioningSettings(Settings):
    """Which images a captioner describes, how existing captions are treated, and the form of new ones."""

    existing: Literal["missing", "keep", "replace", "append", "prepend", "line"] = setting(
        "missing",
        title="Existing captions",
        level="shown",
        labels={"missing": "fill missing", "keep": "keep all, even empty", "line": "add a line"},
        help="What to do with images that already have a caption. Fill missing also fills empty caption files. Append and prepend add only what the caption lacks. A stopped job resumes with the remaining images.",
    )
    only: list[str] = setting(
        default_factory=list,
        title="Only these images",
        widget="lines",
        hint="all",
        help="Names or paths of the images to caption, one per line. Empty captions all images of the dataset.",
    )
    separator: str = setting(
        ", ",
        min_length=1,
        help="Written between an existing caption and what is added to it, and between prefix, caption and suffix.",
    )
    prefix: str = setting("", widget="text", help="Text before each new caption, written to the caption file.")
    suffix: str = setting("", widget="text", help="Text after each new caption, written to the caption file.")
    remove_words: list[str] = setting(
        default_factory=list,
        title="Remove from captions",
        widget="lines",
        help="Regular expressions, one per line; every match is removed from new captions. For phrases that a captioner keeps repeating.",
    )
    output_path: str | None = kohya_setting(
        None,
        title="Write to one file",
        widget="text",
        hint="caption files",
        names="path",
        help="Writes captions and sizes of all images to one fine-tuning .json or .jsonl, such as outputs/tags.json, instead of caption files. The caption history keeps an existing file of that name.",
    )
    preview: int | None = setting(
        None,
        within=(1, 1000),
        unit="images",
        title="Preview images",
        level="shown",
        help="Number of images to caption and show without writing anything. Empty captions all images and writes.",
    )


class CaptionerJob(Job):
    """Describes the images of a dataset. Each captioner adds a group with its own settings."""

    dataset: DatasetSettings = Field(default_factory=DatasetSettings)
    captions: CaptionSettings = Field(default_factory=CaptionSettings)
    captioning: CaptioningSettings = Field(default_factory=CaptioningSettings)
