"""What a run's results are called and where they are found, in a real browser."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect
from test_page_train import server_value, until

from tests.noise import noise_images


@pytest.fixture(scope="module")
def forty(tmp_path_factory):
    return noise_images(tmp_path_factory.mktemp("dataset") / "forty", 40, captions=True)


@pytest.mark.slow
def test_held_out_images_are_shown_before_the_start_and_one_click_puts_them_back(window, served, forty):
    tab = window.open()
    expect(tab.locator("#preflight-verdict")).to_have_text("24 of 24 images will train")
    expect(tab.locator("#preflight-held")).to_be_hidden()
    served.page.project.edit("dataset.folder", str(forty))
    expect(tab.locator("#preflight-verdict")).to_contain_text("38 of 40 images will train")
    expect(tab.locator("#held-words")).to_contain_text("2 of 40 images")
    shown = tab.locator("#held-images img")
    expect(shown).to_have_count(2)
    assert all(image.get_attribute("alt").endswith(".png") for image in shown.all())
    assert until(
        lambda: tab.evaluate("[...document.querySelectorAll('#held-images img')].every((one) => one.naturalWidth > 0)")
    )
    tab.locator("#held-back").click()
    expect(tab.locator("#preflight-verdict")).to_contain_text("40 of 40 images will train")
    expect(tab.locator("#preflight-held")).to_be_hidden()
    assert server_value(served, "validation.best_checkpoint") == "training"
    served.page.project.edit("validation.validation_split", 0.1)  # a person's own: named, but not put back here
    expect(tab.locator("#held-images img")).to_have_count(4)
    expect(tab.locator("#held-back")).to_be_hidden()
