"""The tools on model files: what a file is, a LoRA for diffusers, a model from the hub."""

from __future__ import annotations

from pathlib import Path

from core.record.context import JobContext, Outcome
from core.record.problems import ProblemsError
from core.record.workspace import Workspace, display_path, resolve_path
from core.settings.tool import DownloadSettings, ExportSettings, InspectSettings


def check_file(asked: InspectSettings | ExportSettings, workspace: Workspace) -> str:
    """The check before a start. Raises ProblemsError."""
    return f"from {display_path(file_of(asked.file, workspace))}"


def check_download(asked: DownloadSettings, workspace: Workspace) -> str:
    from core.formats.hub import parse_source

    return f"download {parse_source(asked.hub_id or '')} into {display_path(workspace.models)}"


def inspect_file(asked: InspectSettings, context: JobContext) -> Outcome:
    from core.tools.inspect import in_words, inspect

    path = file_of(asked.file, context.workspace)
    context.stage(f"reading {path.name}")
    facts = inspect(path, context.cancel)
    return Outcome(lines=in_words(facts), facts=facts)


def export(asked: ExportSettings, context: JobContext) -> Outcome:
    from core.tools.export import export_diffusers

    path = file_of(asked.file, context.workspace)
    context.stage(f"exporting {path.name}")
    written = export_diffusers(path, resolve_path(asked.output) if asked.output else None)
    return Outcome(lines=[f"Saved: {display_path(written)}"], facts={"file": str(written)})


def download(asked: DownloadSettings, context: JobContext) -> Outcome:
    from core.formats import hub

    source = hub.parse_source(asked.hub_id or "")
    models = context.workspace.models
    here = models / source.file if isinstance(source, hub.Link) else hub.resolve(str(source), models)
    if isinstance(here, Path) and here.exists():
        return Outcome(lines=[f"{source} is here already: {display_path(here)}"], facts={"file": str(here)})

    def on_progress(done: int, total: int) -> None:
        context.stage(f"downloading {source}", done, total)

    path = hub.download(source, models, on_progress, context.cancel)
    return Outcome(lines=[f"Downloaded: {display_path(path)}"], facts={"file": str(path)})


def file_of(name: str | None, workspace: Workspace) -> Path:
    """The file a tool works on: a path, or the name of a LoRA."""
    from core.generation.library import find_file, find_lora

    wanted = (name or "").strip()
    if not wanted:
        fix = "give a path, or the name of a LoRA"
        raise ProblemsError.one("No file is given", "file", fix, "tools.no-file-given")
    found = find_file(wanted, workspace)
    if found is not None:
        return found
    try:
        return find_lora(wanted, workspace)
    except ProblemsError as error:
        fix = f"give a path, or the name of a LoRA: {error.problems[0].fix}"
        what = f"There is no file and no LoRA named '{wanted}'"
        raise ProblemsError.one(what, "file", fix, "tools.no-such-file") from None
