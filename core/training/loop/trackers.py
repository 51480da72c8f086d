"""Trackers of losses and samples: TensorBoard, Weights & Biases."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol

from pydantic import BaseModel, Field, ValidationError

from core.record.bounded_toml import read_toml
from core.record.problems import Problem, raise_if_errors
from core.record.secrets import secret
from core.record.units import listed
from core.record.workspace import resolve_path
from core.settings.base import declared, value_of
from core.settings.check import shorten
from core.settings.methods import spec_of

if TYPE_CHECKING:
    from PIL.Image import Image

    from core.settings.job import TrainJob

CONFIG = "logging.log_tracker_config"
# Folders and files, which are private (sd-scripts leaves them out too).
PRIVATE = {
    "dataset.sources",
    "network.network_weights",
    "network.base_weights",
    "hub.huggingface_repo_id",
    "hub.huggingface_path_in_repo",
}

RETRY_SECONDS = 30
PROBE_BYTES = 64 * 1024  # more than a writer buffers before it notices a full disk
REFUSED_IN_PROJECTS = "#%"  # by wandb, which also refuses characters that no part of a file name has
LONGEST_PROJECT = 128


class WriterOptions(BaseModel, extra="forbid", strict=True):
    """Arguments of SummaryWriter that a config file can set."""

    comment: str = ""
    filename_suffix: str = ""
    flush_secs: int = 120
    max_queue: int = 10
    purge_step: int = 0


RunId = Annotated[str, Field(pattern=r"^[^:;,#?/']+$", description="text without : ; , # ? / '")]
RunMoment = Annotated[str, Field(pattern=r"^[^?]+\?_step=\d+$", description="text such as a1b2c3?_step=100")]


class WandbOptions(BaseModel, extra="forbid", strict=True):
    """Arguments of wandb.init (0.31) that a config file can set; not those that the tracker sets or that act on other libraries."""

    entity: str = ""
    id: RunId = ""
    name: str = ""
    notes: str = ""
    group: str = ""
    job_type: str = ""
    tags: list[Annotated[str, Field(min_length=1, max_length=64)]] = []
    config: dict[str, Any] = {}
    config_exclude_keys: list[str] = []
    config_include_keys: list[str] = []
    allow_val_change: bool = False
    mode: Literal["online", "offline", "disabled", "shared"] = "online"
    force: bool = False
    reinit: bool | Literal["default", "return_previous", "finish_previous", "create_new"] = False
    resume: bool | Literal["allow", "never", "must", "auto"] = False
    resume_from: RunMoment = ""
    fork_from: RunMoment = ""


OPTIONS: dict[str, type[BaseModel]] = {"tensorboard": WriterOptions, "wandb": WandbOptions}


class Tracker(Protocol):
    """Receives numbers, sample images and settings of a run.
    retry_seconds: seconds between attempts after an error; None turns the tracker off for the rest of the run"""

    retry_seconds: float | None

    def add(self, name: str, value: float, step: int) -> None: ...
    def image(self, name: str, image: Image, caption: str, step: int) -> None: ...
    def settings(self, values: Mapping[str, Any]) -> None: ...
    def close(self) -> None: ...
    def abandon(self) -> None:
        """Drop open files and connections; the next number opens them again."""


class Trackers:
    """Passes numbers, samples and settings to any number of trackers. The error of a tracker (full disk, no network) is reported once, and
    the tracker is skipped until it works again; training continues, and the journal has all numbers.
    say: (message, severity) -> None"""

    retry_seconds: float | None = None

    def __init__(self, trackers: Sequence[Tracker], say: Callable[[str, str], None]):
        self._trackers, self._say = list(trackers), say
        self._failed: dict[Tracker, float] = {}  # tracker -> when it is tried again

    def add(self, name: str, value: float, step: int) -> None:
        self._each(lambda tracker: tracker.add(name, value, step))

    def image(self, name: str, image: Image, caption: str, step: int) -> None:
        self._each(lambda tracker: tracker.image(name, image, caption, step))

    def settings(self, values: Mapping[str, Any]) -> None:
        self._each(lambda tracker: tracker.settings(values))

    def close(self) -> None:
        for tracker in [each for each in self._trackers if each not in self._failed]:
            try:
                tracker.close()
            except Exception as error:
                self._say(f"The last numbers for {type(tracker).__name__} were not written: {error}", "warning")
        self.abandon()

    def abandon(self) -> None:
        """Forget all trackers without closing them."""
        self._trackers, self._failed = [], {}

    def _each(self, work: Callable[[Tracker], None]) -> None:
        """Call `work` with each tracker that works, or whose next attempt is due; report errors."""
        now = time.monotonic()
        for tracker in [each for each in self._trackers if self._failed.get(each, 0.0) <= now]:
            name = type(tracker).__name__
            try:
                work(tracker)
            except Exception as error:
                self._suspend(tracker, name, error)
            else:
                if self._failed.pop(tracker, None) is not None:
                    self._say(f"{name} works again; the numbers in between are in the run's journal", "info")

    def _suspend(self, tracker: Tracker, name: str, error: Exception) -> None:
        """Report a tracker's first error; skip the tracker until its next attempt, or for the rest of the run."""
        tracker.abandon()
        if tracker.retry_seconds is None:
            self._trackers.remove(tracker)
            self._say(f"{name} failed; training continues without it: {error}", "warning")
            return
        if tracker not in self._failed:
            every = f"retrying every {tracker.retry_seconds:g} seconds"
            self._say(f"{name} failed; training continues without it, {every}: {error}", "warning")
        self._failed[tracker] = time.monotonic() + tracker.retry_seconds


