"""The images of docs/images, from the real page: `python -m workshop.screenshots [FOLDER] [--widths 390 1400] [--scheme dark]`.

Starts the page on an outputs folder of its own, trains the starter LoRA, generates with it, and takes one image of each tab
at each width, and tour.webp, which moves from the folder of images to the samples. Needs Chromium and the packages of
requirements-test.txt; takes about five minutes on two CPU cores.
"""

import argparse
import io
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

from core.record.workspace import PROJECT
from core.setup.browser import MISSING, find_browser

PATIENCE = 300_000  # ms: a training on a CPU
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
TABS = ("Dataset", "Captions", "Train", "Monitor", "Generate", "Runs", "Tools")
TOUR_WIDTH, TOUR_MS = 1000, 2200  # pixels, and how long each of its images stands


@contextmanager
def served(outputs: Path) -> Iterator[str]:
    """A context in which the page runs; its value is the page's address."""
    argv = [sys.executable, "webui.py", "--no-browser", "--outputs", str(outputs), "--device", "cpu", "--port", "7990"]
    log = outputs.with_suffix(".log")
    with log.open("w", encoding="utf-8") as said:
        process = subprocess.Popen(
            argv, cwd=PROJECT, stdout=said, stderr=subprocess.STDOUT, env=os.environ | {"PYTHONUNBUFFERED": "1"}
        )
    try:
        while not (address := re.search(r"http://\S+\d", log.read_text("utf-8"))):
            if process.poll() is not None:
                raise RuntimeError(log.read_text("utf-8"))
        yield address.group()
    finally:
        process.terminate()
        process.wait()


def open_tab(page: Any, name: str) -> None:
    page.get_by_role("tab", name=name, exact=True).click()
    page.wait_for_timeout(1500)  # images load, charts are drawn


def take(page: Any, folder: Path, name: str, widths: list[int], height: int) -> None:
    """Save a screenshot of a tab for each width: NAME.webp for the first, NAME-390.webp and so on for the others."""
    for at, width in enumerate(widths):
        page.set_viewport_size({"width": width, "height": height})
        open_tab(page, name)
        page.evaluate("scrollTo(0, 0)")
        file = folder / (f"{name.lower()}-{width}.webp" if at else f"{name.lower()}.webp")
        taken = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
        taken.quantize(256, dither=Image.Dither.NONE).convert("RGB").save(file, lossless=True, quality=100, method=6)
    page.set_viewport_size({"width": widths[0], "height": height})


def frame(page: Any) -> Image.Image:
    """What the window shows, for the tour."""
    taken = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    return taken.resize((TOUR_WIDTH, round(taken.height * TOUR_WIDTH / taken.width)), Image.Resampling.LANCZOS)


def all_tabs(page: Any, folder: Path, widths: list[int], height: int) -> None:
    """Train, generate, and take the tabs in the order in which they have something to show."""
    tour = []
    page.wait_for_selector("body[data-atelier=ready]")
    page.wait_for_function("atelier.stamp")
    open_tab(page, "Train")
    page.get_by_text("24 of 24 images will train").first.wait_for()
    page.get_by_text("Estimating ...").first.wait_for(state="hidden")
    for name in ("Tools", "Dataset", "Captions", "Train"):
        take(page, folder, name, widths, height)
        tour += [frame(page)] if name in ("Dataset", "Train") else []
    page.locator("#start").click()
    for step in (10, 80, 160):
        page.wait_for_function(
            "(least) => +/step (\\d+) of/.exec(document.querySelector('#run-step')?.textContent)?.[1] >= least",
            arg=step,
        )
        open_tab(page, "Monitor")
        tour.append(frame(page))
    take(page, folder, "Monitor", widths, height)
    page.get_by_role("button", name="Generate with it").click()
    page.get_by_role("button", name="Generate", exact=True).click()
    page.locator("#gen-gallery img:visible").first.wait_for()
    for name in ("Generate", "Runs"):
        take(page, folder, name, widths, height)
        tour += [frame(page)] if name == "Generate" else []
    first, *more = tour
    first.save(folder / "tour.webp", save_all=True, append_images=more, duration=TOUR_MS, loop=0, quality=75, method=6)


def main(argv: list[str] | None = None) -> int:
    from playwright.sync_api import sync_playwright

    reader = argparse.ArgumentParser(prog="python -m workshop.screenshots", description=__doc__)
    reader.add_argument("folder", nargs="?", type=Path, default=PROJECT / "docs" / "images")
    reader.add_argument("--widths", nargs="+", type=int, default=[1400])
    reader.add_argument("--height", type=int, default=860)
    reader.add_argument("--scheme", choices=["light", "dark"], default="light")
    arguments = reader.parse_args(argv)
    browser = find_browser()
    if browser is None:
        print(MISSING)
        return 1
    arguments.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as place, served(Path(place) / "outputs") as url, sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=browser, args=FLAGS)
        page = chromium.new_page(
            viewport={"width": arguments.widths[0], "height": arguments.height}, color_scheme=arguments.scheme
        )
        page.set_default_timeout(PATIENCE)
        page.goto(url)
        all_tabs(page, arguments.folder, arguments.widths, arguments.height)
        chromium.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
