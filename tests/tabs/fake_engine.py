"""An engine that only pretends: the contract that the page speaks, with a simulated run of a few seconds."""

from __future__ import annotations

import itertools
import math
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from core import tasks
from core.engine.engine import Engine
from core.engine.light import LightLane
from core.engine.queue import QueueEntry as Entry
from core.engine.run_summary import RunSummary as Summary
from core.engine.waiting import Wait, waits
from core.generation.model.store import ModelStore
from core.record.problems import ProblemsError
from core.record.run_folder import RunFolder
from core.settings.job import TrainJob
from core.settings.presets.files import to_values


@dataclass
class Run:
    name: str
    title: str
    job: Any
    folder: Path
    state: str = "running"
    step: int = 0
    total: int = 60
    seq: int = 1
    commands: list[str] = field(default_factory=list)
    loss: list[list[float]] = field(default_factory=list)
    rates: list[list[Any]] = field(default_factory=list)
    samples: list[dict[str, Any]] = field(default_factory=list)
    saves: list[int] = field(default_factory=list)
    log: list[dict[str, Any]] = field(default_factory=list)
    stage: str = "loading model"
    started: float = field(default_factory=time.time)

    def say(self, text: str, level: str = "info", fix: str = "", code: str = "") -> None:
        self.log.append({"time": time.time(), "level": level, "text": text, "fix": fix})
        self.seq += 1


