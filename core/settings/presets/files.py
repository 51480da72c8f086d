"""Presets: jobs as JSON files, complete and validated.

A preset of kind "job" has every group. One of kind "recipe" has only values that differ from the defaults, with a reason for
each, and leaves model, data and names to the user. Older schema versions are migrated step by step. Unknown keys and invalid
values are reported by core/settings/check.py.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from core.record import atomic
from core.record.bounded_json import parse_json
from core.record.problems import Problem, ProblemsError, collected, raise_any
from core.record.regular import MissingFile, read_regular
from core.record.stamps import cached_until_changed
from core.settings.base import Declared, Settings, declared, group_shown, value_of
from core.settings.check import build, shorten
from core.settings.job import JOBS, SCHEMA_VERSION, TrainJob
from core.settings.names import bad_name
from core.settings.presets.foreign import foreign_problem, toml_values, yaml_values
from core.settings.presets.migrations import switches_lost, to_version_2, to_version_3, with_present_tool

HEADER = ("kind", "schema_version", "task", "title", "description", "preset", "family", "vram_gb", "reasons")

# What a recipe cannot hold: the user's model and data, but for how they are trained, and names.
_REFUSED_GROUPS = frozenset(("model", "dataset", "resume", "hub"))
_REFUSED = frozenset(("samples.sample_prompts", "saving.output_name"))
_SIZES = frozenset(("dataset.resolution", "dataset.train_batch_size"))
_TRAINED = frozenset(
    (
        *("model.compatibility", "dataset.more_resolutions", "dataset.resolution_choice"),
        *("dataset.enable_bucket", "dataset.min_bucket_reso", "dataset.max_bucket_reso", "dataset.bucket_reso_steps"),
        *("dataset.bucket_no_upscale", "dataset.resize_interpolation", "dataset.flip_aug", "dataset.color_aug"),
        *("dataset.random_crop", "dataset.face_crop_aug_range", "dataset.prior_loss_weight", "dataset.short_batches"),
        "dataset.network_multiplier",
    )
)
# What stays the user's unless a recipe states it, besides settings that name files, folders or trackers.
_KEPT_GROUPS = frozenset(("validation", "logging"))
_KEPT = frozenset(
    (
        "captions.trigger_word",
        "captions.caption_prefix",
        "captions.caption_suffix",
        "embedding.token_string",
        "embedding.init_word",
        "method.class_caption",
        "network.dim_from_weights",
        "network.base_weights_multiplier",
        "samples.negative_prompt",
        "saving.training_comment",
    )
)

MAX_BYTES, MAX_VALUES = 8_000_000, 50_000  # a preset with a hundred folders of their own settings has 8,000 values

# version n -> the step from n to n + 1. Every version that was ever written stays readable; tests hold an example of each.
MIGRATIONS: dict[int, Callable[[str, Mapping[str, Any]], tuple[str, dict[str, Any]]]] = {
    1: to_version_2,
    2: to_version_3,
}


@dataclass(frozen=True)
class Preset:
    """The content of a preset file.

    name              the file's name without .json
    kind              "job" (complete) or "recipe" (values that differ from the defaults)
    task              the kind of job, a key of JOBS ("train")
    values            {group: {name: value}} of the settings in the file
    family, vram_gb   the model family ("sdxl") and VRAM in GB that a recipe is for; "" and 0 if not stated
    reasons           {dotted path: one line}
    """

    name: str
    kind: str
    task: str
    values: dict[str, Any]
    title: str = ""
    description: str = ""
    notes: tuple[Problem, ...] = ()  # advice on values that its migration could not convert
    family: str = ""
    vram_gb: int = 0
    reasons: Mapping[str, str] = field(default_factory=dict)

    def stated(self) -> dict[str, Any]:
        """Return {dotted path: value} of every setting in the file, in the order of declaration."""
        groups = {name: fields for name, fields in self.values.items() if isinstance(fields, dict)}
        paths = (entry.path for entry in declared(JOBS[self.task]) if entry.name in groups.get(entry.group, ()))
        return {path: groups[path.split(".")[0]][path.split(".")[1]] for path in paths}


def outside_recipes(entry: Declared) -> bool:
    """Return whether recipes cannot contain this setting."""
    return (entry.group in _REFUSED_GROUPS and entry.path not in _SIZES | _TRAINED) or entry.path in _REFUSED


def keeps(entry: Declared) -> bool:
    """Return whether a setting keeps its current value when a recipe that does not state it is loaded."""
    named = bool(entry.names) or entry.name.startswith("metadata_")
    return outside_recipes(entry) or named or entry.group in _KEPT_GROUPS or entry.path in _KEPT | _SIZES


def to_values(job: Settings) -> dict[str, Any]:
    """Return a job as plain JSON values {group: {name: value}}, every setting present."""
    return job.model_dump(mode="json")


def with_values(job: TrainJob, values: Mapping[str, Any]) -> TrainJob:
    """Return `job` with these settings, {path: value}, changed. Raises ProblemsError for invalid values."""
    groups = to_values(job)
    for path, value in values.items():
        group, name = path.split(".", 1)
        groups[group][name] = value
    return build(TrainJob, groups)


def dump(
    job: Settings, *, task: str = "train", title: str = "", description: str = "", preset: str = ""
) -> dict[str, Any]:
    """Return the content of a preset file, or of a run's job.json: "kind", "schema_version", "task", "title", "description", perhaps
    "preset", and {group: {setting: value}}. Groups that belong to another choice, such as other network kinds, are left out if they are at
    their defaults.
    preset: name of the preset that the run was started from, "" for none"""
    head = {"kind": "job", "schema_version": SCHEMA_VERSION, "task": task, "title": title, "description": description}
    head |= {"preset": preset} if preset else {}
    values = to_values(job).items()
    return head | {group: each for group, each in values if group_shown(job, group) or _touched(job, group)}


def _touched(job: Settings, group: str) -> bool:
    """Return whether a group has a setting that is not at its default."""
    settings = getattr(job, group)
    return bool(settings != type(settings)())


def content(preset: Preset) -> dict[str, Any]:
    """Return the JSON content of the preset's file: its header ("kind", "schema_version", "task", "title", "description", "family",
    "vram_gb"), {group: {setting: value}} and "reasons", without empty "family", "vram_gb" and "reasons"."""
    head = {"kind": preset.kind, "schema_version": SCHEMA_VERSION, "task": preset.task}
    head |= {"title": preset.title, "description": preset.description}
    about = {"family": preset.family, "vram_gb": preset.vram_gb}
    reasons = {"reasons": dict(preset.reasons)} if preset.reasons else {}
    return head | {name: value for name, value in about.items() if value} | preset.values | reasons


def with_job(preset: Preset, job: Settings) -> Preset:
    """Return the preset with a job's values. A recipe gets only the settings that it already contains, and those of the job that differ
    from the result of loading it."""
    if preset.kind == "job":
        job_content = dump(job, task=preset.task)
        return replace(preset, values={group: each for group, each in job_content.items() if group not in HEADER})
    job_values, stated = to_values(job), preset.stated()
    assert isinstance(job, TrainJob)
    values: dict[str, Any] = {}
    for path in stated | differences(job, apply(preset, job)):
        group, name = path.split(".", 1)
        values.setdefault(group, {})[name] = job_values[group][name]
    return replace(preset, values=values)


def parse(raw: Any, where: str) -> Preset:
    """Check the header of a preset file and migrate its content to the current schema; values are not checked. Raises ProblemsError.

    raw    the parsed JSON
    where  path of the file, whose stem is the preset's name
    """
    if not isinstance(raw, dict):
        what = "The preset is not a JSON object"
        raise ProblemsError.one(what, where, "start the file with {", code="preset.not-an-object")
    version = raw.get("schema_version")
    if (foreign := foreign_problem(raw, where)) is not None:
        raise ProblemsError([foreign])
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        text = f"schema_version is {shorten(version)}" if "schema_version" in raw else "schema_version is missing"
        raise ProblemsError.one(text, where, f'write "schema_version": {SCHEMA_VERSION}', code="preset.bad-version")
    if version > SCHEMA_VERSION:
        raise ProblemsError.one(
            f"The preset has schema version {version}; this version of Atelier reads up to {SCHEMA_VERSION}",
            where,
            "update Atelier",
            code="preset.newer-version",
        )
    notes: tuple[Problem, ...] = ()
    while version < SCHEMA_VERSION:
        current_groups = {name: value for name, value in raw.items() if name not in HEADER}
        notes += tuple(switches_lost(current_groups)) if version == 1 else ()
        task, groups = MIGRATIONS[version](str(raw.get("task", "train")), current_groups)
        raw = {name: raw[name] for name in HEADER if name in raw} | {"task": task} | groups
        version += 1
    kind, task = raw.get("kind", "job"), raw.get("task", "train")
    if isinstance(task, str):
        task, raw = with_present_tool(task, raw)
    if (
        kind not in ("job", "recipe")
        or not isinstance(task, str)
        or task not in JOBS
        or (kind == "recipe" and task != "train")
    ):
        raise ProblemsError.one(
            f"kind is {shorten(kind)} and task is {shorten(task)}",
            where,
            f"use job or recipe as the kind, and one of these as the task: {', '.join(JOBS)}",
            code="preset.bad-header",
        )
    values = {key: value for key, value in raw.items() if key not in HEADER}
    head = (str(raw.get("title", "")), str(raw.get("description", "")), notes, *_about_recipe(raw, where))
    return Preset(Path(where).stem, kind, task, values, *head)


def _about_recipe(raw: Mapping[str, Any], where: str) -> tuple[str, int, dict[str, str]]:
    """Return (family, VRAM in GB, reasons) from a recipe's header. Raises ProblemsError for invalid ones."""
    family, vram, reasons = raw.get("family", ""), raw.get("vram_gb", 0), raw.get("reasons", {})
    invalid: list[tuple[str, Any, str]] = []
    families = next(entry.choices for entry in declared(TrainJob) if entry.path == "model.family")
    if family not in ("", *families):
        invalid.append(("family", family, f"use one of {', '.join(families)}"))
    if not isinstance(vram, int) or isinstance(vram, bool) or not 0 <= vram <= 1024:
        invalid.append(("vram_gb", vram, "use a whole number of gigabytes"))
    if not isinstance(reasons, dict) or not all(isinstance(text, str) for text in reasons.values()):
        invalid.append(("reasons", reasons, "write an object with a line of text for each setting"))
    if invalid:
        raise ProblemsError(
            Problem(f"{name} is {shorten(value)}", where, fix, code="preset.bad-header") for name, value, fix in invalid
        )
    return family, vram, reasons


