"""Base class of all forms: presets, undo and invalid input."""

import json
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from core.record.atomic import numbered
from core.record.problems import Problem, ProblemsError
from core.settings.base import Settings
from core.settings.names import bad_name
from core.settings.presets import files as preset_files
from core.settings.presets.files import Preset, PresetStore

MAX_BYTES = 1 << 20  # of a preset file
State = TypeVar("State")


@dataclass(frozen=True)
class BadInput:
    """Invalid text in a field and its problem. The text stays in the field; the job keeps the previous value."""

    text: Any
    problem: Problem


@dataclass(frozen=True)
class Done:
    """Message about a finished action. problems: files that are missing on this machine; undo: step that a button can undo, or ""."""

    text: str
    problems: Sequence[Problem] = ()
    undo: str = ""


class Steps(Generic[State]):
    """Undo history of a form. max_steps: number of steps kept."""

    def __init__(self, max_steps: int):
        self._max_steps = max_steps
        self.past: list[tuple[str, State]] = []  # (name of the change, state before it)
        self.undone: list[tuple[str, State]] = []

    def add(self, name: str, before: State) -> None:
        """Add a change by its name and the state before it; undone changes are dropped."""
        self.past = [*self.past, (name, before)][-self._max_steps :]
        self.undone.clear()

    def step(self, current: State, redo: bool = False) -> State | None:
        """Undo the last change, or with `redo` repeat the last undone one: return the state to restore, None if there is none.
        current: the current state, stored for the opposite step"""
        source, target = (self.undone, self.past) if redo else (self.past, self.undone)
        if not source:
            return None
        name, state = source.pop()
        target.append((name, current))
        return state


class PresetForm(ABC):
    """A form with presets and undo. Subclasses define how it stores a job. task_name: task of its presets; bad: {field: invalid input}."""

    task_name: str
    presets: PresetStore
    lock: threading.RLock
    bad: dict[str, BadInput]

    @property
    @abstractmethod
    def name(self) -> str:
        """Name of the loaded preset; "" for the defaults."""

    @property
    def description(self) -> str:
        """Description for a preset that is saved under a new name."""
        return ""

    @abstractmethod
    def checked_job(self) -> Settings:
        """Return the form's job. Raises ProblemsError, also for invalid input."""

    @abstractmethod
    def set_preset(self, name: str) -> None:
        """Set the name of the loaded preset, "" for none, without changing fields."""

    @abstractmethod
    def apply_preset(self, preset: Preset | None, name: str | None = None, done: str = "") -> Done | None:
        """Fill in the form from a preset, or from the defaults for None; return the message about it, if any.

        name   of the loaded preset from now on; None keeps it
        done   text of the message instead of the usual one
        """

    @abstractmethod
    def undo(self, redo: bool = False) -> None:
        """Undo the last change, or with `redo` repeat the last undone one."""

    @abstractmethod
    def restore(self, field: str) -> None:
        """Set a field to its value in the preset."""

    @abstractmethod
    def restore_all(self) -> Done | None:
        """Set all fields that presets store to their values in the preset."""

    def problems(self) -> list[Problem]:
        """Return the problems of all invalid input."""
        return [bad.problem for bad in self.bad.values()]

    def check(self) -> None:
        """Raise ProblemsError if there is invalid input."""
        if self.bad:
            raise ProblemsError(self.problems())

    def run_act(self, name: str, data: Mapping[str, Any]) -> Done | None:
        """Run one of ACTS; return its message, if any. Raises ProblemsError.
        data: what the act needs of {"preset": name, "replace", "to": new name, "field", "text", "file": name}"""
        return ACTS[name](self, data)

    def choose(self, name: str, done: str = "") -> Done | None:
        """Load a preset by name, "" for the defaults; return the message about it. done: text of the message instead of the usual one."""
        return self.apply_preset(self.presets.load(name, self.task_name) if name else None, name, done)

    def save(self, name: str, replace: bool = False) -> Done:
        """Save the form as a user preset and load it; return the message about it. A replaced preset keeps its kind, title and reasons.

        Raises ProblemsError for invalid fields, an invalid name, and an existing one without `replace`.
        """
        with self.lock:
            job, user_name = self.checked_job(), "user/" + name.strip().removeprefix("user/")
            replaced = read_preset(self.presets, user_name) if replace and user_name == self.name else None
            if replaced is None:
                description = self.description
                saved = self.presets.save(name, job, task=self.task_name, replace=replace, description=description)
            else:
                saved = self.presets.save_copy(user_name, preset_files.with_job(replaced, job), replace=True)
            self.set_preset(saved)
        return Done(f"Saved as {saved.removeprefix('user/')}.")

    def rename(self, name: str, new: str) -> Done:
        """Rename a user preset; return the message about it. Raises ProblemsError."""
        new, loaded = self.presets.rename(name, new), self.name
        if loaded == name:
            self.set_preset(new)
        return Done(f"Renamed to {new.removeprefix('user/')}.")

    def delete(self, name: str) -> Done | None:
        """Delete a user preset; the form keeps its values. Return the message about it. Raises ProblemsError."""
        loaded = self.name
        self.presets.delete(name)
        if loaded == name:
            self.set_preset("")
        return Done(f"Deleted {name.removeprefix('user/')}. The form keeps its values.")

    def take_json(self, text: str) -> Done | None:
        """Fill in the form from JSON; return the message about it, if any. Raises ProblemsError with all problems of the text."""
        return self.apply_preset(read_text("JSON", text, self.task_name, f'write "task": "{self.task_name}"'))

    def take_file(self, file: str, text: str) -> Done | None:
        """Check a preset file that was opened or dropped, store it as a user preset, and load it; return the message. Raises ProblemsError.

        file   name of the file
        text   its content
        """
        file_name = Path(file).name
        preset = read_text(file_name, text, self.task_name)
        stem = "opened" if bad_name(Path(file_name).stem) else Path(file_name).stem
        existing = {name.casefold() for name in self.presets.names()}  # one file each on Windows and macOS
        name = next(name for name in numbered(stem) if f"user/{name}".casefold() not in existing)
        job, replaces_job = preset_files.apply(preset), preset.kind != "recipe"
        stored = self.presets.save_copy(name, preset_files.with_job(preset, job) if replaces_job else preset)
        return self.choose(stored, f"Opened {file_name} and kept it as {name}.")


