"""The Runs tab: all trainings on disk with their actions, and the queue."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import gradio as gr

from core.engine.deleted import restore_run
from core.engine.queue import whose_run
from core.engine.run_summary import RunSummary
from core.engine.waiting import waiting_runs
from core.record.problems import Problem, ProblemsError, collected
from core.record.space import folder_bytes
from core.record.units import count
from core.settings.job import TrainJob
from tabs.context import Page
from tabs.generate.replaced import use_run
from tabs.markup import (
    AWAITED,
    board,
    board_event,
    button,
    changed_boards,
    client_state,
    esc,
    facts,
    page_of,
    progress,
    section,
    with_client,
)
from tabs.monitor.next_step import resume
from tabs.pieces import piece
from tabs.runs import view as runs_view
from tabs.runs.again import LONGEST, Agains
from tabs.runs.compare import Comparisons
from tabs.runs.details import details
from tabs.runs.longer import length_of, longer_html
from tabs.server.browsers import Browser
from tabs.tools import copies

if TYPE_CHECKING:
    from core.training.prove import Proof

TAB = "Runs"
PUT_BACK = "put_back_runs"  # command
SECONDS = 2.0
# The tab that an act opens
LEADS_TO = {copies.CONVERTS: "Tools", "report-card": "Tools", "use": "Train", "draw": "Generate"}


def build(page: Page) -> None:
    """Create the tab's components and register their listeners."""
    handlers = RunHandlers(page)
    copy = board("runs-copy", script=copies.KEYS)
    main = board("runs-main", AWAITED)
    gr.HTML(piece("compare"), elem_id="compare-holder", apply_default_css=False)
    gr.HTML(piece("queue").replace("<details", "<details open"), elem_id="runs-queue", apply_default_css=False)
    page.pulse_parts.append(Comparisons(page).parts)
    page.commands["look"] = lambda data, browser: None  # only requests the current parts
    client, state = client_state(), gr.State({})
    shown = {"client": client, "main": main, "copy": copy}
    outputs = {"tabs": page.tabs, **shown}
    page.on_show(TAB, handlers.show, state, shown)
    page.on_tick(TAB, handlers.tick, [client, state], {"client": client, "main": main}, seconds=SECONDS)
    page.on_act(main, handlers.act, state, outputs)
    page.on_act(copy, handlers.copy_act, state, shown)


