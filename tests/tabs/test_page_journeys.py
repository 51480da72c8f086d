"""Two journeys with the real engine, in as few clicks and keys as the guides say: A1111's usual image, and the best of 8 checkpoints."""

from __future__ import annotations

import pytest
import torch
from made_runs import dataset, make_run
from page_server import Served, Visit
from PIL import Image, ImageDraw
from playwright.sync_api import expect

from core.control.controlnet import from_unet
from core.control.controlnet_file import write_control_net
from core.engine.engine import Engine
from core.families import family
from core.generation.images.metadata import read_image_metadata
from core.record.kept import read_kept
from core.record.workspace import PROJECT
from tests.generation.test_run import small_lora

pytestmark = pytest.mark.slow
RUN, STEPS, BEST = "20260101-120000_glyphs", range(20, 161, 20), 100
PATIENCE = 240_000  # ms: two cores may be busy


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A page with a run of 8 checkpoints, a LoRA and a ControlNet."""
    served = Served(tmp_path_factory.mktemp("journeys"), engine=lambda workspace: Engine(workspace, "cpu"))
    losses = [(step, 0.11 + abs(step - BEST) / 2000) for step in STEPS]
    prompts = ("a fox, glyph style", "a tree, glyph style")
    make_run(
        served.workspace.runs,
        RUN,
        steps=160,
        validated=losses,
        saved=STEPS,
        drawn=(0, *STEPS),
        prompts=prompts,
        about=dataset(),
    )
    small_lora(served.workspace.runs / "20260101-110000_odd/checkpoints/odd_style.safetensors")
    with torch.no_grad():
        net = from_unet(family("sd1").load(PROJECT / "models/starter").denoiser, 0)
    file = served.workspace.runs / "20260101-100000_edges/checkpoints/glyphs_canny.safetensors"
    file.parent.mkdir(parents=True)
    write_control_net(file, dict(net.state_dict()), "sd1", {})
    yield served
    served.close()


@pytest.fixture
def visit(page, chromium):
    made = Visit(chromium, page.url)
    yield made
    assert made.errors == [] and made.outside == []
    made.close()


def test_hires_a_lora_and_a_controlnet_take_7_clicks_by_the_words_of_a1111_and_no_other_settings(page, visit, tmp_path):
    photo = Image.new("RGB", (256, 256), "white")
    ImageDraw.Draw(photo).ellipse((64, 64, 192, 192), fill="black")
    photo.save(tmp_path / "disc.png")
    tab, clicks = visit.open("Generate"), []

    def click(found) -> None:
        clicks.append(found.click())

    add = tab.locator("#gen-add")
    tab.locator("#gen-prompt").fill("a fox")
    click(add.locator("summary", has_text="+ LoRA"))
    click(add.locator(".model-offers .choose", has_text="odd"))
    expect(tab.locator(".loras:not(.model-offers) > li")).to_have_count(1)
    click(add.get_by_role("button", name="+ Hires"))
    hires = tab.locator("[data-card=hires]")
    for label, value in (("Upscale by", "2"), ("Denoising strength", "0.45"), ("Hires steps", "")):
        expect(hires.get_by_label(label, exact=True)).to_have_value(value)
    expect(hires.locator("#gen-highres_fix_upscaler")).to_have_value("lanczos")
    hires.get_by_label("Hires steps").fill("4")
    click(add.get_by_role("button", name="+ ControlNet"))
    click(tab.locator("dialog[open]").get_by_role("button", name="glyphs_canny"))
    expect(tab.locator("#net-0-image")).to_be_focused()
    expect(tab.locator("#net-0-preprocessor")).to_have_value("canny")
    with tab.expect_file_chooser() as chosen:
        click(tab.get_by_role("button", name="Upload control image"))
    chosen.value.set_files(tmp_path / "disc.png")
    expect(tab.locator(".net img.gen-thumb")).to_be_visible()
    tab.locator("#gen-steps").fill("6")
    click(tab.get_by_role("button", name="Generate", exact=True))
    expect(tab.locator("#gen-gallery .tile")).to_have_count(1, timeout=PATIENCE)
    assert len(clicks) == 7
    expect(tab.locator("#gen-more details[data-group=all]")).not_to_have_attribute("open", "")
    (file,) = page.workspace.images.rglob("*.png")
    job = read_image_metadata(file).job
    assert Image.open(file).size == (256, 256)
    assert (job.generate.steps, job.hires.hires_steps, job.hires.highres_fix_steps) == (6, 4, None)
    assert [use.strength for use in job.generate.loras] == [1] and job.controls.nets[0].preprocessor == "canny"


def test_the_best_of_8_checkpoints_is_found_and_kept_by_mouse_in_3_clicks(page, visit):
    tab = visit.open()
    tab.get_by_role("tab", name="Monitor").click()
    card = tab.locator("#verdict")
    expect(card.locator(".verdict-step")).to_have_count(8)
    # Shown at first
    expect(card.locator(".verdict-one figcaption")).to_contain_text(f"step {BEST} · loss 0.1100 · lowest loss")
    expect(card.locator(".verdict-sentence")).to_contain_text(f"tep {BEST} has the lowest loss")  # why
    for part in (card.locator(".verdict-one"), card.locator(".verdict-strip"), card.locator(".verdict-sentence")):
        expect(part).to_be_in_viewport()  # without scrolling
    card.locator(".verdict-step", has_text="step 80").click()
    expect(card.locator(".verdict-one figcaption")).to_contain_text("step 80")
    card.get_by_role("button", name="Keep this one").click()
    expect(card.get_by_label("Kept as")).to_be_visible()
    run = page.workspace.runs / RUN
    assert [*read_kept(run)] == ["checkpoints/glyphs-step00000080.safetensors"]
    card.get_by_role("button", name="Undo keeping step 80").click()
    expect(card.get_by_role("button", name="Keep this one")).to_be_visible()


def test_the_best_of_8_checkpoints_is_found_and_kept_by_keyboard_alone_in_5_keys(page, visit):
    tab = visit.open()
    label, keys = tab.locator("#verdict .verdict-one figcaption"), []

    def press(key: str) -> None:
        keys.append(tab.keyboard.press(key))

    tab.get_by_role("tab", name="Train").focus()  # where Tab leads from the address bar
    press("ArrowRight")
    expect(label).to_contain_text(f"step {BEST} · loss 0.1100 · lowest loss")
    press("ArrowDown")  # the other prompt; the arrows to the sides are the tabs' until then
    expect(tab.locator("#verdict .verdict-stage")).to_be_focused()
    press("ArrowLeft")
    expect(label).to_contain_text("step 80")
    press("ArrowRight")
    expect(label).to_contain_text(f"step {BEST}")
    press("k")
    expect(tab.get_by_label("Kept as")).to_have_value(f"glyphs-step{BEST:08d}")
    assert len(keys) == 5
    assert [*read_kept(page.workspace.runs / RUN)] == [f"checkpoints/glyphs-step{BEST:08d}.safetensors"]
