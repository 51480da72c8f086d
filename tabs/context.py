"""The Page object that every tab gets: engine, folders and project, and methods that register event listeners."""

from __future__ import annotations

import inspect
import itertools
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr
from gradio.context import LocalContext

from core.engine.queue import QueueEntry, as_guest
from core.imports.projects.report import MAX_BYTES as IMPORT_LETTERS
from core.record.machine import gpu_memory
from core.record.problems import ProblemsError
from core.record.run_folder import RunFolder
from core.record.stamps import stamp_or_none
from core.record.workspace import PROJECT, Workspace, in_workspace
from core.settings.base import Settings
from core.settings.job import TrainJob
from core.settings.presets.files import PresetStore
from tabs.dataset.reading import Reading
from tabs.dataset.setup_offer import SetupOffer
from tabs.form import fields, form_values, task_settings
from tabs.form.picker import Picker
from tabs.form.presets import MAX_BYTES as PRESET_BYTES
from tabs.form.project import Project
from tabs.markup import BoardView
from tabs.monitor.tensorboard import TensorBoard
from tabs.roots import Roots
from tabs.server.browsers import Browser, Browsers
from tabs.server.error_answers import FAILED, errors_as_problems
from tabs.server.links import Links
from tabs.tools.models import Models
from tabs.tools.works import Works
from tabs.train.checks import Checks
from tabs.train.forecast import Forecast
from tabs.train.layers import Layers
from tabs.train.sketches import RateSketch
from tabs.wire import to_count, to_json, with_signature

if TYPE_CHECKING:
    from core.engine.engine import Engine

CURRENT_SESSION: ContextVar[str | None] = ContextVar("session of the browser whose request is handled", default=None)
ANY_TAB = "tabs"  # scope of actions that discard the ticks of every tab
ANSWERS = itertools.count(time.time_ns() // 10**6)  # numbers of answers in their order, also after a restart
PRIVATE = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}  # of all listeners
TABS = ("Dataset", "Captions", "Train", "Monitor", "Generate", "Runs", "Tools")


