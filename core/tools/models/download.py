"""Downloads a model into the models folder."""

from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from core.formats.hub import references as hub
from core.record import atomic
from core.record.context import JobContext, Outcome
from core.record.problems import ProblemsError
from core.record.workspace import Workspace, display_path
from core.settings.tools.model_files import DownloadSettings


@dataclass(frozen=True)
class Plan:
    """The model to download (`source`), and the models folder."""

    source: hub.Source
    models: Path

    def __str__(self) -> str:
        return f"download {self.source} into {display_path(self.models)}"


def plan(settings: DownloadSettings, workspace: Workspace) -> Plan:
    """Return the plan. Raises ProblemsError for a text that is no hub id, catalog entry or link."""
    return Plan(hub.parse_source(settings.hub_id or ""), workspace.models)


def do(settings: DownloadSettings, plan: Plan, context: JobContext) -> Outcome:
    """Download the model, unless it is in the models folder."""
    source, models = plan.source, plan.models
    context.stage("looking in the models folder")
    if (path := hub.installed_path(source, models, context.cancel)) is not None:
        return Outcome(lines=[f"{source} is already downloaded: {display_path(path)}"], facts={"file": str(path)})

    on_progress = partial(context.stage, f"downloading {source}", of_bytes=True)

    try:
        path = hub.download(source, models, on_progress, context.cancel)
    finally:
        _forget_link(str(source), context)
    return Outcome(lines=[f"Downloaded: {display_path(path)}"], facts={"file": str(path)})


def _forget_link(source: str, context: JobContext) -> None:
    """Replace the link in the run's job.json by `source`, since a link may contain a key."""
    with suppress(OSError, ProblemsError):
        job = context.folder.job()
        atomic.write_json(context.folder.job_file, job | {"download": {"hub_id": source}})
