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


def test_labels_of_an_axis_never_repeat_and_axes_have_names(visit):
    tab = visit().open("Monitor")
    found = tab.evaluate(
        """() => [[0.00199, 0.00201], [2e-3, 2.0001e-3], [0.1, 0.9], [1000000, 1000001], [0.12345, 0.12346], [0, 0]].map((values) => {
            const holder = document.createElement("div");
            holder.style.cssText = "width: 400px; height: 200px";
            document.body.append(holder);
            const chart = new atelier.Chart(holder, {label: "Learning rate"});
            chart.set({steps: [1, 2], total: 2, lines: [{name: "rate", values, kind: "smooth"}]});
            const ticks = [...holder.querySelectorAll(".tick[text-anchor=end]")].map((one) => one.textContent);
            const names = [...holder.querySelectorAll(".axis-name")].map((one) => one.textContent);
            holder.remove();
            return {ticks, names};
        })"""
    )
    for each in found:
        assert len(each["ticks"]) >= 2 and len(set(each["ticks"])) == len(each["ticks"]), each
        assert each["names"] == ["step", "learning rate"]
    assert min(map(float, found[-1]["ticks"])) == 0, "an axis of nothing but 0 has no numbers below it"
