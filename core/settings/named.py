"""Find the paths, names and ids in a job, and check whether jobs of a shared page may use them. Checked when a job enters the engine,
wherever it comes from: a form, the JSON pane, a tool, another process."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from core.record.allowed import lies_in
from core.record.problems import Problem, raise_any
from core.record.run_about import others_run_problem
from core.record.workspace import PROJECT, STARTER, Workspace, display_path, lies_below, pasted_path, resolve_path
from core.settings.base import about_of
from core.settings.names import bad_name
from core.settings.optimization.schedule import ScheduleSettings

KEYS_FIX = "leave it out; the owner of the machine can allow it with --lend-keys"
USES_KEY = {"wandb", "all"}  # values of a tracker setting
MOST_STEPS = 100_000  # of a training on a shared page: weeks on most cards
MOST_EPOCHS = 1000
DRIVE = re.compile(r"\s*[A-Za-z]:")
# Settings whose path is written to
WRITTEN = {
    *("output", "output_dir", "output_path", "outdir", "out_json", "copy_to", "write_metadata", "png", "logging_dir"),
    *("console_log_file", "offload_optimizer_nvme_path", "offload_param_nvme_path", "class_images.folder"),
}
CONTROL_IMAGE = re.compile(r"--cn\s+(.+?)(?=\s--|$)", re.IGNORECASE | re.DOTALL)  # of a prompt


def _bare(text: str) -> str:
    """Return the path that a text may be read as, also without an unpaired quotation mark."""
    return pasted_path(text).strip("\"'")


@dataclass(frozen=True)
class Limits:
    """Restrictions on jobs of a shared page.

    folders    resolved paths of the folders whose files jobs may use
    closed     resolved paths of folders in them that jobs may not use
    keys       whether jobs may use the owner's API keys
    workspace  the workspace of a user with a page of their own, whose jobs may not use other users' folders; else None
    """

    folders: Sequence[Path]
    closed: Sequence[Path] = ()
    keys: bool = False
    workspace: Workspace | None = None

    @classmethod
    def of(cls, workspace: Workspace, keys: bool = False) -> Limits:
        """Return the limits of a shared page: outputs, models, presets, the starter model and the folders of --allow are open, except the
        engine's private folder. `keys` allows the owner's API keys."""
        named = (workspace.outputs, workspace.models, workspace.presets, *workspace.allowed)
        folders = [path.resolve() for path in named]
        folders += [] if lies_in(STARTER, folders) else [STARTER.resolve()]
        return cls(folders, [workspace.private.resolve()], keys).for_person(workspace)

    def for_person(self, workspace: Workspace) -> Limits:
        """Return these limits for the user of `workspace`; for a workspace without a user of its own, without that restriction."""
        return replace(self, workspace=workspace if workspace.person else None)

    def allows(self, text: str) -> bool:
        """Return whether jobs may use the path `text`, both as written and as it is read from a pasted text."""
        return all(self._allows_exactly(each) for each in {text, text.strip(), _bare(text)} if each)

    def _allows_exactly(self, text: str) -> bool:
        """Return whether a path, exactly as written, is in an allowed folder and in no closed one or one of another user."""
        try:
            path = resolve_path(text)
        except (OSError, ValueError, RuntimeError):
            return False
        if not lies_in(path, self.folders) or lies_below(path, self.closed):
            return False
        space = self.workspace  # a folder is read with its subfolders
        return space is None or not (space.is_other_persons(path) or lies_below(space.outputs / "people", [path]))

    @property
    def description(self) -> str:
        """Allowed folders for messages: "outputs, models, presets"; folders outside the project with their whole path."""
        return ", ".join(map(display_path, self.folders))


@dataclass(frozen=True)
class Reference:
    """A path, name or id that a job refers to.

    where  dotted path of the setting, such as "dataset.sources.0.folder"
    what   the kind of reference, one of `base.NAMES`
    value  the text
    group  the group of settings, or list item, that contains it
    """

    where: str
    what: str
    value: Any
    group: BaseModel


def named_in(job: BaseModel, prefix: str = "") -> Iterator[Reference]:
    """Yield each path, name and id in a job, also in list items such as folders and LoRAs. `prefix` precedes the settings' paths."""
    for name, info in type(job).model_fields.items():
        where, value = f"{prefix}{name}", getattr(job, name)
        what = about_of(info).get("names", "")
        if what and value:
            for each in value if isinstance(value, (list, tuple)) else [value]:
                if isinstance(each, str) and each.strip():
                    yield Reference(where, what, each, job)
        elif isinstance(value, BaseModel):
            yield from named_in(value, f"{where}.")
        elif isinstance(value, (list, tuple)):
            for number, each in enumerate(value):
                if isinstance(each, BaseModel):
                    yield from named_in(each, f"{where}.{number}.")


def closed_path_problem(text: str, where: str, limits: Limits) -> Problem:
    """Return the problem that `limits` do not allow the path `text` of the setting `where`."""
    path, space = resolve_path(_bare(text)), limits.workspace
    if (
        space
        and lies_in(path, limits.folders)
        and (space.is_other_persons(path) or not lies_below(path, limits.closed))
    ):
        what = f"'{text}' {'belongs to' if space.is_other_persons(path) else 'has folders of'} somebody else"
        fix = f"use a folder of your own, such as {display_path(space.images)}"
        return Problem(what, where, fix, code="shared.path-closed")
    fix = f"use a path inside {limits.description}, upload the files, or start the page with --allow FOLDER"
    return Problem(f"'{text}' is not accessible from a shared page", where, fix, code="shared.path-closed")


