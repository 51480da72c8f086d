"""Registry of the importers for other programs' dataset files, used by the Dataset tab."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from core.imports.dataset_config import Imported, apply_dataset_config
from core.settings.job import TrainJob


@dataclass(frozen=True)
class Importer:
    """Importer for the dataset files of another program.

    endings     extensions of its files, in lower case: (".toml",)
    apply       (job, path) -> (the job with the file's settings, report). Raises ProblemsError for an invalid file
    recognizes  path -> whether a file with such an extension belongs to this program
    """

    name: str
    title: str
    endings: tuple[str, ...]
    apply: Callable[[TrainJob, str], tuple[TrainJob, Imported]]
    recognizes: Callable[[Path], bool] = lambda path: True


IMPORTERS: dict[str, Importer] = {}


def register(importer: Importer) -> None:
    """Register an importer; of several that recognize a file, the one registered last reads it."""
    IMPORTERS[importer.name] = importer


def importer_of(path: str) -> Importer:
    """Return the importer for a file; if none recognizes it sd-scripts', whose errors say what it expects."""
    file = Path(path)
    known = reversed(IMPORTERS.values())
    return next((each for each in known if file.suffix.lower() in each.endings and each.recognizes(file)), SD_SCRIPTS)


def endings() -> list[str]:
    """Return the file extensions of all importers, without duplicates."""
    return list(dict.fromkeys(ending for each in IMPORTERS.values() for ending in each.endings))


SD_SCRIPTS = Importer("sd_scripts", "dataset config of sd-scripts", (".toml", ".json"), apply_dataset_config)
register(SD_SCRIPTS)
