"""What all forms do alike, whatever they hold: presets, undo, and what is written into a field in vain."""

from __future__ import annotations

import json
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from core.record.problems import Problem, ProblemsError
from core.settings.base import Settings
from core.settings.names import bad_name
from core.settings.presets import files as preset_files
from core.settings.presets.files import Preset, PresetStore

LARGEST = 1 << 20  # bytes of a preset file
Held = TypeVar("Held")


@dataclass(frozen=True)
class Bad:
    """What a person typed and cannot be used: the text stays in view, the value before it stays in force."""

    text: Any
    problem: Problem


@dataclass(frozen=True)
class Done:
    """What is said of something that was done: what of it is not on this machine, and the step that may be taken back at once."""

    text: str
    problems: Sequence[Problem] = ()
    undo: str = ""


class Steps(Generic[Held]):
    """What a form held before each of its last changes. most: that are kept"""

    def __init__(self, most: int):
        self._most = most
        self.past: list[tuple[str, Held]] = []  # (what the change did, what was held before it)
        self.undone: list[tuple[str, Held]] = []

    def add(self, did: str, before: Held) -> None:
        """A change was made."""
        self.past = [*self.past, (did, before)][-self._most :]
        self.undone.clear()

    def step(self, now: Held, redo: bool = False) -> Held | None:
        """What was held before the last change, or with redo before the last undo; None without one. now: what is held now"""
        source, target = (self.undone, self.past) if redo else (self.past, self.undone)
        if not source:
            return None
        did, held = source.pop()
        target.append((did, now))
        return held


class PresetForm(ABC):
    """A form, which says how it holds a job.

    task_name, presets   whose presets it has; where they are      bad   {field: what it holds in vain}
    """

    task_name: str
    presets: PresetStore
    lock: threading.RLock
    bad: dict[str, Bad]

    @property
    @abstractmethod
    def name(self) -> str:
        """The loaded preset; "" for the defaults."""

    @abstractmethod
    def filled(self) -> Settings:
        """The job that the form describes. Raises ProblemsError, also for fields that hold what they cannot be."""

    @abstractmethod
    def call(self, name: str) -> None:
        """Count what the form holds as this preset, "" as none."""

    @abstractmethod
    def hold(self, preset: Preset | None, name: str | None = None, done: str = "") -> Done | None:
        """Take over what a preset holds, None for the defaults.

        name   of the loaded preset from now on, None for the present one      done   what is said, where that is not the usual
        """

    @abstractmethod
    def undo(self, redo: bool = False) -> None:
        """Hold again what the form held before the last change, or before the last undo."""

    @abstractmethod
    def put_back(self, field: str) -> None:
        """The preset's value again."""

    @abstractmethod
    def put_all_back(self) -> Done | None:
        """Those of all fields that a preset covers."""

    def problems(self) -> list[Problem]:
        """Of every field that holds what it cannot be."""
        return [bad.problem for bad in self.bad.values()]

    def check(self) -> None:
        """Raises ProblemsError where there are some."""
        if self.bad:
            raise ProblemsError(self.problems())

    def press(self, name: str, data: Mapping[str, Any]) -> Done | None:
        """What was pressed in the form's bar, a name of ACTS; what is said of it, if anything. Raises ProblemsError."""
        return ACTS[name](self, data)

    def choose(self, name: str, done: str = "") -> Done | None:
        """Load a preset, "" for the defaults."""
        return self.hold(self.presets.load(name, self.task_name) if name else None, name, done)

    def save(self, name: str, replace: bool = False) -> Done:
        """Save the form as an own preset and make it the loaded one, which keeps its kind, title and reasons where it is replaced."""
        with self.lock:
            job, own = self.filled(), "user/" + name.strip().removeprefix("user/")
            before = read_preset(self.presets, own) if replace and own == self.name else None
            if before is None:
                saved = self.presets.save(name, job, task=self.task_name, replace=replace)
            else:
                saved = self.presets.keep(own, preset_files.with_job(before, job), replace=True)
            self.call(saved)
        return Done(f"Saved as {saved.removeprefix('user/')}.")

    def rename(self, name: str, new: str) -> Done:
        new, loaded = self.presets.rename(name, new), self.name
        if loaded == name:
            self.call(new)
        return Done(f"Renamed to {new.removeprefix('user/')}.")

    def delete(self, name: str) -> Done | None:
        loaded = self.name
        self.presets.delete(name)
        if loaded == name:
            self.call("")
        return Done(f"Deleted {name.removeprefix('user/')}. The form keeps its values.")

    def take_json(self, text: str) -> Done | None:
        """Raises ProblemsError with all that is wrong in the text; nothing changes then."""
        return self.hold(read_text("JSON", text, self.task_name, f'write "task": "{self.task_name}"'))

    def take_file(self, file: str, text: str) -> Done | None:
        """A preset file that was opened or dropped: checked whole, kept under presets/user, loaded; or nothing at all."""
        given = Path(file).name
        preset = read_text(given, text, self.task_name)
        stem = "opened" if bad_name(Path(given).stem) else Path(given).stem
        names = (stem if number == 1 else f"{stem}-{number}" for number in range(1, 10**6))
        taken = {name.casefold() for name in self.presets.names()}  # one file each on Windows and macOS
        name = next(name for name in names if f"user/{name}".casefold() not in taken)
        job, whole = preset_files.apply(preset), preset.kind != "recipe"
        kept = self.presets.keep(name, preset_files.with_job(preset, job) if whole else preset)
        return self.choose(kept, f"Opened {given} and kept it as {name}.")


