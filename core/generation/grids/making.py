"""Generates the cells of a grid part by part, each with its model loaded. Existing cells are skipped."""

from __future__ import annotations

import errno
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from core.generation.grids.export import export
from core.generation.grids.folder import GridFolder, Index
from core.generation.grids.plan import Cell, Grid, Part, grid_of, with_seeds
from core.generation.grids.reuse import is_older, reuse
from core.generation.images.output import encoded_image
from core.generation.making import Progress, each_image
from core.generation.model.store import ModelStore, make_store
from core.generation.plan.initial import opened
from core.generation.plan.stages import sampling_steps
from core.generation.run import ImageMetadata, loaded_maker
from core.record import atomic
from core.record.cancel import Cancelled
from core.record.context import NO_REPORTS, JobContext, Outcome, Reports
from core.record.memory import free_memory, is_out_of_memory
from core.record.problems import ProblemsError, unwritten, write_errors
from core.record.units import count
from core.record.workspace import Workspace, display_path
from core.settings.job import GenerateJob, GridJob

if TYPE_CHECKING:
    from PIL.Image import Image


def run_task(job: GridJob, context: JobContext) -> Outcome:
    """Run the task `grid`: generate the missing cells of a grid and export it.

    The outcome's facts are {"grid": folder name, "failed": number of failed cells}.
    """
    store = context.store or make_store()
    folder, failed = run_grid(job, context.workspace, store=store, device=context.device, reports=context)
    lines = [f"{count(failed, 'image')} failed"] if failed else []
    if (content := folder.content()).state == "late":
        lines.append(f"The {content.minutes:g} minutes are over: resume the grid for the rest")
    paths = [display_path(path) for path in (folder.png, folder.html)]
    return Outcome(lines=[*lines, *paths], facts={"grid": folder.name, "failed": failed})


def begin(
    job: GridJob, workspace: Workspace, run: str = "", notes: Mapping[str, Sequence[str]] | None = None
) -> GridFolder:
    """Create the folder of a new grid, with all random seeds chosen. Raises ProblemsError with all problems of the settings.

    run     folder name of the run whose checkpoints are compared; "" for none
    notes   {letter of an axis: a note for each of its values}
    """
    job = with_seeds(job)
    grid = grid_of(job, workspace)
    return GridFolder.create(workspace, job, grid.stored_axes(notes or {}, workspace), grid.same, run)


def run_grid(
    job: GridJob,
    workspace: Workspace,
    *,
    store: ModelStore,
    device: str = "cpu",
    reports: Reports = NO_REPORTS,
) -> tuple[GridFolder, int]:
    """Generate the missing cells of a grid and export it, also if it is stopped. Return (its folder, number of failed cells).

    Raises ProblemsError for an invalid grid before any cell is generated; a cell that fails later is only counted.
    """
    reports.stage("checking files")
    folder = GridFolder.named(job.grid.folder, workspace) if job.grid.folder else begin(job, workspace)
    grid = grid_of(folder.job(), workspace, folder.content().run)
    for note in grid.notes:
        reports.warn(note)
    if linked := reuse(folder, grid, workspace):
        reports.say(f"{count(linked, 'image')} of earlier grids used again")
    work = GridWork(grid, folder, workspace, store, device, reports)
    folder.change(state="running", failed={})
    state = "failed"
    try:
        state = "done" if work.run() else "late"
    except Cancelled:
        state = "stopped"
        raise
    finally:
        work.end(state)
    return folder, len(work.failed)


