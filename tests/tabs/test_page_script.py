"""Texts of others that try to become a part of the page: in captions, names of files, folders, runs and presets, titles, notes,
messages, metadata. Seen in a real browser by a guest of a shared page: no script runs, and no element appears but the page's own."""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from made_runs import dataset, make_run
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from playwright.sync_api import expect
from safetensors.torch import save_file
from work_parts import image

from core.engine.engine import Engine
from core.record.workspace import PROJECT, Workspace
from core.settings.check import build
from core.settings.job import GenerateJob, TrainJob
from core.settings.presets.files import PresetStore

RUN = "window.__ran=1"
NAME = f"'\"><b-foreign><img src=x onerror={RUN}>"  # what a file can be called: no slash, and short
TEXT = (
    f"{NAME}</b-foreign></script></style></title></textarea></option></select><script>{RUN}</script>"
    f'<svg onload={RUN}></svg> " onmouseover="{RUN}" autofocus onfocus=\'{RUN}\' `${{{RUN}}}` {{{{{RUN}}}}}'
    f" [link](javascript:{RUN}) <a href=javascript:{RUN}>link</a> <iframe src=javascript:{RUN}></iframe>"
)
TAGS = f"red, {NAME}, fox"
# Notes every element and attribute of the texts above that a frame of the page holds.
WATCH = """(() => {
  window.foreign = [];
  const signs = ["b-foreign", "iframe", "img[src='x']", ...["error", "load", "focus", "mouseover"].map((name) => `body [on${name}]`),
    ...["href", "src", "action", "formaction"].map((name) => `[${name}^='javascript:' i]`)].join(", ");
  let due = 0;
  const look = () => { due = 0; document.querySelectorAll(signs).forEach((node) => window.foreign.push(node.outerHTML.slice(0, 300))); };
  const soon = () => { due = due || requestAnimationFrame(look); };
  new MutationObserver(soon).observe(document, {subtree: true, childList: true, attributes: true});
})()"""


def hostile_workspace(folder):
    own = Workspace(outputs=folder / "outputs", models=folder / "models", presets=folder / "presets")
    shutil.copytree(PROJECT / "presets", own.presets)
    shutil.copytree(PROJECT / "models" / "starter", own.models / "starter", copy_function=os.link)
    lora = {f"lora_unet_{TEXT}.lora_{way}.weight": torch.zeros(4, 4) for way in ("down", "up")}
    for place, ending in ((own.models, NAME), (own.models / "loras", f"lora {NAME}")):
        place.mkdir(exist_ok=True)
        about = {"ss_output_name": TEXT, "modelspec.title": TEXT, "ss_tag_frequency": json.dumps({TEXT: {TEXT: 3}})}
        save_file(lora, place / f"{ending}.safetensors", metadata=about | {TEXT: TEXT})
        (place / f"broken {NAME}.ckpt").write_bytes(TEXT.encode())
    images = own.datasets / NAME
    for number in range(3):
        path = image(images / f"{number} {NAME}.png", (200, 200), caption=TAGS if number else TEXT)
        Image.effect_noise((200, 200), 60 + 40 * number).convert("RGB").save(path)
    image(images / NAME / "under.png", (200, 200), caption=TEXT)
    image(images / f"copy {NAME}.png", (200, 200)).write_bytes((images / f"0 {NAME}.png").read_bytes())
    image(images / f"broken {NAME}.png").write_bytes(TEXT.encode())
    for number in range(1, 3):
        _run(own, f"2026010{number}-120000_{NAME}", number)
    own.images.mkdir(parents=True)
    _draw(own.images / f"{NAME}.png")
    return own


def _draw(path):
    """An image whose metadata are hostile."""
    chunk = PngInfo()
    settings = f"Steps: 5, Sampler: {NAME}, Model: {NAME}, Size: 64x64"
    chunk.add_text("parameters", f"{TEXT}\nNegative prompt: {TEXT}\n{settings}")
    Image.new("RGB", (64, 64)).save(path, pnginfo=chunk)
    return path


def _run(own, name: str, number: int) -> None:
    folder = make_run(
        own.runs,
        name,
        settings={"dataset": {"folder": str(own.datasets / NAME)}, "model": {"base_model": str(own.models / NAME)}},
        steps=40 + 20 * number,
        validated=[(0, 0.2), (40, 0.13 + number / 100)],
        saved=(20, 40),
        drawn=(0, 40),
        prompts=(TEXT, TAGS),
        about=dataset([{"source": NAME, "path": NAME, "sha256": "a" * 64, "caption": TEXT, "bucket": [64, 64]}]),
        preset=f"user/{TEXT}",
    )
    (folder / "about.json").write_text(json.dumps({"title": NAME, "note": TEXT}), "utf-8")
    lines = [json.loads(line) for line in (folder / "events.jsonl").read_text("utf-8").splitlines()]
    said = [
        {"kind": "log", "level": level, "text": f"said {TEXT}", "fix": TEXT, "time": lines[-1]["time"]}
        for level in ("info", "warning", "error", TEXT)
    ]
    lines[-1] |= {"state": "failed", "message": TEXT, "fix": TEXT}
    lines = [*lines[:-1], *said, lines[-1]]
    (folder / "events.jsonl").write_text(
        "".join(json.dumps(line | {"v": 1, "seq": n + 1}) + "\n" for n, line in enumerate(lines))
    )


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    import page_server

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page_server, "make_workspace", hostile_workspace)
        served = page_server.Served(
            tmp_path_factory.mktemp("script"),
            engine=lambda workspace: Engine(workspace, "cpu"),
            shared=True,
            auth=("guest", "secret"),
        )
    page, own = served.page, served.workspace
    page.engine.pause_queue()
    values = {"prompt": TEXT, "negative_prompt": TEXT}
    page.engine.submit("generate", build(GenerateJob, {"generate": values, "model": {"base_model": "models/starter"}}))
    job = build(
        TrainJob,
        {
            "dataset": {"folder": str(own.datasets / NAME)},
            "model": {"base_model": "models/starter"},
            "samples": {"sample_prompts": [TEXT, TAGS]},
            "captions": {"caption_prefix": TEXT},
        },
    )
    page.engine.submit("train", job, title=TEXT)
    page.project.replace(job)
    (own.presets / "user").mkdir(exist_ok=True)
    PresetStore(own.presets).save("plain", job)
    os.rename(own.presets / "user" / "plain.json", own.presets / "user" / f"{NAME}.json")
    yield served
    served.close()


