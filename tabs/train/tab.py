"""The Train tab: the form with its first screen and groups, the preflight, and Start."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import gradio as gr

from core.dataset.images.opening import SKIP
from core.dataset.sources.registered import SOURCES
from core.record.problems import ProblemsError
from core.settings.base import Declared
from tabs.form import fields as form
from tabs.form.folder_browser import image_folders
from tabs.form.form_values import control_input
from tabs.form.model_lists import choices_of
from tabs.form.presets import ACTS
from tabs.form.project import FIELDS, OldRevision, edited_by
from tabs.markup import esc, pair_view_buttons
from tabs.pieces import piece
from tabs.pulse import status
from tabs.server.browsers import Browser
from tabs.tools.pairs import sample_pairs
from tabs.train import imports, method_needs, presets_bar
from tabs.train.messages import form_part
from tabs.train.starts import press
from tabs.wire import json_object, to_count, to_json, with_signature

if TYPE_CHECKING:
    from tabs.context import Page

LENGTH = '<p id="length-line" aria-live="polite"></p>'
NEEDS = '<p id="method-needs" aria-live="polite" hidden></p><div id="method-fields" class="fields"></div>'
SKETCH = (
    '<figure class="sketch"><figcaption>{title} <span id="{name}-legend" class="legend"></span></figcaption>'
    '<div id="{name}-chart" class="chart"></div><p id="{name}-about" class="hint"></p></figure>'
)
SKETCHES = {  # {group: HTML of its chart}
    "schedule": SKETCH.format(name="sketch", title="Learning rate over the run"),
    "noise": SKETCH.format(name="timesteps", title="Training timesteps"),
}
PRESET = (
    '<div class="field" id="preset"><label class="field-title" for="preset-list">Preset</label>'
    '<span class="info-text">A saved set of settings.</span><select id="preset-list"></select></div>'
)
ADDS = {  # {what a training adds: path of its first field}
    "Samples": "samples.sample_every_n_steps",
    "Validation": "validation.validation_split",
    "Regularization": "dataset.reg_data_dir",
    "Masks": "dataset.masked_loss",
    "Schedule": "schedule.lr_scheduler",
}
BELOW = {"model": NEEDS, "length": LENGTH}  # {row: HTML below it}
# {path: function that lists the suggestions of a field}
SUGGESTIONS: dict[str, Callable[[Any], list[tuple[str, str]]]] = {
    "model.base_model": partial(choices_of, "checkpoint"),
    "model.vae": partial(choices_of, "vae"),
    "dataset.folder": image_folders,
    "dataset.dataset_class": lambda workspace: [(source.title, source.name) for source in SOURCES.values()],
}
FORM = "the form"  # `about` of messages on its fields and presets


def build(page: Page) -> None:
    """Create the form, which the page's script fills in, and the column next to it, and register the listeners."""
    with gr.Row(elem_id="train", elem_classes="split"):
        with gr.Column(scale=5, min_width=480):
            gr.HTML(_form(), elem_id="train-form", apply_default_css=False)
        with gr.Column(scale=3, min_width=300, elem_id="train-side"):
            # Above the preflight, so that its contents do not move them.
            start = gr.Button("Start training", variant="primary", elem_id="start", size="lg")
            with gr.Row(elem_classes="buttons-row"):
                enqueue = gr.Button("Add to queue", elem_id="enqueue", size="md")
                check = gr.Button("Check again", elem_id="check", size="md")
            gr.HTML(piece("preflight"), elem_id="preflight-holder")
            gr.HTML(piece("forecast"), elem_id="forecast-holder", apply_default_css=False)
            page.commands |= {"forecast": page.forecast.request, "try": page.forecast.queue_test}
            page.pulse_parts += [page.forecast.parts, page.layers.parts]
            page.links.answer("import", lambda body: imports.report(page.project))
            page.links.answer("export", lambda body: imports.export_texts(page, str(body.get("to"))))
            gr.HTML(piece("first_images").replace("{pair_view_buttons}", pair_view_buttons()), elem_id="images-holder")
    _listen_to_form(page)
    _listen_to_buttons(page, start, enqueue, check)


# -- the form


def _form() -> str:
    """Return the HTML of the form."""
    return "".join(
        [
            f'<div class="card first">{"".join(_row(row, entries) for row, entries in form.first_screen())}</div>',
            _add_buttons(),
            piece("search"),
            *(_group(group, entries) for group, entries in form.groups().items()),
            _folding("group", "json", "JSON", piece("json_pane")),
        ]
    )


def _add_buttons() -> str:
    """Return the HTML of the + buttons that open the group of a common addition, at its first field."""
    buttons = "".join(
        f'<button type="button" class="btn" data-field="{path}" title="{esc(FIELDS[path].title)}">+ {title}</button>'
        for title, path in ADDS.items()
    )
    return f'<div class="train-adds" role="group" aria-label="Add">{buttons}</div>'


