"""What every tab is handed: the engine, the folders, the project, and the few ways in which a tab meets the page."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import gradio as gr

from core.engine.queue import GUEST
from core.record.machine import gpu_memory
from core.record.problems import ProblemsError
from core.record.workspace import Workspace
from core.settings.presets.files import PresetStore
from tabs.dataset.own_setup import OwnSetup
from tabs.dataset.reading import Reading
from tabs.form import fields, own_settings, task_settings
from tabs.form.picker import Picker
from tabs.form.project import Project
from tabs.markup import as_of
from tabs.monitor.tensorboard import TensorBoard
from tabs.roots import Roots
from tabs.server.browsers import Browser, Browsers
from tabs.server.guard import FAILED, guarded
from tabs.server.links import Links
from tabs.tools.models import Models
from tabs.tools.works import Works
from tabs.train.checks import Checks
from tabs.train.forecast import Forecast
from tabs.train.layers import Layers
from tabs.train.rate_sketch import RateSketch
from tabs.wire import packed, signed, whole

if TYPE_CHECKING:
    from core.engine.engine import Engine

ASKING: ContextVar[str | None] = ContextVar("session of the browser whose request is handled", default=None)
ANY_TAB = "tabs"  # where things are done that answers of other tabs give way to
TABS = ("Dataset", "Captions", "Train", "Monitor", "Generate", "Runs", "Tools")


@dataclass
class Page:
    """One page for one engine and one project. Tabs build their widgets inside `build(page)` and keep no state:
    what must survive a refresh goes into `project.keep(tab, {...})`, what belongs to a run is asked of the engine."""

    engine: Engine
    workspace: Workspace
    project: Project
    presets: PresetStore
    roots: Roots
    links: Links
    shared: bool = False
    tabs: Any = None  # the gr.Tabs; return gr.Tabs(selected="Train") to lead somewhere
    browsers: Browsers = field(default_factory=Browsers)
    form_bus: Any = None  # carries the form's state to the browser and its actions back
    pulse_bus: Any = None  # carries what changes by itself, and commands back
    envelope: Any = None  # the hidden input that the page's script fills in
    commands: dict[str, Callable[[dict[str, Any], Browser], None]] = field(
        default_factory=dict
    )  # of other tabs, by name
    pulse_parts: list[Callable[[Any, dict[str, Any]], dict[str, Any]]] = field(
        default_factory=list
    )  # (tab, asked) -> parts
    troubles: set[str] = field(default_factory=set)  # faults of our own that were told already
    forms: dict[str, Any] = field(default_factory=dict)  # of the tasks with a card, by name (tabs.tools.forms)
    run_list: tuple[Any, list[dict[str, str]]] = (None, [])
    run_jobs: dict[str, Any] = field(default_factory=dict)  # settings of runs that Monitor shows
    job_images: dict[str, list[str]] = field(default_factory=dict)  # of jobs that have ended, by id
    ticks: dict[str, float] = field(default_factory=dict)  # tab -> seconds between its ticks
    shows: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    loads: list[dict[str, Any]] = field(default_factory=list)
    complete_tags: Callable[[str], dict[str, Any]] | None = None  # of Captions, also for prompts
    machine_check: Any = None  # the card of Tools (tabs.tools.machine_check)

    def __post_init__(self) -> None:
        self.reading = Reading(self.engine, self.workspace, self.project, self.roots)
        self.setup = OwnSetup(self.engine, self.workspace, self.project)
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
        self.tensorboard = TensorBoard(offered=not self.shared)

    def known(self) -> dict[str, Any]:
        """What the page's script knows of every field, of those of tasks, of names that are none, and of the tabs that tick."""
        return {
            "fields": fields.facts(),
            "titles": task_settings.titles(),
            "elsewhere": own_settings.names_elsewhere(),
            "ticks": self.ticks,
        }

    def gpu(self) -> int | None:
        """Bytes of the memory of the GPU that trainings run on, 0 without one; None while it is not known yet."""
        device = self.engine.known_device
        return None if device is None else gpu_memory(device)

    def file_url(self, path: str | os.PathLike) -> str:
        """Address of a file as it is (relative to the page), for <img src> or <a href download>."""
        return self.links.file_url(path)

    def thumb_url(self, path: str | os.PathLike, size: int = 256) -> str:
        """Address of an image made smaller: its longer side is at most `size` pixels."""
        return self.links.thumb_url(path, size)

    def say(self, kind: str, text: str = "", **more: Any) -> None:
        """A message in the panel of the browser that asked: see `Browsers.say`. The panel lies over the page, so nothing moves."""
        self.browsers.say(self.browsers.of(ASKING.get()), kind, text, **more)

    def told_already(self, error: ProblemsError) -> bool:
        """Whether a tick has failed so before: it is told once, not once a second."""
        words = {problem.what for problem in error.problems if problem.code == FAILED}
        before = bool(words) and words <= self.troubles
        self.troubles |= words
        return before

    def listen(
        self,
        triggers: Any,
        fn: Callable | None,
        inputs: Any = None,
        outputs: Any = None,
        *,
        gives_way: bool = False,
        **more: Any,
    ) -> Any:
        """One private listener. `triggers` is a component's event (box.blur) or a list of them.

        `outputs` by name: `fn` answers {name: value} of those that change. One component or a list: a value for each.

        A parameter of `fn` called `request` gets the gr.Request, one called `event` the gr.EventData.
        Problems that `fn` raises appear as a message that stays until it is closed; nothing else changes then.
        `gives_way`: the answer is not sent when the person did something meanwhile (a tick, a count while typing).
        """
        more = {"queue": False, "show_progress": "hidden", "api_visibility": "private"} | more
        bus, given = self.pulse_bus, outputs
        if fn is not None and bus is not None:
            names = list(outputs) if isinstance(outputs, Mapping) else []
            outputs = list(outputs.values()) if isinstance(outputs, Mapping) else outputs
            listed = list(outputs) if isinstance(outputs, (list, tuple)) else [] if outputs is None else [outputs]
            if not any(each is bus for each in listed):
                fn, given = told(self, fn, listed, gives_way, names), [*listed, bus]
        if not isinstance(triggers, (list, tuple)) and not hasattr(triggers, "has_trigger"):
            return triggers(fn, inputs, given, **more)  # an event that a gr.HTML's own script raises
        triggers = list(triggers) if isinstance(triggers, (list, tuple)) else [triggers]
        return gr.on(triggers, fn, inputs, given, **more)

    def on_given(self, triggers: Any, fn: Callable, field: Any, outputs: Any) -> None:
        """`fn` with the value that a person has given to a field. Gradio also reports a field that is only passed through: it
        may hold what another window has changed since, or nothing yet."""

        def given(value: Any, used: str) -> Any:
            return fn(value) if used else gr.skip()

        named = getattr(fn, "func", fn)
        given.__module__, given.__qualname__ = named.__module__, named.__qualname__
        js = f"(value) => [value, atelier.given('{field.elem_id}')]"
        self.listen(triggers, given, [field, self.envelope], outputs, js=js, trigger_mode="always_last")

    def on_act(self, boards: Any, fn: Callable, inputs: Any = None, outputs: Any = None) -> None:
        """One listener for what is clicked or changed in these boards. Every click counts, also during an earlier one."""
        for each in boards if isinstance(boards, list) else [boards]:
            self.listen(each.act, fn, inputs, outputs, trigger_mode="multiple")

    def on_tick(self, tab: str, fn: Callable, inputs: Any = None, outputs: Any = None, seconds: float = 1.0) -> None:
        """Call `fn` every so many seconds while `tab` is open (assets/ticks.js: seldom when nothing runs). It returns
        gr.skip() when nothing is new."""
        self.ticks[tab] = seconds
        event = getattr(self.pulse_bus, f"tick_{tab.lower()}")
        self.listen(event, fn, inputs, outputs, trigger_mode="once", gives_way=True)

    def on_show(
        self, tab: str, fn: Callable | None, inputs: Any = None, outputs: Any = None, js: str | None = None
    ) -> None:
        """Call `fn` each time `tab` is opened (also when the page opens on it). `js` may change the inputs before."""
        self.shows.setdefault(tab, []).append({"fn": fn, "inputs": inputs, "outputs": outputs, "js": js})

    def on_load(self, fn: Callable, inputs: Any = None, outputs: Any = None) -> None:
        """Call `fn` when a browser opens the page."""
        self.loads.append({"fn": fn, "inputs": inputs, "outputs": outputs})


