"""The gallery, the session's strip and the viewer in a real browser, by keyboard."""

from __future__ import annotations

import os
import re
import time

import pytest
from page_server import WATCH, Served, Visit
from PIL import Image
from playwright.sync_api import expect
from work_parts import wait_until

from core.generation.images.metadata import png_info
from core.generation.model.sources import Hashes
from core.settings.check import build
from core.settings.job import GenerateJob

CLIPBOARD = (
    "Object.defineProperty(navigator, 'clipboard', {value: {writeText: async (text) => { window.copied = text; }}})"
)


def make(workspace, number, age=100.0, **generate):
    """An image of the folder; a higher number is newer."""
    job = build(GenerateJob, {"generate": {"prompt": f"fox {number}", "seed": number} | generate})
    path = workspace.images / "2026-01-01" / f"{number}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (64, 64), (number * 9 % 256, 90, 120)).save(path, pnginfo=png_info(job, Hashes()))
    os.utime(path, (time.time() - age + number / 100,) * 2)
    return path


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    page = Served(tmp_path_factory.mktemp("gallery"))
    for number in range(60):
        make(page.workspace, number, age=10_000)
    yield page
    page.close()


@pytest.fixture
def tab(work, chromium):
    visit = Visit(chromium, work.url)
    opened = visit.open("Generate")
    expect(opened.locator("#shelf-grid .tile").first).to_be_visible()
    yield opened
    visit.close()
    assert visit.errors == [] and visit.outside == []


def focused(tab):
    return tab.evaluate("document.activeElement.getAttribute('aria-label')")


# By default test_generate_gallery.py holds what each key asks the server for.
@pytest.mark.slow
def test_arrows_stars_trash_and_undo_by_keyboard_alone(tab, work):
    first = tab.locator("#shelf-grid .tile").first
    expect(first).to_have_attribute("aria-label", "fox 59, seed 59")
    assert tab.locator("#shelf-grid .tile").count() < 60  # only what is near is in the page
    first.focus()
    tab.keyboard.press("End")
    wait_until(lambda: focused(tab) == "fox 0, seed 0")
    tab.keyboard.press("Home")
    wait_until(lambda: focused(tab) == "fox 59, seed 59")
    tab.keyboard.press("ArrowRight")
    tab.keyboard.press("Enter")
    viewer = tab.get_by_role("dialog", name="Image viewer")
    expect(viewer).to_contain_text("2 of 60")
    tab.keyboard.press("ArrowRight")
    expect(viewer).to_contain_text("3 of 60")
    expect(viewer.get_by_role("group", name="fox 57, seed 57")).to_be_focused()
    tab.keyboard.press("3")
    expect(viewer.get_by_role("button", name="3 stars")).to_have_attribute("aria-pressed", "true")
    tab.keyboard.down("c")
    expect(viewer).to_contain_text("Comparing: the image before")
    tab.keyboard.up("c")
    expect(viewer).not_to_contain_text("Comparing")
    tab.keyboard.press("Delete")
    expect(viewer).to_contain_text("3 of 59")
    expect(viewer).to_contain_text("1 image moved to the trash")
    assert not (work.workspace.images / "2026-01-01" / "57.png").exists()
    tab.keyboard.press("ArrowRight")
    undo = viewer.get_by_role("button", name="Undo")
    undo.focus()  # it stays until it is read
    tab.keyboard.press("Enter")
    expect(viewer).to_contain_text("3 of 60")
    tab.keyboard.press("Delete")
    expect(viewer).to_contain_text("3 of 59")
    tab.keyboard.press("Control+z")
    expect(viewer).to_contain_text("3 of 60")
    expect(viewer.get_by_role("button", name="3 stars")).to_have_attribute("aria-pressed", "true")
    tab.keyboard.press("Escape")
    expect(viewer).to_have_count(0)
    expect(tab.locator("#shelf-undo")).to_have_count(0)
    wait_until(lambda: focused(tab) == "fox 57, seed 57, 3 stars")
    tab.keyboard.press("Delete")
    expect(tab.locator("#shelf-count")).to_have_text("59 images")
    tab.keyboard.press("Control+z")
    expect(tab.locator("#shelf-count")).to_have_text("60 images")
    wait_until(lambda: focused(tab) == "fox 57, seed 57, 3 stars")
    tab.keyboard.press("Shift+ArrowRight")
    expect(tab.locator("#shelf-count")).to_have_text("2 selected")
    tab.keyboard.press("Delete")
    expect(tab.locator("#shelf-count")).to_have_text("58 images")
    tab.locator("#shelf-undo").get_by_role("button", name="Undo").click()
    expect(tab.locator("#shelf-count")).to_have_text("60 images")
    tab.get_by_label("Words of the prompt").fill("fox 31")
    expect(tab.locator("#shelf-count")).to_have_text("1 of 60 images")


