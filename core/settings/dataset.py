"""The pictures to learn from."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from core.settings.base import Settings, setting

Side = Annotated[int, Field(ge=64, le=8192)]


class Source(Settings):
    """One folder of pictures."""

    folder: str = setting(title="Folder", help="Pictures in it and below it train.", kohya="image_dir")
    num_repeats: int | None = setting(
        None,
        ge=1,
        le=10000,
        title="Repeats",
        kohya="num_repeats",
        help="How often each picture is shown in an epoch. Empty takes the number in front of the folder's name, else 1.",
    )
    class_tokens: str | None = setting(
        None,
        title="Words for pictures without a caption",
        kohya="class_tokens",
        help="Empty takes the folder's own words.",
    )
    enabled: bool = setting(True, title="Use it", help="Off leaves the folder out without forgetting it.")


class DatasetSettings(Settings):
    """Which pictures, and at what size they train."""

    folder: str | None = setting(
        None,
        title="Picture folder",
        level="shown",
        widget="folder",
        kohya="train_data_dir",
        help="Any folder of pictures. Folders named like 10_fox inside it set repeats and words.",
    )
    sources: list[Source] = setting(
        default_factory=list,
        title="More folders",
        widget="sources",
        help="Further folders, each with its own repeats and words. The picture folder above is short for one entry here.",
    )
    resolution: Side | tuple[Side, Side] = setting(
        512,
        title="Resolution",
        unit="pixels",
        level="shown",
        kohya="resolution",
        help="Size that pictures are trained at: one number, or width and height. SD 1.5 was made for 512; the starter for 128.",
        costs="Memory and time grow with the number of pixels.",
    )
    train_batch_size: int = setting(
        1,
        ge=1,
        le=1024,
        title="Batch size",
        unit="pictures",
        level="shown",
        kohya="train_batch_size",
        help="Pictures learnt from in one step.",
        costs="Memory grows with it; a step takes longer, an epoch less.",
    )
    enable_bucket: bool = setting(
        True,
        title="Keep picture shapes",
        kohya="enable_bucket",
        help="Sorts pictures into sizes near their own shape, so that little is cropped. Off crops all to the resolution.",
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
        help="Pictures smaller than the resolution train at their own size.",
    )
    skip_broken: bool = setting(
        False,
        title="Leave out broken pictures",
        help="Pictures that cannot be read are named; on, the rest trains without them; off, they block the start.",
    )

    def all_sources(self) -> list[Source]:
        """Every enabled folder, the short form `folder` first."""
        short = [Source(folder=self.folder)] if self.folder else []
        return short + [source for source in self.sources if source.enabled]
