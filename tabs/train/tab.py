"""The Train tab: what to train, on what, for how long; the preflight; Start. Everything else stands in groups below."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import gradio as gr

from core.dataset.images.opening import SKIP
from core.record.problems import ProblemsError
from core.settings.base import PATHS, Declared
from core.settings.values import with_point
from tabs.form import fields as form
from tabs.form import presets_bar
from tabs.form.messages import form_part
from tabs.form.places import image_folders, model_choices, vae_choices
from tabs.form.project import FIELDS, NAME, OldRevision, with_value
from tabs.pieces import piece
from tabs.server.browsers import Browser, packed, signed, unpack, whole
from tabs.server.pulse import status
from tabs.train import method_needs
from tabs.train.starts import press

if TYPE_CHECKING:
    from tabs.context import Page

LENGTH = '<p id="length-line" aria-live="polite"></p>'
NEEDS = '<p id="method-needs" aria-live="polite" hidden></p>'
CURVE = (
    '<figure id="rate-sketch"><figcaption>Learning rate over the run <span id="sketch-legend" class="legend"></span>'
    '</figcaption><div id="sketch-chart" class="chart"></div><p id="sketch-about" class="hint"></p></figure>'
)
BELOW = {"model": ("needs-holder", NEEDS), "length": ("length-holder", LENGTH)}  # a row: what stands below it
FORM = "the form"  # what messages about its fields and presets are about


def build(page: Page) -> None:
    """All widgets of the tab, one private listener each."""
    widgets: dict[str, Any] = {}
    page.widgets = widgets
    make = functools.partial(_field, page, widgets)
    with gr.Row(elem_id="train", elem_classes="split"):
        with gr.Column(scale=5, min_width=480, elem_id="train-form"):
            preset = _first_screen(page, make)
            gr.HTML(piece("search"), elem_id="search-holder")
            _groups(make)
            with gr.Accordion("JSON", open=False, elem_id="group-json", elem_classes="group"):
                gr.HTML(piece("json_pane"))
        with gr.Column(scale=3, min_width=300, elem_id="train-side"):
            # First, so that they stay where they are whatever the preflight has to say.
            start = gr.Button("Start training", variant="primary", elem_id="start", size="lg")
            with gr.Row(elem_classes="buttons-row"):
                enqueue = gr.Button("Add to queue", elem_id="enqueue", size="md")
                check = gr.Button("Check again", elem_id="check", size="md")
            gr.HTML(piece("preflight"), elem_id="preflight-holder")
            gr.HTML(piece("forecast"), elem_id="forecast-holder", apply_default_css=False)
            page.commands |= {"forecast": page.forecast.ask, "try": page.forecast.try_it}
            page.pulse_parts.append(page.forecast.parts)
            gr.HTML(piece("first_images"), elem_id="images-holder")
    _listen_to_fields(page, widgets)
    _listen_to_actions(page, widgets, preset)
    _listen_to_buttons(page, start, enqueue, check)


def _field(page: Page, widgets: dict[str, Any], path: str) -> Any:
    entry = FIELDS[path]
    offers = bool(entry.first) or entry.widget in ("model", "optimizer")
    paths = functools.partial(_offers, page) if offers else None
    widgets[path] = form.widget(entry, page.project.job, paths)
    return widgets[path]


def _offers(page: Page, entry: Declared) -> list[Any]:
    """What a model or folder field lists."""
    if entry.path == "model.base_model":
        return model_choices(page.workspace)
    if entry.path == "model.vae":
        return vae_choices(page.workspace)
    if entry.widget == "optimizer":
        return method_needs.optimizer_choices(page.engine.known_device)
    return image_folders(page.workspace) if entry.widget == "folder" else []


def _first_screen(page: Page, make: Callable[..., Any]) -> gr.Dropdown:
    with gr.Column(elem_classes="card first"):
        for row, entries in form.first_screen():
            with gr.Row(elem_classes=["fields", "four" if len(entries) > 2 else "two"], elem_id=f"first-{row}"):
                for entry in entries:
                    make(entry.path)
                if row == "method":
                    with gr.Column(min_width=120, elem_id="preset-column"):
                        preset = presets_bar.dropdown(page)
                        gr.HTML(piece("preset_bar"), elem_id="preset-bar-holder")
            if row == "method":
                gr.HTML(piece("recipe"), elem_id="recipe-holder", apply_default_css=False)
            if row in BELOW:
                gr.HTML(BELOW[row][1], elem_id=BELOW[row][0], apply_default_css=False)
    return preset


def _groups(make: Callable[..., Any]) -> None:
    """One closed accordion a group: shown fields first, the rest behind More."""
    for group, entries in form.groups().items():
        shown = [entry for entry in entries if entry.level == "shown"]
        more = [entry for entry in entries if entry.level != "shown"]
        with gr.Accordion(form.group_title(group), open=False, elem_id=f"group-{group}", elem_classes="group"):
            _fields(make, shown or more)
            if group == "schedule":
                gr.HTML(CURVE, elem_id="sketch-holder", apply_default_css=False)
            for entry in FIELDS.values():
                if entry.group == group and entry.elsewhere:
                    gr.HTML(_pointer(entry), elem_classes="elsewhere", apply_default_css=False)
            if shown and more:
                with gr.Accordion(f"More ({len(more)})", open=False, elem_id=f"more-{group}", elem_classes="more"):
                    _fields(make, more)


def _fields(make: Callable[..., Any], entries: list[Declared]) -> None:
    """Fields side by side, a row of its own below each heading: it is folded away with the last of its fields."""
    for heading, below in form.sections(entries):
        with gr.Row(elem_classes="fields"):
            if heading:
                gr.HTML(f"<h3>{heading}</h3>", elem_classes="heading", apply_default_css=False)
            for entry in below:
                make(entry.path)


def _pointer(entry: Declared) -> str:
    """Leads to the tab that shows this setting."""
    tab = entry.elsewhere.partition("#")[0]
    lead = f'<button type="button" class="link" data-field="{entry.path}">Open {tab}</button>'
    return f'<p class="hint">{entry.title} are on the {tab} tab, with the settings of each. {lead}</p>'


# -- listeners


def _listen_to_fields(page: Page, widgets: dict[str, Any]) -> None:
    for path, component in widgets.items():
        page.listen(
            form.events(component),
            functools.partial(_changed, page, path),
            [component, page.envelope],
            list({component, widgets[NAME], page.form_bus}),
            js=f"(value) => [value, atelier.envelope('{path}', value)]",
            trigger_mode="multiple",
        )


def _changed(page: Page, path: str, value: Any, envelope: str, request: gr.Request) -> Any:
    """One field changed in one browser. Also answers what its widget, and the name's, show now, where that is another."""
    sent = unpack(envelope)
    browser = page.browsers.of(request.session_hash)
    number = whole(sent.get("n"))
    shown: dict[str, Any] = {}
    try:
        if page.browsers.is_newest(browser, path, number):
            before = page.project.shown(NAME)
            page.project.edit(path, value, session=browser.session, stamp=str(sent.get("stamp", "")))
            page.browsers.succeeded(browser, FORM)
            if path != NAME and page.project.shown(NAME) != before:
                shown[NAME] = page.project.shown(NAME)
            is_path = FIELDS[path].names in PATHS
            tidied = page.project.shown(path) if is_path else with_point(FIELDS[path], value)
            if path not in page.project.bad and tidied != value:
                shown[path] = tidied
    except OldRevision:
        _say_refused(page, browser)
    finally:
        page.browsers.arrive(browser, number)
    updates: dict[Any, Any] = {page.widgets[each]: text for each, text in shown.items()}
    return updates | {page.form_bus: _message(page, browser, whole(sent.get("filled")))}