HOLD_TRASH = """() => { const {question} = atelier; window.held = [];
const later = (...request) => new Promise((done) => held.push(() => done(question(...request))));
atelier.question = (whom, asked) => (asked.act === "trash" ? later : question)(whom, asked); }"""


@pytest.mark.slow
def test_keys_go_on_in_the_viewer_where_the_pressed_control_is_drawn_anew_or_disabled(tab):
    newest, viewer = tab.locator("#gen-newest .shot"), tab.get_by_role("dialog", name="Image viewer")
    newest.press("Enter")
    expect(viewer).to_be_visible()
    tab.keyboard.press("Escape")
    expect(newest).to_be_focused()
    assert newest.evaluate("(node) => getComputedStyle(node).outlineOffset") == "-3px"  # or its frame would cut it off
    tab.locator("#shelf-grid .tile").nth(1).click()
    upscale = viewer.get_by_role("button", name="Upscale")
    tab.evaluate("atelier.complain([{what: 'Broken', where: '59.png', fix: 'make it again'}])")
    viewer.locator("#said").get_by_role("button", name="Close").click()  # it would be dead behind the dialog
    upscale.focus()
    for key, place in (("ArrowRight", 3), ("ArrowLeft", 2)):
        tab.keyboard.press(key)
        expect(viewer).to_contain_text(f"{place} of 60")
        expect(viewer.locator(".views")).to_have_attribute("aria-label", re.compile(f"seed {60 - place}"))
        expect(upscale).to_be_focused()
    viewer.get_by_role("button", name="Move to trash").focus()
    tab.keyboard.down("c")
    expect(viewer).to_contain_text("Comparing")
    tab.keyboard.up("c")
    expect(viewer).not_to_contain_text("Comparing")
    viewer.get_by_role("button", name="Previous").focus()
    tab.keyboard.press("Enter")
    expect(viewer).to_contain_text("1 of 60")
    tab.wait_for_timeout(100)  # a frame, in which the disabled button loses the focus
    tab.keyboard.press("ArrowRight")
    expect(viewer).to_contain_text("2 of 60")


@pytest.mark.slow
def test_keys_that_are_faster_than_the_trash_remove_each_image_once_and_the_viewer_stays_where_they_went(tab, work):
    tab.locator("#shelf-grid .tile").first.click()
    viewer = tab.get_by_role("dialog", name="Image viewer")
    expect(viewer).to_contain_text("1 of 60")
    tab.evaluate(HOLD_TRASH)
    for key in ("Delete", "Delete", "ArrowRight", "Delete", "ArrowRight"):
        tab.keyboard.press(key)
    expect(viewer).to_contain_text("3 of 60")
    assert tab.evaluate("held.length") == 2
    for number in (0, 1):
        tab.evaluate("(number) => held[number]()", number)
        expect(viewer).to_contain_text(f"{2 - number} of {59 - number}")
    expect(viewer.get_by_role("group", name="fox 57, seed 57")).to_be_focused()
    tab.keyboard.press("ArrowRight")
    expect(viewer).to_contain_text("2 of 58")
    for count in (59, 60):
        tab.keyboard.press("Control+z")
        expect(viewer).to_contain_text(f"of {count}")


