"""An image with its bucket and caption, and batches of such images of one size."""

from dataclasses import dataclass, field

from core.dataset.buckets.aspect_ratio import Placement, Size
from core.dataset.captions.files import Caption
from core.dataset.sources.image_info import ImageInfo
from core.settings.dataset.concepts import PLAIN, Concept
from core.settings.dataset.dataset import DatasetSettings


@dataclass(frozen=True, slots=True)
class Placed:
    """An image at one training size, with its caption as read (before the caption pipeline).

    placement   bucket and crop
    concept     the image's folder with the settings in effect for it
    variant     resolution such as "1024x1024" if the image trains at several, "" for the first
    key         identifies image and variant, for random draws
    """

    image: ImageInfo
    placement: Placement
    caption: Caption
    concept: Concept = PLAIN
    variant: str = ""
    key: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        key = (*self.image.key, self.variant) if self.variant else self.image.key
        object.__setattr__(self, "key", key)

    @property
    def repeats(self) -> int:
        return self.image.repeats

    @property
    def bucket(self) -> tuple[str, Size]:
        """(batch group, bucket size): images with equal values can share a batch."""
        return (self.concept.batch_group, self.placement.bucket)

    def loss_weight(self, dataset: DatasetSettings) -> float:
        """Return the factor on this image's loss: the folder's weight, times prior_loss_weight for regularization images."""
        prior = dataset.prior_loss_weight if self.concept.source.role == "regularization" else 1.0
        return prior * self.concept.source.loss_weight


@dataclass(frozen=True, slots=True)
class PlannedBatch:
    """A planned batch of images of one bucket size.
    items: (image, number of the repeat from 0) each"""

    bucket: Size
    items: tuple[tuple[Placed, int], ...]

    def __len__(self) -> int:
        return len(self.items)
