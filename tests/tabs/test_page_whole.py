"""The product as its user meets it: the real page, the real engine, a real browser, a kill in mid-run."""

import json
import os
import re
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from work_parts import wait_until

from core.record.journal import read_lines
from core.record.run_folder import list_runs
from core.record.workspace import PROJECT

PATIENCE = 240_000  # ms: two cores may be busy
STEPS = 16  # so many that the page sees the first ones and pauses there


class Server:
    """`webui.py` in a process of its own on one outputs folder."""

    def __init__(self, outputs: Path):
        words = [
            sys.executable,
            "webui.py",
            "--no-browser",
            "--outputs",
            str(outputs),
            "--device",
            "cpu",
            "--port",
            "7960",
        ]
        self.outputs = outputs
        self.process = subprocess.Popen(words, cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert self.process.stdout is not None
        said = []
        for line in self.process.stdout:
            said.append(line)
            found = re.search(r"http://\S+", line)
            if found:
                self.url = found.group().rstrip(".,")
                # read on: a full pipe would hold the page up
                threading.Thread(target=self.process.stdout.read, daemon=True).start()
                return
        raise AssertionError("".join(said))

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def steps(self) -> int:
        runs = list_runs(self.outputs / "runs")
        lines = read_lines(runs[0].journal_file) if runs else ()
        return max((line["steps"][-1] for line in lines if line["kind"] == "steps"), default=0)

    def wait_for_step(self, step: int) -> None:
        end = time.monotonic() + PATIENCE / 1000
        while self.steps() < step:
            assert time.monotonic() < end and self.process.poll() is None, f"step {step} did not come"
            time.sleep(0.2)


def visit(chromium, server):
    """A new browser window on the page; its errors are collected in `page.errors`."""
    page = chromium.new_page(viewport={"width": 1280, "height": 860})
    page.set_default_timeout(PATIENCE)
    page.errors = []
    page.on("console", lambda message: page.errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    page.goto(server.url)
    page.get_by_role("tab", name="Train").wait_for()
    return page


def tab(page, name):
    page.get_by_role("tab", name=name, exact=True).click()


def fill(page, setting, text):
    """Type into the field of a setting ("schedule.max_train_steps") and leave it."""
    place = page.locator("#field-" + setting.replace(".", "-").replace("_", "-"))
    box = place.locator("textarea, input[type=text]").first
    box.fill(text)
    box.blur()


def keys_of(page, name: str) -> list[str]:
    """The keys of a LoRA that the page offers under this name."""
    with page.expect_download() as got:
        page.get_by_role("link", name=name, exact=True).click()
    content = got.value.path().read_bytes()
    header = json.loads(content[8 : 8 + struct.unpack("<Q", content[:8])[0]])
    assert f"{header['__metadata__']['ss_output_name']}.safetensors" == name
    return [key for key in header if key.endswith(".lora_down.weight")]


def test_train_watch_kill_continue_and_draw(chromium, tmp_path):
    server = Server(tmp_path / "outputs")
    try:
        page = visit(chromium, server)
        tab(page, "Train")
        page.get_by_text("24 of 24 images will train").first.wait_for()
        fill(page, "samples.sample_prompts", "a fox, glyph style")
        fill(page, "schedule.max_train_steps", str(STEPS))
        fill(page, "dataset.train_batch_size", "1")
        page.locator("#start").click()
        page.get_by_text(re.compile(rf"step \d+ of {STEPS}")).first.wait_for()
        page.get_by_role("button", name="Pause", exact=True).click()  # a slow page must not miss the run
        page.get_by_role("button", name="Resume", exact=True).wait_for()
        page.reload()
        tab(page, "Monitor")
        page.get_by_text(re.compile(rf"step \d+ of {STEPS}")).first.wait_for()
        page.get_by_role("button", name="Save now", exact=True).click()
        page.get_by_text(re.compile(r"glyph_style-step\d{8}\.safetensors")).first.wait_for()
        paused_at = server.steps()
        page.get_by_role("button", name="Resume", exact=True).click()
        server.wait_for_step(paused_at + 3)
        assert page.errors == []
        server.kill()
        page.close()
        killed_at = server.steps()

        server = Server(tmp_path / "outputs")
        page = visit(chromium, server)
        tab(page, "Monitor")
        page.get_by_text("interrupted").first.wait_for()
        page.get_by_role("button", name="Resume training").first.click()
        server.wait_for_step(min(killed_at + 1, STEPS))
        page.get_by_text("done", exact=True).first.wait_for()
        assert list_runs(tmp_path / "outputs" / "runs")[0].checkpoints.joinpath("glyph_style.safetensors").is_file()
        assert len(list_runs(tmp_path / "outputs" / "runs")) == 1
        page.locator("#run-step", has_text=f"step {STEPS} of {STEPS}").wait_for()
        page.locator("#loss-chart path.smooth").wait_for(state="attached")
        heads = page.locator("table.samples thead th").all_inner_texts()
        assert heads[1] == "base model" and heads[-1].startswith("step ")
        assert keys_of(page, "glyph_style.safetensors")

        tab(page, "Generate")
        page.locator("summary", has_text="Add a LoRA").click()
        page.locator("[data-act=add]", has_text="glyph_style").first.click()
        page.locator("#gen-loras [data-act=strength]").first.wait_for()
        assert page.locator(".picker[open]").count() == 0  # closed by the choice
        page.get_by_role("button", name="Generate", exact=True).click()
        page.locator("#shelf-strip .tile img").first.wait_for()
        assert list((tmp_path / "outputs" / "images").rglob("*.png"))
        assert page.errors == []
    finally:
        server.kill()


@pytest.mark.slow  # by default: test_page_train has the two entries, test_engine the one training
def test_two_browsers_pressing_start_make_two_queue_entries_and_one_training(chromium, tmp_path):
    server = Server(tmp_path / "outputs")
    try:
        pages = [visit(chromium, server) for _ in range(2)]
        for page in pages:
            tab(page, "Train")
            page.get_by_text("24 of 24 images will train").first.wait_for()
        for page in pages:
            page.locator("#start").click(no_wait_after=True)
        queue = tmp_path / "outputs" / ".atelier" / "queue.json"
        wait_until(lambda: queue.is_file() and len(json.loads(queue.read_text("utf-8"))["entries"]) == 2, 240)
        server.wait_for_step(1)
        assert len(list_runs(tmp_path / "outputs" / "runs")) == 1
    finally:
        server.kill()


@pytest.mark.slow
def test_the_page_comes_up_within_ten_seconds_of_a_quiet_machine(tmp_path):
    """No timing decides: only that nothing heavy is loaded before the address is said."""
    code = "import core.cli.page, tabs.server.app, sys; print([m for m in ('torch', 'diffusers', 'transformers') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, env={**os.environ})
    assert done.stdout.strip().endswith("[]"), done.stderr
