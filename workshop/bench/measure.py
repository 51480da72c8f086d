"""Measures whole trainings in their own processes, from their journal and the system's statistics."""

import json
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import psutil

from core.record.journal import read_lines
from core.record.run_folder import list_runs
from core.record.workspace import PROJECT
from core.settings.check import build
from core.settings.job import TrainJob
from core.settings.presets.files import dump

T = TypeVar("T")
SAMPLE_SECONDS = 0.05
WARM_UP_STEPS = 3
PAUSE = 0.5  # seconds between two requests for the page


@dataclass(frozen=True)
class Measured:
    """seconds_per_step: median after the warm-up. peak_bytes: resident memory of the process and its children.
    start_to_first_step: from process start until the first step begins; ..._done: until its loss is known.
    """

    seconds_per_step: float
    start_to_first_step: float
    start_to_first_step_done: float
    peak_bytes: int
    steps: int


def webui(outputs: Path, device: str, *words: str) -> list[str]:
    """The command line of the program, or of its page."""
    return [sys.executable, str(PROJECT / "webui.py"), *words, "--outputs", str(outputs), "--device", device]


@dataclass(frozen=True)
class Ended:
    """A process that ended well. printed: its stdout; peak_bytes: as in `Measured`"""

    printed: str
    seconds: float
    peak_bytes: int


def run_process(command: Sequence[str], title: str, env: Mapping[str, str] | None = None) -> Ended:
    """Run a command in the project folder. Raises RuntimeError with the end of its stderr if it fails. title: for that message"""
    begin = time.perf_counter()
    process = subprocess.Popen(
        command, cwd=PROJECT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8"
    )
    watch = PeakWatch(process.pid)
    printed, errors = process.communicate()
    seconds, peak = time.perf_counter() - begin, watch.finish()
    if process.returncode:
        raise RuntimeError(f"{title} ended with {process.returncode}:\n{errors[-2000:]}")
    return Ended(printed, seconds, peak)


def json_of(module: str, *words: str) -> Any:
    """Run a module of the benchmark in a process of its own: the JSON on the last line that it prints."""
    command = [sys.executable, "-m", f"workshop.bench.{module}", *words]
    return json.loads(run_process(command, module).printed.splitlines()[-1])


def timed(work: Callable[[], T]) -> tuple[T, float]:
    """(result, seconds) of a call."""
    begin = time.perf_counter()
    result = work()
    return result, time.perf_counter() - begin


def seconds_of(work: Callable[[], object]) -> float:
    return timed(work)[1]


def write_job(values: dict[str, Any], outputs: Path) -> Path:
    """The preset of a measured training, below `outputs`."""
    outputs.mkdir(parents=True, exist_ok=True)
    preset = outputs / "bench_job.json"
    preset.write_text(json.dumps(dump(build(TrainJob, values))), encoding="utf-8")
    return preset


def measure_training(
    values: dict[str, Any], outputs: Path, device: str, program: Sequence[str] | None = None
) -> Measured:
    """Run `webui.py train` with these settings and read the results. program: arguments of Python to run instead of webui.py"""
    preset = write_job({"validation": {"best_checkpoint": "off"}} | values, outputs)
    known = {folder.name for folder in list_runs(outputs / "runs")}
    command = webui(outputs, device, "train", str(preset))
    command[1:2] = program or command[1:2]
    started = time.time()
    peak = run_process(command, "the measured training").peak_bytes
    folder = next(folder for folder in list_runs(outputs / "runs") if folder.name not in known)
    return _read(folder.journal_file, started, peak)


def _read(journal: Path, started: float, peak: int) -> Measured:
    lines = list(read_lines(journal))
    steps = [line for line in lines if line["kind"] == "steps"]
    begun = next(line["time"] for line in lines if line["kind"] == "stage" and line["text"] == "training")
    times = [(line["steps"][-1], line["time"]) for line in steps]
    paces = [(b[1] - a[1]) / (b[0] - a[0]) for a, b in pairwise(times) if a[0] >= WARM_UP_STEPS]
    return Measured(
        seconds_per_step=statistics.median(paces) if paces else float("nan"),
        start_to_first_step=begun - started,
        start_to_first_step_done=steps[0]["time"] - started,
        peak_bytes=peak,
        steps=times[-1][0],
    )


class PeakWatch:
    """Peak resident memory of a process tree, sampled; on Linux the kernel's high-water mark counts too."""

    def __init__(self, pid: int):
        self._process = psutil.Process(pid)
        self.peak = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._done.wait(SAMPLE_SECONDS):
            try:
                members = [self._process, *self._process.children(recursive=True)]
                self.peak = max(self.peak, sum(member.memory_info().rss for member in members), self._high_water())
            except psutil.Error:
                continue

    def _high_water(self) -> int:
        try:
            status = Path(f"/proc/{self._process.pid}/status").read_text("ascii")
        except OSError:
            return 0
        return next((int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM")), 0)

    def finish(self) -> int:
        self._done.set()
        self._thread.join()
        return self.peak


def measure_tool(arguments: list[str]) -> dict[str, float]:
    """Seconds and peak memory of a tool in a process of its own."""
    ended = run_process(arguments, "the tool")
    return {"seconds": ended.seconds, "peak_bytes": ended.peak_bytes}


def measure_page(values: dict[str, Any], outputs: Path, device: str, requests: int) -> dict[str, float]:
    """Response times of the page, in seconds, while a training of these settings runs in it."""
    import urllib.request

    from core.engine.owner import hand_in

    outputs.mkdir(parents=True, exist_ok=True)
    command = webui(outputs, device, "--no-browser", "--port", "7900")
    process = subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        address = _address(process)
        from core.record.workspace import Workspace

        hand_in(Workspace.of(outputs), "train", "bench", values)
        journal = _wait_for_steps(outputs)
        # A browser keeps the page's cookie; clients without it are throttled while a job runs.
        browser = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
        times = []
        for _ in range(requests):
            started = time.perf_counter()
            with browser.open(address, timeout=60) as answer:
                answer.read()
            times.append(time.perf_counter() - started)
            time.sleep(PAUSE)
        assert journal.exists()
    finally:
        process.terminate()
        process.wait(timeout=60)
    times.sort()
    return {
        "median": statistics.median(times),
        "p95": times[round(0.95 * (len(times) - 1))],
        "requests": float(len(times)),
    }


def _address(process: subprocess.Popen[str]) -> str:
    """The address printed by the page."""
    assert process.stdout is not None
    for line in process.stdout:
        for word in line.split():
            if word.startswith("http://"):
                return word.rstrip(".,")
    raise RuntimeError("the page did not start")


def _wait_for_steps(outputs: Path, seconds: float = 120.0) -> Path:
    """Wait until a run in this folder has made a few steps."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for folder in list_runs(outputs / "runs")[:1]:
            if sum(line["kind"] == "steps" for line in read_lines(folder.journal_file)) >= WARM_UP_STEPS:
                return folder.journal_file
        time.sleep(0.5)
    raise RuntimeError("the training in the page did not start")