def make_page(engine: Any, workspace: Workspace, *, shared: bool = False, keys: bool = False) -> Page:
    """Everything the tabs are handed, before any widget exists. keys: jobs of a shared page may use the owner's keys."""
    presets = PresetStore(workspace.presets)
    roots = Roots(workspace, local=not shared, keys=keys)
    if engine is not None:
        engine.limits = roots.limits
    project = Project(workspace.private / "project.json", presets)
    return Page(engine, workspace, project, presets, roots, Links(roots, workspace.thumbs), shared)


def _turn_of(args: Sequence[Any]) -> tuple[int, str]:
    """The number of an act on a board (tabs/markup.py), 0 for everything else; and the field that it changes, if it does."""
    event = next((each for each in args if isinstance(each, gr.EventData)), None)
    data = event._data if event is not None and isinstance(event._data, dict) else {}
    board = getattr(event, "target", None)
    field = f"{getattr(board, 'elem_id', '')} {data.get('act')} {data.get('arg')}" if data.get("field") else ""
    return whole(data.get("turn")), field[:400]


def _as_of(turn: int, component: Any, value: Any) -> Any:
    """An answer for a component; one for a board says which acts it tells of."""
    is_board = isinstance(component, gr.HTML) and "board" in (component.elem_classes or ())
    return as_of(turn, value) if is_board and isinstance(value, str) else value


