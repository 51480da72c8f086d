"""X/Y/Z grids on the page: the axes in Generate's panel, the tables, and marking checkpoints to keep."""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from itertools import islice
from math import prod
from pathlib import Path
from typing import Any

import gradio as gr

from core.engine.deleted import name_in_trash
from core.engine.queue import QueueEntry
from core.engine.run_grid import RunGrid, grid_of_runs, run_grid_of
from core.generation.grids.axes import (
    LETTERS,
    NONE,
    STRENGTH,
    WEIGHT,
    axes_of,
    joined,
    setting_named,
    settings_of_axes,
    title_of,
)
from core.generation.grids.choices import next_choice
from core.generation.grids.folder import GridContent, GridFolder, list_grids
from core.generation.grids.making import begin
from core.generation.grids.plan import checked_grid, expected_steps
from core.generation.model.library import find_file, title_of_name
from core.record import atomic
from core.record.file_titles import file_stem
from core.record.kept import read_kept
from core.record.preference import FILE as CHOICES
from core.record.problems import Problem, ProblemsError, raise_if_errors
from core.record.run_folder import run_of
from core.record.units import clock, count
from core.record.workspace import Workspace
from core.settings.check import build
from core.settings.job import GridJob
from core.settings.presets.files import to_values
from tabs.context import Page
from tabs.form.lora_steps import one_for_each_run
from tabs.form.model_lists import ModelLists
from tabs.form.plain_form import PlainForm
from tabs.generate import cards, form
from tabs.generate import grid_view as view
from tabs.generate.grid_axis import ACTS, FILE_AXES, AxisForm, changed, file_axes, files_in, kinds_in
from tabs.markup import AWAITED, BoardView, arg_now, board, board_event, client_state
from tabs.tools.copies import Copies

TAB, STATE = "Generate", "Grids"  # keys of tab states in the project
LISTED, RECENT, MAX_FILLED = 12, 3, 200
MAX_LENGTH = 1 << 18
START = "start grid"
STRENGTH_OF_IMAGE = "image_to_image.strength"
REPAINT = {"image_to_image.image_path", "hires.highres_fix_scale"}  # what a denoising strength acts on
FIELDS = tuple(f"{letter}_{part}" for letter in LETTERS for part in ("axis", "values"))


def panel_board() -> gr.HTML:
    return board("gen-grid", AWAITED)


def table_board() -> gr.HTML:
    return board("gen-table")


def listen(page: Page, fields: PlainForm, model_lists: ModelLists, panel: gr.HTML, table: gr.HTML) -> Grids:
    """Register the listeners of both boards, and return their handlers. fields: form of the cells' image settings; model_lists: lists of
    model files"""
    grids = Grids(page, fields, model_lists)
    client = client_state()
    shown = {"client": client, "panel": panel, "table": table}
    page.on_show(TAB, grids.show, None, shown)
    page.on_change(TAB, grids, shown)
    page.on_act([panel, table], grids.act, None, shown)
    page.links.answer("choose", grids.choose)
    return grids


