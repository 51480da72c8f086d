"""A dataset source that lists the images of a text file, and an importer of such files."""

from __future__ import annotations

from pathlib import Path

from core.dataset.sources.registered import DatasetSource
from core.dataset.sources.registered import register as register_source
from core.imports.dataset_config import Imported
from core.imports.importers import Importer, register


def _images(dataset):
    return [{"path": line, "caption": "a listed fox"} for line in Path(dataset["folder"]).read_text().splitlines()]


def _apply(job, path):
    dataset = job.dataset.model_copy(update={"folder": str(path), "dataset_class": "lists"})
    return job.model_copy(update={"dataset": dataset}), Imported(notes=["The list's images are used."])


register_source(DatasetSource("lists", "A list of images", _images))
register(Importer("lists", "list of images", (".lst",), _apply))
