"""Runs one job in this process, or hands it to the page that holds the outputs folder."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, TextIO, cast

from core import tasks
from core.cli.main import BAD_INPUT, DONE, FAILED, INTERRUPTED
from core.cli.options import Options
from core.cli.signals import REPEATED_SECONDS
from core.engine.deleted import no_such_run
from core.engine.execute import execute, memory_advice, write_details
from core.engine.explain import explain, lost_another_process
from core.engine.launch import is_launched, supervise
from core.engine.other_process import clear_failure, record_failure
from core.engine.owner import Ownership, hand_in, has_page, inbox, is_held
from core.engine.queue import QueueEntry, StoredQueue
from core.engine.view import RunView
from core.record import machine
from core.record.bounded_json import read_json_object
from core.record.cancel import CancelToken
from core.record.commands import NoCommands
from core.record.context import JobContext
from core.record.journal import Line, SilentJournal
from core.record.problems import ProblemsError, one_line
from core.record.processes import SUPERVISED, Together, end_if_launcher_gone, launched_processes
from core.record.regular import impossible_path
from core.record.run_folder import RunFolder
from core.record.units import loss_text, progress_text
from core.record.workspace import Workspace, display_path, in_workspace, resolve_path
from core.settings.base import Settings
from core.settings.job import TrainJob
from core.settings.logging import LoggingSettings
from core.settings.presets.files import dump, to_values

ANSWER_SECONDS = 5.0  # for a page to take in a job of --queue
STOP_SECONDS = 8  # until a job that does not react to a stop is killed
# $0: process, $1: seconds. Its stdin gets a byte at a signal; without one it ends.
KILLER = 'test -n "$(head -c 1)" && sleep "$1" && kill -9 "$0"'
REPEAT_SECONDS = 3.0  # within which a launcher repeats a signal that all its processes received


def run_job(task: str, job: Settings, title: str, options: Options, resume: RunFolder | None = None) -> int:
    """Run a job in this process, or with --queue hand it to the page. Return the exit code. Raises ProblemsError if the outputs folder is
    in use or cannot be written.
    resume: folder of the run to resume; None for a new one"""
    workspace = options.workspace()
    if options.values.get("queue"):
        run, page = resume.name if resume else "", has_page(workspace)
        identity = hand_in(workspace, task, title, to_values(job), run, options.preset_name)
        stored = _wait_for_page(workspace, identity) if page else stored_queue(workspace)
        if options.values.get("json"):
            facts = {"id": identity, "title": title, "run": run, "paused": stored.paused, "page": page}
            print(json.dumps(facts, ensure_ascii=False))
            return DONE
        when = "" if page else "; no page is open on this folder: the next one runs it"
        print(f"'{title}' is in the queue of {display_path(workspace.outputs)} as {identity}{when}")
        if stored.paused:
            print(paused_sentence(stored))
        return DONE
    if "device" in options.values:
        machine.check_device(options.values["device"])
    if task == "train" and launched_processes() > 1:
        return run_together(job, title, workspace, options, resume)
    reads = tasks.named(task).only_reads(job)
    with nullcontext() if reads else Ownership(workspace, f"{task} '{title}' on the command line"):
        folder = resume or _new_folder(task, job, title, workspace, options.preset_name)
        if task == "train":
            print(f"run folder: {display_path(folder.path)}", file=sys.stderr)
        return _execute(task, job, folder, workspace, options)


def stored_queue(workspace: Workspace) -> StoredQueue:
    """Return the queue of the outputs folder: as its page has it, or, without a page, as the next one will begin. Empty if it cannot be
    read."""
    try:
        stored = StoredQueue.read(workspace.private / "queue.json")
    except (ProblemsError, KeyError, TypeError, ValueError):
        return StoredQueue()
    return stored if is_held(workspace) else stored.after_end()


def inbox_entries(workspace: Workspace) -> Iterator[QueueEntry]:
    """Yield the jobs of `--queue` that no page has read yet, without their settings."""
    for path in sorted(inbox(workspace).glob("[!.]*.json")):
        with suppress(ProblemsError):  # it is taken in meanwhile, or damaged
            content = {name: str(value) for name, value in read_json_object(path).items() if name != "job"}
            task, run = content.get("task", ""), content.get("run", "")
            yield QueueEntry(content.get("id", ""), task, content.get("title", ""), {}, run=run)


def _wait_for_page(workspace: Workspace, identity: str) -> StoredQueue:
    """Wait until the page has queued the job, at most ANSWER_SECONDS, and return the queue. Raises ProblemsError if the page refused it."""
    end = time.monotonic() + ANSWER_SECONDS
    while True:
        stored = stored_queue(workspace)
        entry = next((each for each in stored.entries if each.id == identity), None)
        if entry is not None and entry.state == "failed":
            raise ProblemsError.one(entry.message, "queue", code="queue.refused")
        if entry is not None or time.monotonic() > end:
            return stored
        time.sleep(0.1)


def paused_sentence(stored: StoredQueue) -> str:
    """Return text on why a paused queue is paused and how to resume it."""
    why = f": {stored.why_paused}" if stored.why_paused else ""
    return f"The queue is paused{why}. Waiting jobs start after Resume queue, in Monitor on the page."


def run_together(job: Settings, title: str, workspace: Workspace, options: Options, resume: RunFolder | None) -> int:
    """Train as one of several processes started by `accelerate launch`: the first owns the run, the others compute their part of each
    batch. Return the exit code."""
    assert isinstance(job, TrainJob)
    with closing(Together(job.memory.ddp_timeout)) as processes:
        if not processes.first:
            return _train_as_follower(processes, workspace)
        holder = f"train '{title}' in {processes.count} processes"
        with nullcontext() if os.environ.get(SUPERVISED) else Ownership(workspace, holder):
            folder = resume or _new_folder("train", job, title, workspace, options.preset_name)
            print(f"run folder: {display_path(folder.path)}", file=sys.stderr)
            clear_failure(folder)
            processes.broadcast((folder.path, job))
            return _execute("train", job, folder, workspace, options, processes)


def _train_as_follower(processes: Together, workspace: Workspace) -> int:
    """Compute this process's part of each batch until the first process stops; signals are left to that one. Return the exit code."""
    from core.training.start import run_training

    path, job = cast("tuple[Path, TrainJob]", processes.broadcast(cast(Any, None)))
    if not path.is_dir():
        what = f"The run's folder {path} cannot be reached by process {processes.rank + 1}"
        fix = "put outputs on a drive that all machines share"
        raise ProblemsError.one(what, "--outputs", fix, "outputs.not-shared")
    with StopOnSignal(CancelToken(), quiet=True, patient=True):
        context = JobContext(
            workspace, RunFolder(path), SilentJournal(), NoCommands(), processes.device, processes=processes
        )
        try:
            with in_workspace(workspace):
                run_training(job, context)
        except Exception as error:
            if lost_another_process(error):
                end_if_launcher_gone()
            write_details(context.folder, traceback.format_exc(), f"error_{processes.rank + 1}.txt")
            explanation = explain(error, lambda: memory_advice("train", job, context))
            record_failure(context.folder, explanation, None if lost_another_process(error) else processes.rank + 1)
            raise
    return DONE