@dataclass
class GridWork:
    """The generation of one grid's missing cells.

    failed     {cell: reason} so far
    done       cells whose images exist
    progress   reported progress
    """

    grid: Grid
    folder: GridFolder
    workspace: Workspace
    store: ModelStore
    device: str
    reports: Reports
    failed: dict[Index, str] = field(default_factory=dict)
    _began: float = 0.0

    def __post_init__(self) -> None:
        """Find existing cells and reusable samples, and count the remaining steps."""
        self.done = self.folder.generated()
        self._seconds = 60 * self.folder.content().minutes
        jobs = {cell.position: cell.request.job for cell in self.grid.cells}
        missing = jobs.keys() - self.done
        self._samples = {
            position: path
            for position, path in self.folder.samples(self.workspace).items()
            if position in missing and not is_older(path, jobs[position], self.workspace)
        }
        if self._samples:
            self.reports.say(f"{count(len(self._samples), 'sample')} of the run used again")
        steps = {position: 0 if position in self._samples else sampling_steps(job) for position, job in jobs.items()}
        self._old_steps = sum(steps[position] for position in steps if position in self.done)
        self.progress = Progress(
            self.reports, "image", len(steps), sum(steps.values()), len(self.done), self._old_steps
        )

    def run(self) -> bool:
        """Generate the missing cells. Return False if the grid's time limit ended before the last one."""
        self._began = time.monotonic()
        self.folder.cells.mkdir(exist_ok=True)
        for part in self.grid.parts:
            one_by_one = False
            while any(not self._is_finished(cell) for cell in part.cells):
                if self._is_late:
                    return False
                one_by_one = self._generate_or_fail(part, one_by_one)
        return True

    def end(self, state: str) -> None:
        """Write the result to grid.json, and grid.png and grid.html. Raises ProblemsError if they cannot be written.
        state: as in `GridContent`"""
        seconds = time.monotonic() - self._began if self._began else 0.0
        with write_errors("The grid cannot be written", str(self.folder.path)):
            self.folder.change(
                state=state,
                failed=self.failed,
                steps=max(self.progress.steps_done - self._old_steps, 0),
                seconds=round(seconds, 2),
            )
            if self.done:
                self.reports.stage("writing the grid")
                export(self.folder)

    @property
    def _is_late(self) -> bool:
        """Whether the grid's time limit is over."""
        return 0 < self._seconds <= time.monotonic() - self._began

    def _is_finished(self, cell: Cell) -> bool:
        """Return whether a cell's image exists or has failed."""
        return cell.position in self.done or cell.position in self.failed

    def _generate_or_fail(self, part: Part, one_by_one: bool) -> bool:
        """Generate a part's cells until an error. Return whether the next attempt must generate one by one.

        A cell that fails alone is marked as failed; a batch that fails is to be tried again one by one.

        one_by_one   generate one cell at a time
        """
        self.progress.batch = []
        try:
            self._generate(part, 1 if one_by_one else None)
            return False
        except (Cancelled, Unsaved):
            raise
        except Exception as error:
            message, batch = reason(error), [part.cells[number] for number in self.progress.batch]
            if len(batch) > 1:
                self.reports.say("Several images at once failed; continuing one by one")
                one_by_one = True
            else:
                self._fail(batch or [cell for cell in part.cells if not self._is_finished(cell)], message)
        free_memory()
        return one_by_one

    def _generate(self, part: Part, max_batch_size: int | None) -> None:
        """Generate and save a part's missing cells. max_batch_size: None: as many as fit"""
        plan = part.plan(self.workspace)
        with loaded_maker(plan, self.workspace, store=self.store, device=self.device, reports=self.reports) as (
            maker,
            metadata,
        ):
            self._take_samples(part, metadata)
            existing = [number for number, cell in enumerate(part.cells) if self._is_finished(cell)]
            for number, images in each_image(plan.requests, maker, self.progress, existing, max_batch_size):
                request, position = plan.requests[number], part.cells[number].position
                self._save(images[-1], self.folder.cell(position), metadata.job_of(request.job), metadata)
                self.done.add(position)
                self.reports.generated(self.folder.cell(position), request.seed)
                if self._is_late and all(self._is_finished(part.cells[number]) for number in self.progress.batch):
                    return

    def _take_samples(self, part: Part, metadata: ImageMetadata) -> None:
        """Save the run's samples that are missing cells as their images. Samples that cannot be read are generated instead."""
        for cell in part.cells:
            path = self._samples.pop(cell.position, None)
            if path is None or self._is_finished(cell):
                continue
            try:
                image = opened(path, "grid")
            except ProblemsError:
                continue
            self._save(image, self.folder.cell(cell.position), metadata.job_of(cell.request.job), metadata)
            self.done.add(cell.position)
            self.progress.add(1, 0)

    def _save(self, image: Image, path: Path, job: GenerateJob, metadata: ImageMetadata) -> None:
        """Write a cell's image with its settings. Raises Unsaved if that fails."""
        try:
            atomic.write_bytes(path, encoded_image(image, job, metadata.hashes, "png"))
        except OSError as error:
            raise Unsaved(unwritten(error, "The image cannot be saved", str(path)).problems) from error

    def _fail(self, cells: Sequence[Cell], message: str) -> None:
        """Mark cells as failed and report it. message: one sentence"""
        for cell in cells:
            self.failed[cell.position] = message
        self.progress.add(len(cells), 0)
        self.folder.change(failed=self.failed)
        self.reports.say(f"{count(len(cells), 'image')} of the grid failed: {message}", "warning")


class Unsaved(ProblemsError):
    """An image that cannot be written. Ends the grid, since the next ones could not be written either."""


def reason(error: Exception) -> str:
    """Return why a cell failed as one sentence. Re-raises errors that affect all cells: a full disk, a CUDA error."""
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