def _say_refused(page: Page, browser: Browser) -> None:
    text = "The form was changed in another browser. It now shows the current values; your last change was not applied."
    page.browsers.say(browser, "error", text, title="Not applied", about=FORM)


def _message(page: Page, browser: Browser, filled: int, *, just_filled: bool = False) -> str:
    """`just_filled`: the same answer fills every widget, which the browser must know should it come too late. It is the first
    one that a page gets, so what the header shows comes along."""
    part = signed(form_part(page, browser, filled, just_filled=just_filled))
    part["data"]["widgets"] = just_filled
    header = {"status": signed(status(page))} if just_filled else {}
    return packed(header | {"form": part, "acks": list(browser.arrived)})


ACTIONS: dict[str, Callable[..., None]] = {
    "load": lambda page, data, browser, stamp: presets_bar.load(page, data.get("preset"), browser, stamp),
    "save": presets_bar.save,
    "rename": presets_bar.rename,
    "delete": presets_bar.delete,
    "file": presets_bar.take_file,
    "json": presets_bar.apply_json,
    "reset": lambda page, data, browser, stamp: presets_bar.reset(page, browser, stamp),
    "put_all_back": lambda page, data, browser, stamp: presets_bar.put_all_back(page, browser, stamp),
    "undo": lambda page, data, browser, stamp: page.project.undo(session=browser.session, stamp=stamp),
    "redo": lambda page, data, browser, stamp: page.project.redo(session=browser.session, stamp=stamp),
    "put_back": lambda page, data, browser, stamp: _put_back(page, data, browser, stamp),
    "level": lambda page, data, browser, stamp: page.forecast.set_level(data, browser, stamp),
    "recipe": lambda page, data, browser, stamp: _follow(page, data, browser, stamp),
    "use_model": lambda page, data, browser, stamp: page.models.choose(data, browser, stamp),
    "setup": lambda page, data, browser, stamp: page.setup.apply(
        page.checks.offered(page.project.job), session=browser.session, stamp=stamp
    ),
    "leave_out": lambda page, data, browser, stamp: page.project.edit(SKIP, True, session=browser.session, stamp=stamp),
    "keep_demo": lambda page, data, browser, stamp: page.setup.keep(),
    "train_all": lambda page, data, browser, stamp: page.project.replace(
        with_value(page.project.job, "validation.best_checkpoint", "training"),
        did="training on the validation images too",
        session=browser.session,
        stamp=stamp,
    ),
    "refill": lambda page, data, browser, stamp: None,
}
REFUSED = {
    "load": "The preset was not loaded; nothing changed.",
    "file": "The file was not loaded; nothing changed.",
    "save": "The preset was not saved.",
}


