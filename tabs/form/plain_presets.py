"""Forms whose fields the project keeps as plain values (Generate and, by task_form.py, tasks): changed one by one, with undo, marks
of changes, and the bar of their presets as HTML."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Collection, Iterable, Mapping
from typing import Any, ClassVar

from core.record.problems import Problem, ProblemsError
from core.record.units import count
from core.settings.base import Declared, Settings
from core.settings.presets import files as preset_files
from core.settings.values import shown_value
from tabs.form.own_settings import changed_values
from tabs.form.picker import Around, family_of_file
from tabs.form.presets import ACTS, Bad, Done, PresetForm, Steps, json_text, read_preset, shown_name
from tabs.form.view import TOOL_FILES, FieldView
from tabs.markup import button, esc, options, short

Values = dict[str, Any]
STEPS = 50  # of undo


class PlainForm(PresetForm):
    """One form with its preset bar. Every change of it goes through `put`, so that it can be undone.

    id, task_name   the prefix of its elements; whose presets it holds
    known           its settings by name      act   what its controls report
    covered         the names that a preset covers
    """

    offers = TOOL_FILES  # the id of the list that is offered where a field names a file
    lists: ClassVar[Mapping[str, str]] = {}  # {field: the id of a list of its own}

    def __init__(
        self, page: Around, id: str, task_name: str, known: Mapping[str, Declared], act: str, covered: Iterable[str]
    ):
        self.page, self.id, self.task_name, self.known, self._act = page, id, task_name, known, act
        self.titles = {name: known[name].title for name in covered}
        self.presets, self.lock = page.presets, page.project.lock
        page.picker.forms[id] = self
        self._wrong: set[str] = set()
        self.bad: dict[str, Bad] = {}  # what a field cannot be stays in it, with why
        self._steps: Steps[tuple[str, Values]] = Steps(STEPS)
        self._deleting = ""  # the preset whose deletion was asked for once

    @abstractmethod
    def load(self) -> Values:
        """The fields as they are now."""

    @abstractmethod
    def keep(self, values: Values) -> None:
        """Keep them so."""

    @abstractmethod
    def fresh(self) -> Values:
        """The fields of a first visit."""

    @abstractmethod
    def job(self, values: Values) -> Settings:
        """The job that fields describe. Raises ProblemsError."""

    @abstractmethod
    def values_of(self, job: Settings, before: Values) -> tuple[Values, list[Problem]]:
        """The fields that describe a job, where `before` are those of now, and what of it is not on this machine."""

    def family_for(self, name: str) -> str:
        """The family that a model file in this field must have: that of the first other file that is filled in; "" if unknown."""
        values = self.load()
        for other, entry in self.known.items():
            if not {"lora", "checkpoint"} & set(entry.holds) or (other == name and entry.kind != "list"):
                continue
            given = values.get(other) or []
            for text in [given] if isinstance(given, str) else given:
                if found := family_of_file(str(text), self.page):
                    return found
        return ""

    # -- what is so now

    @property
    def name(self) -> str:
        """The loaded preset; "" for the defaults, also after its file has gone."""
        name = str(self.page.project.tab_state(self._place).get("preset", ""))
        return name if name in self.presets.names(self.task_name) else ""

    @property
    def _place(self) -> str:
        return f"presets of {self.task_name}"

    def reference(self) -> Values:
        """The fields as loading the preset again would give them."""
        fresh, preset = self.fresh(), read_preset(self.presets, self.name)
        return self.values_of(preset_files.apply(preset), fresh)[0] if preset else fresh

    def empty(self, values: Values) -> Values:
        """{field: what its default means with these fields}, where that is known."""
        return {}

    def changed(self) -> dict[str, Any]:
        """{field: the preset's value} where the form has another. A default equals what it means."""
        now, before = self.load(), self.reference()
        empty = self.empty(now)

        def meant(name: str, value: Any) -> Any:
            return empty.get(name, value) if value == self.known[name].default else value

        return {
            name: before.get(name)
            for name in self.titles
            if meant(name, now.get(name)) != meant(name, before.get(name))
        }

    # -- fields

    def fields(
        self,
        names: Iterable[str],
        values: Values | None = None,
        hints: Mapping[str, str] = {},
        changed: Collection[str] | None = None,
        act: str = "",
        id: str = "",
    ) -> str:
        """The controls of these settings.

        values   what they show, where that is not what is filled in     hints    what an empty one means here
        changed  the fields that are marked, where `changed()` is known  act, id  where they are not the form's
        """
        shown = {**(self.load() if values is None else values), **{name: bad.text for name, bad in self.bad.items()}}
        changed = self.changed() if changed is None else changed
        replaced = {each.replaces: each.title for name, each in self.known.items() if each.replaces and shown.get(name)}
        below = self.below(shown)

        def drawn(name: str) -> str:
            entry = self.known[name]
            usual = entry.hint or ("automatic" if entry.names == "path" else "")
            empty = hints.get(name, usual if entry.optional or entry.default == "" else "")
            return FieldView(
                entry,
                shown.get(name, entry.default),
                act or self._act,
                name,
                id=f"{id or self.id}-{name}",
                form=self.id,
                empty=empty or (shown_value(entry, None) if entry.optional else ""),
                offers=self.lists.get(name, self.offers) if entry.names == "path or name" else "",
                replaced=replaced.get(name, ""),
                changed=name in changed,
                wrong=name in self._wrong or name in self.bad,
            ).line()

        return "".join(drawn(name) + below.get(name, "") for name in names)

    def below(self, values: Values) -> dict[str, str]:
        """{field: what follows it, as HTML}, with these values."""
        return {}

    def follows(self, name: str, before: Values, values: Values) -> Values:
        """`values` with what changes together with the field `name`."""
        return values

    def change(self, name: str, text: str) -> None:
        """One field as a person wrote it. Raises ProblemsError; the field keeps the text then."""
        if name not in self.known:
            what = f"There is no field '{name[:40]}' with '{text[:40]}'"
            raise ProblemsError.one(what, self.task_name, "reload the page", "form.no-such-field")
        with self.page.project.lock:
            try:
                before = self.load()
                self.put(self.follows(name, before, changed_values(self.known, before, name, text, self.page.roots)))
                self._correct([name])
            except ProblemsError as error:
                self.bad = self.bad | {name: Bad(text, error.problems[0])}
                raise

    def mark(self, problems: Iterable[Problem]) -> None:
        """The fields that these problems name are shown as wrong until one is changed."""
        self._wrong = {each.where.rpartition(".")[2] for each in problems}

    # -- changes

    def put(self, values: Values, preset: str | None = None) -> None:
        """Keep these fields; undo brings the former ones back. preset: the one that is loaded from now on."""
        before = (self.name, self.load())
        after = (before[0] if preset is None else preset, values)
        if after != before:
            self._steps.add("change", before)
            self._take(after)
            self._correct(name for name, value in values.items() if value != before[1].get(name))

    def update(self, changes: Values) -> None:
        """Change these fields in one step of undo. What they held in vain goes; other fields keep that."""
        self.put(self.load() | changes)
        self._correct(changes)

    def _correct(self, names: Iterable[str]) -> None:
        """Forget what these fields hold in vain."""
        corrected = set(names)
        self.bad = {name: each for name, each in self.bad.items() if name not in corrected}

    def _take(self, state: tuple[str, Values]) -> None:
        self._deleting, self._wrong = "", set()
        self.page.project.keep(self._place, {"preset": state[0]})
        self.keep(state[1])

    def undo(self, redo: bool = False) -> None:
        if (before := self._steps.step((self.name, self.load()), redo)) is not None:
            self._take(before)
            self.bad = {}

    def act(self, act: str, arg: str, value: str) -> bool:
        """Do what was pressed in the bar; whether it was something of the bar's. Raises ProblemsError."""
        name = act.removeprefix("preset_")
        if name == act or name not in ACTS:
            return False
        done = self.press(name, {"preset": arg or value, "replace": bool(arg), "text": value, "field": arg})
        if done:
            self.page.say("done", done.text, problems=done.problems)
        return True

    def filled(self) -> Settings:
        self.check()
        return self.job(self.load())

    def call(self, name: str) -> None:
        self._take((name, self.load()))

    def hold(self, preset: preset_files.Preset | None, name: str | None = None, done: str = "") -> Done | None:
        now = self.load() if name is None else self.fresh()
        values, notes = self.values_of(preset_files.apply(preset), now) if preset else (now, [])
        self.put(values, name)
        self.bad = {}
        usual = "The JSON is applied." if name is None else f"Loaded {shown_name(self.presets, name)}."
        return Done(done or usual, notes) if preset else None

    def delete(self, name: str) -> Done | None:
        """The loaded one; the second press counts."""
        if self._deleting == self.name:
            return super().delete(self.name)
        self._deleting = self.name
        return None

    def put_back(self, field: str) -> None:
        if field in self.titles:
            self.update({field: self.reference().get(field)})

    def put_all_back(self) -> None:
        before = self.reference()
        self.update({name: before.get(name) for name in self.titles})

    # -- the bar

    def html(self) -> str:
        """The list of presets, what differs from the chosen one, undo and redo, and the menu."""
        name, changed = self.name, self.changed()
        names = self.presets.names(self.task_name)
        listed = options([("Defaults", ""), *((shown_name(self.presets, each), each) for each in names)], name)
        state = f"{count(len(changed), 'field')} changed" if changed else "as saved" if name else "defaults"
        return (
            f'<div class="form-presets block-part{" is-changed" if changed else ""}" role="group" aria-label="Preset">'
            f'<label class="own"><span>Preset</span><select id="{self.id}-preset" data-act="preset_load">{listed}'
            f'</select></label><div class="line"><span class="state" aria-live="polite">{state}</span>'
            f"{button('preset_undo', 'Undo', kind='quiet', disabled=not self._steps.past, again=True)}"
            f"{button('preset_redo', 'Redo', kind='quiet', disabled=not self._steps.undone, again=True)}"
            f"{self._menu(name, changed)}</div></div>"
        )

    def _menu(self, name: str, changed: dict[str, Any]) -> str:
        own, field = name.startswith("user/"), f"{self.id}-preset-name"
        save = button("preset_save", f"Save {name.removeprefix('user/')}", name, kind="row") if own else ""
        delete = "Delete for good" if self._deleting == name else "Delete"
        rows = "".join(
            f"<li>{esc(self.titles[each])} {button('preset_put_back', f'Restore {_words(value)}', each, kind='quiet')}</li>"
            for each, value in changed.items()
        )
        rows = (
            f'<ul class="plain">{rows}</ul>{button("preset_put_all_back", "Restore all", kind="row")}' if rows else ""
        )
        return (
            f'<details class="menu" name="{self.id}-menu"><summary class="btn quiet">Preset menu</summary>'
            f'<div class="menu-items" role="group" aria-label="Preset menu">{save}<div class="with-button">'
            f'<input type="text" class="text" id="{field}" aria-label="Name of the preset" placeholder="Name" maxlength="100">'
            f'<button type="button" class="btn" data-act="preset_save" data-arg="" data-from="{field}">Save as</button>'
            f"</div>{button('preset_delete', delete, kind='row') if own else ''}{rows}{self._json()}</div></details>"
        )

    def _json(self) -> str:
        field = f"{self.id}-json"
        try:
            text = json_text(self.filled(), self.task_name)
        except ProblemsError as error:
            return (
                f'<p class="hint">Fix {count(len(error.problems), "problem")} to save this form or see it as JSON.</p>'
            )
        return (
            f'<details><summary class="btn row">JSON</summary><textarea id="{field}" class="text" rows="8" '
            f'spellcheck="false" aria-label="This form as JSON">{esc(text)}</textarea>'
            f'<button type="button" class="btn" data-act="preset_json" data-from="{field}">Apply JSON</button></details>'
        )


def plain(values: Values) -> Values:
    """As they come out of a file: what is typed, kept and saved is compared."""
    return json.loads(json.dumps(values))  # type: ignore[no-any-return]


def _words(value: Any) -> str:
    """A field's value on a button."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, list):
        value = ", ".join(each["file"] if isinstance(each, dict) else str(each) for each in value)
    return "empty" if value in (None, "") else short(str(value), 28)