def _text(data: Mapping[str, Any], name: str) -> str:
    return str(data.get(name) or "")


# What is pressed in a bar, by name, with what the page's script says of it.
ACTS: dict[str, Callable[[PresetForm, Mapping[str, Any]], Done | None]] = {
    "load": lambda form, data: form.choose(str(data.get("preset"))),
    "save": lambda form, data: form.save(_text(data, "preset"), bool(data.get("replace"))),
    "rename": lambda form, data: form.rename(_text(data, "preset"), _text(data, "to")),
    "delete": lambda form, data: form.delete(_text(data, "preset")),
    "reset": lambda form, data: form.choose(""),
    "put_back": lambda form, data: form.put_back(_text(data, "field")),
    "put_all_back": lambda form, data: form.put_all_back(),
    "undo": lambda form, data: form.undo(),
    "redo": lambda form, data: form.undo(redo=True),
    "json": lambda form, data: form.take_json(_text(data, "text")),
    "file": lambda form, data: form.take_file(_text(data, "file") or "preset.json", _text(data, "text")),
}


def json_text(job: Settings, task: str = "train") -> str:
    """A job as the text of a preset file."""
    return json.dumps(preset_files.dump(job, task=task), indent=2, ensure_ascii=False)


def read_preset(presets: PresetStore, name: str) -> Preset | None:
    """A preset; None without a name, and where its file cannot be read, which loading it tells."""
    try:
        return presets.load(name)
    except ProblemsError:
        return None


def shown_name(presets: PresetStore, name: str) -> str:
    """An own preset's bare name, a shipped one's title."""
    preset = None if name.startswith("user/") else read_preset(presets, name)
    return (preset.title if preset else "") or name.removeprefix("user/")


def read_text(given: str, text: str, task: str, fix: str = "open it in its own tab") -> Preset:
    """A preset's text, checked as a file of that name. fix: what to do where it is of another task"""
    if len(text) > LARGEST:
        raise ProblemsError.one("The file is too large for a preset", given, "choose a preset file", "preset.too-large")
    return preset_files.of_task(preset_files.checked(text.encode("utf-8", "surrogatepass"), given), task, given, fix)