def _new_folder(task: str, job: Settings, title: str, workspace: Workspace, preset: str) -> RunFolder:
    """Create the run folder of a job. Raises ProblemsError."""
    parent = workspace.runs if task == "train" else workspace.private / "jobs"
    return RunFolder.create(parent, title, dump(job, task=task, preset=preset))


def _execute(
    task: str,
    job: Settings,
    folder: RunFolder,
    workspace: Workspace,
    options: Options,
    processes: Together | None = None,
) -> int:
    """Run a job in its folder with a progress bar. Return the exit code. processes: of a distributed training."""
    on_device = tasks.named(task).lane == "device"
    if on_device:
        import torch

        torch.set_num_threads(machine.threads())
    device = processes.device if processes else options.device() if on_device else "cpu"
    launched = is_launched(task, job)
    logging = job.logging if isinstance(job, TrainJob) else None
    if logging is not None and launched:  # whose first process writes the log file
        logging = logging.model_copy(update={"console_log_file": None})
    progress = TerminalProgress(logging, RunView.read(folder))
    token = CancelToken()
    with StopOnSignal(token, patient=task == "train") as stop:
        if launched:
            assert isinstance(job, TrainJob)
            state, cause = supervise(job, folder, workspace, device, listener=progress, token=token)
        else:
            state, cause = execute(
                task, job, folder, workspace, device, listener=progress, token=token, processes=processes
            )
    progress.close()
    if state == "done":
        return DONE
    if state == "failed":
        return BAD_INPUT if tasks.named(task).own and cause is not None and cause.invalid_request else FAILED
    if task == "train":
        folders = [f'--{name} "{options.values[name]}"' for name in ("outputs", "models") if name in options.values]
        print(" ".join(["To resume: python webui.py train --continue", folder.name, *folders]), file=sys.stderr)
    return INTERRUPTED if stop.requested or state == "stopped" else FAILED