class Grids(BoardView):
    """Handlers of the boards. The project stores the fields and the open grid; grids are folders, jobs are in the engine's queue."""

    def __init__(self, page: Page, fields: PlainForm, model_lists: ModelLists):
        self.page, self.fields, self.model_lists = page, fields, model_lists
        self.copies = Copies(page)
        AxisForm(page, fields, self._axes)
        self._lock = threading.RLock()
        # Problems of the last start, if it was refused, and the image settings then
        self._refused: tuple[list[Problem], dict[str, Any]] = ([], {})
        self._begun = time.time()

    # -- state

    def _state(self) -> dict[str, Any]:
        return self.page.project.tab_state(STATE)

    def _axes(self) -> dict[str, str]:
        fields = self._state().get("fields", {})
        return {name: str(fields.get(name, ""))[:MAX_LENGTH] for name in FIELDS} if isinstance(fields, dict) else {}

    def _keep(self, **changes: Any) -> None:
        self.page.project.keep(STATE, self._state() | changes)

    # -- display

    def boards(self) -> dict[str, str]:
        return {"panel": self.panel(), "table": self._table()}

    def stamp(self) -> str:
        """A text that changes with the boards: new cells, states of grids, fields changed by other browsers."""
        name = str(self._state().get("open", ""))
        folder = GridFolder(self.page.workspace.outputs / "grids" / name) if name else None
        paths = (
            [folder.path.parent, folder.path, folder.cells, folder.path / "grid.json", folder.path / CHOICES]
            if folder
            else []
        )
        times = [os.stat(path).st_mtime_ns if path.exists() else 0 for path in paths]
        job = self.page.engine.status()["job"]
        stage = [job.get(each) for each in ("entry", "state", "stage", "stopping")] if job else None
        jobs = [(entry.id, entry.state) for entry in self.page.own_jobs() if entry.task == "grid"]
        opened = self._open()
        checkpoints = self._checkpoints(opened) if opened else {}
        added = cards.added(self.page)
        return (
            f"{self._state()} {times} {stage} {jobs} {checkpoints} {self._refusal()} {added} {self.model_lists.version}"
        )

    def panel(self) -> str:
        """HTML of the panel with the axes, their summary and problems, and the list of earlier grids."""
        axes = self._axes()
        invalid = {each.where.removeprefix("grid.") for each in self._refusal()}
        summary, error = self._summary(axes)
        names = [str(use["file"]) for use in self.fields.load().get("loras", [])]
        loras = {file_stem(name): title_of_name(name, self.page.workspace) for name in names}
        folders = list_grids(self.page.workspace)
        listed = [self._earlier(folder) for folder in folders[:LISTED]]
        earlier_html = view.grid_list_html(listed, str(self._state().get("open", "")), len(folders) - LISTED)
        visible = cards.GRID in cards.added(self.page) or any(axes.values())
        file_cards = file_axes(axes, self.fields, self.page)
        return view.panel(axes, invalid, summary, error, loras, earlier_html, kinds_in(axes), file_cards, visible)

    def _summary(self, fields: dict[str, str]) -> tuple[str, bool]:
        """(number of images, steps and model loads with the expected time, or the first problem; whether it is a problem)."""
        if problems := self._refusal():
            first = problems[0]
            return f"{first.what}: {first.fix}" if first.fix else first.what, True
        if not any(fields.values()):
            return "Choose a setting for the columns and write its values.", False
        try:
            job = self._job(fields)
            axes = axes_of(job)
        except ProblemsError as error:
            first = error.problems[0]
            return f"{first.what}: {first.fix}" if first.fix else first.what, first.code != "grid.empty-axis"
        changed = {axis.setting for axis in axes}
        repaints = job.image_to_image.image_path or job.hires.highres_fix_scale or changed & REPAINT
        if STRENGTH_OF_IMAGE in changed and not repaints:
            return "Denoising strength has no effect: there is no initial image and no Hires", True
        cells, steps = prod(len(axis.values) for axis in axes), expected_steps(job, axes)
        loads = next(
            (len({each.value for each in axis.values}) for axis in axes if axis.setting == "model.base_model"), 1
        )
        parts = [count(cells, "image"), count(steps, "step"), count(loads, "model load")]
        step_seconds = pace(self.page.workspace)
        return ", ".join([*parts, *([f"about {clock(step_seconds * steps)}"] if step_seconds else [])]), False

    def _earlier(self, folder: GridFolder) -> view.GridRow:
        """The row of a grid in the list."""
        try:
            content = folder.content()
        except ProblemsError:
            return view.GridRow(folder.name, folder.name, 0, 0, 0, "damaged")
        total = len(content.cells)
        entry = entry_of(self.page, folder.name)
        doing = "" if entry is None else "waiting" if entry.state == "waiting" else "running"
        return view.GridRow(folder.name, content.title, len(folder.generated()), total, len(content.failed), doing)

    def _open(self) -> GridContent | None:
        """The open grid; None without one, or if it is gone or damaged."""
        if name := str(self._state().get("open", "")):
            with suppress(ProblemsError):
                return GridFolder.named(name, self.page.workspace).content()
        return None

    def _table(self) -> str:
        return view.removed(self._state()) + self._opened_table()

    def _opened_table(self) -> str:
        """HTML of the open grid, or of the reason why it cannot be read; without one, of the newest ones of this session."""
        name = str(self._state().get("open", ""))
        if not name:
            newest = islice(filter(self._is_recent, list_grids(self.page.workspace)), RECENT)
            return view.recent([each for each in map(self._earlier, newest) if each.done])
        try:
            folder = GridFolder.named(name, self.page.workspace)
            content = folder.content()
        except ProblemsError as error:
            return view.unreadable(name, error.problems[0].what)
        checkpoints = self._checkpoints(content)
        return view.table(folder, content, self._doing(name), checkpoints, self.page.thumb_url, self.page.file_url)

    def _is_recent(self, folder: GridFolder) -> bool:
        """Whether a grid was made or changed since the page began."""
        try:
            return folder.path.stat().st_mtime >= self._begun
        except OSError:  # deleted meanwhile
            return False

    def _doing(self, name: str) -> view.State:
        """State of a grid: its active job, else the message if its newest job failed."""
        entry = entry_of(self.page, name)
        if entry is None:
            failed = entry_of(self.page, name, ("failed",))
            newest = entry_of(self.page, name, ("failed", "done", "stopped", "cancelled"))
            return view.State(message=failed.message if failed is not None and failed is newest else "")
        return view.State(entry.id, entry.state == "waiting")

    # -- actions

    def act(self, event: gr.EventData) -> dict[str, Any]:
        """Handle an event of either board. Returns {name: HTML} of both. Raises ProblemsError."""
        act, arg, value = board_event(event, MAX_LENGTH)
        with self._lock:
            if act == "field" and arg in FIELDS:
                self._set(arg, value)
            elif act == "fill" and arg in LETTERS:
                self._fill(arg)
            elif act == "clear" and arg in LETTERS:
                self._set(f"{arg}_values", "")
            elif act in ACTS:
                rows = [name for _, name in files_in(self._axes())]
                for field, text in changed(act, arg_now(event, rows), value, self._axes(), self.page).items():
                    self._set(field, text)
            elif act == "make":
                self._make()
            elif act in ("open", "close"):
                self._keep(open=arg if act == "open" else "", axes={}, trashed="")
            elif act == "resume":
                self._resume(arg)
            elif act == "delete":
                self._delete(arg)
            elif act in ("keep", "unkeep"):
                self._mark(arg, value if act == "keep" else None)
            elif act in ("uncopy", "copied"):
                self._end_copy(act, arg)
            elif act == "card_remove":
                self._clear_refusal()
                self._keep(fields={}, axes={name: text for name, text in self._axes().items() if text}, trashed="")
                cards.put(self.page, cards.GRID, False)
            elif act == "put_back":
                self._put_back()
        return self.show()

    def choose(self, request: dict[str, Any]) -> dict[str, Any]:
        """Answer a blind choice of the script, {"grid", "axis", "choice"}, with the next images. Raises ProblemsError."""
        folder = GridFolder.named(str(request.get("grid", "")), self.page.workspace)
        choice = request.get("choice")
        answer = choice if isinstance(choice, dict) else {}
        return next_choice(folder, str(request.get("axis", "")), answer, self.page.file_url)

    def _set(self, name: str, value: str) -> None:
        self._clear_refusal()
        self._keep(fields=self._axes() | {name: value}, axes={})

    def _clear_refusal(self) -> None:
        """Remove the marks and message of a refused start: the form has changed."""
        self._refused = [], {}
        self.page.browsers.succeeded(self.page.browser, START)

    def _refusal(self) -> list[Problem]:
        """The problems of a refused start while the form is the one that was refused."""
        problems, fields = self._refused
        return problems if problems and fields == self.fields.load() else []

    def _fill(self, letter: str) -> None:
        """Fill in an axis with all known values. Raises ProblemsError if there is no list of values."""
        name = setting_named(self._axes()[f"{letter}_axis"])
        offered = self._offered_values(name) if name else []
        if not offered:
            what = "There is no list of values for this setting" if name else "No setting is chosen"
            fix = "write them, such as 1-10 [5]" if name else "choose one first"
            raise ProblemsError.one(what, f"{letter.upper()} axis", fix, "grid.no-list")
        self._set(f"{letter}_values", joined(offered[:MAX_FILLED]))

    def _offered_values(self, name: str) -> list[str]:
        """All values to offer for an axis of this setting, of files one for each run; [] if there is no such list."""
        if kind := FILE_AXES.get(name):
            self.model_lists.refresh()
            files = [each for each, _ in one_for_each_run(self.model_lists.of(kind.holds), self.page.workspace)]
            listed = [kind.value(each.path, self.page) for each in sorted(files, key=lambda each: each.name)]
            return [NONE, *listed] if kind.none else listed
        if name.partition(":")[0] in (STRENGTH, WEIGHT):
            return ["0.4", "0.6", "0.8", "1"]
        entry = settings_of_axes().get(name)
        if entry is None:
            return []
        return ["on", "off"] if entry.kind == "bool" else [str(choice) for choice in entry.choices]

    def _job(self, axes: dict[str, str], name: str = "grid") -> GridJob:
        """The job with the tab's settings and these axes. Raises ProblemsError."""
        images = self.fields.job(self.fields.load())
        return build(GridJob, to_values(images) | {"grid": axes | {"name": name}})

    def _make(self) -> None:
        """Queue the grid of the form. Problems are marked in the fields and shown."""
        browser = self.page.browser
        self._refused = [], {}
        try:
            self.fields.check()
            job = self._job(self._axes(), self._name())
            submit(self.page, RunGrid(job))
        except ProblemsError as error:
            self._refused = error.problems, dict(self.fields.load())
            self.page.browsers.say(browser, "error", problems=error.problems, about=START)
            return
        self.page.browsers.succeeded(browser, START)

    def _name(self) -> str:
        """Name of a grid, from its axes."""
        axes = [setting_named(self._axes()[f"{letter}_axis"]) for letter in LETTERS]
        return " by ".join(title_of(axis.partition(":")[0]) for axis in axes if axis)[:80] or "grid"

    def _resume(self, name: str) -> None:
        folder = GridFolder.named(name, self.page.workspace)
        if entry_of(self.page, name) is None:
            queue(self.page, folder)
            show(self.page, name)

    def _delete(self, name: str) -> None:
        """Move a grid to the trash, and close it. Raises ProblemsError while it is being generated."""
        folder = GridFolder.named(name, self.page.workspace)
        if entry_of(self.page, name) is not None:
            what, fix = "This grid is being made", "cancel it first"
            raise ProblemsError.one(what, name, fix, "grid.running")
        target = self.page.workspace.trash / name_in_trash(name, time.time())
        target.parent.mkdir(parents=True, exist_ok=True)
        atomic.replace(folder.path, target)
        self._keep(open="", axes={}, trashed=target.name)

    def _put_back(self) -> None:
        """Undo the last removal, of the axes or of a grid. Raises ProblemsError."""
        state = self._state()
        if axes := state.get("axes"):
            cards.put(self.page, cards.GRID, True)
            self._keep(fields=axes, axes={})
            return
        in_trash = self.page.workspace.trash / Path(str(state.get("trashed", ""))).name
        folder = self.page.workspace.outputs / "grids" / in_trash.name.rpartition("-")[0]
        if not state.get("trashed") or not in_trash.is_dir() or folder.exists():
            self._keep(trashed="")
            raise ProblemsError.one(
                "The grid is no longer in the trash", in_trash.name, "make it again", "grid.not-in-trash"
            )
        atomic.replace(in_trash, folder)
        self._keep(open=folder.name, trashed="")

    # -- checkpoints

    def _files(self, content: GridContent | None) -> dict[str, tuple[Path, Path]]:
        """{place, such as "x3": (folder of the run, file)} of the axis values that are checkpoints of runs."""
        files = {}
        for axis in content.axes if content else ():
            for number, value in enumerate(axis.values) if axis.setting in FILE_AXES else ():
                first = (value or [None])[0] if isinstance(value, list) else value
                if isinstance(first, str):
                    path = find_file(FILE_AXES[axis.setting].parts(first)[0][1], self.page.workspace)
                    run = run_of(path, self.page.workspace.runs)
                    if run is not None and path is not None:
                        files[f"{axis.letter}{number}"] = run, path
        return files

    def _checkpoints(self, content: GridContent) -> dict[str, view.Checkpoint]:
        """{"x0": whether it is kept, and copied} of the axis values that are checkpoints of runs."""
        checkpoints = {}
        for key, (run, path) in self._files(content).items():
            copied = self.copies.state({"name": path.name, "path": path})
            name = read_kept(run).get(path.relative_to(run).as_posix())
            checkpoints[key] = view.Checkpoint("" if name == path.stem else name, copied)
        return checkpoints

    def _mark(self, key: str, name: str | None) -> None:
        """Mark the checkpoint of an axis value to keep, with a name, and copy it to the remembered folder; None removes the mark."""
        files = self._files(self._open())
        if key not in files:
            raise ProblemsError.one("The file no longer exists", "grid", "open the grid again", "file.gone")
        run, path = files[key]
        self.copies.keep(run.name, path.name, name)

    def _end_copy(self, act: str, name: str) -> None:
        """Cancel the copy of a checkpoint of the open grid, or close its message."""
        files = self._files(self._open()).values()
        run = next((run for run, path in files if path.name == name), None)
        if run is not None:
            (self.copies.cancel if act == "uncopy" else self.copies.forget)(run.name, name)


