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

    existing: Literal["keep", "replace"] = setting(
        "keep",
        title="Existing captions",
        level="shown",
        labels={"keep": "keep", "replace": "replace"},
        help="Keep describes only images without a caption file; replace overwrites the others too. A stopped job resumes with the images that are left.",
    )
    preview: int | None = setting(
        None,
        ge=1,
        le=1000,
        unit="images",
        title="Preview images",
        level="shown",
        help="Describes only so many images and shows the captions without writing them. Empty describes all and writes.",
    )


class CaptionerJob(Job):
    """Describes the images of a dataset. Each captioner adds a group with its own settings."""

    dataset: DatasetSettings = Field(default_factory=DatasetSettings, title="Dataset")
    captions: CaptionSettings = Field(default_factory=CaptionSettings, title="Captions")
    captioning: CaptioningSettings = Field(default_factory=CaptioningSettings, title="Captioning")