@contextmanager
def killed_after_signal() -> Iterator[None]:
    """Context in which a signal also starts a countdown in a separate process that kills this one after STOP_SECONDS.

    Python handles no signal while a library computes, and a library that holds the GIL blocks every thread.
    """
    reading_end, writing_end = os.pipe()
    os.set_blocking(writing_end, False)
    command = ["/bin/sh", "-c", KILLER, str(os.getpid()), str(STOP_SECONDS)]
    process = subprocess.Popen(command, stdin=reading_end, start_new_session=True)
    os.close(reading_end)
    before = signal.set_wakeup_fd(writing_end, warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        os.close(writing_end)


class StopOnSignal:
    """Context in which the first Ctrl-C, SIGTERM or closed terminal cancels `token`; a second one raises KeyboardInterrupt.

    quiet     print no message
    patient   do not kill a job that does not stop in time: a training saves its state first
    requested is then True. A signal repeated within a short time is ignored: a launcher of several processes repeats the Ctrl-C
    that each already received, and a notebook sends it twice.
    """

    def __init__(self, token: CancelToken, quiet: bool = False, patient: bool = False):
        self._token, self._quiet, self._patient = token, quiet, patient
        self.requested = False
        self._repeat_seconds = REPEAT_SECONDS if launched_processes() > 1 else REPEATED_SECONDS
        self._first = 0.0
        self._before: dict[int, object] = {}
        self._exit_stack = ExitStack()

    def __enter__(self) -> StopOnSignal:
        if not self._patient and os.name != "nt":
            self._exit_stack.enter_context(killed_after_signal())
        for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK"):  # SIGHUP: not on Windows; SIGBREAK: only there
            number = getattr(signal, name, None)
            if number is None or (name == "SIGHUP" and signal.getsignal(number) is signal.SIG_IGN):
                continue  # under nohup, a closed terminal does not stop the job
            self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._exit_stack.close()

    def _handle(self, number: int, frame: object) -> None:
        """Handle a signal as described in the class."""
        if self.requested:
            if time.monotonic() - self._first < self._repeat_seconds:
                return
            raise KeyboardInterrupt
        self.requested, self._first = True, time.monotonic()
        self._token.cancel()
        if self._quiet:
            return
        with suppress(OSError):  # the terminal may be gone
            # os.write: a print that the signal interrupted cannot be entered again
            os.write(2, b"\nSaving and stopping. Press Ctrl-C again to stop now.\n")


def find_run(name: str, workspace: Workspace) -> RunFolder:
    """Return the run with this folder name or path; text with path separators is tried as a path first. Raises ProblemsError."""
    paths = [workspace.runs / Path(name).name, Path(name)]
    for path in paths if Path(name).name == name else reversed(paths):
        if (path / "job.json").is_file():
            return RunFolder(path)
    raise no_such_run(Path(name).name, workspace)


LEVELS = {"DEBUG": 10, "INFO": 20, "WARNING": 30, "ERROR": 40, "CRITICAL": 50}
LEVEL_OF_LINE = {"info": 20, "warning": 30, "error": 40}
PLAIN_SECONDS = 10.0  # between lines about steps where there is no bar


LOG_FIRST_LINE = "# Messages of Atelier"


def _open_log(name: str) -> TextIO:
    """Open a log file for appending. Raises ProblemsError if it cannot be written, or exists and does not begin as logs of this program do:
    a preset from elsewhere can name any file."""
    path = resolve_path(name)
    setting = f"logging.console_log_file, {path}"
    if (problem := impossible_path(path, setting)) is not None:
        raise ProblemsError([problem])
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "a+", encoding="utf-8", errors="replace") if _is_log(path) else None
    except OSError as error:
        what = f"The log cannot be written: {error.strerror}"
        raise ProblemsError.one(what, setting, "choose another file", "log.unwritable") from None
    if file is None:
        what, fix = f"{path.name} exists and is not a log of this program", "choose a new file"
        raise ProblemsError.one(what, setting, fix, "log.not-a-log")
    if not file.tell():
        file.write(f"{LOG_FIRST_LINE}\n")
    return file


def _is_log(path: Path) -> bool:
    """Whether a file does not exist, is empty, or begins as logs of this program do."""
    if not path.exists():
        return True
    if not path.is_file():
        return False
    first = LOG_FIRST_LINE.encode()
    with open(path, "rb") as file:
        return file.readline(len(first) + 2) in (b"", first + b"\n", first + b"\r\n")  # the last one on Windows


def printable_text(text: str) -> str:
    """Return text of untrusted files with control characters and text direction marks replaced by U+FFFD; tabs and line breaks stay."""
    return "".join(character if character.isprintable() or character in "\n\t" else "\ufffd" for character in text)


