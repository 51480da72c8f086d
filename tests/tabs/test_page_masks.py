"""Painting a mask in a real browser, saving it, seeing it again, and training with it."""

from __future__ import annotations

import re
import shutil

import pytest
from axe_look import AXE, VIOLATIONS
from PIL import Image
from playwright.sync_api import expect
from work_parts import image

from core.dataset.captions.history import History
from core.dataset.images.painting import begin_folder, write_mask
from core.dataset.preflight import preflight

BLACK = "([x, y]) => document.querySelector('.painter canvas').getContext('2d').getImageData(x, y, 1, 1).data[3] / 255"


@pytest.fixture
def opened(visit, served, tmp_path):
    """The Captions tab on two images of 400 x 300, the first one open."""
    for name in ("a", "b"):
        image(tmp_path / "set" / f"{name}.png", (400, 300), caption=f"caption {name}")
    served.page.project.keep("Captions", {})
    served.page.project.edit("dataset.folder", str(tmp_path / "set"))
    window = visit()
    tab = window.open("Captions")
    expect(tab.locator("#cap-text")).to_have_value("caption a")
    yield tab
    shutil.rmtree(served.workspace.datasets, ignore_errors=True)
    assert window.errors == []


def paint(tab):
    tab.locator("#cap-paint").click()
    tab.locator(".painter[data-ready]").wait_for()
    return tab.locator(".painter-frame")


def at(tab, x: float, y: float) -> tuple[float, float]:
    """A place of the image, on the screen."""
    box = tab.locator(".painter-layer").bounding_box()
    return box["x"] + x * box["width"] / 400, box["y"] + y * box["height"] / 300


def drag(tab, *places: tuple[float, float], button: str = "left") -> None:
    tab.mouse.move(*at(tab, *places[0]))
    tab.mouse.down(button=button)
    for place in places[1:]:
        tab.mouse.move(*at(tab, *place), steps=4)
    tab.mouse.up(button=button)


def black(tab, *places: tuple[int, int]) -> list[float]:
    """How black the mask is at these places."""
    return [tab.evaluate(BLACK, list(place)) for place in places]


def button(tab, name: str):
    return tab.locator(".painter").get_by_role("button", name=name, exact=True)


def test_a_mask_is_painted_saved_seen_again_and_trained_with(opened, served, tmp_path):
    tab, masks = opened, served.workspace.datasets / "set_masks"
    expect(tab.locator("#cap-mask-line")).to_have_text("No mask: the whole image trains.")
    paint(tab)
    expect(button(tab, "Save mask")).to_be_disabled()
    drag(tab, (100, 150), (200, 150))  # the first stroke of the brush: all but the stroke is black
    assert black(tab, (150, 150), (10, 10)) == [0, 1]
    tab.keyboard.press("]")
    tab.keyboard.press("Alt+]")  # on keyboards that have brackets on a third level
    tab.keyboard.press("[")
    expect(tab.locator(".painter output").first).to_have_text("30 px")  # 25 * 1.2
    drag(tab, (150, 150), (150, 151), button="right")  # erases without changing the tool
    assert black(tab, (150, 150), (110, 150)) == [1, 0]
    expect(button(tab, "Brush")).to_have_attribute("aria-pressed", "true")
    tab.keyboard.press("Control+z")
    assert black(tab, (150, 150)) == [0]
    tab.keyboard.press("Control+Shift+z")
    tab.keyboard.press("i")
    assert black(tab, (150, 150), (110, 150), (10, 10)) == [0, 1, 0]
    tab.keyboard.press("Control+z")
    tab.keyboard.press("e")
    drag(tab, (100, 150), (120, 150))
    assert black(tab, (110, 150), (190, 150)) == [1, 0]
    tab.keyboard.press("Control+s")
    expect(tab.locator(".painter")).to_have_count(0)
    with Image.open(masks / "a.png") as saved:
        assert (saved.size, saved.mode) == ((400, 300), "L")
        assert [saved.getpixel(place) for place in ((190, 150), (110, 150), (150, 150), (10, 10))] == [255, 0, 0, 0]
    paint(tab)
    assert black(tab, (190, 150), (110, 150), (10, 10)) == [0, 1, 1]
    tab.keyboard.press("Escape")
    expect(tab.locator(".painter")).to_have_count(0)
    assert preflight(served.page.project.job, served.workspace).rows[0].mask is False

    tab.get_by_role("button", name="Train with these masks").click()
    expect(tab.locator("#cap-mask-line")).to_have_text("Painted mask, used for training.")
    rows = preflight(served.page.project.job, served.workspace).rows
    assert {row.key[1]: row.mask for row in rows} == {"a.png": True, "b.png": False}
    tab.get_by_role("tab", name="Dataset", exact=True).click()
    expect(tab.locator("#ds-grid .badge-on", has_text="mask")).to_have_count(1)
    expect(tab.locator("#ds-checks, #ds-problems, main").first).to_contain_text("without a mask")


