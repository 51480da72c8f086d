"""X/Y/Z grids of the Generate tab: events of the axes and tables, queueing grids, marking checkpoints to keep."""

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
    STYLES,
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
from core.generation.prompt.styles import read_styles
from core.record import atomic
from core.record.file_titles import file_stem
from core.record.kept import read_kept
from core.record.preference import FILE as CHOICES
from core.record.problems import Problem, ProblemsError, raise_if_errors, with_fixes
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
from tabs.markup import BoardView, arg_now, board_event, client_state
from tabs.tools.copies import Copies

TAB, STATE = "Generate", "Grids"  # keys of tab states in the project
LISTED, RECENT, MAX_FILLED = 12, 3, 200
MAX_LENGTH = 1 << 18
START = "start grid"
STRENGTH_OF_IMAGE = "image_to_image.strength"
REPAINT = {"image_to_image.image_path", "hires.highres_fix_scale"}  # what a denoising strength acts on
FIELDS = tuple(f"{letter}_{part}" for letter in LETTERS for part in ("axis", "values"))


def listen(page: Page, fields: PlainForm, model_lists: ModelLists, panel: gr.HTML, table: gr.HTML) -> Grids:
    """Register the listeners of the Grid card (`panel`) and the open grid (`table`), and return their handlers.

    fields: form with the settings of the cells' images
    """
    grids = Grids(page, fields, model_lists)
    client = client_state()
    outputs = {"client": client, "panel": panel, "table": table}
    page.on_show(TAB, grids.show, None, outputs)
    page.on_change(TAB, grids, outputs)
    page.on_act([panel, table], grids.act, None, outputs)
    page.links.answer("choose", grids.choose)
    return grids


