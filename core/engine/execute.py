"""Runs one job in this thread: lock, journal, the task's function, and handling of all exceptions."""

import sys
import traceback
from collections.abc import Callable
from typing import Any

from core import tasks
from core.engine.explain import Explanation, explain, lost_another_process
from core.engine.other_process import recorded_failure
from core.engine.run_facts import write_facts
from core.engine.view import facts_of
from core.record import atomic
from core.record.cancel import Cancelled, CancelToken
from core.record.commands import CommandReader
from core.record.context import JobContext
from core.record.events import Result, StateChanged
from core.record.journal import Journal, Line
from core.record.memory import free_memory
from core.record.problems import ProblemsError
from core.record.processes import Processes, end_if_launcher_gone
from core.record.run_folder import RunFolder
from core.record.secrets import mask
from core.record.workspace import Workspace
from core.settings.base import Settings


def execute(
    task: str,
    job: Settings,
    folder: RunFolder,
    workspace: Workspace,
    device: str,
    *,
    listener: Callable[[Line], None] = lambda line: None,
    token: CancelToken | None = None,
    store: Any = None,
    processes: Processes | None = None,
) -> tuple[str, Explanation | None]:
    """Run a job to its end in this thread. Return (state, explanation of a failure or None).

    listener    called with each line of the journal
    token       cancels the job
    store       models kept between generations
    processes   communication of a training on several GPUs
    Raises ProblemsError if another process runs this run, and KeyboardInterrupt after cleaning up.
    """
    messages = folder.lock()
    try:
        with Journal(folder.path) as journal:
            journal.listen(listener)
            context = JobContext(
                workspace, folder, journal, CommandReader(folder.path), device, token or CancelToken(), store
            )
            context.processes = processes or context.processes
            context.pauses = not tasks.named(task).pauses
            journal.put(StateChanged("running"))
            for line in messages:
                context.say(line, "warning")
            result = _guarded(task, job, context)
        if task == "train":
            write_facts(folder, facts_of(folder))
        return result
    finally:
        folder.unlock()


def _guarded(task: str, job: Settings, context: JobContext) -> tuple[str, Explanation | None]:
    """Run the task and write its result and last state to the journal. Return (state, explanation of a failure or None).

    Any Exception becomes the state "failed".
    """
    journal = context.journal
    try:
        outcome = tasks.named(task).start(job, context)
        explanation = _failure_elsewhere(context) if outcome.state == "stopped" else None
        if explanation is not None:  # a launcher asks the others to end when one has failed
            return _failed(context, explanation)
        if outcome.lines or outcome.facts:
            journal.put(Result(list(outcome.lines), dict(outcome.facts)))
        journal.put(StateChanged(outcome.state))
        return outcome.state, None
    except Cancelled as stop:
        if (explanation := _failure_elsewhere(context)) is not None:
            return _failed(context, explanation)
        message = "Stopped before training began" if task == "train" else "Cancelled"
        journal.put(StateChanged("stopped", str(stop) or message))
        return "stopped", None
    except Exception as error:
        if lost_another_process(error):
            end_if_launcher_gone()
        # Read at once: a failure that another process records later is a consequence of this one.
        elsewhere = None if isinstance(error, ProblemsError) else _failure_elsewhere(context)
        write_details(context.folder, traceback.format_exc())
        error.__traceback__ = None
        _free_memory(task)
        explanation = elsewhere or explain(error, lambda: memory_advice(task, job, context))
        if isinstance(error, ProblemsError):
            for problem in error.problems[1:]:
                context.say(
                    f"{problem.what} ({problem.where})" if problem.where else problem.what, "error", problem.fix
                )
        return _failed(context, explanation)
    finally:
        _free_memory(task)


def _free_memory(task: str) -> None:
    """Free unused memory if the task is a device job; for others that would delay the job on the device."""
    if tasks.named(task).lane == "device":
        free_memory()


def _failure_elsewhere(context: JobContext) -> Explanation | None:
    """Return the failure that another process of a distributed training recorded; None without one."""
    return recorded_failure(context.folder) if context.processes.count > 1 else None


def _failed(context: JobContext, explanation: Explanation) -> tuple[str, Explanation | None]:
    """Write the state "failed" to the journal; return ("failed", `explanation`)."""
    context.journal.put(StateChanged("failed", explanation.what, explanation.fix, explanation.code))
    return "failed", explanation


def memory_advice(task: str, job: Settings, context: JobContext) -> str:
    """Return advice on settings that save memory, for a job that ran out of memory; "" if there is none for its task."""
    if task in ("generate", "class_images", "grid"):
        return "generate one image at once or smaller ones, turn on VAE slices, or offload more to RAM"
    if task not in ("train", "probe") or "diffusers" not in sys.modules:
        return ""
    from core.training.memory.advice import out_of_memory_advice

    return out_of_memory_advice(job, context)  # type: ignore[arg-type]


def write_details(folder: RunFolder, text: str, name: str = "error.txt") -> None:
    """Write a traceback, without API keys, to file `name` in the run's logs, for bug reports. Errors are ignored."""
    try:
        folder.logs.mkdir(exist_ok=True)
        atomic.write_text(folder.logs / name, mask(text))
    except OSError:
        return
