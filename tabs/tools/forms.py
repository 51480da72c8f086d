"""The forms of the tasks, made from what each declares. Tasks with the same card share a form and choose from a list."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from core.record.problems import Problem, ProblemsError
from core.tasks import Card, Task, tasks
from tabs.context import ASKING, Page
from tabs.form.task_form import TaskForm
from tabs.form.task_settings import job_of, main_setting, own_settings_of
from tabs.markup import AWAITED, act_of, board, button, choice_list, esc, news, problems_html, seen_here, stamp_seen

KEPT = "Tools"  # what is filled in, of every card
SHORT = 12  # fields that are all shown
PREVIEW, PREVIEWED = "preview", 4  # the setting of how many a preview is for, which has a button, and their number
STARTS = ("go", PREVIEW)
OWN = "of tasks"  # next to the values that a card's tasks share: those of each name of `Task.values`
# Settings that are chosen for one task and not for the next: what becomes of captions that are there, and where the result goes.
UNDO = "undo"
APART = ("existing", "output", UNDO, "in_place")
CHOSEN = "action"  # next to the values of a form: which of its tasks is chosen
ENTER = """
element.addEventListener('keydown', (event) => {
  const go = element.querySelector('button[data-act=go]');
  if (event.key === 'Enter' && go && go.dataset.from === event.target.id) go.click();
});
"""


def cards(tab: str) -> list[Card]:
    """The cards of a tab once, in the order in which their tasks were registered."""
    return list(dict.fromkeys(task.card for task in tasks().values() if task.card and task.card.tab == tab))


class ToolForm:
    """One card. What is filled in is kept by the project: what its tasks have in common once, else by `Task.values`."""

    def __init__(self, page: Page, card: Card):
        self.page, self.card = page, card
        self._endings: tuple[Any, list[str]] = (None, [])
        self._refused: list[Problem] = []  # of the last start

    @property
    def tasks(self) -> dict[str, Task]:
        return {name: task for name, task in tasks().items() if task.card == self.card}

    def form(self, task: Task | None = None) -> TaskForm:
        """That of a task, else of the chosen one. The page has each once, with its undo."""
        task = task or self.task
        if task.name not in self.page.forms:
            kept = partial(self._load, task), partial(self._keep_values, task)
            self.page.forms[task.name] = TaskForm(self.page, task, f"tool-{task.name}", "field", kept, (PREVIEW,))
        return self.page.forms[task.name]

    def values(self, task: Task | None = None) -> dict[str, Any]:
        """What is filled in of a task, else of the chosen one, by the names of `own_settings_of`."""
        return self.form(task).values()

    def _load(self, task: Task) -> dict[str, Any]:
        kept, places, apart = self._kept(), self._apart(task), self._of_tasks()
        values = {name: value for name, value in kept.items() if name not in places and name != OWN}
        return values | {name: apart[place][name] for name, place in places.items() if name in apart.get(place, {})}

    def _keep_values(self, task: Task, values: dict[str, Any]) -> None:
        before, places, apart = self.values(task), self._apart(task), self._of_tasks()
        kept = {name: value for name, value in self._kept().items() if name in places or name not in before}
        kept |= {name: value for name, value in values.items() if name not in places}
        for place in set(places.values()):
            others = {name: value for name, value in apart.get(place, {}).items() if name not in before}
            apart[place] = others | {name: values[name] for name in places if places[name] == place and name in values}
        self._keep(**{self.card.name: kept | ({OWN: apart} if apart else {})})

    def _kept(self) -> dict[str, Any]:
        kept = self._state().get(self.card.name)
        return dict(kept) if isinstance(kept, dict) else {}

    def _of_tasks(self) -> dict[str, dict[str, Any]]:
        """What is kept under each name of `_apart`."""
        kept = self._kept().get(OWN)
        return {name: each for name, each in kept.items() if isinstance(each, dict)} if isinstance(kept, dict) else {}

    def _apart(self, task: Task) -> dict[str, str]:
        """{setting that a task does not share with its card: under which name it is kept}: those of groups that no other task
        has, and those of `APART`."""
        groups = Counter(group for each in self.tasks.values() for group in each.job.model_fields)
        own = own_settings_of(task).items() if task.values else ()
        places = {name: task.values for name, entry in own if groups[entry.group] == 1}
        return places | {name: task.name for name in own_settings_of(task) if name in APART}

    @property
    def task(self) -> Task:
        """The chosen one."""
        return self.tasks.get(str(self._kept().get(CHOSEN))) or next(iter(self.tasks.values()))

    def _state(self) -> dict[str, Any]:
        return self.page.project.tab_state(KEPT)

    def choose(self, name: str) -> None:
        """Choose one of the card's tasks. What went wrong with another one is no longer shown."""
        if name != self.task.name:
            self._forget_problems()
        self._keep(**{self.card.name: self._kept() | {CHOSEN: name}})

    def _forget_problems(self) -> None:
        self._refused = []
        self.page.works.close_failed(self.card)

    def _keep(self, **changes: Any) -> None:
        with self.page.project.lock:
            self.page.project.keep(KEPT, self._state() | changes)

    def _filled(self) -> dict[str, Any]:
        """The values of the chosen task; a folder or ending that is not given is the dataset's."""
        values = self.values()
        if "folder" in own_settings_of(self.task) and not values.get("folder"):
            values["folder"] = self.page.project.job.dataset.folder or ""
        if "folders" in own_settings_of(self.task) and not values.get("folders"):
            values["folders"] = [source.folder for source in self.page.project.job.dataset.all_sources()]
        for name, entry in own_settings_of(self.task).items():
            if entry.widget == "extension" and (found := self._extensions()):
                values.setdefault(name, entry.default if entry.default in found else found[0])
        return values

    def _extensions(self) -> list[str]:
        """The endings of the dataset's caption files, the most frequent first; none while it is not read."""
        report = self.page.reading.report
        if self._endings[0] is not report:
            names = (name for each in report.placed for name in each.image.sidecars) if report else ()
            self._endings = (report, [each for each, _ in Counter(Path(name).suffix for name in names).most_common()])
        return self._endings[1]

    def html(self) -> str:
        task, asked = self.task, self.form()
        previewed = own_settings_of(task).get(PREVIEW)
        main = f"{asked.id}-{main_setting(task)}" if main_setting(task) else ""
        go = _start("go", task.button, main, "primary")
        go += _start(PREVIEW, f"Preview {PREVIEWED} {previewed.unit}", main) if previewed else ""
        about = "" if len(self.tasks) == 1 else f'<span class="hint">{esc((task.job.__doc__ or "").strip())}</span>'
        return (
            f'<section class="card block-part tool-card" aria-label="{esc(self.card.title)}"><h3>{esc(self.card.title)}</h3>'
            f'<p class="hint">{esc(self.card.help)}</p><div class="tool-head">{self._choice()}{asked.bar()}</div>'
            f"{self._fields()}"
            f'<div class="class-line">{go}{about}</div>{self._problems()}</section>'
        )

    def _fields(self) -> str:
        """The fields. Those of a long form that are not shown at first are opened by a button; while they are closed, one with a
        value of its own stands with the first."""
        form, filled, opened = self.form(), self._filled(), self.card.name in self._state().get("opened", [])
        unused = self.task.unused(filled)
        known = {name: entry for name, entry in form.known.items() if name not in unused or name in form.bad}
        own = {name for name, entry in known.items() if filled.get(name, entry.default) != entry.default and not opened}
        shown = {name for name, entry in known.items() if entry.level == "shown" or len(known) <= SHORT} | own
        rest = [name for name in known if name not in shown]
        words = f"{'Fewer' if opened else 'More'} settings ({len(rest)})"
        more = f'<div class="class-line">{button("more", words, kind="quiet", again=True)}</div>' if rest else ""
        first = form.fields([name for name in known if name in shown], filled)
        others = f'<div class="concept-fields">{form.fields(rest, filled)}</div>' if rest and opened else ""
        return f'<div class="concept-fields">{first}</div>{more}{others}'

    def _problems(self) -> str:
        return f'<div class="tool-refused" role="alert">{problems_html(self._refused)}</div>' if self._refused else ""

    def _choice(self) -> str:
        """The list of the card's tasks, where it has several."""
        if len(self.tasks) == 1:
            return ""
        choices = [(task.title, name) for name, task in self.tasks.items()]
        chosen = choice_list("field", choices, self.task.name, "Tool", CHOSEN)
        return f'<label class="own"><span>Tool</span>{chosen}</label>'

    def show(self) -> Any:
        self.page.reading.want()  # what is not filled in is the dataset's
        return "", self.html()

    def tick(self, seen: str) -> Any:
        stamp = f"{self._state()} {self.page.project.job.dataset.folder} {self._extensions()} {self._refused}"
        return gr.skip() if stamp == stamp_seen(seen) else news(seen, stamp, {"area": self.html()})

    def act(self, event: gr.EventData) -> str:
        act, arg, value = act_of(event)
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
            if value and main_setting(self.task):  # what stands there now, which may have changed in this moment
                self.form().change(main_setting(self.task), value)
            self.form().check()
            given = self._filled() | {PREVIEW: PREVIEWED if act == PREVIEW else None}
            used = {name: value for name, value in given.items() if name not in self.task.unused(given)}
            self.page.works.start(self.task, job_of(self.task, used, self.page.project.job))
            if given.get(UNDO):
                self.form().change(UNDO, "false")  # it is for once
        return self.html()

    def acted(self, event: gr.EventData) -> Any:
        """`act` for the page. What stands against a start stays shown below its button while fields change, until the next one."""
        starts, browser = act_of(event)[0] in STARTS, self.page.browsers.of(ASKING.get())
        about = f"change {self.card.name}"
        try:
            shown = self.act(event)
        except ProblemsError as error:
            if starts:
                self._refused = list(error.problems)
                self.form().mark(error.problems)
            else:
                self.page.browsers.say(browser, "error", problems=error.problems, about=about)
            return self.html()
        self.page.browsers.succeeded(browser, about)
        return shown


def fill_in(page: Page, name: str, values: Mapping[str, Any]) -> None:
    """Choose a task in its card and fill in these values of it, one step of undo."""
    card = tasks()[name].card
    assert card is not None
    form = ToolForm(page, card)
    form.choose(name)
    form.form().update(dict(values))


def _start(act: str, words: str, main: str, kind: str = "") -> str:
    return f'<button type="button" class="btn {kind}" data-act="{act}" data-from="{esc(main)}">{esc(words)}</button>'


def build_form(page: Page, card: Card) -> None:
    """A card's form, with its listeners and a place for what its tasks are doing."""
    form = ToolForm(page, card)
    area = board(f"tools-{card.name}", AWAITED, script=ENTER)
    seen = seen_here()
    page.on_show(card.tab, form.show, None, [seen, area])
    page.on_tick(card.tab, form.tick, seen, {"seen": seen, "area": area})
    page.on_act(area, form.acted, None, area)
    works = f'<div class="tool-tasks" data-tasks="{esc(card.name)}"></div>'
    gr.HTML(works, elem_id=f"tools-{card.name}-tasks", elem_classes=["tool-tasks-holder"], apply_default_css=False)