class RunHandlers:
    """Handlers of the tab's events. The gr.State `state` of each browser has its open run and the view of the list. It is changed in
    place: an event that waits for its turn already has it, and must see what the events before it change."""

    def __init__(self, page: Page):
        self.page = page
        self._lock = threading.Lock()
        self.proofs = Proofs(page)
        self.agains = Agains(page)
        self.copies = copies.Copies(page)
        self.file_acts = {  # name of the act -> its function of (open run, its file)
            "copy": self.copies.again,
            "uncopy": self.copies.cancel,
            "copied": self.copies.forget,
            copies.CONVERTS: self.copies.convert,
            "report-card": self.copies.card,
        }
        page.commands["copy_create"] = self.copies.create_folder
        self._sizes: dict[str, tuple[float, int]] = {}
        page.commands[PUT_BACK] = self._put_back

    # -- showing

    def show(self, state: dict[str, Any]):
        """Return {"copy": HTML of the copy panel, "main": HTML, "client"} for a browser with this state (see `act`), which stays: an answer
        that comes late must not undo what was pressed meanwhile."""
        return {"copy": self.copies.panel(state), **with_client({"main": self._main(state)})}

    def tick(self, client: str, state: dict[str, Any]):
        """Return the main component's HTML if it has changed since the `client` state of a browser, else gr.skip()."""
        if self.page.engine.listing.locked():  # a browser has just opened the list: it comes first
            return gr.skip()
        outputs = changed_boards(client, "", {"main": self._main(state)})
        return gr.skip() if outputs["client"] == client else outputs

    def _main(self, state: dict[str, Any]) -> str:
        """Return the HTML of the table of runs, or of the open run. state: see `act`"""
        name = str(state.get("open", ""))
        run = self.page.engine.run(name) if name else None
        queued = waiting_runs(self.page.engine.queue())
        if run is not None:
            return self._details(replace(run, state="waiting") if name in queued else run, state)
        runs, unread = self.page.engine.runs_so_far(runs_view.PATIENCE)
        runs = [replace(each, state="waiting") if each.name in queued else each for each in runs]
        show, find = str(state.get("show", "all")), str(state.get("find", ""))
        picked = state.get("picked", ())
        page, sort = int(state.get("page", 0)), str(state.get("sort", ""))
        return runs_view.table(runs, show, find, page, self.page, picked, unread, sort)

    def _details(self, run: RunSummary, state: dict[str, Any]) -> str:
        """Return the HTML of the open run."""
        facts = self.page.engine.snapshot(run.name)
        size = self._size(run)
        job = self.page.readable_job(run.name)
        ended = run.state not in ("running", "paused", "waiting")
        is_own = not whose_run(run.person, self.page.engine.people)
        below = longer_html(run, facts, job) if ended and is_own and job is not None else ""
        if job is not None:
            below += self.agains.html(run, job, facts, str(state.get("setting", "")), str(state.get("values", "")))
        below += self.proofs.html(run.name, ended and job is not None)
        return details(
            run,
            facts,
            job,
            size,
            self.page,
            partial(self.copies.row, kind=copies.saved_kind(job)),
            below,
        )

    def _size(self, run: RunSummary) -> int:
        """Return the bytes of the run's folder, cached for 10 * SECONDS."""
        with self._lock:
            cached = self._sizes.get(run.name)
            if cached and time.monotonic() - cached[0] < 10 * SECONDS:
                return cached[1]
        size = folder_bytes(run.folder)
        with self._lock:
            self._sizes[run.name] = (time.monotonic(), size)
        return size

    # -- actions

    def act(self, state: dict[str, Any], event: gr.EventData):
        """Handle an event and return the outputs: HTML, and "tabs" to open another tab. Raises ProblemsError.

        state: the browser's, which is changed; each key may be missing: "open", "copy": names of the open run and of its file to copy,
        "picked": names, "show", "sort", "find", "page": of the table, "setting", "values": of runs to repeat
        """
        act, arg, value = board_event(event)
        opened = str(state.get("open", ""))
        if act in ("open", "back"):
            state |= {"open": arg if act == "open" else "", "copy": "", "setting": "", "values": ""}
        elif act in ("show", "sort", "find"):
            state |= {act: value[:100], "page": 0}
        elif act == "star" and (run := self.page.engine.run(arg)) is not None:
            self.page.engine.star_run(arg, not run.starred)
        elif act in ("again-setting", "again-values"):
            state[act.removeprefix("again-")] = value.strip()[:LONGEST]
        elif act == "again":
            self.agains.start(arg, str(state.get("setting", "")), str(state.get("values", "")))
            state["values"] = ""
        elif act == "pick":
            others = [name for name in state.get("picked", ()) if name != arg]
            state["picked"] = [*others, arg] if value == "true" else others
        elif act == "unpick":
            state["picked"] = []
        elif act == "page":
            state["page"] = page_of(value or arg, 10**6)
        elif act == "continue":
            resume(self.page, self.page.browser, arg)
        elif act in ("longer", "longer-constant", "longer-restart"):
            changes = self._longer(arg, value, act.removeprefix("longer").removeprefix("-"))
            resume(self.page, self.page.browser, arg, changes)
        elif act == "prove":
            self.proofs.start(arg)
        elif act == "unprove":
            self.proofs.cancel(arg)
        elif act == "copy-to":
            state["copy"] = arg
        elif act in self.file_acts:
            self.file_acts[act](opened, arg)
            state |= {} if act in LEADS_TO else {"copy": ""}
        elif act in ("rename", "note"):
            self.page.engine.describe_run(arg, **{"title" if act == "rename" else "note": value})
            self.page.run_list = (None, self.page.run_list[1])  # the lists read it again
            self.page.say("done", f"The {'title' if act == 'rename' else 'note'} is saved.")
        elif act == "use":
            self._use(arg)
        elif act == "draw":
            use_run(self.page, self.page.browser, *arg.split("/", 1))
        elif act in ("mark", "unmark"):
            self.copies.keep(opened, arg, "" if act == "mark" else None)
        elif act == "delete" and opened == arg:
            self._say_deleted([self.page.engine.delete_run(arg)])
            state |= {"open": "", "copy": ""}
        elif act == "delete-picked":
            state["picked"] = self._delete(state.get("picked", ()))
        return self.show(state) | {"tabs": gr.Tabs(selected=LEADS_TO[act]) if act in LEADS_TO else gr.skip()}

    def _delete(self, names: Sequence[str]) -> list[str]:
        """Move the named runs to the trash; return those that could not be moved. Shows a message with the problems."""
        problems: list[Problem] = []
        deleted = {name: collected(problems, self.page.engine.delete_run, name) for name in names}
        self._say_deleted([new for new in deleted.values() if new], problems)
        return [name for name, new in deleted.items() if not new]

    def _say_deleted(self, deleted: list[str], problems: Sequence[Problem] = ()) -> None:
        """Show a message on the deleted runs, whose Undo puts them back. deleted: their names in the trash"""
        self.page.browser.deleted_runs += [deleted] if deleted else []
        text = (
            f"{count(len(deleted), 'run')} moved to the trash. Space on the disk, in Tools, can put it back later too."
        )
        undo_by = PUT_BACK if deleted else ""
        self.page.say("error" if problems else "done", text, problems=problems, undo_by=undo_by)

    def _put_back(self, data: dict[str, Any], browser: Browser) -> None:
        """Restore the runs of the last deletion by `browser`, and offer those of the one before. Runs that fail can be tried again
        while they are in the trash. data: not used"""
        problems, people, space = list[Problem](), self.page.engine.people, self.page.workspace
        if not browser.deleted_runs:
            return
        names = browser.deleted_runs.pop()  # at once: the second of two presses does not find the same runs
        failed = [name for name in names if not collected(problems, restore_run, name, space, people)]
        left = [name for name in failed if (space.trash / name).is_dir()]
        browser.deleted_runs += [left] if left else []
        self.page.run_list = (None, self.page.run_list[1])  # the lists read it again
        text = f"{count(len(names) - len(failed), 'run')} restored from the trash."
        text += " Undo restores the deletion before it." if browser.deleted_runs and not left else ""
        kind, undo_by = "error" if problems else "done", PUT_BACK if browser.deleted_runs else ""
        self.page.browsers.say(browser, kind, text, problems=problems, undo_by=undo_by, redraws=True)

    def copy_act(self, state: dict[str, Any], event: gr.EventData):
        """Handle a click in the panel that chooses a target folder, and return the outputs."""
        act, _, value = board_event(event)
        if act == "into":
            self.copies.start(str(state.get("open", "")), str(state.get("copy", "")), value)
        state["copy"] = ""
        return self.show(state)

    def _longer(self, name: str, text: str, after: str) -> dict[str, Any]:
        """Return the changes that give the run a new length `text`, in epochs, or in steps if these are set.

        after: learning rate schedule after the old length, "constant" or "restart"; "" stretches the schedule. Raises ProblemsError.
        """
        job, snapshot = self.page.engine.run_job(name), self.page.engine.snapshot(name)
        field, unit, length = length_of(job, snapshot)
        number = text.strip()
        if not number.isdecimal() or len(number) > 7 or int(number) <= length:
            fix = f"use a whole number of {unit}, {length + 1} to 9999999"
            entered = f"'{number[:20]}'" if number else "empty"
            raise ProblemsError.one(f"The new length is {entered}", name, fix, code="run.bad-length")
        changes: dict[str, Any] = {"max_train_epochs": None, "max_train_steps": None} | {field: int(number)}
        if after:
            changes |= {"lr_scheduler_steps": int(snapshot["total"]), "lr_scheduler_after": after}
        return {"schedule": changes}

    def _use(self, name: str) -> None:
        """Fill in Train's form with the run's settings, as one undo step."""
        job = self.page.engine.run_job(name)
        self.page.project.replace(job, preset=self.page.engine.run_preset(name), did=f"loading the settings of {name}")


