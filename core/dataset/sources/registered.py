"""Dataset sources registered by packages, which list the images instead of folders. None are built in."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class DatasetSource:
    """A dataset source: a choice of "Dataset class" next to the path of a class.
    images: the dataset's settings as a dict -> {path, caption?, repeats?, words?, is_reg?} for each image"""

    name: str
    title: str
    images: Callable[[dict[str, Any]], Iterable[Mapping[str, Any]]]


SOURCES: dict[str, DatasetSource] = {}


def register(source: DatasetSource) -> None:
    """Register a dataset source."""
    SOURCES[source.name] = source