class Grids(BoardView):
    """Handlers of the Grid card and the open grid.

    The project stores the axes and the name of the open grid; grids are folders, and their jobs are in the engine's queue.
    """

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
        """Return the stored state of the grids: "fields" (axes), "open" (name of the open grid), and what was removed last."""
        return self.page.project.tab_state(STATE)

    def _axes(self) -> dict[str, str]:
        """Return the stored texts of the axes, {"x_axis", "x_values", ... for y and z}; {} if they are damaged."""
        fields = self._state().get("fields", {})
        return {name: str(fields.get(name, ""))[:MAX_LENGTH] for name in FIELDS} if isinstance(fields, dict) else {}

    def _keep(self, **changes: Any) -> None:
        """Store changed keys of the grids' tab state."""
        self.page.project.keep(STATE, self._state() | changes)

    # -- display

    def boards(self) -> dict[str, str]:
        """Return {"panel": HTML of the Grid card, "table": HTML of the open grid}."""
        return {"panel": self.panel(), "table": self._table()}

    def stamp(self) -> str:
        """Return a text that changes whenever the display changes: cells, jobs, checkpoints, or fields edited in other browsers."""
        paths: list[Path] = []
        if name := str(self._state().get("open", "")):
            folder = GridFolder(self.page.workspace.grids / name)
            paths = [folder.path.parent, folder.path, folder.cells, folder.path / "grid.json", folder.path / CHOICES]
        times = [os.stat(path).st_mtime_ns if path.exists() else 0 for path in paths]
        job = self.page.engine.status()["job"]
        stage = [job.get(each) for each in ("entry", "state", "stage", "stopping")] if job else None
        jobs = [(entry.id, entry.state) for entry in self.page.visible_jobs() if entry.task == "grid"]
        opened = self._open()
        checkpoints = self._checkpoints(opened) if opened else {}
        added = cards.added(self.page)
        return (
            f"{self._state()} {times} {stage} {jobs} {checkpoints} {self._refusal()} {added} {self.model_lists.version}"
        )

    def panel(self) -> str:
        """Return the HTML of the Grid card: axes, summary or first problem, list of grids."""
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
        """Return (text, whether it is a problem): numbers of images, steps and model loads with the expected time, or the first problem."""
        if problems := self._refusal():
            return with_fixes(ProblemsError(problems[:1])), True
        if not any(fields.values()):
            return "Choose a setting for the columns and write its values.", False
        try:
            job = self._job(fields)
            axes = axes_of(job)
        except ProblemsError as error:
            return with_fixes(ProblemsError(error.problems[:1])), error.codes[0] != "grid.empty-axis"
        changed = {axis.setting for axis in axes}
        repaints = job.image_to_image.image_path or job.hires.highres_fix_scale or changed & REPAINT
        if STRENGTH_OF_IMAGE in changed and not repaints:
            return "Denoising strength has no effect: there is no initial image and no Hires", True
        cells, steps = prod(len(axis.values) for axis in axes), expected_steps(job, axes)
        loads = next(
            (len({each.value for each in axis.values}) for axis in axes if axis.setting == "model.base_model"), 1
        )
        parts = [count(cells, "image"), count(steps, "step"), count(loads, "model load")]
        step_seconds = seconds_per_step(self.page.workspace)
        return ", ".join([*parts, *([f"about {clock(step_seconds * steps)}"] if step_seconds else [])]), False

    def _earlier(self, folder: GridFolder) -> view.GridRow:
        """Return a grid's row in the list of grids."""
        try:
            content = folder.content()
        except ProblemsError:
            return view.GridRow(folder.name, folder.name, 0, 0, 0, "damaged")
        total = len(content.cells)
        entry = entry_of(self.page, folder.name)
        doing = "" if entry is None else "waiting" if entry.state == "waiting" else "running"
        return view.GridRow(folder.name, content.title, len(folder.generated()), total, len(content.failed), doing)

    def _open(self) -> GridContent | None:
        """Return the content of the open grid; None if none is open, or if it was deleted or is damaged."""
        if name := str(self._state().get("open", "")):
            with suppress(ProblemsError):
                return GridFolder.named(name, self.page.workspace).content()
        return None

    def _table(self) -> str:
        """Return the HTML of the open grid, below the Undo of the last removal."""
        return view.removed(self._state()) + self._opened_table()

    def _opened_table(self) -> str:
        """Return the HTML of the open grid or why it cannot be read; if none is open, of the session's newest grids."""
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
        doing, page = self._doing(name), self.page
        return view.OpenGrid(folder, content, doing, checkpoints, page.thumb_url, page.file_url).html()

    def _is_recent(self, folder: GridFolder) -> bool:
        """Return whether a grid's folder was changed since this page started."""
        try:
            return folder.path.stat().st_mtime >= self._begun
        except OSError:  # deleted meanwhile
            return False

    def _doing(self, name: str) -> view.State:
        """Return the state of grid `name`: its active job, or the error message if its newest job failed."""
        entry = entry_of(self.page, name)
        if entry is None:
            failed = entry_of(self.page, name, ("failed",))
            newest = entry_of(self.page, name, ("failed", "done", "stopped", "cancelled"))
            return view.State(message=failed.message if failed is not None and failed is newest else "")
        return view.State(entry.id, entry.state == "waiting")

    # -- actions

    def act(self, event: gr.EventData) -> dict[str, Any]:
        """Handle an event of the Grid card or the open grid, and return {"panel", "table": new HTML}. Raises ProblemsError."""
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
                cards.set_added(self.page, cards.GRID, False)
            elif act == "put_back":
                self._put_back()
        return self.show()

    def choose(self, request: dict[str, Any]) -> dict[str, Any]:
        """Store a blind choice sent by the script, and return the next two images, as `next_choice` does. Raises ProblemsError.
        request: {"grid": name, "axis": letter, "choice": {"left", "right", "prompt", "outcome"} or {}}"""
        folder = GridFolder.named(str(request.get("grid", "")), self.page.workspace)
        choice = request.get("choice")
        answer = choice if isinstance(choice, dict) else {}
        return next_choice(folder, str(request.get("axis", "")), answer, self.page.file_url)

    def _set(self, name: str, value: str) -> None:
        """Store the text of an axis field `name`, such as "x_values"."""
        self._clear_refusal()
        self._keep(fields=self._axes() | {name: value}, axes={})

    def _clear_refusal(self) -> None:
        """Remove the marks and the message of a refused start, after the axes were changed."""
        self._refused = [], {}
        self.page.browsers.succeeded(self.page.browser, START)

    def _refusal(self) -> list[Problem]:
        """Return the problems of the last refused start; [] once the form's settings have changed."""
        problems, fields = self._refused
        return problems if problems and fields == self.fields.load() else []

    def _fill(self, letter: str) -> None:
        """Fill in all known values of axis `letter`. Raises ProblemsError if its setting has no list of values."""
        name = setting_named(self._axes()[f"{letter}_axis"])
        offered = self._offered_values(name) if name else []
        if not offered:
            what = "There is no list of values for this setting" if name else "No setting is chosen"
            fix = "write them, such as 1-10 [5]" if name else "choose one first"
            raise ProblemsError.one(what, f"{letter.upper()} axis", fix, "grid.no-list")
        self._set(f"{letter}_values", joined(offered[:MAX_FILLED]))

    def _offered_values(self, name: str) -> list[str]:
        """Return the known values of setting `name`: its choices, or one file per run and all other files; [] if there is no list."""
        if kind := FILE_AXES.get(name):
            self.model_lists.refresh()
            files = [each for each, _ in one_for_each_run(self.model_lists.of(kind.holds), self.page.workspace)]
            listed = [kind.value(each.path, self.page) for each in sorted(files, key=lambda each: each.name)]
            return [NONE, *listed] if kind.none else listed
        if name.partition(":")[0] in (STRENGTH, WEIGHT):
            return ["0.4", "0.6", "0.8", "1"]
        if name == STYLES:
            return [NONE, *read_styles(self.page.workspace)]
        entry = settings_of_axes().get(name)
        if entry is None:
            return []
        return ["on", "off"] if entry.kind == "bool" else [str(choice) for choice in entry.choices]

    def _job(self, axes: dict[str, str], name: str = "grid") -> GridJob:
        """Return the grid job with the form's image settings and these axes. name: of the grid. Raises ProblemsError."""
        images = self.fields.job(self.fields.load())
        return build(GridJob, to_values(images) | {"grid": axes | {"name": name}})

    def _make(self) -> None:
        """Check the form's grid and queue it. Problems are marked in the fields and shown as a message."""
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
        """Return a grid name made of the settings of its axes, such as "Steps by Sampler"."""
        axes = [setting_named(self._axes()[f"{letter}_axis"]) for letter in LETTERS]
        return " by ".join(title_of(axis.partition(":")[0]) for axis in axes if axis)[:80] or "grid"

    def _resume(self, name: str) -> None:
        """Queue the missing cells of grid `name` and open it, unless a job of it is active."""
        folder = GridFolder.named(name, self.page.workspace)
        if entry_of(self.page, name) is None:
            queue(self.page, folder)
            show(self.page, name)

    def _delete(self, name: str) -> None:
        """Move grid `name` to the trash and close it. Raises ProblemsError while a job of it is active."""
        folder = GridFolder.named(name, self.page.workspace)
        if entry_of(self.page, name) is not None:
            what, fix = "This grid is being made", "cancel it first"
            raise ProblemsError.one(what, name, fix, "grid.running")
        target = self.page.workspace.trash / name_in_trash(name, time.time())
        target.parent.mkdir(parents=True, exist_ok=True)
        atomic.replace(folder.path, target)
        self._keep(open="", axes={}, trashed=target.name)

    def _put_back(self) -> None:
        """Undo the last removal of the axes or a grid. Raises ProblemsError if the grid is no longer in the trash."""
        state = self._state()
        if axes := state.get("axes"):
            cards.set_added(self.page, cards.GRID, True)
            self._keep(fields=axes, axes={})
            return
        in_trash = self.page.workspace.trash / Path(str(state.get("trashed", ""))).name
        folder = self.page.workspace.grids / in_trash.name.rpartition("-")[0]
        if not state.get("trashed") or not in_trash.is_dir() or folder.exists():
            self._keep(trashed="")
            raise ProblemsError.one(
                "The grid is no longer in the trash", in_trash.name, "make it again", "grid.not-in-trash"
            )
        atomic.replace(in_trash, folder)
        self._keep(open=folder.name, trashed="")

    # -- checkpoints

    def _files(self, content: GridContent | None) -> dict[str, tuple[Path, Path]]:
        """Return {axis letter and index, such as "x3": (run folder, file)} of the axis values that are checkpoints of runs."""
        files = {}
        for axis in content.axes if content else ():
            for index, value in enumerate(axis.values) if axis.setting in FILE_AXES else ():
                first = (value or [None])[0] if isinstance(value, list) else value
                if isinstance(first, str):
                    path = find_file(FILE_AXES[axis.setting].parts(first)[0][1], self.page.workspace)
                    run = run_of(path, self.page.workspace.runs)
                    if run is not None and path is not None:
                        files[f"{axis.letter}{index}"] = run, path
        return files

    def _checkpoints(self, content: GridContent) -> dict[str, view.Checkpoint]:
        """Return {axis letter and index, such as "x3": checkpoint} of the axis values that are checkpoints of runs."""
        checkpoints = {}
        for key, (run, path) in self._files(content).items():
            copied = self.copies.state({"name": path.name, "path": path})
            name = read_kept(run).get(path.relative_to(run).as_posix())
            checkpoints[key] = view.Checkpoint("" if name == path.stem else name, copied)
        return checkpoints

    def _mark(self, key: str, name: str | None) -> None:
        """Mark the checkpoint at axis value `key`, such as "x3", to keep under `name`, and copy it to the remembered folder.

        None removes the mark. Raises ProblemsError if the file no longer exists.
        """
        files = self._files(self._open())
        if key not in files:
            raise ProblemsError.one("The file no longer exists", "grid", "open the grid again", "file.gone")
        run, path = files[key]
        self.copies.keep(run.name, path.name, name)

    def _end_copy(self, act: str, name: str) -> None:
        """Cancel the copy of the open grid's checkpoint file `name` (act "uncopy"), or close its message ("copied")."""
        files = self._files(self._open()).values()
        run = next((run for run, path in files if path.name == name), None)
        if run is not None:
            (self.copies.cancel if act == "uncopy" else self.copies.forget)(run.name, name)


