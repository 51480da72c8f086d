"""Sources of a dataset that packages bring: each lists the images in place of folders. Atelier itself has none."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class DatasetSource:
    """What "Dataset class" can hold besides the path of a class, and offers on the page.

    images   the dataset's settings as a dict -> {path, caption?, repeats?, words?, is_reg?} for each image
    """

    name: str
    title: str
    images: Callable[[dict[str, Any]], Iterable[Mapping[str, Any]]]


SOURCES: dict[str, DatasetSource] = {}


def register(source: DatasetSource) -> None:
    """Add a source of a dataset."""
    SOURCES[source.name] = source
