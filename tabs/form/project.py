"""The project: what the Train form holds, kept by the server.

Browsers show it and send single changes, so closing one loses nothing. Every change raises the revision; a change made
on a state that another browser has altered since is refused, and the browser that sent it is shown the present state.
"""

from __future__ import annotations

import json
import secrets
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from pathlib import Path
from typing import Any

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
from core.settings.presets.files import PresetStore, differences, to_values
from core.settings.presets.migrations import to_version_2
from core.settings.values import text_of, value_from
from tabs.form.presets import Bad, Done, PresetForm, Steps, read_preset, shown_name

STARTER_PRESET = "starter_lora"
NAME = "saving.output_name"
NAMING = ("method.kind", "embedding.token_string")  # what the name follows until a person has chosen one
STARTER_IMAGES = "models/starter/images"
UNDO_STEPS = 100
KEPT_CHANGES = 200
FIELDS: dict[str, Declared] = {entry.path: entry for entry in declared(TrainJob)}


# Whose changes are made now (the session), and the stamp of the state that they are made on; None: of whatever holds
WHO: ContextVar[tuple[str, str | None]] = ContextVar("who changes the form", default=("", None))


@contextmanager
def asked_by(session: str, stamp: str | None = None) -> Iterator[None]:
    """Until it ends, changes are this browser's, made on the state of this stamp."""
    token = WHO.set((session, stamp))
    try:
        yield
    finally:
        WHO.reset(token)


class OldRevision(Exception):
    """The change was made on a state that another browser has altered; it was not applied."""


