"""Takes over the images of equal cells from a run's other grids, so that none is made twice."""

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
    """Fill missing cells of a grid with the images of cells with equal settings in the run's other grids; returns how many.

    Images older than a file that their settings name are not used. Raises ProblemsError for a damaged grid.json.
    """
    run, existing = folder.content().run, folder.generated()
    missing = {_key(cell.request.job): cell.position for cell in grid.cells if run and cell.position not in existing}
    reused = 0
    for other in list_grids(workspace) if missing else ():
        if other.name == folder.name:
            continue
        for job, image in _images_of(other, run, workspace):
            position = missing.get(_key(job))
            if position is not None and not is_older(image, job, workspace):
                _link_or_copy(image, folder, position)
                missing.pop(_key(job))
                reused += 1
    return reused


def _images_of(folder: GridFolder, run: str, workspace: Workspace) -> list[tuple[GenerateJob, Path]]:
    """(settings, image) of the cells of a grid of this run; none of another run's, of a damaged one, or of one whose files are gone."""
    try:
        if folder.content().run != run:
            return []
        cells = grid_of(folder.job(), workspace).cells
    except ProblemsError:
        return []
    existing = folder.generated()
    return [(cell.request.job, folder.cell(cell.position)) for cell in cells if cell.position in existing]


def _key(job: GenerateJob) -> str:
    """The settings as text; a variation seed without strength, drawn for each grid, changes no image and is left out."""
    without = {} if job.generate.variation_strength else {"generate": {"variation_seed"}}
    return job.model_dump_json(exclude=without)


def is_older(image: Path, job: GenerateJob, workspace: Workspace) -> bool:
    """Whether a file that the settings name was changed after the image was made."""
    files = [named for named in named_in(job) if "path" in named.what]
    names = (named.value.partition("=")[2] if "word" in named.what else named.value for named in files)
    paths = (find_file(name, workspace) for name in names)
    return any(path.stat().st_mtime_ns > image.stat().st_mtime_ns for path in paths if path is not None)


def _link_or_copy(image: Path, folder: GridFolder, position: Index) -> None:
    """Hard-link an image as a cell of the grid; without links, copy it atomically with its modification time."""
    target = folder.cell(position)
    target.parent.mkdir(exist_ok=True)
    try:
        os.link(image, target)
    except FileExistsError:
        return
    except OSError:  # a drive without links
        atomic.write_bytes(target, image.read_bytes())
        os.utime(target, ns=(image.stat().st_atime_ns, image.stat().st_mtime_ns))
