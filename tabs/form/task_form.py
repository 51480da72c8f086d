"""The form of a task's settings on a board, from their declarations, with presets and undo."""

import json
from collections.abc import Callable, Collection
from typing import Any

from core.formats.detect import FAMILY_NAMES
from core.generation.model.library import title_of_name
from core.record.problems import Problem, ProblemsError
from core.settings.base import Declared, Settings, value_of
from core.tasks import Task
from tabs.form.bars import line_bars, weight_bars
from tabs.form.form_page import FormPage
from tabs.form.form_values import valid_values
from tabs.form.lora_card import card, lazy_strip, strength_slider
from tabs.form.model_lists import network_text
from tabs.form.picker import family_of_file, file_named
from tabs.form.plain_form import PlainForm, Values, plain
from tabs.form.task_settings import form_settings, job_of, main_setting
from tabs.markup import esc, middle

FILES, STRENGTHS = "models", "ratios"  # settings of a LoRA merge: paths, one per line, and their strengths
WORDS = 4  # trigger words of a card


class TaskForm(PlainForm):
    """The form of a task. Its presets do not store files, folders or caption extensions, which belong to one dataset.

    storage   (function that reads the stored values, function that stores values)
    without   names of settings without a field
    """

    def __init__(
        self,
        page: FormPage,
        task: Task,
        id: str,
        act: str,
        storage: tuple[Callable[[], Any], Callable[[Values], None]],
        without: Collection[str] = (),
    ):
        self.task, (self._read, self._write) = task, storage
        known = {name: entry for name, entry in form_settings(task).items() if name not in without}
        not_in_presets = {name for name, entry in known.items() if entry.names == "path" or entry.widget == "extension"}
        not_in_presets.add(main_setting(task))
        self.covered = plain({name: entry.default for name, entry in known.items() if name not in not_in_presets})
        super().__init__(page, id, task.name, known, act, self.covered)

    def values(self) -> Values:
        """Return the stored values that are valid."""
        return valid_values(self.known, self._read())

    def load(self) -> Values:
        """Return the defaults of the fields in presets, with the valid stored values over them."""
        return self.covered | plain(self.values())

    def keep(self, values: Values) -> None:
        """Store values. A default that was not stored before is left out, since tasks that share a setting can have different defaults."""
        before = self.values()
        new = {name: value for name, value in plain(values).items() if name in self.known}
        self._write(
            {name: value for name, value in new.items() if name in before or self.covered.get(name, ...) != value}
        )

    def initial(self) -> Values:
        return self.load() | self.covered

    def job(self, values: Values) -> Settings:
        return job_of(self.task, {name: values[name] for name in self.covered}, self.page.project.job)

    def values_of(self, job: Settings, before: Values) -> tuple[Values, list[Problem]]:
        return before | plain({name: value_of(job, self.known[name].path) for name in self.covered}), []

    def below(self, values: Values) -> dict[str, str]:
        """Return {field: HTML} of block weight bars, and of the rows of LoRAs with strengths, which replace two fields."""
        names = (name for name, entry in self.known.items() if entry.widget == "block weights")
        return {name: self._bars(name, values) for name in names} | self._rows(values)

    def _rows(self, values: Values) -> dict[str, str]:
        """Return {FILES: HTML of LoRA cards with strengths}, shown instead of the controls; {} for a task other than a LoRA merge."""
        files, strengths = self.known.get(FILES), self.known.get(STRENGTHS)
        if files is None or strengths is None or files.holds != ("lora",):
            return {}
        family = self.family_for(FILES)
        cards = json.dumps({name: self._card(name, family) for name in ("", *map(str, values.get(FILES) or []))})
        attributes = f'data-files="{self.id}-{FILES}" data-ratios="{self.id}-{STRENGTHS}" data-cards="{esc(cards)}"'
        return {FILES: f"<lora-rows {attributes}></lora-rows>"}

    def _card(self, file: str, family: str = "") -> str:
        """Return HTML of the card of a LoRA, to which assets/merging.js adds its strength; for "", of a LoRA that is still being read.
        family: of the other LoRAs; "" for any"""
        lora, facts, why = file_named(file, self.page, "", steps=False)
        if facts and not why and family and facts.family not in (None, family):
            why = f"is for {FAMILY_NAMES[str(facts.family)]}, another LoRA here for {FAMILY_NAMES[family]}"
        badges = "".join(f'<span class="badge">{esc(word)}</span>' for word in facts.words[:WORDS]) if facts else ""
        name = f"{lora.name}, {lora.checkpoint.label}" if lora.checkpoint else lora.name
        return card(
            lora,
            self.page.thumb_url,
            first_line=f'<b title="{esc(lora.name)}">{middle(lora.name)}</b><span class="grow"></span><button type="button" '
            f'class="btn quiet" data-remove aria-label="Remove {esc(name)}">\u00d7</button>',
            second_line=strength_slider(name, 1.0),
            third_line=badges,
            about=network_text(facts) if facts else "",
            reason=why if file else "",
            steps=lazy_strip(lora, self.id) if facts else "",
        )

    def _bars(self, name: str, values: Values) -> str:
        """Return HTML of the block weight bars of the field `name`; for a list, of bars for each line, titled by its file."""
        entry, control = self.known[name], f"{self.id}-{name}"
        source = self.known[entry.blocks_of]
        files = values.get(source.name) or []
        files = files.splitlines() if isinstance(files, str) else files
        file_families = [
            (title_of_name(str(file), self.page.workspace), family_of_file(str(file), self.page)) for file in files
        ]
        family = next((family for _, family in file_families if family), "")
        if entry.kind == "list":
            return line_bars([(file, each or family) for file, each in file_families], control)
        return weight_bars(family, control, default=self._default(entry), checkpoints="checkpoint" in source.holds)

    def _default(self, entry: Declared) -> float:
        """Return the weight of each block while the field is empty."""
        try:
            return float(getattr(self.task.settings_of(self.job(self.load())), entry.empty_as))
        except ProblemsError:
            return 1.0

    def bar(self) -> str:
        """Return HTML of the preset bar; "" if presets would store no field."""
        return self.html() if self.covered else ""
