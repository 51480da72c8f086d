"""A task's settings as a form of a board: drawn from their declarations, changed one by one, with presets and undo."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from core.record.problems import Problem, ProblemsError
from core.settings.base import Settings, value_of
from core.tasks import Task
from tabs.context import Page
from tabs.form.own_settings import changed_values, fields, usable
from tabs.form.plain_presets import FormPresets, Values
from tabs.form.task_settings import job_of, main_setting, own_settings_of


class TaskForm(FormPresets):
    """kept: reads what is filled in, as plain values, and keeps it. without: settings that the form does not ask for.

    A preset covers what is not about one dataset: neither files and folders nor the ending of its captions."""

    def __init__(
        self,
        page: Page,
        task: Task,
        id: str,
        act: str,
        kept: tuple[Callable[[], Any], Callable[[Values], None]],
        without: Collection[str] = (),
    ):
        self.task, self._act, (self._read, self._write) = task, act, kept
        self._wrong: set[str] = set()
        self.known = {name: entry for name, entry in own_settings_of(task).items() if name not in without}
        aside = {name for name, entry in self.known.items() if entry.names == "path" or entry.widget == "extension"}
        aside.add(main_setting(task))
        self.covered = _plain({name: entry.default for name, entry in self.known.items() if name not in aside})
        super().__init__(page, id, task.name, {name: self.known[name].title for name in self.covered})

    def values(self) -> Values:
        """What is filled in."""
        return usable(self.known, self._read())

    def load(self) -> Values:
        return self.covered | _plain(self.values())

    def keep(self, values: Values) -> None:
        """Tasks that share a setting may have other defaults for it: one that nobody has touched is not kept."""
        self._wrong, before = set(), self.values()
        new = {name: value for name, value in _plain(values).items() if name in self.known}
        self._write(
            {name: value for name, value in new.items() if name in before or self.covered.get(name, ...) != value}
        )

    def fresh(self) -> Values:
        return self.load() | self.covered

    def job(self, values: Values) -> Settings:
        return job_of(self.task, {name: values[name] for name in self.covered}, self.page.project.job)

    def values_of(self, job: Settings, before: Values) -> tuple[Values, list[Problem]]:
        return before | _plain({name: value_of(job, self.known[name].path) for name in self.covered}), []

    def change(self, name: str, text: str) -> None:
        """One field as a person wrote it. Raises ProblemsError."""
        if name not in self.known:
            what = f"There is no field '{name[:40]}' with '{text[:40]}'"
            raise ProblemsError.one(what, self.task.title, "reload the page", "tools.no-such-field")
        with self.page.project.lock:
            self.put(changed_values(self.known, self.load(), name, text, self.page.roots))

    def bar(self) -> str:
        """The presets; nothing where there is nothing that one could hold."""
        return self.html() if self.covered else ""

    def mark(self, problems: Iterable[Problem]) -> None:
        """The fields that these problems name are shown as wrong until one is changed."""
        self._wrong = {each.where.rpartition(".")[2] for each in problems}

    def fields(self, names: Iterable[str], values: Values | None = None, hints: Mapping[str, str] = {}) -> str:
        """The controls of these settings.

        values   what they show, where that is not what is filled in     hints   what an empty one means here
        """
        ids = {name: f"{self.id}-{name}" for name in self.known}
        empty = {
            name: entry.hint or ("automatic" if entry.names == "path" else "") for name, entry in self.known.items()
        }
        said = {name: hint for name, hint in empty.items() if self.known[name].optional} | dict(hints)
        shown = self.values() if values is None else values
        return fields(self.known, shown, names, self._act, said, ids, self._wrong)


def _plain(values: Values) -> Values:
    """As they come out of a file: what is typed, kept and saved is compared."""
    return json.loads(json.dumps(values))  # type: ignore[no-any-return]
