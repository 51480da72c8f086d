"""How fast the page's long lists open: hundreds of runs, thousands of images and their captions."""

import gc
import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from core.record.workspace import Workspace
from workshop.bench.datasets import IMAGES, make_many
from workshop.bench.measure import json_of, seconds_of

RUNS, STEPS = 500, 1500
SAVES = 10  # models of a run
SEARCHES = ("t", "tag number 7", "image 0001", "no such words", '"tag number 7" & !"tag number 20"')
PAUSE, TICK = 0.02, 1.0  # seconds between two looks at what is shown, and between two questions of a page


def measure_lists(quick: bool, say: Callable[[str], None]) -> dict[str, Any]:
    """`_runs` after a first and a second start, and `_images`, each in its own process."""
    runs, images = (RUNS // 10, IMAGES // 10) if quick else (RUNS, IMAGES)
    with tempfile.TemporaryDirectory(prefix="atelier-bench-") as name:
        outputs, folder = Path(name) / "outputs", Path(name) / "images"
        say(f"creating {runs} runs of {STEPS} steps")
        for number in range(runs):
            make_run(Workspace.of(outputs).runs, number, STEPS)
        say("opening Runs")
        first, again = (json_of("lists", "runs", str(outputs)) for _ in range(2))
        say(f"creating {images} images with captions")
        make_many(folder, images)
        say("opening Dataset and searching Captions")
        of_images = json_of("lists", "images", str(outputs), str(folder))
    return {"runs": runs, "steps": STEPS, "images": images, "first": first, "again": again, **of_images}


def make_run(runs: Path, number: int, steps: int) -> Path:
    """A run folder as a training leaves it: settings, a journal with a line for each step, samples, models without content."""
    from core.settings.job import TrainJob
    from core.settings.presets.files import dump

    moment = time.localtime(1_700_000_000 + 3600 * number)
    folder = runs / f"{time.strftime('%Y%m%d-%H%M%S', moment)}_run{number}"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "job.json").write_text(json.dumps(dump(TrainJob())), encoding="utf-8")
    lines: list[dict[str, Any]] = []

    def put(kind: str, **facts: Any) -> None:
        lines.append({"v": 1, "seq": len(lines) + 1, "time": time.mktime(moment) + len(lines), "kind": kind, **facts})

    put("state", state="running", message="", fix="")
    put("planned", total=steps, epochs=10, images=24, steps_per_epoch=max(steps // 10, 1), sentence="")
    for step in range(1, steps + 1):
        rates = {"unet": 1e-4, "text_encoder": 5e-5}
        put("steps", steps=[step], losses=[0.1 + math.exp(-step / 200)], rates=rates, epoch=1, seconds_per_step=0.5,
            grad_norm=0.5, corrected=[1.0], weight_norm=None)  # fmt: skip
        if step % max(steps // SAVES, 1) == 0:
            file = f"checkpoints/run{number}-step{step:08d}.safetensors"
            (folder / file).touch()
            put("sample", step=step, index=0, prompt="a fox", seed=1, file=f"samples/{step:08d}_00.png")
            put("validated", step=step, loss=0.2, train_loss=0.1, gap=0.1, by_timestep={}, images=4, each=[0.2] * 16)
            put("saved", step=step, file=file, bytes=0)
    put("state", state="done", message="", fix="")
    (folder / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return folder


def list_rows(result: dict[str, Any]) -> list[tuple[str, str]]:
    runs, images = f"{result['runs']} runs of {result['steps']} steps", f"{result['images']} images"

    def opened(of: dict[str, float]) -> str:
        first, whole, again = of["first_seconds"], of["seconds"], 1000 * of["again_seconds"]
        return f"first rows {first:.2f} s, all {whole:.2f} s, again {again:.0f} ms; {of['bytes'] / 1e6:.0f} MB"

    return [
        (f"opening Runs with {runs}, without summaries", opened(result["first"])),
        ("the same, later", opened(result["again"])),
        (f"first images of {images} on Dataset", f"{result['first_seconds']:.2f} s; all {result['seconds']:.1f} s"),
        (f"searching {images} on Captions", f"{1000 * result['find_seconds']:.0f} ms, at most {1000 * result['longest_find_seconds']:.0f}"),
        ("the same while the images are still checked", f"{1000 * result['busy_find_seconds']:.0f} ms"),
    ]  # fmt: skip


def _page(outputs: str) -> Any:
    from core.engine.engine import Engine
    from tabs.context import make_page

    workspace = Workspace.of(Path(outputs))
    return make_page(Engine(workspace, "cpu", "a benchmark"), workspace)


def _runs(outputs: str) -> dict[str, float]:
    """Seconds until the tab shows its first rows and all of them, and to show it again; bytes that it holds."""
    import psutil

    from tabs.runs.tab import RunHandlers

    page = _page(outputs)
    desk = RunHandlers(page)
    before, begin, first = psutil.Process().memory_info().rss, time.perf_counter(), 0.0
    while "Loading" in (shown := desk.show({})["main"]):
        first = first or ("<tbody>" in shown and time.perf_counter() - begin) or 0.0
        time.sleep(TICK)
    whole = time.perf_counter() - begin
    again = statistics.median(seconds_of(lambda: desk.show({})) for _ in range(5))
    gc.collect()
    held = psutil.Process().memory_info().rss - before
    page.engine.close()
    return {"first_seconds": first or whole, "seconds": whole, "again_seconds": again, "bytes": held}


def _images(outputs: str, folder: str) -> dict[str, float]:
    """Seconds until Dataset shows images, until it knows all, and of searches on Captions meanwhile and afterwards."""
    from tabs.captions.tab import CaptionHandlers
    from tabs.dataset.tab import DatasetHandlers

    page = _page(outputs)
    dataset, captions = DatasetHandlers(page), CaptionHandlers(page)
    begin = time.perf_counter()
    dataset.choose(folder)
    while '<li class="tile"' not in dataset.tick("")["grid"]:
        time.sleep(PAUSE)
    first = time.perf_counter() - begin
    while page.reading.report is None:
        time.sleep(PAUSE)
    whole = time.perf_counter() - begin
    busy = _searches(captions)
    while page.reading.busy:
        time.sleep(10 * PAUSE)
    quiet = _searches(captions)
    page.engine.close()
    return {
        "first_seconds": first,
        "seconds": whole,
        "busy_find_seconds": statistics.median(busy),
        "find_seconds": statistics.median(quiet),
        "longest_find_seconds": max(quiet),
    }


def _searches(captions: Any) -> list[float]:
    """Seconds of each of SEARCHES, with the answer as JSON for the browser."""

    def answer(words: str) -> str:
        return json.dumps(captions.answer({"act": "find", "value": words}))

    return [seconds_of(partial(answer, words)) for words in SEARCHES]


def main(arguments: list[str]) -> None:
    """runs OUTPUTS, or images OUTPUTS FOLDER: one measurement, printed as JSON."""
    print(json.dumps(_runs(arguments[1]) if arguments[0] == "runs" else _images(*arguments[1:])))


if __name__ == "__main__":
    main(sys.argv[1:])
