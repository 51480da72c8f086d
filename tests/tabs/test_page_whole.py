"""The product as its user meets it: the real page, the real engine, a real browser, a kill in mid-run."""

import json
import re
import shutil
import struct
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from urllib.request import urlopen

import pytest
from page_server import Served

from core.engine.engine import Engine
from core.record.journal import read_lines
from core.record.run_folder import list_runs
from core.record.workspace import PROJECT, Workspace
from core.settings.presets.files import PresetStore
from tabs.form.project import Project

PATIENCE = 240_000  # ms: two cores may be busy
STEPS = 400  # far more than are taken: however fast the machine is, the page sees the first ones and pauses there


class Inside:
    """The page and its engine in this process, which has loaded all that they need."""

    def __init__(self, outputs: Path):
        self.outputs = outputs
        self.served = Served(outputs.parent, engine=lambda workspace: Engine(workspace, "cpu"))
        self.url = self.served.url

    def kill(self) -> Path:
        """A copy of all files in mid-run: what a kill leaves."""

        def copy(source, target):
            with suppress(FileNotFoundError):  # the temporary file of an atomic write
                shutil.copy2(source, target)

        left = self.outputs.parent / "killed" / "outputs"
        shutil.copytree(self.outputs, left, copy_function=copy)
        self.close()
        return left

    def close(self) -> None:
        for entry in self.served.engine.queue():
            self.served.engine.cancel(entry.id)
        self.served.close()


@pytest.fixture
def serve():
    """Serves an outputs folder."""
    begun = []

    def make(outputs: Path):
        begun.append(Inside(outputs))
        return begun[-1]

    yield make
    for server in begun:
        server.close()


def steps_of(outputs: Path) -> int:
    """The last step in the newest run's journal."""
    runs = list_runs(outputs / "runs")
    lines = read_lines(runs[0].journal_file) if runs else ()
    return max((line["steps"][-1] for line in lines if line["kind"] == "steps"), default=0)


def wait_for_step(outputs: Path, step: int) -> None:
    end = time.monotonic() + PATIENCE / 1000
    while steps_of(outputs) < step:
        assert time.monotonic() < end, f"step {step} did not come"
        time.sleep(0.1)


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
        page.locator("#run-files a").and_(page.get_by_title(name, exact=True)).click()
    content = got.value.path().read_bytes()
    header = json.loads(content[8 : 8 + struct.unpack("<Q", content[:8])[0]])
    assert name.startswith(header["__metadata__"]["ss_output_name"])
    return [key for key in header if key.endswith(".lora_down.weight")]


def prepare_small_training(outputs: Path) -> None:
    """Leave in the form what makes the steps and samples of the starter quick."""
    workspace = Workspace.of(outputs=str(outputs))
    project = Project(workspace.private / "project.json", PresetStore(workspace.presets))
    values = {"dataset.resolution": "64", "dataset.train_batch_size": "1", "samples.sample_steps": "2"}
    for setting, value in values.items():
        project.edit(setting, value)


def test_train_watch_kill_continue_and_generate(chromium, serve, tmp_path):
    outputs = tmp_path / "outputs"
    prepare_small_training(outputs)
    server = serve(outputs)
    page = visit(chromium, server)
    tab(page, "Train")
    page.get_by_text("24 of 24 images will train").first.wait_for()
    fill(page, "samples.sample_prompts", "a fox, glyph style")
    fill(page, "schedule.max_train_steps", str(STEPS))
    page.locator("#start").click()
    page.get_by_text(re.compile(rf"step \d+ of {STEPS}")).first.wait_for()
    page.get_by_role("button", name="Pause", exact=True).click()
    page.get_by_role("button", name="Resume", exact=True).wait_for()
    page.get_by_role("button", name="Save now", exact=True).click()
    page.locator("#run-files a").get_by_text(re.compile(r"step \d+$")).first.wait_for()
    paused_at = steps_of(outputs)
    page.get_by_role("button", name="Resume", exact=True).click()
    wait_for_step(outputs, paused_at + 3)
    assert page.errors == []
    outputs = server.kill()
    page.close()
    killed_at = steps_of(outputs)

    server = serve(outputs)
    page = visit(chromium, server)
    tab(page, "Monitor")
    page.get_by_text("interrupted").first.wait_for()
    page.get_by_role("button", name="Resume training").first.click()
    wait_for_step(outputs, killed_at + 1)
    page.get_by_role("button", name="Stop and save").click()
    page.get_by_text("stopped and saved", exact=True).first.wait_for()
    assert len(list_runs(outputs / "runs")) == 1
    stopped_at = steps_of(outputs)
    assert killed_at < stopped_at < STEPS
    page.locator("#run-step", has_text=f"step {stopped_at} of {STEPS}").wait_for()
    page.locator("#loss-chart path.smooth").wait_for(state="attached")
    assert page.locator("table.samples thead th").nth(1).inner_text() == "base model"
    assert keys_of(page, f"glyph_style-step{stopped_at:08d}.safetensors")

    tab(page, "Generate")
    page.locator("summary", has_text="+ LoRA").click()
    page.locator("[data-act=add]", has_text="glyph_style").first.click()
    page.locator("#gen-loras [data-act=strength]").first.wait_for()
    assert page.locator(".picker[open]").count() == 0  # closed by the choice
    page.locator("#gen-steps").fill("2")
    page.get_by_role("button", name="Generate", exact=True).click()
    page.locator("#shelf-strip .tile img").first.wait_for()
    assert list((outputs / "images").rglob("*.png"))
    assert page.errors == []


@pytest.mark.slow
def test_the_program_serves_the_page_at_the_address_it_prints_and_ends_when_it_is_asked_to(tmp_path):
    words = ["--no-browser", "--outputs", str(tmp_path), "--device", "cpu", "--port", "7960"]
    command = [sys.executable, "webui.py", *words]
    with subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as program:
        address = next(found.group() for line in program.stdout if (found := re.search(r"http://\S+", line)))
        with urlopen(address.rstrip(".,"), timeout=60) as answer:
            assert answer.status == 200 and b"Atelier" in answer.read()
        program.terminate()
        assert program.wait(60) == 0