def _text(data: Mapping[str, Any], name: str) -> str:
    """Return a field of a message as text; "" if it is missing or empty."""
    return str(data.get(name) or "")


# Actions of the preset bar by name. data: the message of the page's script
ACTS: dict[str, Callable[[PresetForm, Mapping[str, Any]], Done | None]] = {
    "load": lambda form, data: form.choose(str(data.get("preset"))),
    "save": lambda form, data: form.save(_text(data, "preset"), bool(data.get("replace"))),
    "rename": lambda form, data: form.rename(_text(data, "preset"), _text(data, "to")),
    "delete": lambda form, data: form.delete(_text(data, "preset")),
    "reset": lambda form, data: form.choose(""),
    "put_back": lambda form, data: form.restore(_text(data, "field")),
    "put_all_back": lambda form, data: form.restore_all(),
    "undo": lambda form, data: form.undo(),
    "redo": lambda form, data: form.undo(redo=True),
    "json": lambda form, data: form.take_json(_text(data, "text")),
    "file": lambda form, data: form.take_file(_text(data, "file") or "preset.json", _text(data, "text")),
}


def json_text(job: Settings, task: str = "train") -> str:
    """Return a job as the text of a preset file."""
    return json.dumps(preset_files.dump(job, task=task), indent=2, ensure_ascii=False)


def read_preset(presets: PresetStore, name: str) -> Preset | None:
    """Return the preset of this name; None if the name is empty or the file cannot be read."""
    try:
        return presets.load(name)
    except ProblemsError:
        return None


def read_text(name: str, text: str, task: str, fix: str = "open it in its own tab") -> Preset:
    """Parse the text of the preset file `name`. Raises ProblemsError; its fix is `fix` if the preset is for another task than `task`."""
    if len(text) > MAX_BYTES:
        raise ProblemsError.one("The file is too large for a preset", name, "choose a preset file", "preset.too-large")
    return preset_files.of_task(preset_files.parse_bytes(text.encode("utf-8", "surrogatepass"), name), task, name, fix)