@dataclass
class Page:
    """One page for one engine and one project. Tabs build their components in `build(page)` and hold no state: what survives a refresh is
    stored with `project.update_tab(tab, ...)`, and the engine has the state of runs."""

    engine: Engine
    workspace: Workspace
    project: Project
    presets: PresetStore
    roots: Roots
    links: Links
    shared: bool = False
    login: bool = False  # whether it has one
    tabs: Any = None  # the gr.Tabs; a handler with this output returns gr.Tabs(selected="Train") to open Train
    browsers: Browsers = field(default_factory=Browsers)
    form_bus: Any = None  # carries the form's state to the browser and its actions back
    pulse_bus: Any = None  # carries what changes by itself, and commands back
    envelope: Any = None  # hidden input that the page's script fills in
    # of other tabs, by name
    commands: dict[str, Callable[[dict[str, Any], Browser], None]] = field(default_factory=dict)
    # (tab, body of the tick) -> parts
    pulse_parts: list[Callable[[Any, dict[str, Any]], dict[str, Any]]] = field(default_factory=list)
    reported_errors: set[str] = field(default_factory=set)  # unexpected errors of ticks that were shown once
    forms: dict[str, Any] = field(default_factory=dict)  # of the tasks with a card, by name (tabs.tools.forms)
    form_state: tuple[Any, dict[str, Any]] = (None, {})  # what Train's form showed last, with what it follows from
    run_list: tuple[Any, list[dict[str, str]]] = (None, [])
    verdicts: dict[str, Any] = field(default_factory=dict)  # of runs that Monitor shows: (stamp, data)
    averages: dict[str, Any] = field(default_factory=dict)  # light task of the newest average, by run
    copies: dict[str, Any] = field(default_factory=dict)  # newest copy of each checkpoint to another folder, by path
    replaced: dict[str, Any] = field(default_factory=dict)  # parts of Generate's state before the last `replacing`
    job_images: dict[str, list[str]] = field(default_factory=dict)  # of jobs that have ended, by id
    ticks: dict[str, float] = field(default_factory=dict)  # tab -> seconds between its ticks
    # tab -> of each of its listeners to ticks; None for those of `on_tick`
    stamps: dict[str, list[Callable[[], str] | None]] = field(default_factory=dict)
    shows: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    loads: list[dict[str, Any]] = field(default_factory=list)
    complete_tags: Callable[[str], dict[str, Any]] | None = None  # of Captions, also for prompts
    machine_check: Any = None  # the card of Tools (tabs.tools.machine_check)

    def __post_init__(self) -> None:
        self.reading = Reading(self.engine, self.workspace, self.project, self.roots)
        self.setup = SetupOffer(self.engine, self.workspace, self.project)
        self.checks = Checks(
            self.engine, self.workspace, self.roots, self.thumb_url, self.reading, self.setup, self.project.recipe
        )
        self.picker = Picker(self)
        self.links.answer("pick", self.picker.answer)
        self.models = Models(self.workspace, self.project, self.roots)
        self.sketch = RateSketch(self.engine)
        self.forecast = Forecast(self.engine, self.workspace, self.project, self.roots, self.checks)
        self.layers = Layers(self.engine, self.workspace, self.project, self.roots)
        self.works = Works(self.engine, self.workspace, self.project, self.roots, self.thumb_url, self.file_url)
        self.commands |= self.works.commands
        self.pulse_parts.append(self.works.parts)
        self._run_jobs = lru_cache(20)(lambda run_name, stamp: self.engine.run_job(run_name))
        self.tensorboard = TensorBoard(offered=not self.shared)

    def submit_all(self, task: str, jobs: Iterable[Settings], preset: str = "") -> list[str]:
        """Queue all jobs, or none if one is refused, such as by the full queue of a shared page; return their ids. Raises ProblemsError."""
        queued: list[str] = []
        try:
            for job in jobs:
                queued.append(self.engine.submit(task, job, preset=preset))
        except ProblemsError:
            for entry in queued:
                self.engine.cancel(entry)
            raise
        return queued

    def script_data(self) -> dict[str, Any]:
        """Return the constants of the page's script: {"fields": facts of each field, "titles": of the fields of tasks, "elsewhere":
        sd-scripts' names without a field, "ticks": seconds of each tab, "longest": {"preset": bytes, "import": characters}}.
        """
        return {
            "fields": fields.facts(),
            "titles": task_settings.titles(),
            "elsewhere": form_values.names_elsewhere(),
            "ticks": self.ticks,
            "longest": {"preset": PRESET_BYTES, "import": IMPORT_LETTERS},
        }

    def visible_jobs(self, person: str = "") -> list[QueueEntry]:
        """Return the queue's jobs; where people have a page each, only the jobs of `person`, by default this page's."""
        jobs = self.engine.queue()
        return [job for job in jobs if job.guest == (person or self.workspace.person)] if self.engine.people else jobs

    def gpu(self) -> int | None:
        """Return the VRAM of the training GPU in bytes; 0 without a GPU, None until the device is known."""
        device = self.engine.known_device
        return None if device is None else gpu_memory(device)

    def readable_job(self, run_name: str) -> TrainJob | None:
        """Return the settings of a run, cached until its job.json changes; None if they are damaged or of another version."""
        try:
            file = RunFolder(self.workspace.runs / Path(run_name).name).job_file
            return self._run_jobs(run_name, stamp_or_none(file))
        except (ProblemsError, OSError, ValueError):
            return None

    def file_url(self, path: str | os.PathLike) -> str:
        """Return the URL of a file, relative to the page, for <img src> or <a href download>."""
        return self.links.file_url(path)

    def thumb_url(self, path: str | os.PathLike, size: int = 256) -> str:
        """Return the URL of a thumbnail of about `size` pixels (`Links.thumb_url`)."""
        return self.links.thumb_url(path, size)

    @property
    def browser(self) -> Browser:
        """The browser whose request is being handled."""
        return self.browsers.of(CURRENT_SESSION.get())

    def say(self, kind: str, text: str = "", **more: Any) -> None:
        """Show a message in the panel of the browser whose request is being handled. Arguments as in `Browsers.say`."""
        self.browsers.say(self.browser, kind, text, **more)

    def already_reported(self, error: ProblemsError) -> bool:
        """Whether ticks have already failed with the unexpected errors in `error`, each of which is shown only once. Records them."""
        messages = {problem.what for problem in error.problems if problem.code == FAILED}
        is_repeated = bool(messages) and messages <= self.reported_errors
        self.reported_errors |= messages
        return is_repeated

    def listen(
        self,
        triggers: Any,
        fn: Callable | None,
        inputs: Any = None,
        outputs: Any = None,
        *,
        drop_if_overtaken: bool = False,
        **more: Any,
    ) -> Any:
        """Register an event listener that is not part of the API.

        triggers            an event of a component (box.blur), or a list of events
        outputs             a component or a list: `fn` returns a value for each. A mapping {name: component}: `fn` returns
                            {name: value} of those that change
        drop_if_overtaken   discard the result if the user did something meanwhile (for ticks, or a count while typing)

        A parameter of `fn` called `event` gets the gr.EventData; `self.browser` is the browser. A ProblemsError of `fn` is shown as a
        message, and no output changes.
        """
        more = PRIVATE | more
        targets = outputs
        if fn is not None and self.pulse_bus is not None:
            names = list(outputs) if isinstance(outputs, Mapping) else []
            outputs = list(outputs.values()) if isinstance(outputs, Mapping) else outputs
            listed = list(outputs) if isinstance(outputs, (list, tuple)) else [] if outputs is None else [outputs]
            fn, targets = as_listener(self, fn, listed, drop_if_overtaken, names), [*listed, self.pulse_bus]
        if not isinstance(triggers, (list, tuple)) and not hasattr(triggers, "has_trigger"):
            return triggers(fn, inputs, targets, **more)  # an event that the script of a gr.HTML triggers
        triggers = list(triggers) if isinstance(triggers, (list, tuple)) else [triggers]
        return gr.on(triggers, fn, inputs, targets, **more)

    def on_input(self, triggers: Any, fn: Callable, field: Any, outputs: Any) -> None:
        """Call `fn` with the value of a field after the user changed it.

        Gradio's blur also fires without a change, with a value that may be empty or that another window has replaced.
        """

        def changed(value: Any, edited: str) -> Any:
            return fn(value) if edited else gr.skip()

        named = getattr(fn, "func", fn)
        changed.__module__, changed.__qualname__ = named.__module__, named.__qualname__
        js = f"(value) => [value, atelier.edited('{field.elem_id}')]"
        self.listen(triggers, changed, [field, self.envelope], outputs, js=js, trigger_mode="always_last")

    def on_act(self, boards: Any, fn: Callable, inputs: Any = None, outputs: Any = None) -> None:
        """Call `fn` for each click or change in these boards, also while an earlier event is handled."""
        for each in boards if isinstance(boards, list) else [boards]:
            self.listen(each.act, fn, inputs, outputs, trigger_mode="multiple")

    def on_tick(self, tab: str, fn: Callable, inputs: Any = None, outputs: Any = None, seconds: float = 1.0) -> None:
        """Call `fn` every `seconds` while `tab` is open; less often while no job runs (assets/ticks.js).

        `fn` returns gr.skip() if nothing has changed. The first of `inputs` is the browser's `client_state` (tabs/markup.py).
        """
        self.ticks[tab] = seconds
        self._listen_to_ticks(tab, None, fn, inputs, outputs)

    def on_change(self, tab: str, view: BoardView, outputs: Mapping[str, Any]) -> None:
        """Send the changed boards of `view` while `tab` is open and the browser shows another stamp.

        outputs   components by name; "client" is the browser's `client_state`
        The tick compares the stamps, since a message that Gradio carries takes ten times as long.
        """
        self._listen_to_ticks(tab, view.stamp, view.tick, outputs["client"], outputs)

    def _listen_to_ticks(
        self, tab: str, stamp: Callable[[], str] | None, fn: Callable, inputs: Any, outputs: Any
    ) -> None:
        """Register `fn` for the ticks of `tab`. stamp: () -> stamp of what it draws; None: it is called at every tick."""
        stamps = self.stamps.setdefault(tab, [])
        listener = tab, len(stamps)
        stamps.append(stamp)

        def tick(client: str, *more: Any) -> Any:
            browser = self.browser
            redraws, overtaken = browser.redraws_of(tab), self.browsers.overtaken(browser, ANY_TAB)
            result = fn(client if browser.is_drawn(listener) else "", *more)
            if result != gr.skip() and not overtaken():  # else nothing of it arrives
                browser.drawn[listener] = redraws
            return result

        tick.__module__, tick.__qualname__ = fn.__module__, fn.__qualname__
        event = getattr(self.pulse_bus, f"tick_{tab.lower()}")
        self.listen(event, tick, inputs, outputs, trigger_mode="once", drop_if_overtaken=True)

    def on_show(
        self, tab: str, fn: Callable | None, inputs: Any = None, outputs: Any = None, js: str | None = None
    ) -> None:
        """Call `fn` when `tab` is opened, also when the page opens on it. js: JavaScript that returns the inputs."""
        self.shows.setdefault(tab, []).append({"fn": fn, "inputs": inputs, "outputs": outputs, "js": js})

    def on_load(self, fn: Callable, inputs: Any = None, outputs: Any = None) -> None:
        """Call `fn` when a browser opens the page."""
        self.loads.append({"fn": fn, "inputs": inputs, "outputs": outputs})


