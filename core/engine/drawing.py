"""Generate, regularization image and tool jobs on the engine: what generation reports becomes events of the job's journal."""

from __future__ import annotations

from typing import Any

from core.record.context import JobContext
from core.record.events import Drawn
from core.settings.job import ClassImagesJob, GenerateJob, ToolJob


def make_store() -> Any:
    """The store that keeps one loaded model between generate jobs."""
    from core.generation.run import make_store as make

    return make()


def draw_images(job: GenerateJob, context: JobContext) -> str:
    from core.generation.run import run_generate

    run_generate(
        job,
        context.workspace,
        store=context.store or make_store(),
        device=context.device,
        on_event=_to_journal(context),
        cancel=context.token,
    )
    return "done"


def draw_class_images(job: ClassImagesJob, context: JobContext) -> str:
    from core.generation.class_images import make_class_images

    make_class_images(
        job,
        context.workspace,
        store=context.store or make_store(),
        device=context.device,
        on_event=_to_journal(context),
        cancel=context.token,
    )
    return "done"


def use_tool(job: ToolJob, context: JobContext) -> str:
    from core.tools import run_tool

    run_tool(job, context.workspace, on_event=_to_journal(context), cancel=context.token)
    return "done"


def _to_journal(context: JobContext) -> Any:
    """on_event(kind, **facts): "progress" (text, done, total), "image" (path, seed), "log" (text, level, fix)."""

    def on_event(kind: str, **facts: Any) -> None:
        context.take_commands()
        if kind == "progress":
            context.stage(str(facts.get("text", "drawing")), int(facts.get("done", 0)), int(facts.get("total", 0)))
        elif kind == "image":
            context.journal.put(Drawn(str(facts["path"]), int(facts["seed"])))
        elif kind == "log":
            context.say(str(facts["text"]), str(facts.get("level", "info")), str(facts.get("fix", "")))

    return on_event