def _row(row: str, entries: list[Declared]) -> str:
    """Return the HTML of a row of the first screen with its fields and what is below them."""
    fields = "".join(_block(entry) for entry in entries)
    below = BELOW.get(row, "")
    if row == "method":
        fields += f'<div id="preset-column">{PRESET}{piece("preset_bar")}</div>'
        below = piece("recipe")
    return f'<div class="fields {"four" if len(entries) > 2 else "two"}" id="first-{row}">{fields}</div>{below}'


def _group(group: str, entries: list[Declared]) -> str:
    """Return the HTML of a collapsed group: basic fields, and the others under More."""
    basic = [entry for entry in entries if entry.level == "shown"]
    advanced = [entry for entry in entries if entry.level != "shown"]
    content = _fields(basic or advanced) + SKETCHES.get(group, "")
    content += "".join(_pointer(entry) for entry in FIELDS.values() if entry.group == group and entry.elsewhere)
    if basic and advanced:
        content += _folding("more", group, f"More ({len(advanced)})", _fields(advanced))
    return _folding("group", group, form.group_title(group), content)


def _folding(kind: str, name: str, title: str, content: str) -> str:
    """Return the HTML of a collapsed section. kind: CSS class and id prefix"""
    return (
        f'<section class="{kind}" id="{kind}-{name}"><button type="button" class="label-wrap" aria-expanded="false">'
        f'<span>{esc(title)}</span></button><div class="folded" hidden>{content}</div></section>'
    )


def _fields(entries: list[Declared]) -> str:
    """Return the HTML of fields, with a block for each heading."""
    return "".join(
        f'<div class="fields">{f"<h3>{esc(heading)}</h3>" if heading else ""}{"".join(map(_block, below))}</div>'
        for heading, below in form.sections(entries)
    )


def _block(entry: Declared) -> str:
    """Return the HTML of a field."""
    return form.block(entry, offers=_is_listed(entry))


def _is_listed(entry: Declared) -> bool:
    """Return whether the field has a list of choices or suggestions that the script requests."""
    if entry.path == "dataset.dataset_class" and not SOURCES:
        return False
    return entry.widget == "optimizer" or entry.path in SUGGESTIONS


def _pointer(entry: Declared) -> str:
    """Return the HTML of a link to the tab on which this setting is edited."""
    tab = entry.elsewhere.partition("#")[0]
    open_button = f'<button type="button" class="link" data-field="{entry.path}">Open {tab}</button>'
    return f'<p class="hint elsewhere">{entry.title} are on the {tab} tab, with the settings of each. {open_button}</p>'


def _lists(page: Page) -> dict[str, Any]:
    """Return {path or "preset": [(group, [(label, value)])]} of choices and suggestions."""
    listed = (entry for entry in form.on_form() if _is_listed(entry))
    return {"preset": presets_bar.choices(page)} | {entry.path: _listed_choices(page, entry) for entry in listed}


def _listed_choices(page: Page, entry: Declared) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return [(group, [(label, value)])] of a field's choices or suggestions."""
    if entry.widget == "optimizer":
        return method_needs.optimizer_choices(page.engine.known_device)
    return [("", SUGGESTIONS[entry.path](page.workspace))]


# -- actions


def _message(page: Page, browser: Browser, *, lists: bool = False) -> str:
    """Return JSON of a message to a browser: {"acks": numbers of its changes that have arrived, "form": `form_part` with its signature}.
    lists: whether to include "lists" (`_lists`) and "status", as the first message to a page does"""
    first_parts = {"lists": with_signature(_lists(page)), "status": with_signature(status(page))} if lists else {}
    return to_json({"acks": list(browser.arrived)} | first_parts | {"form": with_signature(form_part(page, browser))})


def _say_refused(page: Page, browser: Browser) -> None:
    """Show that a change was not applied because the form was changed in another browser."""
    text = "The form was changed in another browser. It now shows the current values; your last change was not applied."
    page.browsers.say(browser, "error", text, title="Not applied", about=FORM)


def _edit(page: Page, data: dict[str, Any], browser: Browser) -> None:
    """Set the fields {"values": {path: text}}, except where a newer change of the field has arrived.

    With "did", all are one undo step of this name, which an invalid text prevents; else each is its own step.
    """
    entries, texts, number = {each.path: each for each in form.on_form()}, data.get("values"), to_count(data.get("n"))
    with page.project.lock:  # no other change between the check and the edit
        values = {
            path: control_input(entries[path], str(value))
            for path, value in (texts if isinstance(texts, dict) else {}).items()
            if path in entries and page.browsers.is_newest(browser, path, number)
        }
        if did := str(data.get("did") or "")[:60]:
            page.project.edit_several(values, did=f"change of {did}")
            return
        for path, value in values.items():
            page.project.edit(path, value)