@pytest.mark.slow
def test_the_painter_goes_on_to_the_next_image_and_saves_what_was_painted_first(opened, served):
    tab = opened
    paint(tab)
    drag(tab, (100, 100), (200, 150))
    tab.keyboard.press("Control+Enter")
    title = tab.locator(".painter h2")
    expect(title).to_contain_text("b.png")
    tab.locator(".painter[data-ready]").wait_for()
    folder = served.workspace.datasets / "set_masks"
    assert [path.stem for path in folder.glob("*.png")] == ["a"]
    button(tab, "Next image").click()  # nothing was painted
    expect(title).to_contain_text("a.png")
    assert [path.stem for path in folder.glob("*.png")] == ["a"]
    tab.keyboard.press("Escape")
    expect(tab.locator(".painter")).to_have_count(0)
    expect(tab.locator("#cap-text")).to_have_value("caption a")


@pytest.mark.slow
def test_a_button_that_is_pressed_while_the_line_is_asked_for_again_acts(opened, served):
    tab = opened
    paint(tab)
    drag(tab, (100, 150), (200, 150))
    tab.keyboard.press("Control+s")
    tab.get_by_role("button", name="Train with these masks").hover()
    tab.mouse.down()
    with tab.expect_request_finished(
        lambda asked: asked.url.endswith("/masks") and '"look"' in (asked.post_data or "")
    ):
        tab.evaluate("atelier.showMask(document.querySelector('#cap-text').dataset.key, 'another')")
    tab.wait_for_timeout(300)
    tab.mouse.up()
    expect(tab.locator("#cap-mask-line")).to_have_text("Painted mask, used for training.")


