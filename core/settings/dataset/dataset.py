"""Settings of the dataset: folders, regularization images, resolution."""

from typing import Literal

from core.record.units import count
from core.settings.base import SAME, follows_compatibility, kohya_setting, setting
from core.settings.dataset.images import ImageSettings
from core.settings.dataset.source import Source


class DatasetSettings(ImageSettings):
    """Training images, regularization images and resolution."""

    folder: str | None = setting(
        None,
        title="Image folder",
        first="model",
        brief="Any folder of images.",
        level="shown",
        widget="folder",
        kohya="train_data_dir",
        help="A folder of images. Subfolders named like 10_fox set repeats and class tokens.",
        names="path",
    )
    sources: list[Source] = setting(
        default_factory=list,
        title="Additional folders",
        elsewhere="Dataset#ds-sources",
        widget="sources",
        help="More image folders, each with its own settings. The image folder above is a shortcut for one entry here.",
    )
    reg_data_dir: str | None = kohya_setting(
        None,
        title="Regularization folder",
        widget="folder",
        help="Regularization images of the class, so that the model does not forget it. A shortcut for an additional folder with the regularization role.",
        names="path",
    )
    prior_loss_weight: float = kohya_setting(
        1.0,
        within=(0, 100),
        source="Ruiz et al. 2022, arXiv:2208.12242",
        help="Weight of the loss on regularization images relative to training images. 1 is usual.",
        recorded=SAME,
    )
    reg_balance: Literal["rotate", "kohya"] = follows_compatibility("rotate", "kohya")
    short_batches: Literal["keep", "refill", "merge", "drop"] = setting(
        "keep",
        title="Incomplete batches",
        section="Batches and loading",
        labels={"refill": "fill from same bucket", "merge": "merge into nearest"},
        help="What to do with the last batch of a bucket if it is not full. A short batch is weighted by its number of images.",
    )
    crop_conditioning: Literal["true", "kohya"] = follows_compatibility("true", "kohya")
    control_fit: Literal["aligned", "stretched", "area"] = follows_compatibility("aligned", "stretched", "area")
    skip_broken: bool = setting(
        False,
        title="Skip broken images",
        help="Lists images that cannot be read and trains without them. Off refuses to start.",
    )
    dataset_class: str | None = kohya_setting(
        None,
        help="A custom class, package.module.Class, that lists the images instead of the folders. Its module must be allowed on this machine: --allow-module, or a line in allowed_modules.txt.",
    )

    def all_sources(self) -> list[Source]:
        """Return every enabled folder: first the short forms `folder` and `reg_data_dir`, then `sources`."""
        short = [Source(folder=self.folder)] if self.folder else []
        if self.reg_data_dir:
            short.append(Source(folder=self.reg_data_dir, role="regularization"))
        return short + [source for source in self.sources if source.enabled]

    def summary(self) -> str:
        """Return resolution, batch size, buckets and number of further folders in one line."""
        size = self.resolution
        parts = [
            f"{size[0]} x {size[1]} pixels" if isinstance(size, tuple) else f"{size} pixels",
            f"batch {self.train_batch_size}",
        ]
        parts.append("buckets" if self.enable_bucket else "cropped to one size")
        more = len([source for source in self.sources if source.enabled])
        return ", ".join(parts + ([count(more, "more folder")] if more else []))
