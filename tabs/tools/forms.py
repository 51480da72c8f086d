"""Cards of tasks (tools, captioners): forms built from the task declarations; a card with several tasks has a list to choose one."""

from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from core.dataset.report import Report
from core.record.problems import Problem, ProblemsError
from core.tasks import Card, Task, tasks
from tabs.context import Page
from tabs.dataset.reading import once_per_report
from tabs.form.task_form import TaskForm
from tabs.form.task_settings import form_settings, job_of, main_setting
from tabs.markup import (
    AWAITED,
    BoardView,
    board,
    board_event,
    button,
    choice_list,
    client_state,
    esc,
    problems_html,
    with_client,
)

STATE = "Tools"  # key of the stored values of all cards
SHORT = 12  # a form with at most this number of fields shows all of them
PREVIEW, PREVIEWED = "preview", 4  # the setting of the number of previews, which has a button, and its value
WITHOUT = (PREVIEW, "only")  # settings without a field: `only` is what is listed or selected (`chosen`)
STARTS = ("go", PREVIEW)
BY_TASK = "of tasks"  # key of the values that a card's tasks do not share, by their `Task.values`
UNDO = "undo"
# Settings that each task of a card stores separately: what it writes, which would change another's result unseen. Merges of captions
# and tags share their `out_json`, as one continues the other's file.
SEPARATE = {
    *("existing", "output", "png", "output_path", UNDO, "in_place"),
    *("new_rank", "new_conv_rank", "save_precision", "vae", "format"),
}
CHOSEN = "action"  # key of the chosen task
ENTER = """
element.addEventListener('keydown', (event) => {
  const go = element.querySelector('button[data-act=go]');
  if (event.key === 'Enter' && go && go.dataset.from === event.target.id) go.click();
});
"""


@once_per_report
def caption_extensions(report: Report | None) -> list[str]:
    """Return the extensions of the dataset's caption files, most frequent first; [] until the dataset is read."""
    names = (name for each in report.placed for name in each.image.sidecars) if report else ()
    return [each for each, _ in Counter(Path(name).suffix for name in names).most_common()]


def cards(tab: str) -> list[Card]:
    """Return the cards of a tab, in the order in which their tasks are registered."""
    return list(dict.fromkeys(task.card for task in tasks().values() if task.card and task.card.tab == tab))


