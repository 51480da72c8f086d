"""Generates the cells of a grid part by part, each with its model loaded; existing cells are kept."""

from __future__ import annotations

import errno
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from core.generation.grids.export import export
from core.generation.grids.folder import GridFolder, Place
from core.generation.grids.plan import Cell, Grid, Part, decided, grid_of
from core.generation.images.output import encoded_image
from core.generation.making import Enlarger, Maker
from core.generation.model.store import ModelStore, make_store
from core.generation.plan.stages import stages_of
from core.generation.run import Written, ready
from core.generation.sample.loop import steps_of
from core.record import atomic
from core.record.cancel import Cancelled
from core.record.context import NO_REPORTS, JobContext, Outcome, Reports
from core.record.memory import free_memory, is_out_of_memory
from core.record.problems import ProblemsError, unwritten
from core.record.units import count
from core.record.workspace import Workspace, display_path
from core.settings.job import GenerateJob, GridJob

if TYPE_CHECKING:
    from PIL.Image import Image


def run_task(job: GridJob, context: JobContext) -> Outcome:
    """The task `grid`."""
    store = context.store or make_store()
    folder, failed = run_grid(job, context.workspace, store=store, device=context.device, reports=context)
    lines = [f"{count(failed, 'image')} failed"] if failed else []
    paths = [display_path(path) for path in (folder.png, folder.html)]
    return Outcome(lines=[*lines, *paths], facts={"grid": folder.name, "failed": failed})


def begin(
    job: GridJob, workspace: Workspace, run: str = "", notes: Mapping[str, Sequence[str]] | None = None
) -> GridFolder:
    """The folder of a new grid. Raises ProblemsError with all problems of the settings.

    run     whose checkpoints are compared        notes   {letter of an axis: a note for each value}
    """
    job = decided(job)
    grid = grid_of(job, workspace)
    return GridFolder.create(workspace, job, grid.texts(notes or {}), grid.same, run)


def run_grid(
    job: GridJob,
    workspace: Workspace,
    *,
    store: ModelStore,
    device: str = "cpu",
    reports: Reports = NO_REPORTS,
) -> tuple[GridFolder, int]:
    """Generate the missing cells of a grid; returns (its folder, number of failed cells). Also exports a stopped grid."""
    reports.stage("checking files")
    folder = GridFolder.named(job.grid.folder, workspace) if job.grid.folder else begin(job, workspace)
    grid = grid_of(folder.job(), workspace)
    for note in grid.notes:
        reports.warn(note)
    work = Work(grid, folder, workspace, store, device, reports)
    folder.change(state="running", failed={})
    state = "failed"
    try:
        work.run()
        state = "done"
    except Cancelled:
        state = "stopped"
        raise
    finally:
        work.end(state)
    return folder, len(work.failed)