# -- queued


def submit(page: Page, run_grid: RunGrid, run: str = "") -> None:
    """Check a grid, create its folder, queue it and open it. run: name of the run whose checkpoints it compares. Raises ProblemsError."""
    folder = new_grid_folder(page, run_grid, run)
    queue(page, folder)
    show(page, folder.name)


def new_grid_folder(page: Page, run_grid: RunGrid, run: str = "") -> GridFolder:
    """Check a grid and create its folder. run: name of the run whose checkpoints it compares. Raises ProblemsError if invalid."""
    page.roots.admit(run_grid.job)
    grid, _ = checked_grid(run_grid.job, page.workspace)
    raise_if_errors(dict.fromkeys(each for cell in grid.cells for each in page.roots.refused(cell.request.job)))
    folder = begin(grid.job, page.workspace, run, run_grid.notes)
    if run_grid.samples:
        folder.change(samples=run_grid.samples)
    return folder


def queue(page: Page, folder: GridFolder) -> None:
    """Queue a job that generates the missing cells of a grid."""
    job = folder.job()
    page.engine.submit("grid", job.with_settings(grid={"folder": folder.name}), f"Grid: {folder.content().title}")


def show(page: Page, name: str) -> None:
    """Make grid `name` the open grid of Generate."""
    page.project.update_tab(STATE, open=name, axes={}, trashed="")