def read(path: Path) -> Preset:
    """Read a preset file and check its header and values. Raises ProblemsError with all problems."""
    try:
        data = read_regular(path, MAX_BYTES)
    except MissingFile:
        raise ProblemsError.one("The preset does not exist", str(path), "check the name", "preset.unknown") from None
    return parse_bytes(data, str(path))


def parse_bytes(data: bytes, where: str) -> Preset:
    """Check the header and values of a preset file's bytes, as `read`. `where` is the file's name, for messages."""
    try:
        raw = parse_json(
            data,
            where,
            "correct it, or save it again",
            max_values=MAX_VALUES,
            object_pairs_hook=partial(_no_duplicates, where),
        )
    except ProblemsError as error:
        foreign = None
        if isinstance(error.__cause__, json.JSONDecodeError):
            text = data.decode("utf-8-sig", "replace")
            foreign = foreign_problem(toml_values(text), where, toml=True) or foreign_problem(yaml_values(text), where)
        if foreign is not None:
            raise ProblemsError([foreign]) from None
        raise
    preset = parse(raw, where)
    problems = _outside_a_recipe(preset, where)
    collected(problems, build, JOBS[preset.task], preset.values, where)
    raise_any(problems)
    return preset


def _no_duplicates(where: str, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the pairs of a JSON object as a dict. Raises ProblemsError for a duplicate key, where json would silently use the last.
    where: the file"""
    duplicates = sorted(name for name, number in Counter(name for name, _ in pairs).items() if number > 1)
    if duplicates:
        what = f"'{duplicates[0]}' is given twice"
        raise ProblemsError.one(what, where, "keep one of them", code="preset.duplicate-key")
    return dict(pairs)


def _outside_a_recipe(preset: Preset, where: str) -> list[Problem]:
    """Return an error for each setting of a recipe that recipes cannot contain; [] for presets of kind "job"."""
    if preset.kind != "recipe":
        return []
    stated = preset.stated()
    inside = [entry.path for entry in declared(TrainJob) if outside_recipes(entry) and entry.path in stated]
    return [
        Problem(
            f"A recipe cannot contain '{path}'",
            where,
            "remove it, or make it a preset of kind job",
            code="preset.not-in-a-recipe",
        )
        for path in inside
    ]


def of_task(preset: Preset, task: str, where: str = "preset", fix: str = "load it in its own tab") -> Preset:
    """Return the preset unchanged. Raises ProblemsError (with `where` and `fix`) if it is for another task than `task`."""
    if preset.task == task:
        return preset
    what = f"'{preset.name}' is a preset for the task {preset.task}"
    raise ProblemsError.one(what, where, fix, "preset.other-task")


def apply(preset: Preset, current: TrainJob | None = None) -> Settings:
    """Return the job that loading a preset gives. Raises ProblemsError for invalid values.

    A preset of kind "job" is loaded exactly as saved. A recipe keeps model, data and names of the job `current`, if there is one.
    """
    model = JOBS[preset.task]
    if preset.kind == "job" or current is None:
        return build(model, preset.values, preset.name)
    values, old, stated = to_values(build(TrainJob, preset.values, preset.name)), to_values(current), preset.stated()
    for entry in declared(TrainJob):
        if keeps(entry) and entry.path not in stated:
            values[entry.group][entry.name] = old[entry.group][entry.name]
    return build(TrainJob, values, preset.name)


def differences(job: Settings, other: Settings) -> dict[str, tuple[Any, Any]]:
    """Return {dotted path: (value in `job`, value in `other`)} of the settings that differ."""
    pairs = ((entry.path, value_of(job, entry.path), value_of(other, entry.path)) for entry in declared(type(job)))
    return {path: (value, other_value) for path, value, other_value in pairs if value != other_value}


def _stems(folder: Path) -> list[str]:
    """Return the names of the presets in a folder in natural order (8 before 12). Temporary files, which start with a dot, are skipped."""
    stems = [path.stem for path in folder.glob("*.json") if not path.name.startswith(".")]
    return sorted(
        stems, key=lambda stem: [int(part) if index % 2 else part for index, part in enumerate(_NUMBER.split(stem))]
    )


_NUMBER = re.compile(r"([0-9]+)")  # splits a name so that every second part is a number


@cached_until_changed(500, missing=("train", ""))
def _about(path: Path) -> tuple[str, str]:
    """Return (task, title) of a preset file; ("train", "") for an unreadable one, so that the Train tab offers it and reports the error."""
    try:
        raw = parse_json(read_regular(path, MAX_BYTES), str(path), "", max_values=MAX_VALUES)
    except ProblemsError:
        return "train", ""
    return (str(raw.get("task", "train")), str(raw.get("title", ""))) if isinstance(raw, dict) else ("train", "")


class PresetStore:
    """Preset files by name: shipped ones in `folder`, which are never changed, and the user's in `folder`/user, or in
    `folder`/user/`person` for a user with a page of their own.
    shipped: the folder of the shipped presets, if `folder` is another one (--presets)"""

    def __init__(self, folder: Path, person: str = "", shipped: Path | None = None):
        self.folders, self.user = dict.fromkeys((folder, shipped or folder)), folder / "user" / person

    def names(self, task: str = "") -> list[str]:
        """Return the names of the presets of `task` ("" for all tasks): shipped ones, sorted, then the user's as "user/NAME"."""
        unchanged = dict.fromkeys(stem for folder in self.folders for stem in _stems(folder))
        names = [*unchanged, *(f"user/{name}" for name in _stems(self.user))]
        return [name for name in names if not task or self._about(name)[0] == task]

    def _about(self, name: str) -> tuple[str, str]:
        """Return (task, title) of the preset called `name`; ("train", "") if it cannot be read."""
        try:
            return _about(self.path(name))
        except (OSError, ProblemsError):
            return "train", ""

    def path(self, name: str) -> Path:
        """Return the file of a preset, which need not exist. Raises ProblemsError for invalid names, such as those with path separators."""
        is_user = name.startswith("user/")
        stem = name.removeprefix("user/")
        reason = bad_name(stem)
        if reason:
            what = f"'{stem}' cannot be the name of a preset: {reason}"
            raise ProblemsError.one(what, "preset name", "use letters, digits, - and _", "settings.bad-name")
        files = [folder / f"{stem}.json" for folder in ((self.user,) if is_user else self.folders)]
        return next((file for file in files if file.exists()), files[-1])

    def load(self, name: str, task: str = "") -> Preset:
        """Read a preset by name. Raises ProblemsError, also if it is for another task than `task` (unless that is "")."""
        preset = read(self.path(name))
        return of_task(preset, task) if task else preset

    def display_name(self, name: str) -> str:
        """Return the name of a user preset without "user/", or the title of a shipped one (its name if it has none)."""
        is_user = not name or name.startswith("user/")
        return (not is_user and self._about(name)[1]) or name.removeprefix("user/")

    def save(
        self, name: str, job: Settings, *, task: str = "train", replace: bool = False, description: str = ""
    ) -> str:
        """Write a user preset with a job's values and return its name ("user/..."). Raises ProblemsError for an invalid name, and for an
        existing one without `replace`."""
        return self._write(name, dump(job, task=task, description=description), replace)

    def save_copy(self, name: str, preset: Preset, *, replace: bool = False) -> str:
        """Write a copy of `preset`, including title and reasons, as a user preset and return its name ("user/...")."""
        return self._write(name, content(preset), replace)

    def _write(self, name: str, values: dict[str, Any], replace: bool = False) -> str:
        """Write the content of a user preset and return its name ("user/..."). Raises ProblemsError if it exists, unless `replace`."""
        name = "user/" + name.strip().removeprefix("user/")
        path = self.path(name)
        if path.exists() and not replace:
            what = f"A preset named '{name}' already exists"
            raise ProblemsError.one(what, "preset name", "choose another name, or replace it", "preset.exists")
        atomic.write_json(path, values)
        return name

    def rename(self, name: str, new: str) -> str:
        """Rename a user preset and return its new name ("user/..."). Raises ProblemsError for a shipped preset, and if the new name is
        invalid or taken."""
        source, new = self._user_file(name), "user/" + new.strip().removeprefix("user/")
        target = self.path(new)
        if target.exists() and not target.samefile(source):  # "fox" may become "Fox" where case makes no difference
            what = f"A preset named '{new}' already exists"
            raise ProblemsError.one(what, "preset name", "choose another name", code="preset.exists")
        atomic.replace(source, target)
        return new

    def delete(self, name: str) -> None:
        """Delete a user preset. Raises ProblemsError for a shipped or missing one."""
        atomic.remove(self._user_file(name))

    def _user_file(self, name: str) -> Path:
        """Return the file of a user preset. Raises ProblemsError for a shipped or missing one."""
        if not name.startswith("user/"):
            what = f"'{name}' comes with Atelier and cannot be changed"
            raise ProblemsError.one(what, "preset", "save it under your own name first", "preset.shipped")
        path = self.path(name)
        if not path.exists():
            what = f"There is no preset '{name}'"
            raise ProblemsError.one(what, "preset", "choose one from the list", code="preset.unknown")
        return path