class ToolForm(BoardView):
    """A card with its tasks. The project stores values shared by the card's tasks once, the others by task."""

    def __init__(self, page: Page, card: Card, chosen: Callable[[str], dict[str, Any]] | None = None):
        """Create the handlers of a card.

        chosen: for a card next to a list of images, a function of the selected images' keys (separated by spaces) that returns values
        limiting the task to these or to the listed images; None for other cards
        """
        self.page, self.card, self.chosen = page, card, chosen
        self._refused: list[Problem] = []  # of the last start

    @property
    def tasks(self) -> dict[str, Task]:
        """{name: task} of the card."""
        return {name: task for name, task in tasks().items() if task.card == self.card}

    def form(self, task: Task | None = None) -> TaskForm:
        """Return the form of a task, or of the chosen one (None). Each page has one per task, so that tabs share its undo."""
        task = task or self.task
        if task.name not in self.page.forms:
            storage = partial(self._load, task), partial(self._store, task)
            self.page.forms[task.name] = TaskForm(self.page, task, f"tool-{task.name}", "field", storage, WITHOUT)
        return self.page.forms[task.name]

    def values(self, task: Task | None = None) -> dict[str, Any]:
        """Return {setting name: value} of a task, or of the chosen one (None)."""
        return self.form(task).values()

    def _load(self, task: Task) -> dict[str, Any]:
        """Return the stored {setting name: value} of a task: the shared values, and its separate ones."""
        stored, keys, separate = self._stored(), self._keys(task), self._separate()
        values = {name: value for name, value in stored.items() if name not in keys and name != BY_TASK}
        return values | {name: separate[key][name] for name, key in keys.items() if name in separate.get(key, {})}

    def _store(self, task: Task, values: dict[str, Any]) -> None:
        """Store the values of a task's form: shared ones for the whole card, the others under the keys of `_keys`."""
        values_before, keys, separate = self.values(task), self._keys(task), self._separate()
        stored = {name: value for name, value in self._stored().items() if name in keys or name not in values_before}
        stored |= {name: value for name, value in values.items() if name not in keys}
        for key in set(keys.values()):
            others = {name: value for name, value in separate.get(key, {}).items() if name not in values_before}
            separate[key] = others | {name: values[name] for name in keys if keys[name] == key and name in values}
        self._keep(**{self.card.name: stored | ({BY_TASK: separate} if separate else {})})

    def _stored(self) -> dict[str, Any]:
        """Return the stored values of the card."""
        stored = self._state().get(self.card.name)
        return dict(stored) if isinstance(stored, dict) else {}

    def _separate(self) -> dict[str, dict[str, Any]]:
        """Return the stored {key of `_keys`: {setting: value}} of values that the card's tasks do not share."""
        stored = self._stored().get(BY_TASK)
        return (
            {name: each for name, each in stored.items() if isinstance(each, dict)} if isinstance(stored, dict) else {}
        )

    def _keys(self, task: Task) -> dict[str, str]:
        """Return {setting: storage key} of the settings that the card's tasks do not share.

        These are the settings in SEPARATE, and those in a settings group that no other task of the card has.
        """
        groups = Counter(group for each in self.tasks.values() for group in each.job.model_fields)
        settings = form_settings(task).items() if task.values else ()
        keys = {name: task.values for name, entry in settings if groups[entry.group] == 1}
        return keys | {name: task.name for name in form_settings(task) if name in SEPARATE}

    @property
    def task(self) -> Task:
        """The chosen task, the first one by default."""
        return self.tasks.get(str(self._stored().get(CHOSEN))) or next(iter(self.tasks.values()))

    def _state(self) -> dict[str, Any]:
        """Return the stored state of all cards."""
        return self.page.project.tab_state(STATE)

    def choose(self, name: str) -> None:
        """Choose task `name` in the card, and hide the problems of the previous task."""
        if name != self.task.name:
            self._forget_problems()
        self._keep(**{self.card.name: self._stored() | {CHOSEN: name}})

    def _forget_problems(self) -> None:
        """Remove the messages of refused and failed starts."""
        self._refused = []
        self.page.works.close_failed(self.card)

    def _keep(self, **changes: Any) -> None:
        """Store changed keys of the state of all cards."""
        self.page.project.update_tab(STATE, **changes)

    def _filled(self) -> dict[str, Any]:
        """Return the values of the chosen task; empty folders and extensions are those of the dataset."""
        values = self.values()
        if "folder" in form_settings(self.task) and not values.get("folder"):
            values["folder"] = self.page.project.job.dataset.folder or ""
        if "folders" in form_settings(self.task) and not values.get("folders"):
            values["folders"] = [source.folder for source in self.page.project.job.dataset.all_sources()]
        for name, entry in form_settings(self.task).items():
            if entry.widget == "extension" and (extensions := self._extensions()):
                values.setdefault(name, entry.default if entry.default in extensions else extensions[0])
        return values

    def _extensions(self) -> list[str]:
        """Return the extensions of the dataset's caption files, most frequent first."""
        return caption_extensions(self.page.reading.report)

    def html(self) -> str:
        """Return the HTML of the card."""
        task, form = self.task, self.form()
        preview = form_settings(task).get(PREVIEW)
        main = f"{form.id}-{main_setting(task)}" if main_setting(task) else ""
        buttons = _start("go", task.button, main, "primary")
        if preview:
            label = preview.title if preview.kind == "bool" else f"Preview {PREVIEWED} {preview.unit}"
            buttons += _start(PREVIEW, label, main)
        about = "" if len(self.tasks) == 1 else f'<span class="hint">{esc((task.job.__doc__ or "").strip())}</span>'
        # filled in by assets/captions_tools.js
        scope = '<strong class="cap-scope"></strong>' if self.chosen is not None else ""
        return (
            f'<section class="card block-part tool-card" aria-label="{esc(self.card.title)}"><h3>{esc(self.card.title)}</h3>'
            f'<p class="hint">{esc(self.card.help)}</p><div class="tool-head">{self._choice()}{form.bar()}</div>'
            f"{self._fields()}"
            f'<div class="class-line">{buttons}{scope}{about}</div>{self._problems()}</section>'
        )

    def _fields(self) -> str:
        """Return the HTML of the fields: basic and changed ones, and after a click on More all others."""
        form, filled, opened = self.form(), self._filled(), self.card.name in self._state().get("opened", [])
        unused = self.task.unused(filled)
        entries = {name: entry for name, entry in form.known.items() if name not in unused or name in form.bad}
        changed = {name for name, entry in entries.items() if filled.get(name, entry.default) != entry.default}
        basic = {name for name, entry in entries.items() if entry.level == "shown" or len(entries) <= SHORT}
        visible = basic if opened else basic | changed
        hidden = [name for name in entries if name not in visible]
        label = f"{'Fewer' if opened else 'More'} settings ({len(hidden)})"
        more = f'<div class="class-line">{button("more", label, kind="quiet", again=True)}</div>' if hidden else ""
        visible_html = form.fields([name for name in entries if name in visible], filled)
        hidden_html = f'<div class="concept-fields">{form.fields(hidden, filled)}</div>' if hidden and opened else ""
        return f'<div class="concept-fields">{visible_html}</div>{more}{hidden_html}'

    def _problems(self) -> str:
        """Return the HTML of the problems of a refused start; "" without any."""
        return f'<div class="tool-refused" role="alert">{problems_html(self._refused)}</div>' if self._refused else ""

    def _choice(self) -> str:
        """Return the HTML of the list of the card's tasks; "" for a single one."""
        if len(self.tasks) == 1:
            return ""
        choices = [(task.title, name) for name, task in self.tasks.items()]
        chosen = choice_list("field", choices, self.task.name, "Tool", CHOSEN)
        return f'<label class="own"><span>Tool</span>{chosen}</label>'

    def show(self) -> Any:
        """Start reading the dataset, whose values stand in for empty fields, and return the card."""
        self.page.reading.want()  # empty fields mean the dataset's values
        return super().show()

    def boards(self) -> dict[str, str]:
        """Return {"area": HTML of the card}."""
        return {"area": self.html()}

    def stamp(self) -> str:
        """Return a text that changes whenever the card changes."""
        return f"{self.card.name} {self._state()} {self.page.project.job.dataset.folder} {self._extensions()} {self._refused}"

    def act(self, event: gr.EventData) -> str:
        """Handle an event of the card and return its HTML. Raises ProblemsError."""
        act, arg, value = board_event(event)
        if act == "field" and arg == CHOSEN and value in self.tasks:
            self.choose(value)
        elif act == "field":
            self.form().change(arg, value)
        elif self.form().act(act, arg, value):
            pass
        elif act == "more":
            opened = set(self._state().get("opened", [])) ^ {self.card.name}
            self._keep(opened=sorted(opened))
        elif act in STARTS:
            self._forget_problems()
            if value and main_setting(self.task):  # the field's current text, whose change may not have arrived
                self.form().change(main_setting(self.task), value)
            self.form().check()
            values = self._filled() | self._preview(act == PREVIEW)
            if self.chosen is not None:
                data = event._data if isinstance(event._data, dict) else {}
                values = self.chosen(str(data.get("keys", ""))) | values
            effective = {name: value for name, value in values.items() if name not in self.task.unused(values)}
            self.page.works.start(self.task, job_of(self.task, effective, self.page.project.job))
            if values.get(UNDO):
                self.form().change(UNDO, "false")  # applies once
        return self.html()

    def _preview(self, on: bool) -> dict[str, Any]:
        """Return {PREVIEW: value} for a preview (`on`) or a full start; {} if the task has no preview."""
        entry = form_settings(self.task).get(PREVIEW)
        if entry is None:
            return {}
        return {PREVIEW: on if entry.kind == "bool" else PREVIEWED if on else None}

    def act_and_report(self, event: gr.EventData) -> dict[str, str]:
        """Handle an event as `act`, but show its problems. Returns {component: new content}.

        Problems of a start stand below its button until the next start; others are shown in the message panel.
        """
        starts, browser = board_event(event)[0] in STARTS, self.page.browser
        about = f"change {self.card.name}"
        try:
            card_html = self.act(event)
        except ProblemsError as error:
            if starts:
                self._refused = list(error.problems)
                self.form().mark(error.problems)
            else:
                self.page.browsers.say(browser, "error", problems=error.problems, about=about)
            return with_client({"area": self.html()})
        self.page.browsers.succeeded(browser, about)
        return with_client({"area": card_html})