class TensorBoard:
    """Writes TensorBoard event files. The library is imported at the first number, so that it does not delay the first step. After an error
    a new file is started; TensorBoard reads all files of the folder.
    options: further arguments of SummaryWriter"""

    retry_seconds: float | None = RETRY_SECONDS

    def __init__(self, folder: Path, options: Mapping[str, Any] | None = None):
        self._folder, self._options = folder, dict(options or {})
        self._writer: Any = None
        self._settings = ""  # to be written with the first number

    def _open(self, step: int) -> Any:
        """Return the writer of the event file; create it at the first call, or after an error. TensorBoard then drops what earlier files
        have from `step` on: a killed run writes those steps again when it resumes."""
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            check_space(self._folder)  # a writer that fails to open leaves a thread behind
            self._writer = SummaryWriter(str(self._folder), **{"purge_step": step} | self._options)
            if self._settings:
                self._writer.add_text("settings", self._settings, 0)
        return self._writer

    def add(self, name: str, value: float, step: int) -> None:
        self._open(step).add_scalar(name, value, step)

    def image(self, name: str, image: Image, caption: str, step: int) -> None:
        import numpy as np

        writer = self._open(step + 1)  # the losses of its step were written before the kill
        writer.add_image(name, np.asarray(image.convert("RGB")), step, dataformats="HWC")

    def settings(self, values: Mapping[str, Any]) -> None:
        # Four spaces: preformatted.
        self._settings = "\n".join(f"    {name} = {value}" for name, value in values.items())

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()

    def abandon(self) -> None:
        """Close the event file, ignoring errors; the next number opens a new one."""
        writer, self._writer = self._writer, None
        if writer is not None:
            with suppress(Exception):  # buffered numbers fail as the others did
                writer.close()


