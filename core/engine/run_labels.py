"""Labels of a run in lists: dataset, base model, method and preset."""

from dataclasses import dataclass
from pathlib import Path

from core.engine.extend import job_of
from core.record.problems import ProblemsError
from core.record.run_folder import RunFolder
from core.record.stamps import cached_until_changed
from core.record.workspace import last_part
from core.settings.job import TrainJob


@dataclass(frozen=True)
class RunLabels:
    """Display names of a run's dataset folders, base model and preset, and its value of `method.kind`; "" where the settings cannot be
    read."""

    dataset: str = ""
    model: str = ""
    method: str = ""
    preset: str = ""


def labels_of(folder: RunFolder) -> RunLabels:
    """Return the labels of a run, from its job.json."""
    return _read(folder.job_file)


@cached_until_changed(2000, missing=RunLabels())
def _read(job_file: Path) -> RunLabels:
    """Return the labels from job.json; only the preset if its settings cannot be read."""
    folder = RunFolder(job_file.parent)
    try:
        job = job_of(folder)
    except (ProblemsError, OSError, ValueError):  # of another version, or damaged
        return RunLabels(preset=folder.preset)
    return RunLabels(_folders(job), last_part(job.model.base_model or ""), job.method.kind, folder.preset)


def _folders(job: TrainJob) -> str:
    """Return the names of the dataset's folders, separated by commas."""
    folders = [source.folder for source in job.dataset.all_sources()]
    return ", ".join(dict.fromkeys(last_part(folder) for folder in folders if folder))