def entry_of(
    page: Page, name: str, states: tuple[str, ...] = ("waiting", "running"), person: str = ""
) -> QueueEntry | None:
    """Return the newest queue entry of grid `name` in one of `states`; None without one. person: whose grid, by default this page's"""
    entries = [entry for entry in page.visible_jobs(person) if entry.task == "grid" and entry.state in states]
    return next((each for each in reversed(entries) if each.job.get("grid", {}).get("folder") == name), None)


def seconds_per_step(workspace: Workspace) -> float:
    """Return the seconds per sampling step of the newest grid that recorded its time, among the LISTED newest; 0 if none did."""
    for folder in list_grids(workspace)[:LISTED]:
        with suppress(ProblemsError):
            content = folder.content()
            if content.steps and content.seconds:
                return content.seconds / content.steps
    return 0.0


def close(page: Page, requested: float = math.inf) -> None:
    """Close the open grid so that a new image is visible, unless a grid is running or the open one was queued after `requested`.

    requested: time at which the image was queued, in seconds since 1970
    """
    state, jobs = page.project.tab_state(STATE), [entry for entry in page.visible_jobs() if entry.task == "grid"]
    grid_jobs = [each for each in jobs if each.job.get("grid", {}).get("folder") == state.get("open")]
    later = any(each.added > requested for each in grid_jobs)
    if state.get("open") and not later and not any(entry.state == "running" for entry in jobs):
        page.project.keep(STATE, state | {"open": ""})


def queue_run(page: Page, name: str) -> None:
    """Queue a grid that compares the checkpoints of run `name`, and open it in Generate. Raises ProblemsError."""
    prompt = form.stored_values(page.project.tab_state(TAB), page.project.job)["prompt"]
    facts = page.engine.snapshot(name)
    grid = run_grid_of(facts, page.engine.run_job(name), page.workspace, fallback_prompt=str(prompt))
    submit(page, grid, name)


def queue_runs(page: Page, names: Sequence[str]) -> None:
    """Queue a grid that compares runs by their recommended (else last) checkpoints, and open it in Generate. Raises ProblemsError."""
    prompt = form.stored_values(page.project.tab_state(TAB), page.project.job)["prompt"]
    runs = []
    for name in names:
        facts, job = page.engine.snapshot(name), page.engine.run_job(name)
        runs.append((dict(facts) | {"files": form.files_to_use(page, facts)}, job))
    grid = grid_of_runs(runs, page.workspace, str(prompt))
    submit(page, grid)
