"""The tasks that generate images: what generation reports becomes events of the job's journal."""

from __future__ import annotations

from typing import Any

from core.record.context import JobContext, Outcome
from core.record.events import Drawn
from core.record.workspace import Workspace
from core.settings.job import ClassImagesJob, GenerateJob


def make_store() -> Any:
    """The store that keeps one loaded model between generate jobs."""
    from core.generation.run import make_store as make

    return make()


def check_generate(job: GenerateJob, workspace: Workspace) -> str:
    from core.generation.run import find_sources

    find_sources(job, workspace)
    return "The settings are valid."


def generate(job: GenerateJob, context: JobContext) -> Outcome:
    from core.generation.run import run_generate

    run_generate(job, context.workspace, **_surroundings(context))
    return Outcome()


def check_class_images(job: ClassImagesJob, workspace: Workspace) -> str:
    from core.generation.class_images import what_would_be_made

    return what_would_be_made(job, workspace)


def class_images(job: ClassImagesJob, context: JobContext) -> Outcome:
    from core.generation.class_images import make_class_images

    make_class_images(job, context.workspace, **_surroundings(context))
    return Outcome()


def _surroundings(context: JobContext) -> dict[str, Any]:
    def on_event(kind: str, **facts: Any) -> None:
        """kind: "progress" (text, done, total), "image" (path, seed) or "log" (text, level, fix)."""
        if kind == "progress":
            context.stage(str(facts.get("text", "generating")), int(facts.get("done", 0)), int(facts.get("total", 0)))
        elif kind == "image":
            context.journal.put(Drawn(str(facts["path"]), int(facts["seed"])))
        elif kind == "log":
            context.say(str(facts["text"]), str(facts.get("level", "info")), str(facts.get("fix", "")))

    store = context.store or make_store()
    return {"store": store, "device": context.device, "on_event": on_event, "cancel": context.cancel}