class TerminalProgress:
    """A journal listener that prints messages above a progress bar of steps.

    settings   console_log options: level, file, progress bar
    view       of the run, for the smoothed loss
    """

    def __init__(self, settings: LoggingSettings | None = None, view: RunView | None = None) -> None:
        settings = settings or LoggingSettings()
        self._level, self._simple = LEVELS[settings.console_log_level], settings.console_log_simple
        self._file: TextIO | None = None
        if settings.console_log_file:
            self._file = _open_log(settings.console_log_file)
        if settings.console_log_level == "DEBUG":  # with messages of libraries
            logging.basicConfig(level=logging.DEBUG, stream=self._file or sys.stderr)
        self._bar: Any = None
        self._stage = ""
        self._total = 0
        self._view = view
        self._last_printed = 0.0
        self._output_closed = False

    def __call__(self, line: Line) -> None:
        """Add an event to the view and print it; a closed terminal ends the output, not the job."""
        if self._view is not None:
            self._view.apply(line)
        handler = getattr(self, "_on_" + line["kind"], None)
        if handler is None or self._output_closed:
            return
        try:
            handler(line)
        except OSError:  # the terminal was closed, or `head` ended: the job continues without output
            self._output_closed = True

    def _say(self, text: str, level: str = "info") -> None:
        """Print a message above the progress bar, or write it to the log file; not below the log level."""
        if LEVEL_OF_LINE.get(level, 20) < self._level:
            return
        text = printable_text(text)
        if self._file is not None:
            print(time.strftime("%Y-%m-%d %H:%M:%S"), text.replace("\n", "\u23ce"), file=self._file, flush=True)
        elif self._bar is not None:
            self._bar.write(text, file=sys.stderr)
        else:
            print(text, file=sys.stderr, flush=True)

    def _on_stage(self, line: Line) -> None:
        """Show the stage next to the bar, or without a bar print its beginning and end."""
        count = progress_text(line["done"], line["total"], line.get("of_bytes", False))
        text = one_line(line["text"] + count)
        if self._bar is not None:
            self._bar.set_description_str(text)
        elif line["done"] in (0, line["total"]):
            self._say(text)

    def _on_planned(self, line: Line) -> None:
        """Print the length of the training, and begin the progress bar unless it is turned off."""
        self._say(line["sentence"])
        self._total = line["total"]
        if self._simple or self._level > LEVELS["ERROR"]:
            return
        from tqdm import tqdm

        self._bar = tqdm(total=line["total"], unit="step", file=sys.stderr, dynamic_ncols=True)

    def _on_steps(self, line: Line) -> None:
        """Move the bar, or with console_log_simple print a line every PLAIN_SECONDS, with epoch and smoothed loss."""
        step, loss = line["steps"][-1], line["losses"][-1]
        if self._view is not None and self._view.losses:
            loss = self._view.losses[-1][2]  # smoothed
        message = f"epoch {line['epoch']}, loss {loss_text(loss)}"
        if self._bar is None:
            if self._simple and (step == self._total or time.monotonic() - self._last_printed >= PLAIN_SECONDS):
                self._last_printed = time.monotonic()
                self._say(f"step {step}/{self._total}, {message}")
            return
        if self._bar.n == 0 and step > len(line["steps"]):
            self._bar.initial = self._bar.n = line["steps"][0] - 1
        self._bar.set_postfix_str(message)
        self._bar.update(step - self._bar.n)

    def _on_validated(self, line: Line) -> None:
        train_loss = f", {loss_text(line['train_loss'])} on training images" if line["train_loss"] is not None else ""
        title = "loss on training images (fixed noise)" if line["measured_on"] == "training" else "validation loss"
        self._say(f"{title} {loss_text(line['loss'])}{train_loss} (step {line['step']})")

    def _on_saved(self, line: Line) -> None:
        self._say(f"saved {line['file']} (step {line['step']})")

    def _on_sample(self, line: Line) -> None:
        self._say(f"sample {line['file']}: {one_line(line['prompt'])}")

    def _on_image(self, line: Line) -> None:
        print(line["file"], flush=True)

    def _on_result(self, line: Line) -> None:
        for text in line["lines"]:
            print(printable_text(text), flush=True)

    def _on_log(self, line: Line) -> None:
        fix = f"\n  fix: {line['fix']}" if line["fix"] else ""
        mark = "" if line["level"] == "info" else f"{line['level']}: "
        self._say(mark + one_line(line["text"]) + fix, line["level"])

    def _on_state(self, line: Line) -> None:
        if line["message"]:
            fix = f"\n  fix: {line['fix']}" if line["fix"] else ""
            self._say(line["message"] + fix, "error" if line["state"] == "failed" else "info")

    def close(self) -> None:
        with suppress(OSError):
            if self._bar is not None:
                self._bar.close()
            if self._file is not None:
                self._file.close()