def limit_problems(job: BaseModel, limits: Limits) -> list[Problem]:
    """Return a problem for each reference that `limits` do not allow, and for a training that is too long."""
    problems = [problem for named in named_in(job) if (problem := _problem(named, limits))]
    return [*problems, *_control_images(job, limits), *_length_problems(job)]


def _control_images(job: BaseModel, limits: Limits) -> list[Problem]:
    """Return problems of control images in sample prompts (--cn PATH), and of a prompt file, which could name any path."""
    samples, method = getattr(job, "samples", None), getattr(job, "method", None)
    if not samples or not method or not method.traits.control_images:
        return []
    named = [path for line in samples.sample_prompts for path in CONTROL_IMAGE.findall(line)]
    problems = [
        closed_path_problem(path, "samples.sample_prompts", limits) for path in named if not limits.allows(path)
    ]
    if samples.sample_prompts_file:
        what, fix = "A prompt file cannot name control images from a shared page", "write the prompts on the page"
        problems.append(Problem(what, "samples.sample_prompts_file", fix, code="shared.prompts-file"))
    return problems


def _length_problems(job: BaseModel) -> list[Problem]:
    """Return the problem of a training of more than MOST_STEPS or MOST_EPOCHS, which would block the machine for weeks; else []."""
    schedule = getattr(job, "schedule", None)
    if not isinstance(schedule, ScheduleSettings):
        return []
    steps, epochs = schedule.steps_in_force, schedule.max_train_epochs
    name, value, most = ("steps", steps, MOST_STEPS) if steps else ("epochs", epochs or 0, MOST_EPOCHS)
    if value <= most:
        return []
    what, fix = f"{value} {name} are too many for a shared page", f"use at most {most}"
    return [Problem(what, f"schedule.max_train_{name}", fix, code="shared.too-long")]


def admit(job: BaseModel, limits: Limits | None) -> None:
    """Raise ProblemsError with everything in a job that it may not use. `limits` is None for a local page."""
    raise_any(escape_problems(job) + (limit_problems(job, limits) if limits else []))


def escape_problems(job: BaseModel) -> list[Problem]:
    """Return problems of names that would lead out of their folder as part of a path ("../x", "/x", "C:x"); refused on local pages too."""
    fix = "use a name without .., a leading / or a drive letter"
    return [
        Problem(f"'{named.value}' leads out of its folder", named.where, fix, code="settings.leaves-folder")
        for named in named_in(job)
        if named.what == "part" and leads_out(named.value)
    ]


def leads_out(text: str) -> bool:
    """Return whether text used as part of a path could lead out of its folder, on any operating system."""
    parts = text.replace("\\", "/").split("/")
    return parts[0] == "" or ".." in (part.strip() for part in parts) or bool(DRIVE.match(text)) or "\0" in text


def _problem(named: Reference, limits: Limits) -> Problem | None:
    """Return the problem of a reference that `limits` do not allow; None if they allow it."""
    text, where = named.value, named.where
    match named.what:
        case "path":
            outside = not limits.allows(text)
            if not outside and limits.workspace and not WRITTEN.isdisjoint({where, where.rpartition(".")[2]}):
                return others_run_problem(resolve_path(text), where, limits.workspace)
        case "word=path":
            outside = any(_is_outside(each, limits) for each in {text, text.partition("=")[2]} if each)
        case "path or name":
            outside = _is_outside(text, limits)
        case "state":
            outside = not getattr(named.group, "resume_from_huggingface", False) and _is_outside(text, limits)
        case _:
            return _non_path_problem(named, limits)
    return closed_path_problem(text, where, limits) if outside else None


def _non_path_problem(named: Reference, limits: Limits) -> Problem | None:
    """Return the problem of a reference that is not a local path: part of a path, download, upload or tracker. None if allowed."""
    text, where = named.value, named.where
    if named.what == "part" and any(bad_name(part.strip(". ") or ".") for part in text.split("/")):
        fix = "use letters, digits, - and _"
        return Problem(f"'{text}' cannot be used as a file name", where, fix, code="settings.bad-name")
    if named.what == "tracker settings":
        what = "A tracker config file cannot be used from a shared page"
        return Problem(what, where, "leave it empty", code="shared.tracker-config")
    if named.what == "download" and ":" in text:  # any other address, also of this machine's own network
        fix = "write owner/name; links can only be downloaded on the machine itself"
        return Problem(f"'{text}' is not a Hugging Face id", where, fix, code="shared.download-link")
    if named.what == "upload" and not limits.keys:
        return Problem("Uploads from a shared page would use the owner's key", where, KEYS_FIX, code="shared.owner-key")
    if named.what == "tracker" and text in USES_KEY and not limits.keys:
        return Problem("wandb from a shared page would use the owner's key", where, KEYS_FIX, code="shared.owner-key")
    return None


def _is_outside(text: str, limits: Limits) -> bool:
    """Return whether a text that may be a name or a path (of a model, LoRA, run or Hugging Face id) is a path outside the allowed folders.

    Plain names are never outside: they are only looked up in allowed folders (core/record/allowed.py).
    """
    plain = _bare(text)
    parts = plain.replace("\\", "/").split("/")
    is_path = parts[0] == "" or ":" in parts[0] or parts[0].startswith("~") or ".." in (part.strip() for part in parts)
    closed = {folder.name.casefold() for folder in limits.closed}
    is_path = is_path or any(part.rstrip(". ").casefold() in closed for part in parts)
    if "\0" in plain or (is_path and not limits.allows(text)):
        return True
    space, inside = limits.workspace, "/".join(parts[1:] if parts[0] == "outputs" else parts)
    return space is not None and any(
        space.is_other_persons(base / inside) for base in (PROJECT / "outputs", space.outputs)
    )
