"""The project: the state of Train's form, stored by the server.

Browsers show it and send single changes, so closing one loses nothing. Each change increments the revision. A change that is
based on a state that another browser has changed since is refused, and its browser shows the current state.
"""

import json
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from pathlib import Path
from typing import Any

from core.imports.projects.report import IMPORTED
from core.record import atomic
from core.record.bounded_json import read_json_object
from core.record.problems import Problem, ProblemsError, whole_text
from core.record.regular import MissingFile
from core.record.units import count
from core.settings.base import Declared, declared, value_of
from core.settings.check import build
from core.settings.job import TrainJob, new_project
from core.settings.names import bad_name, without_signs
from core.settings.presets import files as preset_files
from core.settings.presets.files import PresetStore, differences, to_values, with_values
from core.settings.presets.migrations import to_version_2
from core.settings.values import text_of, value_from
from tabs.form.presets import BadInput, Done, PresetForm, Steps, read_preset

STARTER_PRESET = "starter_lora"
NAME = "saving.output_name"
NAMING = ("method.kind", "embedding.token_string")  # change the output name until the user has set it
STARTER_IMAGES = "models/starter/images"
UNDO_STEPS = 100
MAX_LOG = 200
FIELDS: dict[str, Declared] = {entry.path: entry for entry in declared(TrainJob)}


# Session that makes the current changes, and the stamp of the state that it changes; None: the latest state
EDITOR: ContextVar[tuple[str, str | None]] = ContextVar("editor", default=("", None))


@contextmanager
def edited_by(session: str, stamp: str | None = None) -> Iterator[None]:
    """Context in which changes count as made by this session, based on the state with this stamp (None: the latest)."""
    token = EDITOR.set((session, stamp))
    try:
        yield
    finally:
        EDITOR.reset(token)


class OldRevision(Exception):
    """Raised for a change that is refused, since another browser has changed the state."""