# -- queued


def submit(page: Page, run_grid: RunGrid, run: str = "") -> None:
    """Check a grid, create its folder, queue it and open it. Raises ProblemsError."""
    folder = new_grid_folder(page, run_grid, run)
    queue(page, folder)
    show(page, folder.name)


def new_grid_folder(page: Page, run_grid: RunGrid, run: str = "") -> GridFolder:
    """The folder of a new grid whose settings are valid and allowed. run: whose checkpoints are compared. Raises ProblemsError."""
    page.roots.admit(run_grid.job)
    grid, _ = checked_grid(run_grid.job, page.workspace)
    raise_if_errors(dict.fromkeys(each for cell in grid.cells for each in page.roots.refused(cell.request.job)))
    folder = begin(grid.job, page.workspace, run, run_grid.notes)
    if run_grid.samples:
        folder.change(samples=run_grid.samples)
    return folder


def queue(page: Page, folder: GridFolder) -> None:
    """Queue the missing cells of a grid."""
    job = folder.job()
    grid = job.grid.model_copy(update={"folder": folder.name})
    page.engine.submit("grid", job.model_copy(update={"grid": grid}), f"Grid: {folder.content().title}")


def show(page: Page, name: str) -> None:
    """Open a grid in Generate."""
    page.project.update_tab(STATE, open=name, axes={}, trashed="")