@pytest.mark.slow
def test_a_new_image_comes_into_the_strip_and_nothing_that_is_looked_at_moves(tab, work):
    tab.locator("#shelf-grid .tile").first.focus()
    tab.keyboard.press("End")
    expect(tab.locator("#shelf-grid .tile").last).to_have_attribute("aria-label", "fox 0, seed 0")
    assert focused(tab) == "fox 0, seed 0"
    tab.keyboard.press("Enter")
    viewer = tab.get_by_role("dialog", name="Image viewer")
    expect(viewer).to_contain_text("60 of 60")
    watched = ["#gen-newest", "#gen-strip", "#gen-drop", "#shelf", "#shelf-grid .tile:focus", ".viewer .views"]
    tab.evaluate(WATCH, watched)
    make(work.workspace, 99, age=-60)
    expect(tab.locator("#shelf-strip .tile")).to_have_count(1)
    expect(tab.locator("#shelf-new")).to_have_text("Show 1 new image")
    expect(viewer).to_contain_text("60 of 60")
    tab.keyboard.press("Escape")
    assert focused(tab) == "fox 0, seed 0" and tab.evaluate("movedBy()") == {}
    tab.locator("#shelf-new").click()
    wait_until(lambda: focused(tab) == "fox 99, seed 99")
    tab.locator("#shelf-strip .tile").focus()
    tab.keyboard.press("Enter")
    expect(viewer).to_contain_text("1 of 1")
    work.engine.pause_queue()
    viewer.get_by_role("button", name="Upscale").click()
    asks = tab.get_by_role("dialog", name="Upscale")
    expect(asks.get_by_label("Size")).to_contain_text("2 times: 128 × 128 pixels")
    tab.keyboard.press("Escape")
    expect(asks).to_have_count(0)
    expect(viewer).to_contain_text("1 of 1")
    assert not work.engine.queue()
    viewer.get_by_role("button", name="Upscale").click()
    asks.get_by_label("Size").select_option("3")
    asks.get_by_label("Denoising strength").fill("7")
    asks.get_by_role("button", name="Upscale").click()
    expect(asks.get_by_role("alert")).not_to_be_empty()
    asks.get_by_label("Denoising strength").fill("0.5")
    asks.get_by_role("button", name="Upscale").click()
    expect(viewer).to_have_count(0)
    expect(tab.locator("#said")).to_contain_text("99.png 3 times as large (denoising strength 0.5)")
    expect(tab.locator("#gen-status")).to_contain_text("paused queue")
    assert work.engine.queue()[-1].job["generate"]["prompt"] == "fox 99"
    expect(tab.locator("#gen-image_path")).to_have_value("")
    tab.locator("#gen-newest").get_by_role("button", name="Image to image").click()
    path, line = tab.locator("#gen-image_path"), tab.locator("#gen-prompts .gen-using")
    expect(path).to_have_value(re.compile("99.png$"))
    card = tab.locator("[data-card=image_to_image]")
    expect(card).to_be_in_viewport()
    expect(card.locator("[data-paint=mask]")).to_be_focused()
    expect(line).to_contain_text("Image to image: 99.png (strength 0.8)")
    line.get_by_role("button", name="Stop using it").click()
    expect(path).to_have_value("")
    line.get_by_role("button", name="Undo").click()
    expect(path).to_have_value(re.compile("99.png$"))


@pytest.mark.slow
def test_the_message_about_the_trash_goes_with_the_tab_and_by_itself(tab):
    tiles = tab.locator("#shelf-grid .tile")
    expect(tiles.first).to_be_visible()
    number, back = tab.locator("#shelf-count").inner_text(), tab.get_by_role("button", name="Put back")
    expect(back).to_be_disabled()
    tiles.first.focus()
    tab.keyboard.press("Delete")
    expect(tab.locator("#shelf-undo")).to_be_visible()
    tab.get_by_role("tab", name="Runs").click()  # another tab, so the message is read
    expect(tab.locator("#shelf-undo")).to_have_count(0)
    tab.get_by_role("tab", name="Generate").click()
    expect(tab.locator("#shelf-count")).not_to_have_text(number)
    back.click()
    expect(tab.locator("#shelf-count")).to_have_text(number)
    expect(back).to_be_disabled()
    tab.clock.install()
    tab.locator("#shelf-grid .tile").first.focus()
    tab.keyboard.press("Delete")
    expect(tab.locator("#shelf-undo")).to_be_visible()
    tab.clock.run_for(11_000)
    expect(tab.locator("#shelf-undo")).to_have_count(0)


