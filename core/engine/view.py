"""The state of a run for the page: events of the run's journal, collected into one snapshot."""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from core.engine.points import Points, spread
from core.engine.run_facts import RunFacts, Stamps, existing_files, stamps
from core.engine.run_labels import labels_of
from core.record.best import TOO_SHORT, BestTracker
from core.record.bounded_json import read_json_object
from core.record.former import with_current_names
from core.record.journal import Line, Tail
from core.record.problems import ProblemsError
from core.record.run_about import title_of
from core.record.run_folder import RunFolder
from core.record.units import progress_text

SERIES_POINTS = 500
MAX_WATCH_VALUES = 3_000_000  # watch.json has some for each image
MAX_POINTS = 2000  # of a run that has ended
LOG_LINES = 200
SLEPT = 900  # seconds without a line after which the machine must have been asleep
SMOOTHING_STEPS = 20.0
STEP_SERIES = ("losses", "rates", "corrected", "norms")
ENDED = ("done", "stopped", "failed")
DAMAGED = ("job.json is missing: this run cannot be resumed", "use its files, or delete the run")


class RunView:
    """Collects the events of a run's journal. `apply` may be called from the writer's thread, `snapshot` from any.
    points: whether to collect the points of curves too"""

    def __init__(self, folder: RunFolder, points: bool = True):
        self.folder, self._points = folder, points
        self._lock = threading.Lock()
        self.state, self.message, self.fix, self.code, self.stage = "", "", "", "", ""
        self.counted = (0, 0)  # (done, total) of the stage
        self.of_image = (0, 0)  # step and steps of the image that is being generated
        self._count_began = (0, 0.0, 0)  # (total, time, done) when the count of this stage began
        self.result: dict[str, Any] = {}
        self.seq = self.step = self.total = self.epoch = self.epochs = self.images = 0
        self.sentence = ""
        self.peak_bytes, self.peak_device = 0, ""
        self.too_short = False  # to measure the loss of checkpoints
        self.seconds_per_step = self.seconds_per_sample = self._average_step_seconds = 0.0
        self._timing: tuple[int, float] | None = None  # (first step, its time) since the start
        self.started = self.ended = self._last_time = 0.0
        self._time_before = 0.0  # time of the line before this one
        self._idle = (
            0.0  # seconds between an end, a kill or a pause and resuming, of sleep, and by which the clock was set
        )
        self.losses, self.rates = Points(), Points(named=True)
        self.corrected, self.norms = Points(), Points()
        self._best = BestTracker()
        self.samples: list[dict[str, Any]] = []
        self.saves: list[dict[str, Any]] = []
        self.log: list[dict[str, Any]] = []
        self.generated: list[dict[str, Any]] = []
        self._smooth: float | None = None
        self._reading = threading.Lock()
        self._tail = Tail(folder.journal_file)
        self._begun = False

    @classmethod
    def read(cls, folder: RunFolder) -> RunView:
        """Return a view of the run with its journal read."""
        view = cls(folder)
        view.begin()
        return view

    def begin(self) -> None:
        """Read the journal, at the first call only (100,000 lines take a second). Other threads that call this meanwhile wait."""
        with self._reading:
            if not self._begun:
                self._read_new()
                self._begun = True

    def catch_up(self) -> None:
        """Read the lines that another process has appended to the journal since the last call."""
        with self._reading:
            self._read_new()

    def _read_new(self) -> None:
        for line in self._tail.lines():
            self.apply(line)

    def apply(self, line: Line) -> None:
        """Add an event of the journal. Events that were added before, and damaged ones, are ignored."""
        with self._lock:
            valid = isinstance(line.get("time"), (int, float)) and isinstance(line.get("kind"), str)
            if line["seq"] <= self.seq or not valid:
                return
            self.seq = line["seq"]
            self._time_before, self._last_time = self._last_time or line["time"], line["time"]
            self.started = self.started or line["time"]
            gap = self._last_time - self._time_before
            clock_was_set, slept = gap < 0, gap > max(SLEPT, 10 * self.seconds_per_step)
            if (line["kind"], line.get("state")) == ("state", "running"):
                self._idle += self._last_time - (self.ended or self._time_before)
            elif not self.ended and (clock_was_set or slept):  # an average may be saved long after the end
                self._idle += gap
            handler = getattr(self, "_on_" + line["kind"], None)
            if handler is not None:
                # KeyError ...: a line that was edited by hand
                with suppress(KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError):
                    handler(line)

    def _on_state(self, line: Line) -> None:
        """Set state and messages; thin the curves if the run has ended."""
        if line["state"] == "running":
            self._timing = None
        self.state, self.message, self.fix = line["state"], line["message"], line["fix"]
        self.code = str(line.get("code", ""))
        self.ended = line["time"] if self.state in ENDED else 0.0
        if self.ended:
            for name in STEP_SERIES:
                setattr(self, name, getattr(self, name).thinned(MAX_POINTS))
        if line["message"]:
            level = "error" if self.state == "failed" else "info"
            self._say(line["time"], level, line["message"], line["fix"])

    def _on_stage(self, line: Line) -> None:
        """Set the stage text and progress, and when this count began, for `seconds_left`."""
        count = progress_text(line["done"], line["total"], line.get("of_bytes", False))
        self.stage = line["text"] + count
        self.counted = (line["done"], line["total"])
        self.of_image = (line.get("step", 0), line.get("steps", 0))
        if self._count_began[0] != line["total"] or line["done"] < self._count_began[2]:
            self._count_began = (line["total"], line["time"], line["done"])

    def _on_result(self, line: Line) -> None:
        self.result = {"lines": line["lines"], "facts": line["found"]}

    def _on_planned(self, line: Line) -> None:
        """Set the planned numbers of steps, epochs and images."""
        self.total, self.epochs, self.images = line["total"], line["epochs"], line["images"]
        self.sentence = line["sentence"]

    def _on_steps(self, line: Line) -> None:
        """Set step, epoch and seconds per step (without pauses and sleep of the machine); add the points of the curves."""
        self.step, self.epoch = line["steps"][-1], line["epoch"]
        self.seconds_per_step = line["seconds_per_step"]
        now = line["time"] - self._idle
        first, began = self._timing = self._timing or (self.step, now)
        self._average_step_seconds = (now - began) / (self.step - first) if self.step > first else 0.0
        if self._points:
            self._add_points(line)

    def _add_points(self, line: Line) -> None:
        """Add the losses (raw, smoothed and corrected), learning rates and norms of a "steps" event to the curves."""
        self._forget_after(line["steps"][0] - 1)
        corrected = line.get("corrected") or []  # journals of earlier versions have none
        for step, quotient in zip(line["steps"], corrected, strict=False):
            before = self.corrected.newest if self.corrected else quotient
            weight = max(1 / SMOOTHING_STEPS, 1 / (len(self.corrected) + 1))
            self.corrected.add(step, [before + weight * (quotient - before)])
        for step, loss in zip(line["steps"], line["losses"], strict=True):
            finite = loss == loss and abs(loss) != float("inf")
            if finite:
                weight = max(1 / SMOOTHING_STEPS, 1 / (len(self.losses) + 1))
                self._smooth = loss if self._smooth is None else self._smooth + weight * (loss - self._smooth)
                self.losses.add(step, [loss, self._smooth])
        self.rates.add(self.step, line["rates"])
        self.norms.add(self.step, [line.get("grad_norm"), line.get("weight_norm")])

    def _forget_after(self, step: int) -> None:
        """Drop the points after `step`: a run resumed from an earlier state repeats steps, and the newer points count."""
        if self.losses and self.losses.step > step:
            for name in STEP_SERIES:
                setattr(self, name, getattr(self, name).up_to(step))
            self._smooth = self.losses.newest if self.losses else None

    def _on_sample(self, line: Line) -> None:
        """Add a sample, replacing one of the same step and prompt."""
        entry = {name: line[name] for name in ("step", "index", "prompt", "seed")}
        entry |= {"file": str(self.folder.path / line["file"]), "settings": line.get("settings", "")}
        self.samples = [old for old in self.samples if (old["step"], old["index"]) != (entry["step"], entry["index"])]
        self.samples.append(entry)
        if entry["step"] >= 0:
            self.seconds_per_sample = line.get("seconds", 0.0)

    def _on_validated(self, line: Line) -> None:
        self._best.take(line)

    def _on_memory(self, line: Line) -> None:
        """Store the highest peak: a resumed run reports one per process."""
        if line["peak_bytes"] > self.peak_bytes:
            self.peak_bytes, self.peak_device = line["peak_bytes"], line["device"]

    def _on_saved(self, line: Line) -> None:
        """Add a saved checkpoint, replacing one of the same file."""
        self.saves = [old for old in self.saves if old["file"] != line["file"]]
        self.saves.append({"step": line["step"], "file": line["file"], "bytes": line["bytes"]})
        self._best.take(line)

    def _on_log(self, line: Line) -> None:
        self._say(line["time"], line["level"], line["text"], line["fix"])
        self.too_short = self.too_short or line.get("code") == TOO_SHORT

    def _on_image(self, line: Line) -> None:
        self.generated.append({"file": line["file"], "seed": line["seed"]})

    def _say(self, when: float, level: str, text: str, fix: str) -> None:
        """Append a message to the log, which keeps the newest LOG_LINES.
        when: seconds since 1970; level: "info", "warning" or "error"; fix: advice, "" for none"""
        self.log.append({"time": when, "level": level, "text": text, "fix": fix})
        del self.log[:-LOG_LINES]

    def true_state(self, held: bool) -> str:
        """Return the state of the run, considering its folder too (see the function `true_state`)."""
        return true_state(self.state, self.folder.damaged, held)

    @property
    def seconds_left(self) -> float:
        """Estimated seconds until the last step, with samples and saves as frequent as so far; before the number of steps is known, until
        the end of the stage. 0 if unknown."""
        if self.total:
            return max(self.total - self.step, 0) * max(self.seconds_per_step, self._average_step_seconds)
        (done, total), (_, began, done_before) = self.counted, self._count_began
        return (total - done) * (self._last_time - began) / (done - done_before) if done > done_before else 0.0

    def snapshot(self, held: bool) -> dict[str, Any]:
        """Return the run as JSON values for the page. held: whether a process runs it.

        "run", "title", "state"      name of its folder, its title, `true_state`
        "message", "fix", "code"     of its error or end; "" for none
        "stage", "step", "epoch"     current ones; "total" and "epochs": number of steps and epochs
        "loss", "lr", "corrected", "norms"
                                     curves: lists of points (points.py)
        "measured", "validation"     `_point` of all validations, of those with held-out images
        "best"                       `Best.to_dict` or None
        "samples", "log", "files"    lists of dicts; of files see `_files`

        Also "seq", "images", "sentence", "seconds_per_step", "seconds_per_sample", "eta_seconds", "started", "seconds", "too_short",
        "peak_bytes", "peak_device" and "saves": steps.
        """
        with self._lock:
            state = self.true_state(held)
            measured = [_point(line) for line in self._best.measured]
            left = self.seconds_left if self.total and state in ("running", "paused") else 0.0
            return {
                "run": self.folder.name,
                "title": title_of(self.folder),
                "state": state,
                "message": DAMAGED[0] if state == "damaged" else self.message,
                "fix": DAMAGED[1] if state == "damaged" else self.fix,
                "code": self.code,
                "seq": self.seq,
                "stage": self.stage,
                "step": self.step,
                "total": self.total,
                "epoch": self.epoch,
                "epochs": self.epochs,
                "images": self.images,
                "sentence": self.sentence,
                "seconds_per_step": self.seconds_per_step,
                "seconds_per_sample": self.seconds_per_sample,
                "eta_seconds": left,
                "started": self.started,
                "seconds": self._seconds(state, held),
                "loss": thin(self.losses),
                "lr": thin(self.rates),
                "corrected": thin(self.corrected),
                "norms": thin(self.norms),
                "validation": [point for point in measured if point["measured_on"] == "held_out"],
                "measured": measured,
                "best": best.to_dict() if (best := self._best.best(self.folder.path)) else None,
                "too_short": self.too_short,
                "peak_bytes": self.peak_bytes,
                "peak_device": self.peak_device,
                "saves": [save["step"] for save in self.saves],
                "samples": sorted(self.samples, key=lambda entry: (entry["index"], entry["step"])),
                "log": list(self.log),
                "files": self._files(),
            }

    def facts(self, held: bool, of: Stamps) -> RunFacts:
        """Return the facts for the list of runs. held: whether a process runs it; of: `stamps` from before the journal was read."""
        with self._lock:
            newest = max(self.samples, key=lambda each: (each["step"], -each["index"]), default=None)
            lowest = best_validation([line for line in self._best.measured if _is_held_out(line)])
            saved = [save["file"] for save in self.saves]
            existing = existing_files(self.folder, saved)
            return RunFacts(
                of=of,
                state=self.state,
                message=self.message,
                fix=self.fix,
                step=self.step,
                total=self.total,
                started=self.started,
                seconds=self._seconds(self.true_state(held), held),
                sample=_inside(self.folder, newest["file"]) if newest else "",
                files=existing,
                gone=tuple(file for file in saved if file not in existing),
                best=(lowest["loss"], lowest["step"]) if lowest else None,
                best_file=self._best.best(self.folder.path),
                words=labels_of(self.folder),
            )

    def status(self, task: str) -> dict[str, Any]:
        """Return {"state", "stage", "counted": (done, total) of the stage, "of_image": (sampling step, steps), "step", "total",
        "seconds_per_step", "eta_seconds"} of a running job of this task."""
        return {
            "state": self.state or "running",
            "stage": self.stage,
            "counted": self.counted,
            "of_image": self.of_image,
            "step": self.step,
            "total": self.total,
            "seconds_per_step": self.seconds_per_step,
            "eta_seconds": self.seconds_left if self.total or task != "train" else 0.0,
        }

    def progress(self, state: str) -> dict[str, Any]:
        """Return a job's {"state": `state`, "text": stage, "done", "total", "lines": of the result, else of the log, "facts": of the
        result, "images": files, "problems": [{"what", "fix"}]}."""
        with self._lock:
            entries = [entry for entry in self.log if entry["text"] != self.message]
            errors = [{"what": entry["text"], "fix": entry["fix"]} for entry in entries if entry["level"] == "error"]
            return {
                "state": state,
                "text": self.stage if state in ("running", "paused") else "",
                "done": self.counted[0],
                "total": self.counted[1],
                "lines": self.result.get("lines") or [entry["text"] for entry in entries if entry["level"] != "error"],
                "facts": self.result.get("facts", {}),
                "images": [each["file"] for each in self.generated],
                "problems": [{"what": self.message, "fix": self.fix}, *errors]
                if state == "failed" and self.message
                else [],
            }

    def _seconds(self, state: str, held: bool) -> float:
        """Return the seconds that the run has worked, without pauses, sleep and the time between a stop and resuming."""
        if not self.started:
            return 0.0
        until = self.ended or (time.time() if held and state == "running" else self._last_time)
        return max(0.0, until - self.started - self._idle)

    def _files(self) -> list[dict[str, Any]]:
        """Return {"name", "path", "bytes", "step"} of each saved file that exists: a run may delete old checkpoints."""
        files = []
        for save in self.saves:
            path = self.folder.path / save["file"]
            if path.exists():  # whole models can be folders
                files.append({"name": path.name, "path": str(path), "bytes": save["bytes"], "step": save["step"]})
        return files