def entry_of(page: Page, name: str, states: tuple[str, ...] = ("waiting", "running")) -> QueueEntry | None:
    """The newest job of a grid in the queue, in one of these states."""
    entries = [entry for entry in page.own_jobs() if entry.task == "grid" and entry.state in states]
    return next((each for each in reversed(entries) if each.job.get("grid", {}).get("folder") == name), None)


def pace(workspace: Workspace) -> float:
    """Seconds per sampling step, of the newest grid among the LISTED newest that recorded them; 0 if none did."""
    for folder in list_grids(workspace)[:LISTED]:
        with suppress(ProblemsError):
            content = folder.content()
            if content.steps and content.seconds:
                return content.seconds / content.steps
    return 0.0


def close(page: Page, requested: float = math.inf) -> None:
    """Close the open grid, so that the next image is in view, unless a grid is running or the open one was requested later.
    requested: when the image was, in seconds since 1970"""
    state, jobs = page.project.tab_state(STATE), [entry for entry in page.own_jobs() if entry.task == "grid"]
    grid_jobs = [each for each in jobs if each.job.get("grid", {}).get("folder") == state.get("open")]
    later = any(each.added > requested for each in grid_jobs)
    if state.get("open") and not later and not any(entry.state == "running" for entry in jobs):
        page.project.keep(STATE, state | {"open": ""})


def queue_run(page: Page, name: str) -> None:
    """Queue the grid of a run's checkpoints, and open it in Generate."""
    prompt = form.stored_values(page.project.tab_state(TAB), page.project.job)["prompt"]
    facts = page.engine.snapshot(name)
    grid = run_grid_of(facts, page.engine.run_job(name), page.workspace, fallback_prompt=str(prompt))
    submit(page, grid, name)


def queue_runs(page: Page, names: Sequence[str]) -> None:
    """Queue the grid of the recommended checkpoint of each run, its last one without any, and open it in Generate."""
    prompt = form.stored_values(page.project.tab_state(TAB), page.project.job)["prompt"]
    runs = []
    for name in names:
        facts, job = page.engine.snapshot(name), page.engine.run_job(name)
        runs.append((dict(facts) | {"files": form.files_to_use(page, facts)}, job))
    grid = grid_of_runs(runs, page.workspace, str(prompt))
    submit(page, grid)
