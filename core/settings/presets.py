"""Presets: jobs as JSON files, whole and checked.

kind "job" holds every group; kind "recipe" holds all but the model, the dataset, the sample prompts and the output name,
which it leaves as they are. One pure step dict -> dict leads from each schema version to the next.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from core.record import atomic
from core.record.bounded_json import parse_json
from core.record.problems import Problem, ProblemsError
from core.record.regular import MissingFile, read_regular
from core.settings.base import Settings, declared, value_of
from core.settings.check import build, shorten
from core.settings.foreign import foreign_problem, toml_values
from core.settings.job import JOBS, NOT_IN_A_RECIPE, NOT_IN_A_RECIPE_FIELDS, SCHEMA_VERSION, TrainJob
from core.settings.migrations import to_version_2
from core.settings.names import bad_name

HEADER = ("kind", "schema_version", "task", "title", "description", "preset")

MAX_BYTES, MAX_VALUES = 8_000_000, 50_000  # a preset with a hundred folders of their own settings has 8,000 values

# version n -> the step from n to n + 1. Every version that was ever written stays readable; tests hold an example of each.
MIGRATIONS: dict[int, Callable[[str, Mapping[str, Any]], tuple[str, dict[str, Any]]]] = {1: to_version_2}


@dataclass(frozen=True)
class Preset:
    """What a preset file holds. `values` are only the groups (and fields) that the file's kind covers."""

    name: str
    kind: str
    task: str
    values: dict[str, Any]
    title: str = ""
    description: str = ""


def to_values(job: Settings) -> dict[str, Any]:
    """A job as plain JSON values, every setting present."""
    return job.model_dump(mode="json")


def recipe_values(job: TrainJob) -> dict[str, Any]:
    """The part of a job that a recipe covers."""
    values = {group: fields for group, fields in to_values(job).items() if group not in NOT_IN_A_RECIPE}
    for path in NOT_IN_A_RECIPE_FIELDS:
        group, name = path.split(".")
        values[group] = {key: value for key, value in values[group].items() if key != name}
    return values


def dump(
    job: Settings, *, kind: str = "job", task: str = "train", title: str = "", description: str = "", preset: str = ""
) -> dict[str, Any]:
    """The content of a preset file, or of a run's job.json. preset: the one that a run was started from."""
    head = {"kind": kind, "schema_version": SCHEMA_VERSION, "task": task, "title": title, "description": description}
    head |= {"preset": preset} if preset else {}
    return head | (recipe_values(job) if kind == "recipe" and isinstance(job, TrainJob) else to_values(job))


def parse(raw: Any, where: str) -> Preset:
    """Check the envelope of a preset and bring it to the present schema. Raises ProblemsError; values are not checked yet."""
    if not isinstance(raw, dict):
        raise ProblemsError.one("A preset is an object with groups of settings", where, "begin the file with {")
    version = raw.get("schema_version")
    if (foreign := foreign_problem(raw, where)) is not None:
        raise ProblemsError([foreign])
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        text = f"schema_version is {shorten(version)}" if "schema_version" in raw else "schema_version is missing"
        raise ProblemsError.one(text, where, f'write "schema_version": {SCHEMA_VERSION}')
    if version > SCHEMA_VERSION:
        raise ProblemsError.one(
            f"The preset has schema version {version}; this Atelier knows up to {SCHEMA_VERSION}",
            where,
            "update Atelier",
        )
    while version < SCHEMA_VERSION:
        task, groups = MIGRATIONS[version](
            str(raw.get("task", "train")), {name: value for name, value in raw.items() if name not in HEADER}
        )
        raw = {name: raw[name] for name in HEADER if name in raw} | {"task": task} | groups
        version += 1
    kind, task = raw.get("kind", "job"), raw.get("task", "train")
    if (
        kind not in ("job", "recipe")
        or not isinstance(task, str)
        or task not in JOBS
        or (kind == "recipe" and task != "train")
    ):
        raise ProblemsError.one(
            f"kind is {shorten(kind)} and task is {shorten(task)}",
            where,
            f"kind: job or recipe; task: {', '.join(JOBS)}",
        )
    values = {key: value for key, value in raw.items() if key not in HEADER}
    return Preset(Path(where).stem, kind, task, values, str(raw.get("title", "")), str(raw.get("description", "")))


def read(path: Path) -> Preset:
    """Read a preset file and check everything in it. Raises ProblemsError listing all that is wrong."""
    try:
        data = read_regular(path, MAX_BYTES)
    except MissingFile:
        raise ProblemsError.one("There is no such preset", str(path), "check the name") from None
    try:
        raw = parse_json(
            data, str(path), "correct it, or save it again", max_values=MAX_VALUES, object_pairs_hook=_no_duplicates
        )
    except ProblemsError as error:
        foreign = None
        if isinstance(error.__cause__, json.JSONDecodeError):
            foreign = foreign_problem(toml_values(data.decode("utf-8-sig", "replace")), str(path), toml=True)
        if foreign is not None:
            raise ProblemsError([foreign]) from None
        raise
    preset = parse(raw, str(path))
    found = _outside_a_recipe(preset, str(path))
    try:
        build(JOBS[preset.task], preset.values, str(path))
    except ProblemsError as error:
        found += error.problems
    if found:
        raise ProblemsError(found)
    return preset


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """json keeps the last of two equal keys in silence; a preset says it."""
    twice = sorted(name for name, number in Counter(name for name, _ in pairs).items() if number > 1)
    if twice:
        raise ProblemsError.one(f"'{twice[0]}' is given twice", "preset", "keep one of them")
    return dict(pairs)