@dataclass
class Work:
    """The generation of one grid."""

    grid: Grid
    folder: GridFolder
    workspace: Workspace
    store: ModelStore
    device: str
    reports: Reports
    failed: dict[Place, str] = field(default_factory=dict)
    _done_steps: int = 0
    _began: float = 0.0

    def __post_init__(self) -> None:
        self.made = self.folder.made()
        self.total = sum(_steps(cell) for cell in self.grid.cells)
        self._done_steps = sum(_steps(cell) for cell in self.grid.cells if cell.place in self.made)
        self._before = self._done_steps

    def run(self) -> None:
        """Generate all missing cells."""
        self._began = time.monotonic()
        self.folder.cells.mkdir(exist_ok=True)
        for part in self.grid.parts:
            alone = False
            while any(not self._is_over(cell) for cell in part.cells):
                alone = self._try(part, alone)

    def end(self, state: str) -> None:
        """Write the result to grid.json, and grid.png and grid.html."""
        seconds = time.monotonic() - self._began if self._began else 0.0
        self.folder.change(
            state=state, failed=self.failed, steps=max(self._done_steps - self._before, 0), seconds=round(seconds, 2)
        )
        if self.made:
            self.reports.stage("writing the grid")
            export(self.folder)

    def _is_over(self, cell: Cell) -> bool:
        return cell.place in self.made or cell.place in self.failed

    def _try(self, part: Part, alone: bool) -> bool:
        """Generate cells of a part until an error. alone: one by one; returns whether the next try needs that."""
        now: list[Cell] = []
        try:
            plan = part.plan(self.workspace)
            with ready(plan, self.workspace, store=self.store, device=self.device, reports=self.reports) as (
                maker,
                written,
            ):
                for cells in self._batches(part, [each.job for each in plan.requests], maker, alone):
                    now[:] = cells
                    self._make(cells, maker, written)
                return False
        except (Cancelled, Unsaved):
            raise
        except Exception as error:
            why = reason(error)
            if len(now) > 1:
                self.reports.say("Several images at once failed; continuing one by one")
                alone = True
            else:
                self._fail(now or [cell for cell in part.cells if not self._is_over(cell)], why)
        free_memory()
        return alone

    def _batches(
        self, part: Part, jobs: Sequence[GenerateJob], maker: Maker | Enlarger, alone: bool
    ) -> Iterator[Sequence[Cell]]:
        """The batches of a part that have missing cells. Always those of the whole part, so that a resumed grid equals an
        uninterrupted one."""
        cells = [Cell(cell.place, replace(cell.request, job=job)) for cell, job in zip(part.cells, jobs, strict=True)]
        for batch in maker.batches([cell.request for cell in cells], 1 if alone else None):
            taken, cells = cells[: len(batch)], cells[len(batch) :]
            if any(not self._is_over(cell) for cell in taken):
                yield taken

    def _make(self, cells: Sequence[Cell], maker: Maker | Enlarger, written: Written) -> None:
        """Generate one batch; existing images are kept."""
        self.reports.cancel.check()
        made = maker.make([cell.request for cell in cells], partial(self._progress, len(cells)))
        for cell, image in zip(cells, made.images[-1], strict=True):
            if self._is_over(cell):
                continue
            path = self.folder.cell(cell.place)
            self._save(image, path, cell, written)
            self.made.add(cell.place)
            self._done_steps += _steps(cell)
            self.reports.generated(path, cell.request.seed)
        self._progress()

    def _save(self, image: Image, path: Path, cell: Cell, written: Written) -> None:
        content = encoded_image(image, written.job_of(cell.request.job), written.hashes, "png")
        try:
            atomic.write_bytes(path, content)
        except OSError as error:
            raise Unsaved(unwritten(error, "The image cannot be saved", str(path)).problems) from error

    def _progress(self, together: int = 0, steps_done: int = 0) -> None:
        over, total = len(self.made) + len(self.failed), len(self.grid.cells)
        text = f"generating image {min(over + 1, total)} of {total}"
        self.reports.stage(text, min(self._done_steps + together * steps_done, self.total), self.total)

    def _fail(self, cells: Sequence[Cell], why: str) -> None:
        for cell in cells:
            self.failed[cell.place] = why
        self.folder.change(failed=self.failed)
        self.reports.say(f"{count(len(cells), 'image')} of the grid failed: {why}", "warning")


class Unsaved(ProblemsError):
    """An image cannot be written, which ends the grid: no other could be."""


def _steps(cell: Cell) -> int:
    return sum(steps_of(stage) for stage in stages_of(cell.request.job))


def reason(error: Exception) -> str:
    """Why a cell failed, as one sentence. Re-raises errors that all other cells would meet: a full disk, a CUDA error."""
    if isinstance(error, ProblemsError):
        first = error.problems[0]
        return f"{first.what} ({first.where})" if first.where else first.what
    if is_out_of_memory(error):
        return "The device ran out of memory"
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        raise error
    if "cuda error" in str(error).lower():
        raise error
    return f"{type(error).__name__}: {str(error)[:300]}"
