"""Small jobs on files: what a file is, a LoRA for diffusers, a model from the hub."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.record.problems import ProblemsError

if TYPE_CHECKING:
    from core.record.cancel import CancelToken
    from core.record.workspace import Workspace
    from core.settings.job import ToolJob
    from core.settings.tool import ToolSettings

OnEvent = Callable[..., None]  # on_event(kind, **facts): "progress": text, done, total; "log": text, level, fix


def run_tool(
    job: ToolJob,
    workspace: Workspace,
    on_event: OnEvent = lambda kind, **facts: None,
    cancel: CancelToken | None = None,
) -> Any:
    """Do what the job asks for. Returns the facts (inspect) or the new file (export_diffusers, download)."""
    tools = {"inspect": _inspect, "export_diffusers": _export, "download": _download}
    return tools[job.tool.name](job.tool, workspace, on_event, cancel)


def _inspect(
    asked: ToolSettings, workspace: Workspace, on_event: OnEvent, cancel: CancelToken | None
) -> dict[str, Any]:
    from core.tools.inspect import in_words, inspect

    path = file_of(asked.file, workspace)
    on_event("progress", text=f"reading {path.name}", done=0, total=0)
    facts = inspect(path, cancel)
    for line in in_words(facts):
        on_event("log", text=line, level="info", fix="")
    return facts


def _export(asked: ToolSettings, workspace: Workspace, on_event: OnEvent, cancel: CancelToken | None) -> Path:
    from core.record.workspace import display_path, resolve_path
    from core.tools.export import export_diffusers

    path = file_of(asked.file, workspace)
    output = resolve_path(asked.output) if asked.output else None
    written = export_diffusers(path, output)
    on_event("log", text=f"Written: {display_path(written)}", level="info", fix="")
    return written


def _download(asked: ToolSettings, workspace: Workspace, on_event: OnEvent, cancel: CancelToken | None) -> Path:
    from core.formats.hub import Link, download, parse_source, resolve
    from core.record.workspace import display_path

    source = parse_source(asked.hub_id or "")
    here = workspace.models / source.file if isinstance(source, Link) else resolve(str(source), workspace.models)
    if isinstance(here, Path) and here.exists():
        on_event("log", text=f"{source} is here already: {display_path(here)}", level="info", fix="")
        return here

    def on_progress(done: int, total: int) -> None:
        on_event("progress", text=f"downloading {source}", done=done, total=total)

    path = download(source, workspace.models, on_progress, cancel)
    on_event("log", text=f"Downloaded: {display_path(path)}", level="info", fix="")
    return path


def file_of(name: str | None, workspace: Workspace) -> Path:
    """The file a tool works on: a path, or the name of a LoRA."""
    from core.generation.library import find_file, find_lora

    wanted = (name or "").strip()
    if not wanted:
        raise ProblemsError.one("No file is named", "tool.file", "give a path, or the name of a LoRA")
    found = find_file(wanted, workspace)
    if found is not None:
        return found
    try:
        return find_lora(wanted, workspace)
    except ProblemsError as error:
        fix = f"give a path, or the name of a LoRA: {error.problems[0].fix}"
        raise ProblemsError.one(f"There is no file '{wanted}', and no LoRA of that name", "tool.file", fix) from None