def true_state(state: str, damaged: bool, held: bool) -> str:
    """Return the state of a run: the last one in its journal, unless job.json is missing ("damaged"), or the run did not end and no
    process runs it ("interrupted").

    state   last state in the journal
    held    whether a process runs it
    """
    if damaged and not held:
        return "damaged"
    if state in ENDED:
        return state
    return (state or "running") if held else "interrupted"


def facts_of(folder: RunFolder) -> RunFacts:
    """Return the facts of a run that no process runs, from its journal; empty ones if the journal cannot be read."""
    of = stamps(folder)
    try:
        view = RunView(folder, points=False)
        view.begin()
        return view.facts(False, of)
    except Exception:  # one such run must not keep the others from being listed
        return RunFacts(of, words=labels_of(folder))


def _inside(folder: RunFolder, file: str) -> str:
    """Return a path relative to the run folder, with forward slashes; a path elsewhere stays absolute."""
    return Path(file.removeprefix(f"{folder.path}{os.sep}")).as_posix()


def _is_held_out(line: Line) -> bool:
    return line.get("measured_on", "held_out") == "held_out"


def _point(line: Line) -> dict[str, Any]:
    """Return {"step", "loss", "train_loss", "gap", "by_timestep", "images", "measured_on", "effect"} of a "validated" event, so without the
    losses of single images."""
    point = {name: line[name] for name in ("step", "loss", "train_loss", "gap", "by_timestep", "images")}
    return point | {"measured_on": line.get("measured_on", "held_out"), "effect": line.get("effect")}


def best_validation(points: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Return the "validated" event with the lowest finite loss, the earliest of equal ones; None without any."""
    return min(
        (point for point in points if math.isfinite(point["loss"])), key=lambda point: point["loss"], default=None
    )


def read_watch(folder: RunFolder) -> dict[str, Any]:
    """Return the content of a run's watch.json: {"step", "bands": losses by timestep band, "images": those with the highest losses,
    "images_seen": number} (`Watch.snapshot` in core/training/loop/watching.py); {} if it is missing or damaged."""
    try:
        return with_current_names(
            read_json_object(folder.path / "watch.json", max_values=MAX_WATCH_VALUES, finite=False)
        )
    except ProblemsError:
        return {}


def thin(points: Sequence[list[Any]], limit: int = SERIES_POINTS) -> list[list[Any]]:
    """Return at most `limit` of the points, evenly spaced, with the first and the last."""
    return [points[index] for index in spread(len(points), limit)]