class Project(PresetForm):
    """The values of the form, the loaded preset, undo and redo. Safe to call from any thread."""

    task_name = "train"

    def __init__(self, file: Path, presets: PresetStore):
        self.file, self.presets = file, presets
        self.boot = secrets.token_hex(4)  # another server process: its revisions mean something else
        self.revision = 1
        self.notice = ""
        self.lock = threading.RLock()
        self._log: list[tuple[int, str]] = []  # (revision, session) of the latest changes
        self.steps: Steps[dict[str, Any]] = Steps(UNDO_STEPS)
        self._tabs: dict[str, Any] = {}
        self.bad: dict[str, Bad] = {}
        self.preset = ""
        self.job = new_project()
        self._reference_cache: tuple[Any, TrainJob] | None = None
        self._open()

    # -- reading

    @property
    def stamp(self) -> str:
        """What a browser sends back with its changes."""
        return f"{self.boot}:{self.revision}"

    def reference(self) -> TrainJob:
        """The job that loading the preset now would give: what fields are compared with."""
        with self.lock:
            key = (self.preset, self.job, self._preset_state())
            if self._reference_cache is None or self._reference_cache[0] != key:
                self._reference_cache = (key, self._load_reference())
            return self._reference_cache[1]

    def _preset_state(self) -> int:
        try:
            return self.presets.path(self.preset).stat().st_mtime_ns if self.preset else 0
        except (OSError, ProblemsError):
            return 0

    def _load_reference(self) -> TrainJob:
        try:
            loaded = preset_files.apply(self.presets.load(self.preset), self.job) if self.preset else new_project()
        except ProblemsError:  # deleted or spoilt behind our back
            self.preset, loaded = "", new_project()
        return loaded if isinstance(loaded, TrainJob) else new_project()

    def recipe(self) -> preset_files.Preset | None:
        """The loaded preset where it is a recipe."""
        preset = read_preset(self.presets, self.preset)
        return preset if preset is not None and preset.kind == "recipe" else None

    def changed(self) -> dict[str, Any]:
        """{path: the preset's value} for every field that differs from the preset."""
        return {path: theirs for path, (_, theirs) in differences(self.job, self.reference()).items()}

    def shown(self, path: str) -> Any:
        """What the field's widget shows: the bad text while there is one, else the value."""
        bad = self.bad.get(path)
        return bad.text if bad else text_of(FIELDS[path], value_of(self.job, path))

    def tab_state(self, tab: str) -> dict[str, Any]:
        """What a tab kept with `keep`."""
        with self.lock:
            return dict(self._tabs.get(tab, {}))

    @property
    def can_undo(self) -> str:
        """What undo would take back ("" when there is nothing)."""
        return self.steps.past[-1][0] if self.steps.past else ""

    @property
    def can_redo(self) -> str:
        return self.steps.undone[-1][0] if self.steps.undone else ""

    # -- changing

    def guard(self) -> None:
        """Refuse a change that was made on a state which someone else altered since. Without a stamp it is not asked."""
        session, stamp = WHO.get()
        if stamp is None:
            return
        boot, _, number = str(stamp).partition(":")
        if boot != self.boot or not number.isdigit():
            raise OldRevision
        oldest = self._log[0][0] if self._log else self.revision + 1
        if int(number) + 1 < oldest and int(number) < self.revision:
            raise OldRevision  # too long ago to know who changed what
        if any(revision > int(number) and who != session for revision, who in self._log):
            raise OldRevision

    def edit(self, path: str, raw: Any) -> bool:
        """One field's new value as its widget gives it. A value that cannot be used is kept aside with its reason."""
        with self.lock:
            job, bad = self.job, {name: each for name, each in self.bad.items() if name != path}
            try:
                value = value_from(FIELDS[path], raw)
                if path not in self.bad and value == value_of(job, path):
                    return False  # a field that was only passed through, also in a browser that is behind
                changed = with_value(job, path, value)
                _check_name(path, value)
                job = self._named_by_its_word(changed) if path in NAMING else changed
            except ProblemsError as error:
                bad = self.bad | {path: Bad(raw, replace(error.problems[0], where=path))}
            self.guard()
            if (job, bad) == (self.job, self.bad):
                return False
            self._change(f"change of {FIELDS[path].title}", job=job, bad=bad)
            return True

    def edit_several(self, values: Mapping[str, Any], *, did: str) -> None:
        """New values of several fields as their widgets give them, one step of undo. Raises ProblemsError for one that cannot be
        used, and changes nothing then."""
        with self.lock:
            self.set_values({path: value_from(FIELDS[path], raw) for path, raw in values.items()}, did=did)

    def set_values(self, values: Mapping[str, Any], *, did: str) -> None:
        """Values by path, in place of what their fields hold, also of what they hold in vain. Raises ProblemsError."""
        with self.lock:
            self.change(with_values(self.job, values), did=did, paths=values)

    def change(self, job: TrainJob, *, did: str, paths: Iterable[str] = ()) -> None:
        """The job with some values changed, one step of undo. Fields whose values stay keep what they hold in vain, but those of
        `paths`: a mistake that was not corrected must not be forgotten, or a run starts with the value before it."""
        with self.lock:
            corrected = {*differences(job, self.job), *paths}
            bad = {path: each for path, each in self.bad.items() if path not in corrected}
            if (job, bad) != (self.job, self.bad):
                self.guard()
                self._change(did, job=job, bad=bad)

    def _named_by_its_word(self, job: TrainJob) -> TrainJob:
        """An embedding is called as its word, since programs read it by its file's name, unless a person has named it."""
        before, name = self.job.saving.output_name, word_name(job)
        shipped = not self.preset.startswith("user/")
        given = {TrainJob().saving.output_name, word_name(self.job)}
        given |= {self.reference().saving.output_name} if shipped and self.recipe() is None else set()
        return with_value(job, NAME, name) if name and NAME not in self.bad and before in given else job

    def put_back(self, path: str) -> None:
        if path in FIELDS:
            with self.lock:
                group, name = path.split(".", 1)
                value = to_values(self.reference())[group][name]
                self.set_values({path: value}, did=f"restoring {FIELDS[path].title}")

    def replace(
        self, job: TrainJob, *, preset: str | None = None, did: str = "loading settings", bad: Mapping[str, Bad] = {}
    ) -> None:
        """A whole new job (a preset, a run's settings, the JSON pane). `preset` None keeps the loaded preset's name;
        one that is gone counts as none. bad: what fields hold in vain from now on."""
        with self.lock:
            self.guard()
            named = {} if preset is None else {"preset": preset if preset in self.presets.names("train") else ""}
            self._change(did, job=job, bad=dict(bad), **named)

    @property
    def name(self) -> str:
        return self.preset

    def filled(self) -> TrainJob:
        self.guard()
        self.check()
        return self.job

    def call(self, name: str) -> None:
        with self.lock:
            self._take(preset=name)

    def hold(self, preset: preset_files.Preset | None, name: str | None = None, done: str = "") -> Done | None:
        unsaved = self._unsaved()
        job = preset_files.apply(preset, self.job) if preset else new_project()
        assert isinstance(job, TrainJob)
        if name is None:
            self.replace(job, did="change in the JSON pane")
            return None
        recipe = preset if preset and preset.kind == "recipe" else None
        stated = (
            recipe.stated() if recipe else FIELDS
        )  # a recipe leaves the other fields as they are, with their mistakes
        bad = {path: each for path, each in self.bad.items() if preset_files.kept(FIELDS[path]) and path not in stated}
        self.replace(job, preset=name, did=f"loading {name}" if name else "reset to default", bad=bad)
        left = "; your model, images, prompts and name stay" if recipe else ""
        usual = f"{shown_name(self.presets, name)} loaded{left}." if name else "All settings are at their defaults."
        return self._replaced(done or usual, unsaved)

    def put_all_back(self) -> Done:
        unsaved = self._unsaved()
        self.replace(self.reference(), did="restoring all")
        return self._replaced("All changes were reverted.", unsaved)

    def _unsaved(self) -> int:
        """How many fields no preset holds as they are."""
        with self.lock:
            return len(self.changed().keys() | self.bad.keys())

    def _replaced(self, done: str, unsaved: int) -> Done:
        """What is said after the whole form was replaced; the way back stands next to it."""
        had = f" The form had {count(unsaved, 'unsaved change')}." if unsaved else ""
        return Done(f"{done}{had}", undo=self.can_undo)

    def undo(self, redo: bool = False) -> None:
        with self.lock:
            self.guard()
            if (before := self.steps.step(self._held(), redo)) is not None:
                self._take(**before)

    def redo(self) -> None:
        self.undo(redo=True)

    def _held(self) -> dict[str, Any]:
        return {"job": self.job, "preset": self.preset, "bad": self.bad}

    def keep(self, tab: str, state: dict[str, Any]) -> None:
        """Keep what a tab wants to find again after a refresh or a restart (plain JSON values)."""
        text = json.dumps(state, ensure_ascii=False)
        if whole_text(text) != text:
            state = json.loads(whole_text(text))
        with self.lock:
            if self._tabs.get(tab) != state:
                self._tabs[tab] = state
                self._save()

    def _change(self, did: str, **state: Any) -> None:
        """One step of undo to what `_take` takes."""
        self.steps.add(did, self._held())
        self._take(**state)

    def _take(self, **state: Any) -> None:
        """Hold this from now on. state: `job`, `bad` and `preset`, those that change"""
        vars(self).update(state)
        self.revision += 1
        self._log = [*self._log, (self.revision, WHO.get()[0])][-KEPT_CHANGES:]
        self._save()

    # -- the file

    def _save(self) -> None:
        content = {
            "v": 1,
            "revision": self.revision,
            "preset": self.preset,
            "job": to_values(self.job),
            "bad": {path: {"text": bad.text, "problem": bad.problem.to_dict()} for path, bad in self.bad.items()},
            "tabs": self._tabs,
        }
        try:
            atomic.write_json(self.file, content)
            self.notice = ""
        except OSError as error:
            self.notice = f"The project cannot be saved ({error.strerror or error}). Free some space."

    def _open(self) -> None:
        """What the last server left, else the starter."""
        try:
            content = read_json_object(self.file)
            self.job = build(TrainJob, to_version_2("train", content["job"])[1])
            self.preset = str(content.get("preset", ""))
            self.revision = int(content.get("revision", 0)) + 1
            self._tabs = {tab: to_version_2("", state)[1] for tab, state in dict(content.get("tabs", {})).items()}
            kept = {path: item for path, item in content.get("bad", {}).items() if path in FIELDS}
            self.bad = {path: Bad(item["text"], Problem(**item["problem"])) for path, item in kept.items()}
            return
        except MissingFile:
            pass
        except (ValueError, KeyError, TypeError, AttributeError, ProblemsError, OverflowError):
            aside = self.file.with_name(f"project-unreadable-{time.time_ns()}.json")
            try:
                atomic.replace(self.file, aside)
                self.notice = f"The saved project could not be read and was renamed to {aside.name}."
            except OSError:
                self.notice = "The saved project could not be read."
        self.job, self.preset = self._first_job()

    def _first_job(self) -> tuple[TrainJob, str]:
        """What a first-time visitor sees: the starter preset, or the defaults with the starter's images."""
        try:
            job = preset_files.apply(self.presets.load(STARTER_PRESET), new_project())
            if isinstance(job, TrainJob):
                return job, STARTER_PRESET
        except ProblemsError:
            pass
        return with_value(new_project(), "dataset.folder", STARTER_IMAGES), ""


def word_name(job: TrainJob) -> str:
    """What the file of a textual inversion is called: its first word, without signs that no file's name holds; else ""."""
    if not job.method.traits.new_words or not job.embedding.words:
        return ""
    name = without_signs(job.embedding.words[0])
    return "" if bad_name(name) else name[:100]


def _check_name(path: str, value: Any) -> None:
    """A name that no file can have is refused in the field; rules over several fields are told next to them instead."""
    reason = bad_name(value) if path == NAME else None
    if reason:
        what = f"'{value}' cannot be a file name: {reason}"
        raise ProblemsError.one(what, path, "use letters, digits, - and _", "settings.bad-name")


def with_value(job: TrainJob, path: str, value: Any) -> TrainJob:
    """`job` with one value changed, checked like a preset. Raises ProblemsError."""
    return with_values(job, {path: value})


def with_values(job: TrainJob, values: Mapping[str, Any]) -> TrainJob:
    """`job` with these values by path, checked like a preset. Raises ProblemsError."""
    whole = to_values(job)
    for path, value in values.items():
        group, name = path.split(".", 1)
        whole[group][name] = value
    return build(TrainJob, whole)
