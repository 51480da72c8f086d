"""A task's settings as a form of a board: drawn from their declarations, changed one by one, with presets and undo."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from core.formats.detect import FAMILY_NAMES
from core.record.problems import Problem, ProblemsError
from core.settings.base import Declared, Settings, value_of
from core.tasks import Task
from tabs.form.bars import line_bars, weight_bars
from tabs.form.own_settings import usable
from tabs.form.picker import Around, family_of_file
from tabs.form.plain_presets import PlainForm, Values, plain
from tabs.form.task_settings import job_of, main_setting, own_settings_of
from tabs.markup import esc

FILES, STRENGTHS = "models", "ratios"  # of a merge of LoRAs: its paths, one a line, and their strengths


class TaskForm(PlainForm):
    """kept: reads what is filled in, as plain values, and keeps it. without: settings that the form does not ask for.

    A preset covers what is not about one dataset: neither files and folders nor the ending of its captions."""

    def __init__(
        self,
        page: Around,
        task: Task,
        id: str,
        act: str,
        kept: tuple[Callable[[], Any], Callable[[Values], None]],
        without: Collection[str] = (),
    ):
        self.task, (self._read, self._write) = task, kept
        known = {name: entry for name, entry in own_settings_of(task).items() if name not in without}
        aside = {name for name, entry in known.items() if entry.names == "path" or entry.widget == "extension"}
        aside.add(main_setting(task))
        self.covered = plain({name: entry.default for name, entry in known.items() if name not in aside})
        super().__init__(page, id, task.name, known, act, self.covered)

    def values(self) -> Values:
        """What is filled in."""
        return usable(self.known, self._read())

    def load(self) -> Values:
        return self.covered | plain(self.values())

    def keep(self, values: Values) -> None:
        """Tasks that share a setting may have other defaults for it: one that nobody has touched is not kept."""
        before = self.values()
        new = {name: value for name, value in plain(values).items() if name in self.known}
        self._write(
            {name: value for name, value in new.items() if name in before or self.covered.get(name, ...) != value}
        )

    def fresh(self) -> Values:
        return self.load() | self.covered

    def job(self, values: Values) -> Settings:
        return job_of(self.task, {name: values[name] for name in self.covered}, self.page.project.job)

    def values_of(self, job: Settings, before: Values) -> tuple[Values, list[Problem]]:
        return before | plain({name: value_of(job, self.known[name].path) for name in self.covered}), []

    def below(self, values: Values) -> dict[str, str]:
        """Bars of block weights; rows of LoRAs with their strengths, in place of the two fields that hold them."""
        found = (name for name, entry in self.known.items() if entry.widget == "block weights")
        return {name: self._bars(name, values) for name in found} | self._rows(values)

    def _rows(self, values: Values) -> dict[str, str]:
        files, strengths = self.known.get(FILES), self.known.get(STRENGTHS)
        if files is None or strengths is None or files.holds != ("lora",):
            return {}
        listed = values.get(FILES) or []
        families = [FAMILY_NAMES.get(family_of_file(str(file), self.page), "") for file in listed]
        about = f'data-files="{self.id}-{FILES}" data-ratios="{self.id}-{STRENGTHS}" data-families="{esc(json.dumps(families))}"'
        return {FILES: f"<lora-rows {about}></lora-rows>"}

    def _bars(self, name: str, values: Values) -> str:
        """Those of one text, or of each line, whose file names them."""
        entry, control = self.known[name], f"{self.id}-{name}"
        of = self.known[entry.blocks_of]
        given = values.get(of.name) or []
        files = given.splitlines() if isinstance(given, str) else given
        named = [(Path(str(file)).stem, family_of_file(str(file), self.page)) for file in files]
        family = next((family for _, family in named if family), "")
        if entry.kind == "list":
            return line_bars([(file, own or family) for file, own in named], control)
        return weight_bars(family, control, even=self._even(entry), checkpoints="checkpoint" in of.holds)

    def _even(self, entry: Declared) -> float:
        """What holds while a setting is empty."""
        try:
            return float(getattr(self.task.given(self.job(self.load())), entry.empty_as))
        except ProblemsError:
            return 1.0

    def bar(self) -> str:
        """The presets; nothing where there is nothing that one could hold."""
        return self.html() if self.covered else ""