def told(
    page: Page, fn: Callable, outputs: Sequence[Any], gives_way: bool = False, names: Sequence[str] = ()
) -> Callable:
    """`fn` for the components `outputs` and the pulse bus, which carries its problems to the message panel of that browser.
    With `names` it answers {name: value} of those that change. A change of a field that comes after a newer one of the
    same field does nothing.

    Raised as gr.Error they would be answered with status 500, and the message would be gone at once.
    Gradio fills in parameters by their annotations; it reads none from a functools.partial and gives up on all when
    one names a type that exists only for type checkers. So the wrapper carries just those that it needs.
    """
    signature = inspect.signature(fn)
    asks = "request" in signature.parameters
    about = _name_of(fn)
    parameters = [each.replace(annotation=inspect.Parameter.empty) for each in signature.parameters.values()]
    if not asks:
        own = inspect.Parameter("request", inspect.Parameter.POSITIONAL_OR_KEYWORD)
        rest = [each for each in parameters if each.kind is inspect.Parameter.VAR_POSITIONAL]
        parameters = [own, *parameters] if rest else [*parameters, own]
    place = next(number for number, each in enumerate(parameters) if each.name == "request")
    keys = names or outputs

    def wrapped(*args):
        request = args[place]
        session = getattr(request, "session_hash", None)
        asking = ASKING.set(session)
        guest = GUEST.set(getattr(getattr(request, "request", None), "scope", {}).get("guest", ""))
        browser = page.browsers.of(session)
        overtaken, before = page.browsers.overtaken(browser, ANY_TAB), browser.said
        turn, field = _turn_of(args)
        try:
            act = nullcontext() if gives_way else page.browsers.acting(browser, ANY_TAB)
            with page.browsers.in_turn(browser, turn), act:
                late = field and not page.browsers.is_newest(browser, field, turn)
                given = args if asks else (*args[:place], *args[place + 1 :])
                result = gr.skip() if late else guarded(lambda: fn(*given), about)
            if gives_way and overtaken():
                result = gr.skip()
        except ProblemsError as error:
            result = gr.skip()
            if not (gives_way and page.told_already(error)):
                page.browsers.say(browser, "error", problems=error.problems, about=about)
        else:
            page.browsers.succeeded(browser, about)
        finally:
            ASKING.reset(asking)
            GUEST.reset(guest)
        said = gr.skip() if browser.said is before else _panel(browser)
        skipped = result is None or (isinstance(result, dict) and result.get("__type__") == "update")
        if isinstance(result, dict) and not skipped:
            assert result.keys() <= set(keys), f"{about} answers {result.keys() - set(keys)}, which it was not given"
            result = [result.get(key, gr.skip()) for key in keys]
        elif len(outputs) == 1 and not names:
            result = [result]
        elif skipped:
            result = [gr.skip()] * len(outputs)
        values = [_as_of(browser.turn, each, value) for each, value in zip(outputs, result, strict=True)]
        return (*values, said) if values else said

    wrapped.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    wrapped.__name__ = about.rsplit(".", 1)[-1]
    wrapped.__annotations__ = {"request": gr.Request} | {
        name: kind for name, each in signature.parameters.items() if (kind := _filled_in(name, each.annotation))
    }
    return wrapped


def _name_of(fn: Callable) -> str:
    """A handler's name with its module, also of a partial one."""
    named = getattr(fn, "func", fn)
    return f"{getattr(named, '__module__', '')}.{getattr(named, '__qualname__', 'handler')}"


def _panel(browser: Browser) -> str:
    """What the message panel of this browser is to show now."""
    return packed({"said": signed(browser.said)})


SPECIAL = {kind.__name__: kind for kind in (gr.Request, gr.EventData, gr.SelectData, gr.KeyUpData, gr.DeletedFileData)}


def _filled_in(name: str, annotation: Any) -> Any:
    """The class that Gradio fills this parameter with, or None for an ordinary one."""
    words = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", "")
    by_type = SPECIAL.get(words.rsplit(".", 1)[-1])
    return by_type or {"request": gr.Request, "event": gr.EventData}.get(name)


def run_all(page: Page, event: Any, calls: Sequence[dict[str, Any]]) -> None:
    for call in calls:
        page.listen(event, **call)