class FakeEngine:
    """One thread runs the queue. `step_seconds` is how long a pretended step takes, `steps` how many there are."""

    notice = ""
    people = frozenset()
    owner = ""
    paused_by, why_paused, interrupted = None, "", ()

    def __init__(self, workspace, step_seconds: float = 0.1, steps: int = 60):
        self.workspace, self.step_seconds, self.steps = workspace, step_seconds, steps
        self._lock, self.listing = threading.RLock(), threading.Lock()
        self._entries: list[Entry] = []
        self._runs: dict[str, Run] = {}
        self._now: Run | None = None
        self._numbers = itertools.count(1)
        self._light = LightLane()
        self._closing = threading.Event()
        self.queue_paused, self.paused_by = False, None
        self.end_listeners: list[Any] = []
        self._thread = threading.Thread(target=self._work, daemon=True)
        self.device = "cpu"
        self.models = ModelStore()
        self.sample_every = 20  # steps between samples, which are also saved
        self.lent_to = ""

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._closing.set()
        self._thread.join(60)
        self._light.close(wait_seconds=60)
        if "beside" in vars(self):
            self.beside.close()

    @property
    def known_device(self) -> str:
        return self.device

    def find_device(self) -> str:
        return self.device

    @contextmanager
    def borrow_device(self, token, what):
        yield self.device

    # -- queue

    def submit(self, task: str, job: Any, title: str = "", preset: str = "") -> str:
        if tasks.named(task).lane != "device":
            return self.beside.submit(task, job, title, preset)
        with self._lock:
            title = title or (job.saving.output_name if hasattr(job, "saving") else task)
            entry = Entry(f"e{next(self._numbers)}", task, title, to_values(job), added=time.time())
            self._entries.append(entry)
            self._jobs = {**getattr(self, "_jobs", {}), entry.id: job}
            return entry.id

    @cached_property
    def beside(self) -> Engine:
        """A real engine, never started: it runs what needs no device."""
        return Engine(self.workspace, "cpu", "a test")

    def _is_beside(self, entry_id: str) -> bool:
        return "beside" in vars(self) and any(entry.id == entry_id for entry in self.beside.queue())

    def progress(self, entry_id: str) -> dict[str, Any]:
        if self._is_beside(entry_id):
            return self.beside.progress(entry_id)
        entry = next(entry for entry in self.queue() if entry.id == entry_id)
        nothing = {"text": "", "done": 0, "total": 0, "lines": [], "facts": {}, "problems": [], "images": []}
        return nothing | {"run": entry.run, "lane": "device", "state": entry.state, "stopping": False}

    def waits(self) -> dict[str, Wait]:
        return waits(self.queue(), self._pace, paused=self.queue_paused, lent_to=self.lent_to)

    def _pace(self, entry: Entry) -> tuple[float, bool]:
        if self._is_beside(entry.id) or entry.run not in self._runs:
            return 0.0, False
        run = self._runs[entry.run]
        return (run.total - run.step) * self.step_seconds, run.state == "paused"

    def queue(self) -> list[Entry]:
        with self._lock:
            return [*self._entries, *(self.beside.queue() if "beside" in vars(self) else ())]

    def _change(self, entry_id: str, **changes: Any) -> None:
        with self._lock:
            self._entries = [replace(entry, **changes) if entry.id == entry_id else entry for entry in self._entries]

    def move(self, entry_id: str, position: int) -> None:
        with self._lock:
            entry = next(entry for entry in self._entries if entry.id == entry_id)
            waiting = [other for other in self._entries if other.state == "waiting" and other.id != entry_id]
            waiting.insert(max(0, min(position, len(waiting))), entry)
            self._entries = [other for other in self._entries if other.state != "waiting"] + waiting

    def forget(self, entry_ids) -> None:
        with self._lock:
            over = {entry.id for entry in self._entries if entry.state not in ("waiting", "running")}
            self._entries = [entry for entry in self._entries if entry.id not in over & set(entry_ids)]
        if "beside" in vars(self):
            self.beside.forget(entry_ids)

    def cancel(self, entry_id: str, only_waiting: bool = False) -> None:
        if self._is_beside(entry_id):
            return self.beside.cancel(entry_id)
        entry = next((entry for entry in self.queue() if entry.id == entry_id), None)
        if entry is None:
            raise ProblemsError.one("This job is no longer in the queue", entry_id, "check the list")
        if entry.state == "waiting":
            self._change(entry_id, state="cancelled")
        elif entry.state == "running" and not only_waiting:
            self.command(entry.run, "stop")

    def pause_queue(self) -> None:
        self.queue_paused = True

    def resume_queue(self) -> None:
        self.queue_paused = False

    def command(self, run_name: str, name: str) -> None:
        if "beside" in vars(self) and any(entry.run == run_name for entry in self.beside.queue()):
            self.beside.command(run_name, name)
            return
        run = self._find(run_name)
        run.commands.append(name)

    def continue_run(self, run_name: str, changes: dict[str, Any] | None = None) -> str:
        run = self._find(run_name)
        with self._lock:
            entry = Entry(f"e{next(self._numbers)}", "train", run.title, {}, run=run_name, added=time.time())
            self._entries.append(entry)
            return entry.id

    def _find(self, name: str) -> Run:
        if name not in self._runs:
            raise ProblemsError.one("There is no such run", name, "look at the list of runs")
        return self._runs[name]

    # -- the pretended work

    def _work(self) -> None:
        while not self._closing.is_set():
            entry = next((entry for entry in list(self._entries) if entry.state == "waiting"), None)
            if entry is None or self.queue_paused:
                self._closing.wait(0.05)
                continue
            run = self._runs.get(entry.run) or self._new_run(entry)
            self._change(entry.id, state="running", run=run.name)
            self._now = run
            self._run(run)
            self._now = None
            self._change(entry.id, state=run.state)
            for told in self.end_listeners:
                told(replace(entry, state=run.state))

    def _new_run(self, entry: Entry) -> Run:
        name = f"20250101-12{len(self._runs):02d}00_{entry.title}"
        folder = self.workspace.runs / name
        (folder / "samples").mkdir(parents=True, exist_ok=True)
        (folder / "checkpoints").mkdir(exist_ok=True)
        run = self._runs[name] = Run(name, entry.title, self._jobs[entry.id], folder, total=self.steps)
        return run

    def _run(self, run: Run) -> None:
        if not isinstance(run.job, TrainJob):  # nothing is made: it runs until it is canceled
            while not run.commands and not self._closing.wait(0.02):
                pass
            run.commands.clear()
            run.state = "stopped"
            return
        run.state, run.stage = "running", "encoding images 3/24"
        self._wait(run)
        if not run.step:
            self._sample(run)
        run.stage = "training"
        run.say("24 images, 60 steps")
        while run.step < run.total and not self._closing.is_set():
            self._wait(run)
            if not self._obey(run):
                return
            if run.state == "paused":
                continue
            run.step += 1
            raw = 0.12 + 0.2 * math.exp(-run.step / 20) + 0.03 * math.sin(run.step * 2.7)
            smooth = raw if not run.loss else run.loss[-1][2] * 0.9 + raw * 0.1
            run.loss.append([run.step, raw, smooth])
            run.rates.append([run.step, {"unet": 1e-3 * (1 - run.step / run.total / 1.1), "text_encoder": 5e-4}])
            run.seq += 1
            if run.step % self.sample_every == 0:
                self._sample(run)
                self._save(run)
        run.state, run.stage = "done", ""
        self._save(run)
        run.say("Finished.")

    def _wait(self, run: Run) -> None:
        """The time of a step, or until a command comes: one that is stopped ends at once, however slow its steps are."""
        begun = time.monotonic()
        while time.monotonic() - begun < self.step_seconds and not run.commands:
            if self._closing.wait(min(0.02, self.step_seconds)):
                return

    def _obey(self, run: Run) -> bool:
        """Take the commands; False when the run is to end."""
        while run.commands:
            name = run.commands.pop(0)
            run.seq += 1
            if name == "stop":
                run.state = "stopped"
                self._save(run)
                run.say("Stopped and saved.")
                return False
            if name == "pause":
                run.state = "paused"
            elif name == "resume":
                run.state = "running"
            elif name == "save":
                self._save(run)
            elif name == "sample":
                self._sample(run)
        return True

    def _sample(self, run: Run) -> None:
        from PIL import Image

        for index, prompt in enumerate(run.job.samples.sample_prompts):
            path = run.folder / "samples" / f"{index}-{run.step:06d}.png"
            Image.new("RGB", (128, 128), (40 + 60 * index, 90, min(255, 60 + run.step * 3))).save(path)
            run.samples = [old for old in run.samples if (old["step"], old["index"]) != (run.step, index)]
            run.samples.append(
                {"step": run.step, "prompt": prompt, "index": index, "file": str(path), "seed": 1 + index}
            )
        run.seq += 1

    def _save(self, run: Run) -> None:
        (run.folder / "checkpoints" / f"{run.title}-step{run.step:08d}.safetensors").write_bytes(b"x" * 1000)
        run.saves = [*run.saves, run.step] if run.step not in run.saves else run.saves
        run.say(f"Saved at step {run.step}.")

    # -- what the page asks

    def runs(self) -> list[Summary]:
        found = []
        for run in reversed(list(self._runs.values())):
            files = sorted((run.folder / "checkpoints").glob("*.safetensors"))
            drawn = Path(run.samples[-1]["file"]) if run.samples else None
            facts = (
                run.name,
                run.title,
                run.state,
                run.step,
                run.total,
                run.started,
                time.time() - run.started,
            )
            found.append(Summary(*facts, drawn, files, "", run.folder, run.step))
        return found

    def run(self, run_name: str) -> Summary | None:
        return next((run for run in self.runs() if run.name == run_name), None)

    def runs_so_far(self, seconds: float) -> tuple[list[Summary], int]:
        return self.runs(), 0

    def run_states(self, most: int) -> list[Summary]:
        return self.runs()[:most]

    def run_job(self, run_name: str) -> Any:
        return self._find(run_name).job

    def run_preset(self, run_name: str) -> str:
        return ""

    def editable_run(self, run_name: str) -> RunFolder:
        return RunFolder(self._find(run_name).folder)

    def delete_run(self, run_name: str) -> str:
        if self._now is not None and self._now.name == run_name:
            raise ProblemsError.one(f"'{run_name}' is running and cannot be deleted", run_name, "stop it first")
        self._runs.pop(run_name)
        return run_name

    def current_run(self) -> str | None:
        if self._now is not None:
            return self._now.name
        return next(reversed(self._runs), None) if self._runs else None

    def snapshot(self, run_name: str) -> dict[str, Any]:
        run = self._find(run_name)
        files = sorted((run.folder / "checkpoints").glob("*.safetensors"))
        return {
            "resumable_step": run.step, "run": run.name, "title": run.title, "state": run.state, "message": "", "fix": "", "seq": run.seq,
            "stage": run.stage, "step": run.step, "total": run.total,
            "epoch": run.step // 6 + 1, "epochs": 10, "images": 24, "sentence": "", "too_short": False,
            "seconds_per_step": self.step_seconds, "eta_seconds": (run.total - run.step) * self.step_seconds,
            "started": run.started, "seconds": time.time() - run.started,
            "loss": list(run.loss), "lr": list(run.rates), "saves": list(run.saves),
            "corrected": [[step, 1.1 - 0.2 * step / run.total] for step, _, _ in run.loss],
            "norms": [[step, 0.5 + 1 / step, 2 + step / 50 if step % 10 == 0 else None] for step, _, _ in run.loss],
            "validation": [
                {"step": step, "loss": 0.2 - step / 1000, "train_loss": 0.19 - step / 800, "gap": 0.01 + step / 4000,
                 "by_timestep": {"100": 0.3, "500": 0.1}, "images": 3}
                for step in [0, *(line[0] for line in run.loss if line[0] % 20 == 0)]
            ],
            "samples": sorted(run.samples, key=lambda item: (item["index"], item["step"])), "log": list(run.log),
            "files": [{"name": path.name, "path": str(path), "bytes": 1000, "step": step_of(path, run.step)} for path in files],
        }  # fmt: skip

    def watch(self, run_name: str) -> dict[str, Any]:
        """Nothing before the first step, as a real one."""
        run = self._find(run_name)
        if not run.step:
            return {}
        bands = [
            {"from": low, "to": low + 50, "mean": 0.4 / (1 + low / 100), "recent": 0.35 / (1 + low / 100), "count": 3}
            for low in range(0, 1000, 50)
        ]
        images = [
            {"source": "glyphs", "name": f"glyph_{n}.png", "corrected": 1.6 - n / 20, "count": 4} for n in range(24)
        ]
        return {"step": run.step, "bands": bands, "images": images, "images_seen": 24}

    def light(self, work: Any, *arguments: Any, **more: Any) -> Any:
        return self._light.submit(work, *arguments, **more)

    def status(self) -> dict[str, Any]:
        run, job = self._now, None
        if run is not None:
            entry = next(entry.id for entry in self.queue() if entry.run == run.name and entry.state == "running")
            job = {"title": run.title, "task": "train", "state": run.state, "stage": run.stage,
                   "step": run.step, "total": run.total,
                   "seconds_per_step": self.step_seconds, "eta_seconds": (run.total - run.step) * self.step_seconds,
                   "run": run.name, "entry": entry}  # fmt: skip
        return {"device": "CPU, 2 cores", "memory_used": 7 << 30, "memory_total": 24 << 30, "job": job}


def step_of(path: Path, last: int) -> int:
    """The step in a checkpoint's name; the last one for an average."""
    ends = path.stem[-8:]
    return int(ends) if ends.isdecimal() else last