@pytest.mark.slow
def test_view_touch_keys_and_what_is_asked_before_painting_is_lost(opened):
    tab = opened
    tab.locator("#cap-paint").focus()
    tab.keyboard.press("Enter")
    tab.locator(".painter[data-ready]").wait_for()
    frame, zoomed = tab.locator(".painter-frame"), tab.locator(".painter-zoom")
    expect(frame).to_be_focused()
    tab.evaluate(AXE)
    assert tab.evaluate(VIOLATIONS, ".painter") == []
    fitted = zoomed.text_content()

    # The wheel zooms at the pointer; space and the middle button move the view and paint nothing.
    tab.mouse.move(*at(tab, 300, 100))
    before = at(tab, 300, 100)
    tab.mouse.wheel(0, -100)
    assert zoomed.text_content() != fitted and at(tab, 300, 100) == pytest.approx(before, abs=1)
    tab.keyboard.down(" ")
    drag(tab, (300, 100), (280, 90))
    tab.keyboard.up(" ")
    assert at(tab, 300, 100)[0] < before[0] - 10
    tab.keyboard.down(" ")
    frame.blur()  # to another window, which gets the key's end
    expect(frame).not_to_have_class(re.compile("moves"))
    tab.keyboard.up(" ")
    frame.focus()
    drag(tab, (200, 100), (210, 100), button="middle")
    tab.keyboard.press("ArrowUp")
    expect(button(tab, "Undo")).to_be_disabled()
    tab.keyboard.press("0")
    expect(zoomed).to_have_text(fitted)

    # A finger paints; a second one takes that back and zooms.
    touch = tab.context.new_cdp_session(tab)

    def fingers(kind: str, *places: tuple[float, float]) -> None:
        points = [dict(zip(("x", "y"), at(tab, *place), strict=True)) | {"id": n} for n, place in enumerate(places)]
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    fingers("touchStart", (100, 100))
    fingers("touchMove", (150, 100))
    assert black(tab, (125, 100), (300, 200)) == [0, 1]
    fingers("touchStart", (150, 100), (250, 200))
    fingers("touchMove", (100, 50), (300, 250))
    fingers("touchEnd")
    expect(button(tab, "Undo")).to_be_disabled()
    assert black(tab, (125, 100), (300, 200)) == [0, 0]
    assert float(zoomed.text_content()[:-1]) > float(fitted[:-1])
    fingers("touchStart", (200, 150))
    fingers("touchEnd")
    assert black(tab, (200, 150), (10, 10)) == [0, 1]

    # Every button by its key and by itself; what is blank again has nothing to save.
    for key, name, wanted in (("f", "Fill", 0), ("c", "Clear", 1), ("i", "Invert", 0)):
        tab.keyboard.press(key)
        assert black(tab, (10, 10)) == [wanted]
        tab.keyboard.press("Control+z")
        button(tab, name).press("Enter")
        assert black(tab, (10, 10)) == [wanted]
    expect(button(tab, "Erase")).to_have_attribute("aria-pressed", "false")
    tab.keyboard.press("e")
    expect(button(tab, "Erase")).to_have_attribute("aria-pressed", "true")
    tab.keyboard.press("Escape")
    asked = tab.get_by_role("dialog", name="Discard this mask?")
    expect(asked).to_be_visible()
    tab.keyboard.press("Escape")
    expect(asked).to_have_count(0)
    for _ in range(4):
        button(tab, "Undo").click()
    expect(button(tab, "Undo")).to_be_disabled()
    expect(button(tab, "Save mask")).to_be_disabled()
    button(tab, "Redo").click()
    tab.keyboard.press("Escape")
    asked.get_by_role("button", name="Discard").click()
    expect(tab.locator(".painter")).to_have_count(0)
    expect(tab.locator("#cap-paint")).to_be_focused()


@pytest.mark.slow
def test_a_mask_that_another_window_has_saved_is_replaced_only_when_asked_twice(opened, served, tmp_path):
    tab, file = opened, served.workspace.datasets / "set_masks" / "a.png"
    paint(tab)
    drag(tab, (100, 150), (200, 150))
    begin_folder(file.parent, tmp_path / "set")
    write_mask(History(file.parent.parent / "history"), file.parent, "a", Image.new("L", (400, 300), 255))
    theirs = file.read_bytes()
    button(tab, "Save mask").click()
    expect(tab.locator(".painter-says .problem")).to_contain_text("Another window")
    assert file.read_bytes() == theirs
    button(tab, "Save mask").click()
    expect(tab.locator(".painter")).to_have_count(0)
    assert file.read_bytes() != theirs


@pytest.mark.slow
def test_the_painter_says_what_a_black_mask_means_asks_before_it_is_saved_and_shows_its_title_at_340_px(opened):
    tab = opened
    paint(tab)
    says = tab.locator(".painter-says")
    expect(tab.locator(".painter .buttons .hint")).to_contain_text("needs a mouse, pen or finger")
    expect(says).to_contain_text("No mask yet")
    button(tab, "Clear").click()
    expect(says).to_have_text("All black: nothing of this image would train.")
    button(tab, "Save mask").click()
    tab.locator("dialog", has_text="Save a black mask?").get_by_role("button", name="Cancel").click()
    expect(tab.locator(".painter")).to_have_count(1)
    button(tab, "Fill").click()
    expect(says).to_have_text("Not saved yet.")
    tab.set_viewport_size({"width": 340, "height": 450})
    assert tab.locator(".painter h2").bounding_box()["height"] > 15 and says.bounding_box()["height"] >= 20
    tab.keyboard.press("Control+Enter")
    expect(says).to_contain_text("Mask saved")  # in the painter of the next image
    tab.keyboard.press("Escape")
    tab.locator("#cap-list .pick").first.click()
    paint(tab)
    expect(says).to_have_text("Starts from your painted mask.")
