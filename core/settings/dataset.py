"""The images to train from."""

from __future__ import annotations

from typing import Literal

from core.settings.base import setting
from core.settings.images import ImageSettings
from core.settings.source import Source


class DatasetSettings(ImageSettings):
    """Which images, and at what size they train."""

    folder: str | None = setting(
        None,
        title="Image folder",
        level="shown",
        widget="folder",
        kohya="train_data_dir",
        help="Any folder of images. Folders named like 10_fox inside it set repeats and words.",
        names="path",
    )
    sources: list[Source] = setting(
        default_factory=list,
        title="More folders",
        widget="sources",
        help="Further folders, each with settings of its own. The image folder above is short for one entry here.",
    )
    reg_data_dir: str | None = setting(
        None,
        title="Regularization folder",
        widget="folder",
        kohya="reg_data_dir",
        help="Images of the class, so that the model keeps it as it is. Short for a folder of the regularization role.",
        names="path",
    )
    prior_loss_weight: float = setting(
        1.0,
        ge=0,
        le=100,
        title="Weight of regularization",
        kohya="prior_loss_weight",
        source="Ruiz et al. 2022, arXiv:2208.12242",
        help="How much regularization images count beside the others.",
    )
    reg_balance: Literal["rotate", "kohya"] = setting(
        "rotate",
        title="Balance of regularization",
        labels={"rotate": "all in turn", "kohya": "the first, as sd-scripts"},
        help="As many regularization views as others are shown in an epoch. In turn, each epoch goes on where the last one ended, so that all are used.",
    )
    short_batches: Literal["keep", "refill", "merge", "drop"] = setting(
        "keep",
        title="Buckets that do not fill a batch",
        labels={
            "keep": "short batches",
            "refill": "fill up from the bucket",
            "merge": "join the nearest bucket",
            "drop": "leave out",
        },
        help="The last batch of a bucket may be short. It weighs by its true number of images, so nothing is lost by it.",
    )
    crop_conditioning: Literal["true", "kohya"] = setting(
        "true",
        title="Crop told to SDXL",
        labels={"true": "the true crop", "kohya": "as sd-scripts"},
        help="SDXL is told what was cut off. sd-scripts tells a number derived from the bucket; choose it to repeat old results.",
    )
    skip_broken: bool = setting(
        False,
        title="Leave out broken images",
        help="Images that cannot be read are named; on, the rest trains without them; off, they block the start.",
    )
    dataset_class: str | None = setting(
        None,
        title="Dataset class",
        kohya="dataset_class",
        help="package.module.Class that lists the images instead of the folders. Its module must be allowed on this machine: --allow-module, or a line in allowed_modules.txt.",
    )

    def all_sources(self) -> list[Source]:
        """Every enabled folder, the short forms `folder` and `reg_data_dir` first."""
        short = [Source(folder=self.folder)] if self.folder else []
        if self.reg_data_dir:
            short.append(Source(folder=self.reg_data_dir, role="regularization"))
        return short + [source for source in self.sources if source.enabled]
