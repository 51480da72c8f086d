"""The forms of the Tools tab, made from what each task declares. Tasks with the same card share a form and choose from a list."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import gradio as gr

from core.record.problems import ProblemsError
from core.settings.base import Declared, Settings, declared
from core.settings.check import build
from core.settings.job import TrainJob
from core.settings.presets import to_values
from core.tasks import Card, Task, tasks
from tabs.context import ASKING, Page
from tabs.markup import act_of, board, button, choice_list, esc, news
from tabs.own_settings import changed_values, fields

TAB = "Tools"
SHORT = 12  # fields that are all shown
CHOSEN = "action"  # beside the values of a form: which of its tasks is chosen
ENTER = """
element.addEventListener('keydown', (event) => {
  const go = element.querySelector('button[data-act=go]');
  if (event.key === 'Enter' && go && go.dataset.from === event.target.id) go.click();
});
"""

Start = Callable[[Task, Settings], None]


def cards() -> list[Card]:
    """Every card once, in the order in which their tasks were registered."""
    return list(dict.fromkeys(task.card for task in tasks().values() if task.card is not None))


def own_settings_of(task: Task) -> dict[str, Declared]:
    """The settings that a task's form asks for, by name; the project's groups hold for the others."""
    entries = [entry for entry in declared(task.job) if entry.group not in TrainJob.model_fields]
    names = [entry.name for entry in entries]
    return {entry.name if names.count(entry.name) == 1 else entry.path: entry for entry in entries}


def main_setting(task: Task) -> str:
    """The setting that names what a task works on; "" where there is none."""
    return next((name for name, entry in own_settings_of(task).items() if entry.names), "")


def job_of(task: Task, values: dict[str, Any], project: TrainJob) -> Settings:
    """The job of a filled form. Raises ProblemsError."""
    whole = to_values(project)
    given: dict[str, Any] = {group: whole[group] for group in task.job.model_fields if group in whole}
    for name, entry in own_settings_of(task).items():
        if name in values:
            given.setdefault(entry.group, {})[entry.name] = values[name]
    return build(task.job, given)


class ToolForm:
    """One card. What is filled in is kept by the project, so that tasks of a card share what they have in common."""

    def __init__(self, page: Page, card: Card, start: Start):
        self.page, self.card, self._start = page, card, start

    @property
    def tasks(self) -> dict[str, Task]:
        return {name: task for name, task in tasks().items() if task.card == self.card}

    def values(self) -> dict[str, Any]:
        return dict(self._state().get(self.card.name, {}))

    @property
    def task(self) -> Task:
        """The chosen one."""
        return self.tasks.get(str(self.values().get(CHOSEN))) or next(iter(self.tasks.values()))

    def _state(self) -> dict[str, Any]:
        return self.page.project.tab_state(TAB)

    def _keep(self, **changes: Any) -> None:
        self.page.project.keep(TAB, self._state() | changes)

    def _filled(self) -> dict[str, Any]:
        """The values of the chosen task; a folder that is empty is the dataset's."""
        values = {name: value for name, value in self.values().items() if name in own_settings_of(self.task)}
        if "folder" in own_settings_of(self.task) and not values.get("folder"):
            values["folder"] = self.page.project.job.dataset.folder or ""
        if "folders" in own_settings_of(self.task) and not values.get("folders"):
            values["folders"] = [source.folder for source in self.page.project.job.dataset.all_sources()]
        return values

    def html(self) -> str:
        task, known = self.task, own_settings_of(self.task)
        empty = {name: entry.hint or ("automatic" if entry.names == "path" else "") for name, entry in known.items()}
        hints = {name: hint for name, hint in empty.items() if known[name].optional}
        ids = {name: f"tool-{task.name}-{name}" for name in known}
        first, rest = self._parts(known)
        form = self._choice() + fields(known, self._filled(), first, "field", hints, ids)
        more = self._more(known, rest, hints, ids)
        main = ids.get(main_setting(task), "")
        go = f'<button type="button" class="btn primary" data-act="go" data-from="{esc(main)}">{esc(task.button)}</button>'
        about = "" if len(self.tasks) == 1 else f'<span class="hint">{esc((task.job.__doc__ or "").strip())}</span>'
        return (
            f"<div data-n='{self._state().get('turn', 0)}'>"
            f'<section class="card block-part tool-card" aria-label="{esc(self.card.title)}"><h3>{esc(self.card.title)}</h3>'
            f'<p class="hint">{esc(self.card.help)}</p><div class="concept-fields">{form}</div>{more}'
            f'<div class="class-line">{go}{about}</div></section></div>'
        )

    def _opened(self) -> bool:
        return self.card.name in self._state().get("opened", [])

    def _parts(self, known: dict[str, Declared]) -> tuple[list[str], list[str]]:
        """The fields that are always there, and those of a long form that are opened. While they are closed, those with a value
        of their own stand with the first."""
        if len(known) <= SHORT:
            return list(known), []
        filled, opened = self._filled(), self._opened()
        own = {name for name, entry in known.items() if filled.get(name, entry.default) != entry.default and not opened}
        first = [name for name, entry in known.items() if entry.level == "shown" or name in own]
        return first, [name for name in known if name not in first]

    def _more(self, known: dict[str, Declared], rest: list[str], hints: dict[str, str], ids: dict[str, str]) -> str:
        """The button of the other settings, and they themselves once it was pressed."""
        if not rest:
            return ""
        words = f"{'Fewer' if self._opened() else 'More'} settings ({len(rest)})"
        press = f'<div class="class-line">{button("more", words, kind="quiet", again=True)}</div>'
        if not self._opened():
            return press
        return f'{press}<div class="concept-fields">{fields(known, self._filled(), rest, "field", hints, ids)}</div>'

    def _choice(self) -> str:
        """The list of the card's tasks, where it has several."""
        if len(self.tasks) == 1:
            return ""
        choices = [(task.title, name) for name, task in self.tasks.items()]
        return f'<label class="own"><span>Tool</span>{choice_list("field", choices, self.task.name, "Tool", CHOSEN)}</label>'

    def show(self) -> Any:
        return {}, self.html()

    def tick(self, seen: dict[str, Any]) -> Any:
        stamp = f"{self._state()} {self.page.project.job.dataset.folder}"
        return gr.skip() if stamp == seen.get("stamp") else news(seen, stamp, (self.html(),))

    def act(self, event: gr.EventData) -> str:
        act, arg, value = act_of(event)
        try:
            if act == "field" and arg == CHOSEN and value in self.tasks:
                self._keep(**{self.card.name: self.values() | {CHOSEN: value}})
            elif act == "field":
                self._change(arg, value)
            elif act == "more":
                opened = set(self._state().get("opened", [])) ^ {self.card.name}
                self._keep(opened=sorted(opened))
            elif act == "go":
                if value:  # what stands in the main field, which may have changed in this moment
                    self._change(main_setting(self.task), value)
                self._start(self.task, job_of(self.task, self._filled(), self.page.project.job))
        except ProblemsError:
            self._keep(turn=time.time_ns())  # so that the field shows what holds again
            raise
        return self.html()

    def acted(self, event: gr.EventData) -> Any:
        """`act` for the page. What stands against a start stays shown while fields change, until a start succeeds."""
        about, browser = f"start {self.card.name}", self.page.browsers.of(ASKING.get())
        try:
            shown = self.act(event)
        except ProblemsError as error:
            if act_of(event)[0] != "go":
                raise
            self.page.browsers.say(browser, "error", title="Not done", problems=error.problems, about=about)
            return gr.skip()
        if act_of(event)[0] == "go":
            self.page.browsers.succeeded(browser, about)
        return shown

    def _change(self, name: str, text: str) -> None:
        known = own_settings_of(self.task)
        if name == CHOSEN or name not in known:
            fix = "reload the page"
            raise ProblemsError.one(
                f"There is no field '{name}' with '{text[:40]}'", self.card.title, fix, "tools.no-such-field"
            )
        self._keep(**{self.card.name: changed_values(known, self.values(), name, text, self.page.roots)})


def build_forms(page: Page, start: Start) -> None:
    """A form for each card, with its listeners and a place for what its tasks are doing."""
    for card in cards():
        form = ToolForm(page, card, start)
        area = board(f"tools-{card.name}", script=ENTER)
        seen = gr.State({})
        page.on_show(TAB, form.show, None, [seen, area])
        page.on_tick(TAB, form.tick, seen, [seen, area])
        page.on_act(area, form.acted, None, area)
        works = f'<div class="tool-tasks" data-tasks="{esc(card.name)}"></div>'
        gr.HTML(works, elem_id=f"tools-{card.name}-tasks", elem_classes=["tool-tasks-holder"], apply_default_css=False)
