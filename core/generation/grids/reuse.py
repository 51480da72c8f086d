"""Uses the images of equal cells in a run's other grids, so that none is generated twice."""

import os
from pathlib import Path

from core.generation.grids.folder import GridFolder, Index, list_grids
from core.generation.grids.plan import Grid, grid_of
from core.generation.model.library import find_file
from core.record import atomic
from core.record.problems import ProblemsError
from core.record.workspace import Workspace
from core.settings.job import GenerateJob
from core.settings.named import named_in


def reuse(folder: GridFolder, grid: Grid, workspace: Workspace) -> int:
    """Fill a grid's missing cells with images of cells with equal settings in other grids of the same run. Return their number.

    Images older than a file in their settings are not used. Raises ProblemsError for a damaged grid.json.
    """
    run, existing = folder.content().run, folder.generated()
    missing = {
        _settings_key(cell.request.job): cell.position for cell in grid.cells if run and cell.position not in existing
    }
    reused = 0
    for other in list_grids(workspace) if missing else ():
        if other.name == folder.name:
            continue
        for job, image in _images_of(other, run, workspace):
            position = missing.get(_settings_key(job))
            if position is not None and not is_older(image, job, workspace):
                _link_or_copy(image, folder, position)
                missing.pop(_settings_key(job))
                reused += 1
    return reused


def _images_of(folder: GridFolder, run: str, workspace: Workspace) -> list[tuple[GenerateJob, Path]]:
    """Return (settings, image) of a grid's existing cells; [] for a grid of another run, and if its plan has errors."""
    try:
        if folder.content().run != run:
            return []
        cells = grid_of(folder.job(), workspace).cells
    except ProblemsError:
        return []
    existing = folder.generated()
    return [(cell.request.job, folder.cell(cell.position)) for cell in cells if cell.position in existing]


def _settings_key(job: GenerateJob) -> str:
    """Return the settings that affect the image as text: without a variation seed whose strength is 0, since it is random."""
    without = {} if job.generate.variation_strength else {"generate": {"variation_seed"}}
    return job.model_dump_json(exclude=without)


def is_older(image: Path, job: GenerateJob, workspace: Workspace) -> bool:
    """Return whether a file in the job's settings was changed after the image was written."""
    files = [reference for reference in named_in(job) if "path" in reference.what]
    names = (reference.value.partition("=")[2] if "word" in reference.what else reference.value for reference in files)
    paths = (find_file(name, workspace) for name in names)
    return any(path.stat().st_mtime_ns > image.stat().st_mtime_ns for path in paths if path is not None)


def _link_or_copy(image: Path, folder: GridFolder, position: Index) -> None:
    """Hard-link an image as a cell of the grid, or copy it atomically with its modification time on drives without links."""
    target = folder.cell(position)
    target.parent.mkdir(exist_ok=True)
    try:
        os.link(image, target)
    except FileExistsError:
        return
    except OSError:  # a drive without links
        atomic.write_bytes(target, image.read_bytes())
        os.utime(target, ns=(image.stat().st_atime_ns, image.stat().st_mtime_ns))