def check_space(folder: Path) -> None:
    """Raise OSError if the folder is not writable or its disk is full."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as probe:
        probe.write(bytes(PROBE_BYTES))
        probe.flush()


class Wandb:
    """Logs to a run at Weights & Biases, which is created at the first number. Its local files are in the log folder.
    init_options: arguments of wandb.init; without any only `name`, if given"""

    retry_seconds: float | None = None  # wandb retries itself, and a second init would create a second run

    def __init__(self, folder: Path, project: str, name: str | None, init_options: Mapping[str, Any] | None = None):
        self._folder, self._project = folder, project
        self._init_options = dict(init_options) if init_options else ({"name": name} if name else {})
        self._run: Any = None
        self._step = -1
        self._waiting: dict[str, Any] = {}

    def _open(self) -> Any:
        """Return the run at Weights & Biases; log in and create it at the first call."""
        if self._run is None:
            import wandb

            if key := secret("wandb_api_key"):
                wandb.login(key=key)
            self._folder.mkdir(parents=True, exist_ok=True)
            # wandb's facts of the machine include folder names; only tracked values are published.
            options: Any = wandb.Settings(disable_code=True, disable_git=True, x_disable_meta=True)
            self._run = wandb.init(project=self._project, dir=str(self._folder), settings=options, **self._init_options)
        return self._run

    def add(self, name: str, value: Any, step: int) -> None:
        """Collect a value of a step; the values are sent when a later step begins, as wandb counts each call of log as a step."""
        if step != self._step:
            self._send()
            self._step = step
        self._waiting[name] = value

    def image(self, name: str, image: Image, caption: str, step: int) -> None:
        import wandb

        self._open()
        self.add(name, wandb.Image(image, caption=caption), step)

    def settings(self, values: Mapping[str, Any]) -> None:
        self._open().config.update(dict(values))

    def close(self) -> None:
        self._send()
        if self._run is not None:
            self._run.finish()

    def abandon(self) -> None:
        """Drop the collected values."""
        self._waiting = {}

    def _send(self) -> None:
        """Send the collected values of a step."""
        if self._waiting:
            # A separate column: wandb's step takes no values for earlier steps.
            self._open().log(self._waiting | {"global_step": self._step})
            self._waiting = {}


def make_tracker(job: TrainJob, folder: Path, say: Callable[[str, str], None]) -> Tracker:
    """Return one tracker that passes on to all trackers that the settings turn on.

    folder   the run's log folder, used if the settings name none
    say      (message, severity) -> None
    """
    logging = job.logging
    if logging.log_with == "none":
        return Trackers([], say)
    log_dir = log_folder(job, folder)
    config = tracker_config(logging.log_tracker_config)
    name = logging.log_tracker_name or spec_of(job).project
    trackers: list[Tracker] = []
    if logging.log_with in ("tensorboard", "all"):
        trackers.append(TensorBoard(log_dir / name if logging.log_tracker_name else log_dir, config.get("tensorboard")))
    if logging.log_with in ("wandb", "all"):
        trackers.append(Wandb(log_dir, name, logging.wandb_run_name, config.get("wandb")))
    tracker = Trackers(trackers, say)
    if logging.log_config:
        tracker.settings(logged_settings(job))
    return tracker


def log_folder(job: TrainJob, folder: Path) -> Path:
    """Return <logging_dir>/<prefix><time of the run's first start> as in sd-scripts; without `logging_dir` return `folder`, the run's log
    folder."""
    if not job.logging.logging_dir:
        return folder
    run_folder = folder.parent.name  # <time>_<name>: the time when the run started
    stamp = run_folder.split("_", 1)[0].replace("-", "")
    return resolve_path(job.logging.logging_dir) / f"{job.logging.log_prefix or ''}{stamp}"


def tracker_config(path: str | None) -> dict[str, dict[str, Any]]:
    """Return {"wandb" or "tensorboard": its options} from a .toml file; {} for None. Raises ProblemsError for a file that cannot be read,
    has other tables or options that the tracker would refuse at the first step."""
    if not path:
        return {}
    fix = "write a table for each tracker: [wandb] or [tensorboard]"
    tables = read_toml(resolve_path(path), f"{CONFIG}, {path}", fix)
    problems: list[Problem] = []
    for name, table in tables.items():
        if name not in OPTIONS or not isinstance(table, dict):
            problems.append(
                Problem(f"'{name}' is not a table of a tracker", CONFIG, fix, code="trackers.unknown-table")
            )
            continue
        try:
            OPTIONS[name].model_validate(table)
        except ValidationError as error:
            problems += _wrong_options(name, error)
        if len(moments := sorted({"resume", "resume_from", "fork_from"} & table.keys())) > 1:
            what = f"wandb takes one of {listed(moments)}"
            problems.append(Problem(what, CONFIG, "leave out the others", code="trackers.bad-option"))
    raise_if_errors(problems)
    return tables


def _wrong_options(tracker: str, error: ValidationError) -> Iterator[Problem]:
    """Yield a problem for each option in a tracker's table that it would refuse. error: of its options"""
    for name, items in groupby(error.errors(), lambda item: item["loc"][0]):
        *_, item = items  # a union reports one error per member
        path, known = f"{tracker}.{name}", OPTIONS[tracker].model_fields
        if item["type"] == "extra_forbidden":
            fix = "leave it out; folder and project are logging.logging_dir and logging.log_tracker_name"
            fix += f"; [{tracker}] takes {listed([*known])}"
            yield Problem(f"{path} cannot be set here", CONFIG, fix, code="trackers.unknown-option")
        else:
            fix = f"use {known[name].description or item['msg'].lower().removeprefix('input should be ')}"
            yield Problem(f"{path} is {shorten(item['input'])}", CONFIG, fix, code="trackers.bad-option")


def logged_settings(job: TrainJob) -> dict[str, Any]:
    """Return {dotted name: value} of all settings for the trackers, without empty ones and without folders and files of this machine.
    Values other than numbers, texts and booleans are texts."""
    values = {}
    for entry in declared(type(job)):
        value = value_of(job, entry.path)
        if entry.widget in ("folder", "file", "model") or entry.path in PRIVATE or value is None:
            continue
        values[entry.path] = value if isinstance(value, (int, float, str, bool)) else str(value)
    return values


def wandb_problems(job: TrainJob) -> list[Problem]:
    """Return the problems that the package wandb is not installed and that it refuses the project's name, if the settings use it."""
    from importlib.util import find_spec

    problems: list[Problem] = []
    if job.logging.log_with not in ("wandb", "all"):
        return problems
    if find_spec("wandb") is None:
        fix = "install it (pip install wandb), or choose TensorBoard"
        problems.append(
            Problem("The package wandb is not installed", "logging.log_with", fix, code="trackers.no-wandb")
        )
    project = job.logging.log_tracker_name or ""
    if len(project) > LONGEST_PROJECT or set(REFUSED_IN_PROJECTS) & set(project):
        fix = f"use at most {LONGEST_PROJECT} characters, none of {' '.join(REFUSED_IN_PROJECTS)}"
        what = f"wandb takes no project '{project}'"
        problems.append(Problem(what, "logging.log_tracker_name", fix, code="trackers.bad-project"))
    return problems
