"""Images with control images, side by side and over one another, in a real browser."""

from __future__ import annotations

from dataclasses import replace

import pytest
from playwright.sync_api import expect
from work_parts import image

from core.settings.method import OF_METHODS
from core.settings.methods import METHODS


@pytest.fixture
def paired(visit, served, tmp_path, monkeypatch):
    """A window on two images with control images, for a method that needs them."""
    spec = replace(METHODS["lora"], control_images=True)
    monkeypatch.setitem(METHODS, "lora", spec)
    monkeypatch.setitem(OF_METHODS, "lora", spec.traits)
    for name, size in (("a", (400, 300)), ("b", (200, 300))):
        image(tmp_path / "set" / f"{name}.png", size, "teal", caption=f"caption {name}")
        image(tmp_path / "set" / f"{name}_hint.png", (size[0] // 2, size[1] // 2), "white")
    served.page.project.keep("Captions", {})
    served.page.project.edit("dataset.conditioning_suffix", "_hint")
    served.page.project.edit("dataset.folder", str(tmp_path / "set"))
    window = visit()
    yield window
    served.page.project.edit("dataset.conditioning_suffix", "")
    assert window.errors == []


@pytest.mark.slow
def test_control_images_lie_beside_and_over_their_images(paired):
    tab = paired.open("Dataset")
    tiles = tab.locator("#ds-grid .tile")
    expect(tiles).to_have_count(2)
    beside, over = tiles.first.locator(".pic.control img"), tiles.first.locator(".control-over")
    ways = {
        name: tab.locator("#ds-grid").get_by_role("button", name=name) for name in ("Side by side", "Overlay", "Image")
    }
    expect(ways["Side by side"]).to_have_attribute("aria-pressed", "true")
    expect(beside).to_be_visible()
    expect(over).to_be_hidden()
    first, second = tiles.first.locator(".pic").first.bounding_box(), beside.bounding_box()
    assert second["x"] > first["x"] + first["width"] - 1 and abs(second["width"] - first["width"]) < 1
    ways["Overlay"].click()
    expect(over).to_be_visible()
    expect(beside).to_be_hidden()
    whole, lying = tiles.first.locator(".pic").first.bounding_box(), over.bounding_box()
    assert whole == lying and whole["width"] > first["width"] * 1.5
    assert over.evaluate("image => image.complete && image.naturalWidth > 0")
    tab.locator("#ds-grid h3").click()
    tab.keyboard.press("o")
    expect(ways["Image"]).to_have_attribute("aria-pressed", "true")
    expect(over).to_be_hidden()
    expect(beside).to_be_hidden()
    tab.keyboard.press("o")
    expect(beside).to_be_visible()
    tab.locator("#ds-folder").get_by_role("textbox").press("o")
    expect(beside).to_be_visible()


@pytest.mark.slow
def test_pairs_are_cropped_as_they_train_and_the_caption_editor_remembers_how_they_were_shown(paired):
    tab = paired.open("Train")
    pairs = tab.locator("#preflight-images figure")
    expect(pairs).to_have_count(2)
    own, hint, over = (
        pairs.first.locator(f".crop-box{which}") for which in (":not(.control)", ".control", " .control-over")
    )
    ways = {
        name: tab.locator("#preflight-pairs").get_by_role("button", name=name) for name in ("Side by side", "Overlay")
    }
    expect(ways["Side by side"]).to_have_attribute("aria-pressed", "true")
    expect(over).to_be_hidden()
    image, beside = own.bounding_box(), hint.bounding_box()
    assert beside["x"] >= image["x"] + image["width"] - 1 and abs(beside["width"] - image["width"]) < 1
    frames = [box.locator("img").first.evaluate("image => image.style.cssText") for box in (own, hint)]
    assert frames[0] == frames[1] != "", "the control image is cropped as its image"
    ways["Overlay"].click()
    expect(hint).to_be_hidden()
    expect(over).to_be_visible()
    assert over.evaluate("image => image.complete && image.naturalWidth > 0")
    tab.reload()
    tab = paired.open("Captions")
    expect(tab.locator("#cap-text")).to_have_value("caption a")
    expect(tab.locator("#cap-stage .control-over")).to_be_visible()
    tab.locator("#cap-stage").get_by_role("button", name="Side by side").click()
    expect(tab.locator("#cap-stage .pic.control")).to_be_visible()
    tab.evaluate("localStorage.removeItem('atelier-pairs')")
