"""The files of other programs that the Dataset tab imports, a line each."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from core.imports.dataset_config import Imported, apply_dataset_config
from core.settings.job import TrainJob


@dataclass(frozen=True)
class Importer:
    """Applies the settings in another program's file to a job.

    endings      of its files, in lower case: (".toml",)
    apply        (job, path) -> the job with the file's settings, and the report. Raises ProblemsError where the file is wrong
    recognizes   whether a file with such an ending is this program's
    """

    name: str
    title: str
    endings: tuple[str, ...]
    apply: Callable[[TrainJob, str], tuple[TrainJob, Imported]]
    recognizes: Callable[[Path], bool] = lambda path: True


IMPORTERS: dict[str, Importer] = {}


def register(importer: Importer) -> None:
    """Add an importer; of several that recognize a file, the one registered last reads it."""
    IMPORTERS[importer.name] = importer


def importer_of(path: str) -> Importer:
    """The importer for a file; without a match sd-scripts', whose errors say what it expects."""
    file = Path(path)
    known = reversed(IMPORTERS.values())
    return next((each for each in known if file.suffix.lower() in each.endings and each.recognizes(file)), SD_SCRIPTS)


def endings() -> list[str]:
    return list(dict.fromkeys(ending for each in IMPORTERS.values() for ending in each.endings))


SD_SCRIPTS = Importer("sd_scripts", "dataset config of sd-scripts", (".toml", ".json"), apply_dataset_config)
register(SD_SCRIPTS)
