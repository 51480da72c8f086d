"""The tools on model files: what a file is, a model from the hub."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from core.formats.detect import identify
from core.record import atomic
from core.record.context import JobContext, Outcome
from core.record.problems import ProblemsError, at_setting, problems_at
from core.record.workspace import Workspace, display_path
from core.settings.tools.model_files import DownloadSettings, InspectSettings

INSPECTED = "inspect.file"


def check_inspect(asked: InspectSettings, workspace: Workspace) -> str:
    return f"inspect {display_path(file_of(asked.file, workspace, INSPECTED))}"


def check_download(asked: DownloadSettings, workspace: Workspace) -> str:
    from core.formats.hub.references import parse_source

    return f"download {parse_source(asked.hub_id or '')} into {display_path(workspace.models)}"


def inspect(asked: InspectSettings, context: JobContext) -> Outcome:
    from core.tools.models import inspect as inspection

    path = file_of(asked.file, context.workspace, INSPECTED)
    context.stage(f"reading {path.name}")
    facts = inspection.inspect(path, context.cancel)
    return Outcome(lines=inspection.in_words(facts), facts=facts)


def download(asked: DownloadSettings, context: JobContext) -> Outcome:
    from core.formats.hub import references as hub

    source = hub.parse_source(asked.hub_id or "")
    models = context.workspace.models
    context.stage("looking in the models folder")
    if (here := hub.here(source, models, context.cancel)) is not None:
        return Outcome(lines=[f"{source} is already downloaded: {display_path(here)}"], facts={"file": str(here)})

    def on_progress(done: int, total: int) -> None:
        context.stage(f"downloading {source}", done, total, of_bytes=True)

    try:
        path = hub.download(source, models, on_progress, context.cancel)
    finally:
        _forget_link(str(source), context)
    return Outcome(lines=[f"Downloaded: {display_path(path)}"], facts={"file": str(path)})


def _forget_link(shown: str, context: JobContext) -> None:
    """A link may hold a key: once it is used, the job's file names only what was downloaded."""
    with suppress(OSError, ProblemsError):
        job = context.folder.job()
        atomic.write_json(context.folder.job_file, job | {"download": {"hub_id": shown}})


def file_of(name: str | None, workspace: Workspace, where: str) -> Path:
    """The file a tool works on: a path, or the name of a LoRA. where: the setting that gives it."""
    from core.generation.library import find_file, find_lora

    wanted = (name or "").strip()
    if not wanted:
        fix = "enter a path, or the name of a LoRA"
        raise ProblemsError.one("No file is given", where, fix, "tools.no-file-given")
    found = find_file(wanted, workspace)
    if found is not None:
        return found
    try:
        return find_lora(wanted, workspace)
    except ProblemsError as error:
        fix = f"enter a path, or the name of a LoRA: {error.problems[0].fix}"
        what = f"There is no file and no LoRA named '{wanted}'"
        raise ProblemsError.one(what, where, fix, "tools.no-such-file") from None


def model_file(reference: str | None, workspace: Workspace, where: str) -> Path:
    """The checkpoint or folder that a setting names, by its path or its name in the models folder. Raises ProblemsError."""
    from core.families.locate import model_path

    if not (reference or "").strip():
        fix = "choose a .safetensors or .ckpt checkpoint, or a diffusers folder"
        raise ProblemsError.one("No model is given", where, fix, "tools.no-file-given")
    path = model_path(str(reference).strip(), workspace, where)
    with problems_at(where):
        identify(path)
    return path


def lora_of(name: str | None, workspace: Workspace, where: str) -> Path:
    """The file of a LoRA. Raises ProblemsError for anything else."""
    path, what = file_of(name, workspace, where), ""
    if path.is_dir():
        what, fix = f"{display_path(path)} is a folder, not a LoRA", "choose a LoRA file in it"
        raise ProblemsError.one(what, where, fix, "tools.not-a-lora")
    try:
        kind = identify(path)
        what = f"{display_path(path)} is not a LoRA but: {kind}" if kind.kind != "lora" else ""
    except ProblemsError as error:
        if error.codes != ["model.unknown-file"]:
            raise ProblemsError(at_setting(where, error.problems)) from None
        what = f"{display_path(path)} is not a model file"
    if what:
        fix = "choose a LoRA: a .safetensors, .ckpt or .pt file"
        raise ProblemsError.one(what, where, fix, "tools.not-a-lora")
    return path