@pytest.mark.slow
def test_two_selected_images_stand_side_by_side_each_with_its_own_facts(tab):
    tiles, compare = tab.locator("#shelf-grid .tile"), tab.locator("#shelf-compare")
    expect(compare).to_be_disabled()
    names = [tiles.nth(place).get_attribute("data-name") for place in (1, 2)]
    for place in (1, 2):
        tiles.nth(place).click(modifiers=["Control"])
    compare.click()
    viewer = tab.get_by_role("dialog", name="Image viewer")
    captions = viewer.locator(".views figcaption:visible")
    expect(captions).to_have_text(
        [re.compile("^the other image · seed"), re.compile("^this image, whose settings are shown · seed")]
    )
    sources = [viewer.locator(kind).get_attribute("src") for kind in (".beside img", "img.own")]
    assert [name.rpartition("/")[2] in source for name, source in zip(names, sources, strict=True)] == [True, True]
    assert captions.nth(0).inner_text() != captions.nth(1).inner_text()
    pressed = viewer.get_by_role("button", name="Compare with the other image")
    expect(pressed).to_be_enabled()
    expect(pressed).to_have_attribute("aria-pressed", "true")
    box = viewer.locator(".beside img").bounding_box()
    assert box["x"] + box["width"] <= viewer.locator("img.own").bounding_box()["x"]
    tab.keyboard.press("ArrowRight")
    expect(captions.nth(1)).not_to_have_text(re.compile("seed 98$"))
    expect(captions).to_have_count(2)
    tab.keyboard.press("Escape")
    tiles.first.focus()
    tab.keyboard.press("Escape")
    expect(tab.locator("#shelf-count")).not_to_contain_text("selected")


@pytest.mark.slow
def test_an_image_is_compared_with_the_one_it_began_with_by_a_click_or_while_the_button_is_held(tab, work):
    folder = work.workspace.images / "2026-01-01"
    given = {"image_path": "outputs/images/2026-01-01/3.png"}
    job = build(GenerateJob, {"generate": {"prompt": "begun", "seed": 1}, "image_to_image": given})
    Image.new("RGB", (64, 64), "red").save(folder / "200.png", pnginfo=png_info(job, Hashes()))
    tab.locator("#shelf-grid .tile[aria-label^=begun]").click()
    viewer = tab.get_by_role("dialog", name="Image viewer")
    tab.evaluate(CLIPBOARD)
    for of, value in (("prompt", "begun"), ("seed", "1")):
        viewer.get_by_role("button", name=f"Copy {of}").click()
        expect(viewer.get_by_role("button", name="Copied")).to_have_count(1)
        assert tab.evaluate("window.copied") == value
        expect(viewer.get_by_role("button", name="Copied")).to_have_count(0)
    compare = viewer.get_by_role("button", name="Compare with the initial image")
    expect(compare).to_have_attribute("aria-pressed", "false")
    compare.click()
    pair = viewer.locator(".beside")
    expect(pair.locator("figcaption")).to_have_text("the initial image")
    expect(viewer.get_by_text("this image, whose settings are shown · seed 1")).to_be_visible()
    assert "3.png" in pair.locator("img").get_attribute("src")
    compare.click()
    expect(pair).to_be_hidden()
    compare.press("Enter")
    expect(compare).to_have_attribute("aria-pressed", "true")
    compare.press("Enter")
    compare.hover()
    tab.mouse.down()
    expect(viewer).to_contain_text("Comparing: the initial image")
    tab.wait_for_timeout(400)
    tab.mouse.up()
    expect(viewer).not_to_contain_text("Comparing")
    (folder / "3.png").rename(folder / "gone.txt")
    tab.keyboard.press("Escape")
    tab.locator("#shelf-grid .tile[aria-label^=begun]").click()
    compare = viewer.get_by_role("button", name="Compare")
    expect(compare).to_be_disabled()
    expect(compare).to_have_attribute("title", re.compile("3.png is no longer there"))
    tab.keyboard.press("Escape")
    (folder / "gone.txt").rename(folder / "3.png")
