"""How soon a training takes its first step: from the start of the program, with few and with many images."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from core.machine_check import workload
from core.record.workspace import Workspace
from workshop.bench.compare import fill_caches
from workshop.bench.measure import measure_training

ROUNDS = 3


@dataclass(frozen=True)
class Case:
    """size: side of the images, which they train at."""

    what: str
    images: int
    size: int
    cold: bool


CASES = (
    Case("8 images of 256 px, full caches", workload.IMAGES, 256, cold=False),
    Case("8 images of 256 px, never seen", workload.IMAGES, 256, cold=True),
    Case("10,000 images of 64 px, full caches", 10_000, 64, cold=False),
    Case("10,000 images of 64 px, never seen", 10_000, 64, cold=True),
)


def measure_start(folder: Path, device: str, quick: bool, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Seconds to the end of the first step: the median of several starts. quick: one of each, of few images only"""
    say("creating a model of random weights with SD 1.5's architecture")
    model, found = workload.make_model(folder), []
    for case in CASES[:2] if quick else CASES:
        say(f"creating {case.images} images")
        images = workload.make_images(folder / f"{case.images} images", case.size, case.images)
        values = workload.job_values(model, images, case.size, 1, "bf16")
        outputs = folder / "outputs"
        if not case.cold:
            fill_caches(values, outputs, device)
        times = []
        for number in range(1 if quick else ROUNDS):
            say(f"{case.what}: start {number + 1}")
            if case.cold:
                forget_images(outputs)
            times.append(measure_training(values, outputs, device).start_to_first_step_done)
        found.append({"what": case.what, "seconds": median(times), "each": times})
    return found


def forget_images(outputs: Path) -> None:
    """As before any image was looked at; what is known of the model stays."""
    workspace = Workspace.of(outputs)
    shutil.rmtree(workspace.cache, ignore_errors=True)
    for file in workspace.private.glob("index.sqlite*"):
        file.unlink()


def start_rows(found: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    """Rows of the benchmark's table."""
    return [(f"time to the end of the first step: {each['what']}", f"{each['seconds']:.1f} s") for each in found]