def _put_back(page: Page, data: dict[str, Any], browser: Browser, stamp: str | None) -> None:
    # The name is not "path": Gradio takes any object with that key for a file and refuses the message.
    if data.get("field") in FIELDS:
        page.project.put_back(data["field"], session=browser.session, stamp=stamp)


def _follow(page: Page, data: dict[str, Any], browser: Browser, stamp: str | None) -> None:
    """Set what a recipe sets; one undo takes it back."""
    title = str(data.get("title", ""))
    job = method_needs.with_recipe(page.project.job, str(data.get("field", "")), title)
    page.project.replace(job, did=f"following {title}", session=browser.session, stamp=stamp)


def _listen_to_actions(page: Page, widgets: dict[str, Any], preset: gr.Dropdown) -> None:
    outputs = [*widgets.values(), preset, page.form_bus]

    def fill(browser: Browser) -> dict[Any, Any]:
        """Every widget as the project has it."""
        with page.project.lock:
            updates: dict[Any, Any] = {component: _shown(page, path, component) for path, component in widgets.items()}
            updates[preset] = gr.Dropdown(choices=presets_bar.choices(page), value=page.project.preset)
            updates[page.form_bus] = _message(page, browser, 0, just_filled=True)
        return updates

    def act(request: gr.Request, event: gr.EventData) -> dict[Any, Any]:
        data = event._data if isinstance(event._data, dict) else {}
        browser = page.browsers.of(request.session_hash)
        _do(page, str(data.get("name", "")), data, browser)
        return fill(browser)

    def choose(name: Any, envelope: str, request: gr.Request) -> dict[Any, Any]:
        browser, sent = page.browsers.of(request.session_hash), unpack(envelope)
        if name in (sent.get("loaded"), page.project.preset):  # the list was opened and left, or the same one chosen
            page.browsers.arrive(browser, whole(sent.get("n")))
            return {page.form_bus: _message(page, browser, whole(sent.get("filled")))}
        _do(page, "load", {"preset": name, **sent}, browser)
        return fill(browser)

    page.listen(page.form_bus.act, act, None, outputs, trigger_mode="multiple")
    page.listen(
        preset.input,
        choose,
        [preset, page.envelope],
        outputs,
        # Gradio reports a list that is left as well as one in which something was chosen.
        js="async (value) => atelier.presetSent(value)",
        trigger_mode="multiple",
    )
    page.on_load(lambda request: fill(page.browsers.of(request.session_hash)), None, outputs)


def _do(page: Page, name: str, data: dict[str, Any], browser: Browser) -> None:
    """One action; what goes wrong is said in the browser's panel, and nothing else changes."""
    action = ACTIONS.get(name)
    if action is None:
        return
    try:
        action(page, data, browser, None if name == "refill" else str(data.get("stamp", "")))
    except OldRevision:
        _say_refused(page, browser)
    except ProblemsError as error:
        text = REFUSED.get(name, "")
        page.browsers.say(browser, "error", text, problems=error.problems, about=FORM)
    else:
        if name != "refill":
            page.browsers.succeeded(browser, FORM)
    finally:
        if "n" in data:
            page.browsers.arrive(browser, whole(data["n"]))


def _shown(page: Page, path: str, component: Any) -> Any:
    value = page.project.shown(path)
    if isinstance(component, gr.Dropdown) and FIELDS[path].kind != "choice":
        return gr.Dropdown(choices=form.offered(_offers(page, FIELDS[path]), value), value=value)
    return value


def _listen_to_buttons(page: Page, start: gr.Button, enqueue: gr.Button, check: gr.Button) -> None:
    def pressed(envelope: str, request: gr.Request) -> str:
        sent = unpack(envelope)
        browser = page.browsers.of(request.session_hash)
        try:
            press(page, browser, sent)
        except OldRevision:
            _say_refused(page, browser)
        return _message(page, browser, whole(sent.get("filled")))

    for button, how in ((start, "start"), (enqueue, "queue")):
        js = f"async () => [await atelier.startMessage('{how}')]"
        page.listen(button.click, pressed, page.envelope, page.form_bus, js=js, trigger_mode="once")
    page.listen(
        check.click,
        lambda: page.checks.look(page.project.job, again=True) and None,
        None,
        None,
        js="() => { atelier.checking(); return []; }",
        trigger_mode="once",
    )