def _act(name: str, page: Page, data: dict[str, Any], browser: Browser) -> None:
    """Run the project action `name`, a key of ACTS (tabs/form/presets.py), of the preset bar or of a button below a field, and show its
    message.
    data: as for `PresetForm.run_act`"""
    # The key of a field is not "path": Gradio takes an object with that key for a file and refuses the message.
    if result := page.project.run_act(name, data):
        page.browsers.say(browser, "done", result.text, problems=result.problems, undo=result.undo)


def _take_json(page: Page, data: dict[str, Any], browser: Browser) -> None:
    """Apply the text data["text"] of the JSON pane; problems are listed in the pane, with nothing applied."""
    browser.json_problems = []
    try:
        page.project.run_act("json", data)
        browser.json_applied = str(data.get("token", ""))[:40]
    except ProblemsError as error:
        browser.json_problems = [problem.to_dict() for problem in error.problems]


def _apply_recipe(page: Page, data: dict[str, Any], browser: Browser) -> None:
    """Apply the recipe {"field": path, "title"} as one undo step. Raises ProblemsError."""
    title = str(data.get("title", ""))
    job = method_needs.with_recipe(page.project.job, str(data.get("field", "")), title)
    page.project.change(job, did=f"following {title}")


def _train_all(page: Page, data: dict[str, Any], browser: Browser) -> None:
    """Set the validation images to be trained too, as one undo step. data, browser: not used"""
    values = {"validation.best_checkpoint": "training"}
    page.project.set_values(values, did="training on the validation images too")


# Actions of the page's script by name. Each is a change by the browser of the state that it shows.
ACTIONS: dict[str, Callable[[Page, dict[str, Any], Browser], Any]] = {name: partial(_act, name) for name in ACTS} | {
    "json": _take_json,
    "edit": _edit,
    "file": imports.open_text,
    "found_folder": imports.replace_folder,
    "recipe": _apply_recipe,
    "level": lambda page, data, browser: page.forecast.set_level(data),
    "layers": lambda page, data, browser: page.layers.choose(data),
    "use_model": lambda page, data, browser: page.models.choose(data),
    "setup": lambda page, data, browser: page.setup.apply(page.checks.offered(page.project.job)),
    "leave_out": lambda page, data, browser: page.project.edit(SKIP, True),
    "sample_pairs": lambda page, data, browser: sample_pairs(page, browser),
    "keep_demo": lambda page, data, browser: page.setup.decline(),
    "train_all": _train_all,
}
REFUSED = {
    "load": "The preset was not loaded; nothing changed.",
    "file": "Not opened; nothing changed.",
    "save": "The preset was not saved.",
}


def _listen_to_form(page: Page) -> None:
    """Register the listeners of the form's actions and of the page load."""

    def act(event: gr.EventData) -> str:
        data = event._data if isinstance(event._data, dict) else {}
        browser, name = page.browser, str(data.get("name", ""))
        _run_action(page, name, data, browser)
        return _message(page, browser, lists=name != "edit")

    page.listen(page.form_bus.act, act, None, page.form_bus, trigger_mode="multiple")
    page.on_load(lambda: _message(page, page.browser, lists=True), None, page.form_bus)


def _run_action(page: Page, name: str, data: dict[str, Any], browser: Browser) -> None:
    """Run ACTIONS[name] with `data`; an unknown name does nothing. An error is shown in `browser`, with nothing changed.
    data: "stamp" of the form that it is based on, "n": number of the change, and what the action needs"""
    action = ACTIONS.get(name)
    try:
        if action is not None:
            stamp = str(data.get("stamp", ""))
            with page.browsers.reporting(browser, FORM, REFUSED.get(name, "")), edited_by(browser.session, stamp):
                action(page, data, browser)
    except OldRevision:
        _say_refused(page, browser)
    finally:
        if "n" in data:
            page.browsers.mark_handled(browser, to_count(data["n"]))


def _listen_to_buttons(page: Page, start: gr.Button, enqueue: gr.Button, check: gr.Button) -> None:
    """Register the listeners of Start, Add to queue and Check again."""

    def pressed(envelope: str) -> str:
        message, browser = json_object(envelope), page.browser
        try:
            press(page, browser, message)
        except OldRevision:
            _say_refused(page, browser)
        return _message(page, browser)

    for button, how in ((start, "start"), (enqueue, "queue")):
        js = f"async () => [await atelier.startMessage('{how}')]"
        page.listen(button.click, pressed, page.envelope, page.form_bus, js=js, trigger_mode="once")
    page.listen(
        check.click,
        lambda: page.checks.latest(page.project.job, again=True) and None,
        None,
        None,
        js="() => { atelier.checking(); return []; }",
        trigger_mode="once",
    )
