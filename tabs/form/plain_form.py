"""Forms whose values the project stores as JSON (Generate and, in task_form.py, tasks), with undo, marks of changed fields, and the HTML of
their preset bar."""

import json
from abc import abstractmethod
from collections.abc import Collection, Iterable, Mapping
from typing import Any, ClassVar

from core.generation.model.library import title_of_name
from core.record.problems import Problem, ProblemsError
from core.record.units import count
from core.settings.base import Declared, Settings
from core.settings.presets import files as preset_files
from core.settings.values import shown_value
from tabs.form.form_page import FormPage
from tabs.form.form_values import changed_values
from tabs.form.picker import family_of_file
from tabs.form.presets import ACTS, BadInput, Done, PresetForm, Steps, json_text, read_preset
from tabs.form.view import TOOL_FILES, FieldView
from tabs.markup import button, esc, options, short

Values = dict[str, Any]
State = tuple[str, Values, Mapping[str, BadInput]]  # the loaded preset, values, invalid input
STEPS = 50  # of undo
THESE = "the last change of these settings"  # after Undo and Redo: a tab can have others, of its texts


class PlainForm(PresetForm):
    """A form with its preset bar. Every change goes through `put`, so that it can be undone.

    id          prefix of its elements' ids
    task_name   task of its presets
    known       {name: declaration} of its fields
    act         `data-act` of its controls
    covered     names of the fields that presets store
    """

    offers = TOOL_FILES  # id of the datalist for fields that name a file
    lists: ClassVar[Mapping[str, str]] = {}  # {field: id of a datalist for it alone}
    items: ClassVar[Mapping[str, type[Settings]]] = {}  # {field: settings of each item of its list}

    def __init__(
        self, page: FormPage, id: str, task_name: str, known: Mapping[str, Declared], act: str, covered: Iterable[str]
    ):
        self.page, self.id, self.task_name, self.known, self._act = page, id, task_name, known, act
        self.titles = {name: known[name].title for name in covered}
        self.presets, self.lock = page.presets, page.project.lock
        page.picker.forms[id] = self
        self._invalid: set[str] = set()
        self.bad: dict[str, BadInput] = {}
        self._steps: Steps[State] = Steps(STEPS)

    @abstractmethod
    def load(self) -> Values:
        """Return the current values."""

    @abstractmethod
    def keep(self, values: Values) -> None:
        """Store these values."""

    @abstractmethod
    def initial(self) -> Values:
        """Return the values that a new user begins with."""

    @abstractmethod
    def job(self, values: Values) -> Settings:
        """Return the job of these values. Raises ProblemsError."""

    @abstractmethod
    def values_of(self, job: Settings, before: Values) -> tuple[Values, list[Problem]]:
        """Return (values of a job, problems of its files that are not on this machine). before: the current values."""

    def family_for(self, name: str) -> str:
        """Return the family that a model file in the field `name` must have, by the first other file in the form; "" if unknown."""
        values = self.load()
        for field, entry in self.known.items():
            if not {"lora", "checkpoint"} & set(entry.holds) or (field == name and entry.kind != "list"):
                continue
            files = values.get(field) or []
            for text in [files] if isinstance(files, str) else files:
                if family := family_of_file(str(text), self.page):
                    return family
        return ""

    # -- the loaded preset

    @property
    def name(self) -> str:
        """Name of the loaded preset; "" for the defaults or if its file is gone."""
        name = str(self.page.project.tab_state(self._state_key).get("preset", ""))
        return name if name in self.presets.names(self.task_name) else ""

    @property
    def _state_key(self) -> str:
        """Key under which the project stores the name of the loaded preset."""
        return f"presets of {self.task_name}"

    def reference(self) -> Values:
        """Return the values that loading the preset again would set."""
        initial, preset = self.initial(), read_preset(self.presets, self.name)
        return self.values_of(preset_files.apply(preset), initial)[0] if preset else initial

    def empty(self, values: Values) -> Values:
        """Return {field: effective value of its default} for fields whose default depends on other `values`."""
        return {}

    def changed(self) -> dict[str, Any]:
        """Return {field: value in the preset} of the fields that differ from the preset. A default is compared by its effective value
        (`empty`)."""
        values, reference = self.load(), self.reference()
        empty = self.empty(values)

        def effective(name: str, value: Any) -> Any:
            if name in self.items:  # an item may leave out what has its default
                return [self.items[name].model_validate(each) for each in value or []]
            return empty.get(name, value) if value == self.known[name].default else value

        return {
            name: reference.get(name)
            for name in self.titles
            if effective(name, values.get(name)) != effective(name, reference.get(name))
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
        titles: Mapping[str, str] = {},
    ) -> str:
        """Return HTML of the controls of these fields.

        values    to show; None: the current ones
        hints     {field: placeholder while it is empty}
        changed   result of `changed()`, if already known
        act, id   to use instead of the form's
        titles    {field: title to use instead of the setting's}
        """
        shown = {**(self.load() if values is None else values), **{name: bad.text for name, bad in self.bad.items()}}
        changed = self.changed() if changed is None else changed
        replaced = {each.replaces: each.title for name, each in self.known.items() if each.replaces and shown.get(name)}
        below = self.below(shown)

        def field_html(name: str) -> str:
            entry = self.known[name]
            empty = hints.get(name, entry.hint if entry.optional or entry.default == "" else "")
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
                wrong=name in self._invalid or name in self.bad,
                title=titles.get(name, ""),
            ).line()

        return "".join(field_html(name) + below.get(name, "") for name in names)

    def below(self, values: Values) -> dict[str, str]:
        """Return {field: HTML below its control} for these values."""
        return {}

    def with_dependents(self, name: str, before: Values, values: Values) -> Values:
        """Return `values`, in which the field `name` has changed, after adapting the fields that depend on it.
        before: the values before that change."""
        return values

    def change(self, name: str, text: str) -> None:
        """Set a field to typed text. Raises ProblemsError for an invalid one, which stays in the field."""
        if name not in self.known:
            what = f"There is no field '{name[:40]}' with '{text[:40]}'"
            raise ProblemsError.one(what, self.task_name, "reload the page", "form.no-such-field")
        with self.page.project.lock:
            before = self.load()
            try:
                values = changed_values(self.known, before, name, text, self.page.roots)
            except ProblemsError as error:
                self.put(before, invalid={name: BadInput(text, error.problems[0])})
                raise
            self.put(self.with_dependents(name, before, values), corrected=[name])

    def mark(self, problems: Iterable[Problem]) -> None:
        """Mark the fields that these problems name as invalid, until the next change."""
        self._invalid = {each.where.rpartition(".")[2] for each in problems}

    # -- changes

    def put(
        self,
        values: Values,
        preset: str | None = None,
        corrected: Iterable[str] = (),
        invalid: Mapping[str, BadInput] = {},
    ) -> None:
        """Store these values as one step of undo. Invalid input is discarded in fields whose values change, and stays in others.

        preset      name of the loaded preset from now on; None keeps it
        corrected   other fields whose invalid input is discarded
        invalid     new invalid input by field
        """
        name, before, bad = state = self._current()
        changed = {*corrected, *(each for each, value in values.items() if value != before.get(each))}
        remaining = {each: text for each, text in bad.items() if each not in changed}
        new_state = (name if preset is None else preset, values, remaining | dict(invalid))
        if new_state != state:
            self._steps.add("change", state)
            self._restore(new_state)

    def update(self, changes: Values) -> None:
        """Change these fields, {name: value}, in one step of undo."""
        self.put(self.load() | changes, corrected=changes)

    def _current(self) -> State:
        """Return the state that a step of undo restores."""
        return self.name, self.load(), self.bad

    def _restore(self, state: State) -> None:
        """Store the preset, values and invalid input of a state."""
        preset, values, bad = state
        self._invalid = set()
        self.page.project.keep(self._state_key, {"preset": preset})
        self.keep(values)
        self.bad = dict(bad)

    def undo(self, redo: bool = False) -> None:
        if (state := self._steps.step(self._current(), redo)) is not None:
            self._restore(state)

    def act(self, act: str, arg: str, value: str) -> bool:
        """Handle an event of the preset bar; return False for the event of another control. Raises ProblemsError.

        act     "preset_" and a key of ACTS (presets.py)
        arg     name of a preset or field, for "save" whether to replace
        value   name or text
        """
        name = act.removeprefix("preset_")
        if name == act or name not in ACTS:
            return False
        result = self.run_act(name, {"preset": arg or value, "replace": bool(arg), "text": value, "field": arg})
        if result:
            self.page.say("done", result.text, problems=result.problems)
        return True

    def checked_job(self) -> Settings:
        self.check()
        return self.job(self.load())

    def set_preset(self, name: str) -> None:
        self._restore((name, self.load(), self.bad))

    def apply_preset(self, preset: preset_files.Preset | None, name: str | None = None, done: str = "") -> Done | None:
        before = self.load() if name is None else self.initial()
        values, notes = self.values_of(preset_files.apply(preset), before) if preset else (before, [])
        self.put(values, name, corrected=self.known)
        message = "The JSON is applied." if name is None else f"Loaded {self.presets.display_name(name)}."
        return Done(done or message, notes) if preset else None

    def restore(self, field: str) -> None:
        if field in self.titles:
            self.update({field: self.reference().get(field)})

    def restore_all(self) -> None:
        reference = self.reference()
        self.update({name: reference.get(name) for name in self.titles})

    # -- the bar

    def html(self) -> str:
        """Return HTML of the preset bar: list of presets, number of changes, undo, redo and menu."""
        name, changed = self.name, self.changed()
        names = self.presets.names(self.task_name)
        listed = options([("Defaults", ""), *((self.presets.display_name(each), each) for each in names)], name)
        state = f"{len(changed)} changed" if changed else "as saved" if name else "defaults"
        return (
            f'<div class="form-presets block-part{" is-changed" if changed else ""}" role="group" aria-label="Preset">'
            f'<label class="own"><span>Preset</span><select id="{self.id}-preset" data-act="preset_load">{listed}'
            f'</select></label><div class="line"><span class="state" aria-live="polite">{state}</span>'
            f"{button('preset_undo', 'Undo', kind='quiet', disabled=not self._steps.past, again=True, title=f'Undo {THESE}')}"
            f"{button('preset_redo', 'Redo', kind='quiet', disabled=not self._steps.undone, again=True, title=f'Redo {THESE}')}"
            f"{self._menu(name, changed)}</div></div>"
        )

    def _menu(self, name: str, changed: dict[str, Any]) -> str:
        """Return HTML of the preset bar's menu. changed: {field: value in the preset}."""
        is_user, field = name.startswith("user/"), f"{self.id}-preset-name"
        save = button("preset_save", f"Save {name.removeprefix('user/')}", name, kind="row") if is_user else ""
        sure = "It is deleted permanently. The form keeps its values."
        label = f"Delete the preset {self.presets.display_name(name)}"
        delete = button("preset_delete", "Delete", name, kind="row", label=label, sure=sure) if is_user else ""
        rows = "".join(
            f"<li>{esc(self.titles[each])} {button('preset_put_back', f'Restore {self._label(value)}', each, kind='quiet')}</li>"
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
            f"</div>{delete}{rows}{self._json()}</div></details>"
        )

    def _label(self, value: Any) -> str:
        """Return a value as text for a button."""
        if isinstance(value, bool):
            return "on" if value else "off"
        if isinstance(value, list):
            files = (
                title_of_name(each["file"], self.page.workspace) if isinstance(each, dict) else str(each)
                for each in value
            )
            value = ", ".join(files)
        return "empty" if value in (None, "") else short(str(value), 28)

    def _json(self) -> str:
        """Return HTML of the form's job as JSON in a textarea; of a hint if the form has problems."""
        field = f"{self.id}-json"
        try:
            text = json_text(self.checked_job(), self.task_name)
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
    """Return a copy of the values with the types that JSON has, so that current and stored values can be compared."""
    return json.loads(json.dumps(values))  # type: ignore[no-any-return]