STEPS = 10
STAGES = 3  # of a resume test: whole, first half, second half


class Proofs:
    """Runs resume tests; shows the newest one of each run until the server ends."""

    def __init__(self, page: Page):
        self._page = page
        self._tasks: dict[str, Any] = {}

    def start(self, run: str) -> None:
        """Start a resume test of the run. Raises ProblemsError while a job uses the device or another test is running."""
        engine = self._page.engine
        if engine.status()["job"] is not None:
            raise ProblemsError.one("A job is running", run, "try again when the device is free", code="job.running")
        if any(not task.done for task in self._tasks.values()):
            raise ProblemsError.one("Another resume test is running", run, "wait for it, or cancel it", "proof.running")
        self._tasks[run] = engine.light(self._prove, engine.run_job(run), title="proof")

    def cancel(self, run: str) -> None:
        """Cancel the run's resume test."""
        if run in self._tasks:
            self._tasks[run].cancel()

    def _prove(self, job: TrainJob, task: Any) -> Proof:
        """Run the resume test with the device borrowed, in the background."""
        from core.training.prove import prove

        stages: list[str] = []

        def say(text: str) -> None:
            stages.append(text)
            task.stage(text, len(stages), STAGES + 1)

        with self._page.engine.borrow_device(task.token, "the resume test") as device:
            return prove(job, self._page.workspace, device, STEPS, token=task.token, say=say)

    def html(self, run: str, possible: bool) -> str:
        """Return the HTML of the resume test's button, progress or result; "" for a run that was not tested and cannot be (`possible`)."""
        task = self._tasks.get(run)
        if not possible and task is None:
            return ""
        about = f"Trains {STEPS} steps of this job without a break, and again with a stop in the middle; both must end bit-identical."
        start = button("prove", "Test resuming" if task is None else "Test again", run)
        if task is None:
            body = f'<p class="hint">{about}</p>{start}'
        elif not task.done:
            stop = button("unprove", "Cancel", run)
            body = progress(task.text.capitalize() or "Waiting", task.progress or None) + stop
        elif task.error is not None:
            outcome = "Cancelled." if task.token.wanted else "; ".join(each.what for each in task.error.problems)
            body = f'<p class="run-message advice"><strong>{esc(outcome)}</strong></p>{start}'
        else:
            body = _result(task.result) + start
        return section("Stopping and resuming", body)


def _result(proof: Proof) -> str:
    """Return the HTML of the result of a resume test."""
    rows = [
        (f"{proof.steps} steps without a break", f"<code>{esc(proof.whole)}</code>"),
        (f"{proof.stopped_at}, stopped, {proof.steps - proof.stopped_at} more", f"<code>{esc(proof.resumed)}</code>"),
    ]
    verdict = "Bit-identical: weights, optimizer, random numbers and every loss." if proof.equal else "Not identical."
    different = f" Different: {esc(', '.join(proof.different[:10]))}." if proof.different else ""
    level = "fine" if proof.equal else "error"
    message = f'<p class="run-message {level}"><strong>{verdict}</strong>{different}</p>'
    return f'<div class="proof">{message}{facts(rows)}</div>'