class Project(PresetForm):
    """Train's form: its job, loaded preset, undo and redo. Thread-safe."""

    task_name = "train"

    def __init__(self, file: Path, presets: PresetStore):
        self.file, self.presets = file, presets
        self.boot = secrets.token_hex(4)  # of this server process, whose revisions are not those of another one
        self.revision = 1
        self.notice = ""
        self.lock = threading.RLock()
        # (revision, session, paths of the fields or None for all) of the latest changes
        self._log: list[tuple[int, str, set[str] | None]] = []
        self.steps: Steps[dict[str, Any]] = Steps(UNDO_STEPS)
        self._tabs: dict[str, Any] = {}
        self.tab_listeners: list[Callable[[str], None]] = []  # called with the tab whose stored state has changed
        self.bad: dict[str, BadInput] = {}
        self.preset = ""
        self.imported: dict[str, Any] = {}  # what is known of the import that the form began with; see `take_import`
        self.job = new_project()
        self._reference_cache: tuple[Any, TrainJob] | None = None
        self._read_file()

    # -- reading

    @property
    def stamp(self) -> str:
        """Identifies the current state; a browser sends it with its changes."""
        return f"{self.boot}:{self.revision}"

    def reference(self) -> TrainJob:
        """Return the job that loading the preset now would set; changes are relative to it."""
        with self.lock:
            key = (self.preset, self.job, self._preset_state())
            if self._reference_cache is None or self._reference_cache[0] != key:
                self._reference_cache = (key, self._load_reference())
            return self._reference_cache[1]

    def _preset_state(self) -> int:
        """Return the modification time in ns of the loaded preset's file; 0 without one."""
        try:
            return self.presets.path(self.preset).stat().st_mtime_ns if self.preset else 0
        except (OSError, ProblemsError):
            return 0

    def _load_reference(self) -> TrainJob:
        """Return the job of the loaded preset; if its file is gone or damaged, unload it and return the defaults."""
        try:
            loaded = preset_files.apply(self.presets.load(self.preset), self.job) if self.preset else new_project()
        except ProblemsError:  # deleted or damaged meanwhile
            self.preset, loaded = "", new_project()
        return loaded if isinstance(loaded, TrainJob) else new_project()

    def recipe(self) -> preset_files.Preset | None:
        """Return the loaded preset if it is a recipe, else None."""
        preset = read_preset(self.presets, self.preset)
        return preset if preset is not None and preset.kind == "recipe" else None

    def changed(self) -> dict[str, Any]:
        """Return {path: value in the preset} of the fields that differ from the preset."""
        return {path: value for path, (_, value) in differences(self.job, self.reference()).items()}

    def shown(self, path: str) -> Any:
        """Return the text or state of a field's control: its invalid input, else its value."""
        bad = self.bad.get(path)
        return bad.text if bad else text_of(FIELDS[path], value_of(self.job, path))

    def tab_state(self, tab: str) -> dict[str, Any]:
        """Return the state that a tab has stored with `keep`."""
        with self.lock:
            return dict(self._tabs.get(tab, {}))

    @property
    def can_undo(self) -> str:
        """Name of the step that undo would revert; "" if there is none."""
        return self.steps.past[-1][0] if self.steps.past else ""

    @property
    def can_redo(self) -> str:
        """Name of the step that redo would repeat; "" if there is none."""
        return self.steps.undone[-1][0] if self.steps.undone else ""

    # -- changing

    def check_stamp(self, path: str = "") -> None:
        """Raise OldRevision if another session has changed the state, or with `path` this field, since the stamp of the current change
        (`edited_by`). Without a stamp nothing is raised."""
        session, stamp = EDITOR.get()
        if stamp is None:
            return
        boot, _, number = str(stamp).partition(":")
        if boot != self.boot or not number.isdigit():
            raise OldRevision
        oldest = self._log[0][0] if self._log else self.revision + 1
        if int(number) + 1 < oldest and int(number) < self.revision:
            raise OldRevision  # older than the log
        others = [paths for revision, who, paths in self._log if revision > int(number) and who != session]
        if any(not path or paths is None or path in paths for paths in others):
            raise OldRevision

    def edit(self, path: str, raw: Any) -> bool:
        """Set a field to the text or state of its control; invalid input is stored in `bad`. Return whether anything changed. Raises
        OldRevision."""
        with self.lock:
            job, bad = self.job, {name: each for name, each in self.bad.items() if name != path}
            try:
                value = value_from(FIELDS[path], raw)
                if path not in self.bad and value == value_of(job, path):
                    return False  # a field that only had the focus, also in a browser with an older state
                changed = with_value(job, path, value)
                _check_name(path, value)
                job = self._with_token_name(changed) if path in NAMING else changed
            except ProblemsError as error:
                bad = self.bad | {path: BadInput(raw, replace(error.problems[0], where=path))}
            self.check_stamp(path)
            if (job, bad) == (self.job, self.bad):
                return False
            self._change(f"change of {FIELDS[path].title}", job=job, bad=bad)
            return True

    def edit_several(self, values: Mapping[str, Any], *, did: str) -> None:
        """Set several fields, {path: text or state of the control}, as one step of undo named `did`. Raises ProblemsError if one is
        invalid, and then changes nothing."""
        with self.lock:
            self.set_values({path: value_from(FIELDS[path], raw) for path, raw in values.items()}, did=did)

    def set_values(self, values: Mapping[str, Any], *, did: str) -> None:
        """Set several fields, {path: value}, as one step of undo named `did`; invalid input in them is discarded. Raises ProblemsError."""
        with self.lock:
            self.change(with_values(self.job, values), did=did, paths=values)

    def change(self, job: TrainJob, *, did: str, paths: Iterable[str] = ()) -> None:
        """Replace the job as one step of undo named `did`. Raises OldRevision.

        Invalid input is discarded in the fields that change and in `paths`; elsewhere it stays, so that no run starts with the
        previous value.
        """
        with self.lock:
            corrected = {*differences(job, self.job), *paths}
            bad = {path: each for path, each in self.bad.items() if path not in corrected}
            if (job, bad) != (self.job, self.bad):
                self.check_stamp()
                self._change(did, job=job, bad=bad)

    def _with_token_name(self, job: TrainJob) -> TrainJob:
        """Return `job` with the first token of textual inversion as output name, unless the user has set the name: other programs use the
        file by its name."""
        current, token = self.job.saving.output_name, token_name(job)
        is_shipped = not self.preset.startswith("user/")
        automatic = {TrainJob().saving.output_name, token_name(self.job)}
        automatic |= {self.reference().saving.output_name} if is_shipped and self.recipe() is None else set()
        return with_value(job, NAME, token) if token and NAME not in self.bad and current in automatic else job

    def restore(self, path: str) -> None:
        if path in FIELDS:
            with self.lock:
                group, name = path.split(".", 1)
                value = to_values(self.reference())[group][name]
                self.set_values({path: value}, did=f"restoring {FIELDS[path].title}")

    def replace(
        self,
        job: TrainJob,
        *,
        preset: str | None = None,
        did: str = "loading settings",
        bad: Mapping[str, BadInput] = {},
    ) -> None:
        """Replace the whole job (by a preset, a run's settings, the JSON pane) as one step of undo named `did`. Raises OldRevision.

        preset   name of the loaded preset from now on, "" if it is gone; None keeps the current one
        bad      invalid input of fields from now on
        """
        with self.lock:
            self.check_stamp()
            preset_state: dict[str, Any] = {}
            if preset is not None:
                preset_state = {"preset": preset if preset in self.presets.names("train") else ""}
                preset_state["imported"] = self._import_report(preset_state["preset"])
            self._change(did, job=job, bad=dict(bad), **preset_state)

    def _import_report(self, preset: str) -> dict[str, Any]:
        """Return {"description"} of the import that a preset was saved from; {} for any other preset."""
        loaded = read_preset(self.presets, preset)
        return {"description": loaded.description} if loaded and loaded.description.startswith(IMPORTED) else {}

    def take_import(self, job: TrainJob, title: str, done: str, imported: dict[str, Any]) -> Done:
        """Fill in the form from another program's settings; return the message about it. Raises OldRevision.

        title      name of the file or program, for the undo step
        done       text of the message
        imported   what the page shows of the import; "description" is stored in a preset that is saved from it
        """
        unsaved = self._unsaved()
        with self.lock:
            self.check_stamp()
            self._change(f"importing {title}", job=job, bad={}, preset="", imported=imported)
        return self._replaced_message(done, unsaved)

    @property
    def name(self) -> str:
        return self.preset

    @property
    def description(self) -> str:
        return str(self.imported.get("description", ""))

    def checked_job(self) -> TrainJob:
        self.check_stamp()
        self.check()
        return self.job

    def set_preset(self, name: str) -> None:
        with self.lock:
            self._set_state(preset=name)

    def apply_preset(self, preset: preset_files.Preset | None, name: str | None = None, done: str = "") -> Done | None:
        """Load a preset, or the defaults for None; return the message about it.
        done: its text instead of the usual one. name: of the preset, "" for the defaults; None for the text of the JSON pane, which has no
        message"""
        unsaved = self._unsaved()
        job = preset_files.apply(preset, self.job) if preset else new_project()
        assert isinstance(job, TrainJob)
        if name is None:
            self.replace(job, did="change in the JSON pane")
            return None
        recipe = preset if preset and preset.kind == "recipe" else None
        # A recipe leaves the other fields as they are, with their mistakes.
        stated = recipe.stated() if recipe else FIELDS
        bad = {path: each for path, each in self.bad.items() if preset_files.keeps(FIELDS[path]) and path not in stated}
        self.replace(job, preset=name, did=f"loading {name}" if name else "reset to default", bad=bad)
        stays = "; your model, images, prompts, names, validation and logging stay" if recipe else ""
        message = f"{self.presets.display_name(name)} loaded{stays}." if name else "All settings are at their defaults."
        return self._replaced_message(done or message, unsaved)

    def restore_all(self) -> Done:
        unsaved = self._unsaved()
        self.replace(self.reference(), did="restoring all")
        return self._replaced_message("All changes were reverted.", unsaved)

    def _unsaved(self) -> int:
        """Return the number of fields that differ from the preset or have invalid input."""
        with self.lock:
            return len(self.changed().keys() | self.bad.keys())

    def _replaced_message(self, done: str, unsaved: int) -> Done:
        """Return the message after the whole form was replaced, with its undo step. unsaved: number of changes that the form had."""
        unsaved_note = f" The form had {count(unsaved, 'unsaved change')}." if unsaved else ""
        return Done(f"{done}{unsaved_note}", undo=self.can_undo)

    def undo(self, redo: bool = False) -> None:
        with self.lock:
            self.check_stamp()
            if (state := self.steps.step(self._snapshot(), redo)) is not None:
                self._set_state(**state)

    def _snapshot(self) -> dict[str, Any]:
        """Return the state that a step of undo restores: {"job", "preset", "bad": invalid input, "imported"}."""
        return {"job": self.job, "preset": self.preset, "bad": self.bad, "imported": self.imported}

    def keep(self, tab: str, state: dict[str, Any]) -> None:
        """Store the state of a tab, as JSON values, for later visits."""
        text = json.dumps(state, ensure_ascii=False)
        if whole_text(text) != text:
            state = json.loads(whole_text(text))
        with self.lock:
            if self._tabs.get(tab) != state:
                self._tabs[tab] = state
                self._save()
                for listener in self.tab_listeners:
                    listener(tab)

    def update_tab(self, tab: str, **changes: Any) -> None:
        """Replace parts of the stored state of a tab, by name."""
        with self.lock:
            self.keep(tab, self.tab_state(tab) | changes)

    def _change(self, did: str, **state: Any) -> None:
        """Set the state as one step of undo named `did`. state: as in `_set_state`."""
        self.steps.add(did, self._snapshot())
        self._set_state(**state)

    def _set_state(self, **state: Any) -> None:
        """Set the given ones of `job`, `bad`, `preset` and `imported`, increment the revision, and store the project."""
        job, bad = state.get("job", self.job), state.get("bad", self.bad)
        fields = {
            *differences(job, self.job),
            *(path for path in bad | self.bad if bad.get(path) != self.bad.get(path)),
        }
        vars(self).update(state)
        self.revision += 1
        self._log = [*self._log, (self.revision, EDITOR.get()[0], None if "preset" in state else fields)][-MAX_LOG:]
        self._save()

    # -- the file

    def _save(self) -> None:
        """Write the project file; if that fails, `notice` says why."""
        content = {
            "v": 1,
            "revision": self.revision,
            "preset": self.preset,
            "imported": self.imported,
            "job": to_values(self.job),
            "bad": {path: {"text": bad.text, "problem": bad.problem.to_dict()} for path, bad in self.bad.items()},
            "tabs": self._tabs,
        }
        try:
            atomic.write_json(self.file, content)
            self.notice = ""
        except OSError as error:
            self.notice = f"The project cannot be saved ({error.strerror or error}). Free some space."

    def _read_file(self) -> None:
        """Read the project file; without a readable one, begin with `_first_job`. A damaged file is renamed."""
        try:
            content = read_json_object(self.file)
            self.job = build(TrainJob, to_version_2("train", content["job"])[1])
            self.preset, self.imported = str(content.get("preset", "")), dict(content.get("imported", {}))
            self.revision = int(content.get("revision", 0)) + 1
            self._tabs = {tab: to_version_2("", state)[1] for tab, state in dict(content.get("tabs", {})).items()}
            bad = {path: item for path, item in content.get("bad", {}).items() if path in FIELDS}
            self.bad = {path: BadInput(item["text"], Problem(**item["problem"])) for path, item in bad.items()}
            return
        except MissingFile:
            pass
        except (ValueError, KeyError, TypeError, AttributeError, ProblemsError, OverflowError):
            renamed = self.file.with_name(f"project-unreadable-{time.time_ns()}.json")
            try:
                atomic.replace(self.file, renamed)
                self.notice = f"The saved project could not be read and was renamed to {renamed.name}."
            except OSError:
                self.notice = "The saved project could not be read."
        self.job, self.preset = self._first_job()

    def _first_job(self) -> tuple[TrainJob, str]:
        """Return (job, preset) for a new user: the starter preset, else the defaults with the starter's images."""
        try:
            job = preset_files.apply(self.presets.load(STARTER_PRESET), new_project())
            if isinstance(job, TrainJob):
                return job, STARTER_PRESET
        except ProblemsError:
            pass
        return with_value(new_project(), "dataset.folder", STARTER_IMAGES), ""


def token_name(job: TrainJob) -> str:
    """Return the output name for textual inversion: the first token without characters that file names cannot have; "" for other
    methods."""
    if not job.method.traits.new_words or not job.embedding.words:
        return ""
    name = without_signs(job.embedding.words[0])
    return "" if bad_name(name) else name[:100]


def _check_name(path: str, value: Any) -> None:
    """Raise ProblemsError if the field is the output name and the value cannot be a file name."""
    reason = bad_name(value) if path == NAME else None
    if reason:
        what = f"'{value}' cannot be a file name: {reason}"
        raise ProblemsError.one(what, path, "use letters, digits, - and _", "settings.bad-name")


def with_value(job: TrainJob, path: str, value: Any) -> TrainJob:
    """Return `job` with the setting `path` changed. Raises ProblemsError if the value is invalid."""
    return with_values(job, {path: value})