def make_page(engine: Any, workspace: Workspace, *, shared: bool = False, keys: bool = False) -> Page:
    """Create the Page of an engine, without components. keys: whether jobs of a shared page may use the owner's keys."""
    presets = PresetStore(workspace.presets, workspace.person, PROJECT / "presets")
    roots = Roots(workspace, local=not shared, keys=keys)
    if engine is not None:
        engine.limits = roots.limits
    project = Project(workspace.personal_private / "project.json", presets)
    return Page(engine, workspace, project, presets, roots, Links(roots, workspace.thumbs), shared)


def _turn_of(args: Sequence[Any]) -> tuple[int, str]:
    """Return (number of a board's event, field that it changes or "") from a listener's arguments; the number is 0 for other events."""
    event = next((each for each in args if isinstance(each, gr.EventData)), None)
    data = event._data if event is not None and isinstance(event._data, dict) else {}
    board = getattr(event, "target", None)
    field = f"{getattr(board, 'elem_id', '')} {data.get('act')} {data.get('arg')}" if data.get("field") else ""
    return to_count(data.get("turn")), field[:400]


def _with_label(label: str, component: Any, value: Any) -> Any:
    """Return the output value of a component; for a board, its HTML with a label of the answer at the end (tabs/markup.py)."""
    is_board = isinstance(component, gr.HTML) and "board" in (component.elem_classes or ())
    return f"{value}<!--{label}-->" if is_board and isinstance(value, str) else value