def fill_in(page: Page, name: str, values: Mapping[str, Any]) -> None:
    """Choose task `name` in its card and fill in `values`, as one undo step."""
    card = tasks()[name].card
    assert card is not None
    form = ToolForm(page, card)
    form.choose(name)
    form.form().update(dict(values))


def _start(act: str, label: str, field: str, kind: str = "") -> str:
    """Return the HTML of a button that starts the task and sends the current text of the input with id `field`.

    act     sent by the button
    label   its text
    kind    "primary" for the main button, "" for others
    """
    return f'<button type="button" class="btn {kind}" data-act="{act}" data-from="{esc(field)}">{esc(label)}</button>'


def build_form(page: Page, card: Card, chosen: Callable[[str], dict[str, Any]] | None = None) -> None:
    """Create a card's form with its listeners, and the element that shows its jobs. chosen: as of `ToolForm`"""
    form = ToolForm(page, card, chosen)
    area = board(f"tools-{card.name}", AWAITED, script=ENTER)
    client = client_state()
    outputs = {"client": client, "area": area}
    page.on_show(card.tab, form.show, None, outputs)
    page.on_change(card.tab, form, outputs)
    page.on_act(area, form.act_and_report, None, outputs)
    works = f'<div class="tool-tasks" data-tasks="{esc(card.name)}"></div>'
    gr.HTML(works, elem_id=f"tools-{card.name}-tasks", elem_classes=["tool-tasks-holder"], apply_default_css=False)