@pytest.mark.slow
def test_no_text_of_others_becomes_a_part_of_the_page(hostile, chromium, tmp_path):
    from page_server import Visit

    drawn = functools.partial(generate, drawn=_draw(tmp_path / f"{NAME}.png"))

    window = Visit(chromium, hostile.url, accept_downloads=False)
    window.tab.on("dialog", lambda dialog: window.errors.append("a dialog") or dialog.dismiss())
    window.tab.add_init_script(WATCH)
    assert window.context.request.post(f"{hostile.url}login", form={"username": "guest", "password": "secret"}).ok
    tab = window.open("Train")
    for see in (train, dataset_tab, captions, monitor, runs, drawn, tools):
        see(tab)
        tab.wait_for_timeout(300)
        assert tab.evaluate("window.__ran") is None, see
        assert tab.evaluate("window.foreign") == [], see
    assert window.outside == []
    window.close()


def go(tab, name: str) -> None:
    tab.get_by_role("tab", name=name, exact=True).click()


def hover_all(tab, selector: str, most: int = 12) -> None:
    for node in tab.locator(selector).all()[:most]:
        if node.is_visible():
            node.hover(force=True)


def train(tab) -> None:
    expect(tab.locator("#preflight-holder")).to_contain_text("broken", timeout=60_000)
    tab.get_by_role("button", name="Choose: Base model").click()
    expect(tab.locator("#pick-list .why").first).to_contain_text("unreadable: ")
    tab.keyboard.press("Escape")
    expect(tab.locator("#preset-list option", has_text=NAME)).to_have_count(1)


def dataset_tab(tab) -> None:
    go(tab, "Dataset")
    expect(tab.locator("#ds-grid .tile").first).to_be_visible()
    expect(tab.locator("#ds-grid")).to_contain_text("b-foreign")
    hover_all(tab, "#ds-grid .tile, #ds-plots .bar")
    tab.locator("#ds-browse").click()
    expect(tab.locator(".browser .rows")).to_contain_text("b-foreign")
    tab.keyboard.press("Escape")


def captions(tab) -> None:
    go(tab, "Captions")
    expect(tab.locator("#cap-text")).to_have_value(TEXT)
    expect(tab.locator("#captions-holder")).to_contain_text("b-foreign")


def monitor(tab) -> None:
    go(tab, "Monitor")
    expect(tab.locator("#run-title")).to_have_text(NAME)
    expect(tab.locator("table.samples")).to_contain_text("b-foreign")
    hover_all(tab, "table.samples img, #loss-chart")


def runs(tab) -> None:
    go(tab, "Runs")
    expect(tab.locator("table.runs tbody tr")).to_have_count(2)
    expect(tab.locator("#runs-queue .queue").first).to_contain_text("b-foreign")
    for box in tab.locator("table.runs input[type=checkbox]").all():
        box.click()
    tab.get_by_role("link", name="Compare").click()
    expect(tab.locator("#compare")).to_contain_text("b-foreign")
    hover_all(tab, "#compare svg, #compare img", 4)
    tab.go_back()
    tab.locator("table.runs button.open").first.click()
    expect(tab.locator("#runs-main .run-head h2")).to_have_text(NAME)
    expect(tab.locator(".run-log")).to_contain_text("b-foreign")


def generate(tab, drawn) -> None:
    go(tab, "Generate")
    expect(tab.locator("#gen-gallery img").first).to_be_visible()
    tab.locator("#gen-add summary").first.click()
    expect(tab.locator("#gen-add .misfit").first).to_be_visible()
    expect(tab.locator("#gen-add")).to_contain_text("b-foreign")
    tab.locator("#gen-add summary").first.click()
    tab.locator("#gen-gallery img").first.click()
    expect(tab.get_by_role("dialog", name="Image viewer").locator("img:visible").first).to_be_visible()
    tab.keyboard.press("Escape")
    tab.locator("#gen-drop input[type=file]").set_input_files(str(drawn))
    expect(tab.locator("#said")).to_contain_text("were loaded")
    expect(tab.locator("#gen-prompt")).to_have_value(re.compile("b-foreign"))


def tools(tab) -> None:
    go(tab, "Tools")
    tab.locator("#tool-index [data-tool=inspect]").click()
    field = tab.locator("#tool-inspect-file")
    for file in (f"models/{NAME}.safetensors", f"models/loras/lora {NAME}.safetensors"):
        field.fill(file)
        field.press("Enter")
        expect(tab.locator("[data-tasks=models] .tool-task.failed .tool-task-head strong")).to_contain_text(
            Path(file).stem
        )
    field.fill(TEXT)
    field.press("Enter")
    expect(tab.locator("#tools-models .tool-refused")).to_contain_text("b-foreign")
