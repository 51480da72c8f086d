"""How soon a training ends its first step: from the start of the program, with few and with many images."""

import os
import runpy
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

from core.machine_check.random_model import make_model
from core.record.workspace import PROJECT, STARTER, Workspace
from workshop.bench import workload
from workshop.bench.measure import measure_training

ROUNDS = 3
CASES = ((workload.IMAGES, 256), (1_000, 64))  # images, and the side in pixels that they train at
ENCODERS_FIT = ("core.training.building.latents.encoders_fit", "core.training.building.texts.encoders_fit")
LATE, FIRST, CACHED = "encoded when needed", "all encoded first", "full caches"


def measure_start(folder: Path, device: str, quick: bool, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Seconds to the end of the first step: the median of several starts. quick: the starter model, one start of each"""
    say("creating a model" if not quick else "with the starter model")
    model, outputs = STARTER if quick else make_model(folder), folder / "outputs"
    rows = []
    for count, size in CASES:
        say(f"creating {count} images")
        images = workload.make_images(folder / f"{count} images", size, count)
        values = workload.job_values(model, images, size, 1, "bf16")
        values["network"] = values["network"] | {"train_text_encoder": False}  # so that captions are encoded once
        times: dict[str, list[float]] = {LATE: [], FIRST: [], CACHED: []}
        for number in range(1 if quick else ROUNDS):
            for mode, seconds in times.items():
                say(f"{count} images, {mode}: start {number + 1}")
                if mode != CACHED:  # whose caches the start before filled
                    forget_images(outputs)
                program = ("-m", "workshop.bench.start") if mode == FIRST else None
                seconds.append(measure_training(values, outputs, device, program).start_to_first_step_done)
        rows += [
            {"what": f"{count:,} images of {size} px, {mode}", "seconds": median(seconds), "each": seconds}
            for mode, seconds in times.items()
        ]
    return rows


def forget_images(outputs: Path) -> None:
    """Delete the caches and all that is known of images; facts of the model stay."""
    workspace = Workspace.of(outputs)
    shutil.rmtree(workspace.cache, ignore_errors=True)
    for file in workspace.private.glob("index.sqlite*"):
        file.unlink()


def start_rows(result: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(f"time to the end of the first step: {each['what']}", f"{each['seconds']:.1f} s") for each in result]


def main() -> None:
    """Run the program as if no encoder fitted next to the model: it encodes everything before the first step."""
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # before torch loads, as in webui.py
    with patch(ENCODERS_FIT[0], return_value=False), patch(ENCODERS_FIT[1], return_value=False):
        runpy.run_path(str(PROJECT / "webui.py"), run_name="__main__")


if __name__ == "__main__":
    main()
