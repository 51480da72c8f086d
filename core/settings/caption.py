"""What writes captions: a template for images without one, and what all captioners have in common."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from core.settings.base import Job, Settings, setting
from core.settings.captions import CaptionSettings
from core.settings.dataset import DatasetSettings


class CaptionWriteSettings(Settings):
    """Write missing captions."""

    write_missing: str | None = setting(
        None,
        title="Caption for uncaptioned images",
        level="shown",
        help="Text to write as the caption of each image that has none; {words} is replaced by the folder's class tokens. Empty writes nothing and only reports.",
    )


class CaptioningSettings(Settings):
    """Which images a captioner describes, and what happens to captions that are there."""

    existing: Literal["missing", "keep", "replace", "append", "prepend", "line"] = setting(
        "missing",
        title="Existing captions",
        level="shown",
        labels={
            "missing": "fill missing and empty ones",
            "keep": "keep all, empty ones too",
            "replace": "replace",
            "append": "append",
            "prepend": "prepend",
            "line": "add a line",
        },
        help="What happens to images that have a caption. Append and prepend add only the parts that the caption does not have yet. A stopped job resumes with the images that are left.",
    )
    separator: str = setting(
        ", ",
        min_length=1,
        title="Separator",
        help="Divides the parts of a caption where one is added to another, and stands between prefix, caption and suffix.",
    )
    prefix: str = setting(
        "", title="Prefix", widget="text", help="Text before each new caption, written to the caption file."
    )
    suffix: str = setting(
        "", title="Suffix", widget="text", help="Text after each new caption, written to the caption file."
    )
    remove_words: list[str] = setting(
        default_factory=list,
        title="Remove from captions",
        widget="lines",
        help="Regular expressions, one per line; each match is removed from new captions. Removes phrases that a captioner repeats, such as invented writing.",
    )
    output_path: str | None = setting(
        None,
        title="Write to one file",
        widget="text",
        hint="caption files",
        names="path",
        kohya="output_path",
        help="A .json or .jsonl file for fine-tuning, such as outputs/tags.json, that gets the captions and sizes of all images. Caption files stay as they are; the caption history keeps an earlier file of that name.",
    )
    preview: int | None = setting(
        None,
        ge=1,
        le=1000,
        unit="images",
        title="Preview images",
        level="shown",
        help="Captions only this many images and shows the result without writing it. Empty captions all and writes.",
    )


class CaptionerJob(Job):
    """Describes the images of a dataset. Each captioner adds a group with its own settings."""

    dataset: DatasetSettings = Field(default_factory=DatasetSettings, title="Dataset")
    captions: CaptionSettings = Field(default_factory=CaptionSettings, title="Captions")
    captioning: CaptioningSettings = Field(default_factory=CaptioningSettings, title="Captioning")