@contextmanager
def handling(request: gr.Request | None, workspace: Workspace) -> Iterator[None]:
    """Context in which a request is handled: `Page.browser` is its browser, and new jobs belong to its user."""
    session = CURRENT_SESSION.set(getattr(request, "session_hash", None))
    try:
        guest = getattr(getattr(request, "request", None), "scope", {}).get("guest", "")
        with as_guest(guest), in_workspace(workspace):
            yield
    finally:
        CURRENT_SESSION.reset(session)


def as_listener(
    page: Page, fn: Callable, outputs: Sequence[Any], drop_if_overtaken: bool = False, names: Sequence[str] = ()
) -> Callable:
    """Wrap `fn` as a listener that returns values for `outputs` and, for the pulse bus, the browser's message if it changed.

    drop_if_overtaken   as in `Page.listen`
    names               names of `outputs`, if `fn` returns {name: value} of the outputs that change

    A change of a field that arrives after a newer one of the same field is ignored. A ProblemsError becomes a message; a gr.Error would
    be answered with status 500 and a toast that disappears. Gradio injects parameters by their annotations, but reads none of a
    functools.partial, and none at all if one of them names a type that is imported for type checkers only. So the wrapper is annotated
    with the event alone.
    """
    signature = inspect.signature(fn)
    name = _name_of(fn)
    keys = names or outputs

    def wrapped(*args):
        request = LocalContext.request.get(None)
        browser = page.browsers.of(getattr(request, "session_hash", None))
        overtaken, before = page.browsers.overtaken(browser, ANY_TAB), browser.message
        turn, field = _turn_of(args)
        handled = 0
        try:
            act = nullcontext() if drop_if_overtaken else page.browsers.acting(browser, ANY_TAB)
            with handling(request, page.workspace), page.browsers.in_turn(browser, turn), act:
                handled = max(turn, browser.turn)  # later ones, which may end meanwhile, are not in this result
                late = field and not page.browsers.is_newest(browser, field, turn)
                result = gr.skip() if late else errors_as_problems(lambda: fn(*args), name)
            if drop_if_overtaken and overtaken():
                result = gr.skip()
        except ProblemsError as error:
            result = gr.skip()
            if not (drop_if_overtaken and page.already_reported(error)):
                page.browsers.say(browser, "error", problems=error.problems, about=name)
        else:
            page.browsers.succeeded(browser, name)
        message = gr.skip() if browser.message is before else to_json({"said": with_signature(browser.message)})
        skipped = result is None or (isinstance(result, dict) and result.get("__type__") == "update")
        if isinstance(result, dict) and not skipped:
            assert result.keys() <= set(keys), f"{name} returns {result.keys() - set(keys)}, which are not its outputs"
            result = [result.get(key, gr.skip()) for key in keys]
        elif len(outputs) == 1 and not names:
            result = [result]
        elif skipped:
            result = [gr.skip()] * len(outputs)
        # an event was handled meanwhile: its change may be in this answer or not
        uncertain = "?" if browser.turn > handled else ""
        label = f"{handled}.{next(ANSWERS)}{uncertain}"
        values = [_with_label(label, each, value) for each, value in zip(outputs, result, strict=True)]
        return (*values, message) if values else message

    wrapped.__signature__ = signature  # type: ignore[attr-defined]
    wrapped.__name__ = name.rsplit(".", 1)[-1]
    wrapped.__annotations__ = {"event": gr.EventData} if "event" in signature.parameters else {}
    return wrapped


def _name_of(fn: Callable) -> str:
    """Return "module.name" of a function or functools.partial."""
    function = getattr(fn, "func", fn)
    return f"{getattr(function, '__module__', '')}.{getattr(function, '__qualname__', 'handler')}"


def run_all(page: Page, event: Any, calls: Sequence[dict[str, Any]]) -> None:
    """Register a listener for `event` with each of the arguments in `calls`, {name: value} of `Page.listen`."""
    for call in calls:
        page.listen(event, **call)