def _outside_a_recipe(preset: Preset, where: str) -> list[Problem]:
    if preset.kind != "recipe":
        return []
    inside = [group for group in preset.values if group in NOT_IN_A_RECIPE]
    for path in sorted(NOT_IN_A_RECIPE_FIELDS):
        group, name = path.split(".")
        fields = preset.values.get(group)
        inside += [path] if isinstance(fields, dict) and name in fields else []
    return [
        Problem(f"A recipe does not hold '{name}'", where, "remove it, or make it a preset of kind job")
        for name in inside
    ]


def apply(preset: Preset, current: TrainJob | None = None) -> Settings:
    """The job that loading gives: a job preset exactly as saved, a recipe with the model, dataset, prompts and name of `current`."""
    model = JOBS[preset.task]
    if preset.kind == "job" or current is None:
        return build(model, preset.values, preset.name)
    values = to_values(build(TrainJob, preset.values, preset.name))
    kept = to_values(current)
    for group in NOT_IN_A_RECIPE:
        values[group] = kept[group]
    for path in NOT_IN_A_RECIPE_FIELDS:
        group, name = path.split(".")
        values[group][name] = kept[group][name]
    return build(TrainJob, values, preset.name)


def differences(job: Settings, other: Settings) -> dict[str, tuple[Any, Any]]:
    """Settings that differ: {dotted path: (job's value, other's value)}."""
    pairs = ((entry.path, value_of(job, entry.path), value_of(other, entry.path)) for entry in declared(type(job)))
    return {path: (mine, theirs) for path, mine, theirs in pairs if mine != theirs}


def _stems(folder: Path) -> list[str]:
    """Names of the presets in a folder; one with a dot in front is still being written."""
    return sorted(path.stem for path in folder.glob("*.json") if not path.name.startswith("."))


@lru_cache(maxsize=500)
def _task_of(path: Path, changed: int) -> str:
    """The task of a preset file; one that cannot be read counts as a training's, where loading it says why."""
    try:
        raw = parse_json(read_regular(path, MAX_BYTES), str(path), "", max_values=MAX_VALUES)
    except ProblemsError:
        return "train"
    return str(raw.get("task", "train")) if isinstance(raw, dict) else "train"


class PresetStore:
    """Presets by name: shipped ones in presets/, the person's own in presets/user/. Shipped ones are never changed."""

    def __init__(self, folder: Path):
        self.shipped, self.user = folder, folder / "user"

    def names(self, task: str = "") -> list[str]:
        """Own presets as "user/name", shipped ones by name, each sorted; of one task, or of all."""
        found = [*_stems(self.shipped), *(f"user/{name}" for name in _stems(self.user))]
        return [name for name in found if not task or self._task(name) == task]

    def _task(self, name: str) -> str:
        try:
            path = self.path(name)
            return _task_of(path, path.stat().st_mtime_ns)
        except (OSError, ProblemsError):
            return "train"

    def path(self, name: str) -> Path:
        """The file of a preset; names with path parts are refused."""
        own = name.startswith("user/")
        stem = name.removeprefix("user/")
        reason = bad_name(stem)
        if reason:
            raise ProblemsError.one(
                f"'{stem}' cannot be a preset's name: {reason}", "preset name", "use letters, digits, - and _"
            )
        return (self.user if own else self.shipped) / f"{stem}.json"

    def load(self, name: str) -> Preset:
        return read(self.path(name))

    def save(self, name: str, job: Settings, *, kind: str = "job", task: str = "train", replace: bool = False) -> str:
        """Write an own preset and return its name ("user/...")."""
        name = "user/" + name.strip().removeprefix("user/")
        path = self.path(name)
        if path.exists() and not replace:
            raise ProblemsError.one(
                f"There is a preset '{name}' already", "preset name", "take another name, or replace it"
            )
        atomic.write_json(path, dump(job, kind=kind, task=task))
        return name

    def rename(self, name: str, new: str) -> str:
        source, new = self._own(name), "user/" + new.strip().removeprefix("user/")
        target = self.path(new)
        if target.exists():
            raise ProblemsError.one(f"There is a preset '{new}' already", "preset name", "take another name")
        atomic.replace(source, target)
        return new

    def delete(self, name: str) -> None:
        atomic.remove(self._own(name))

    def _own(self, name: str) -> Path:
        if not name.startswith("user/"):
            raise ProblemsError.one(
                f"'{name}' comes with Atelier and stays", "preset", "save it under your own name first"
            )
        path = self.path(name)
        if not path.exists():
            raise ProblemsError.one(f"There is no preset '{name}'", "preset", "choose one from the list")
        return path
