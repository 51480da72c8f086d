"""What a run's results are called and where they are found, in a real browser."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from playwright.sync_api import expect
from test_page_train import server_value, until

from tests.noise import noise_images


@pytest.fixture(scope="module")
def forty(tmp_path_factory):
    return noise_images(tmp_path_factory.mktemp("dataset") / "forty", 40, captions=True)


@pytest.mark.slow
def test_held_out_images_are_shown_before_the_start_and_one_click_puts_them_back(visit, served, forty):
    window = visit()
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
    assert window.errors == []


def test_labels_of_an_axis_never_repeat_and_axes_have_names(visit):
    tab = visit().open("Monitor")
    found = tab.evaluate(
        """() => [[0.00199, 0.00201], [2e-3, 2.0001e-3], [0.1, 0.9], [1000000, 1000001], [0.12345, 0.12346]].map((values) => {
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


@pytest.mark.slow
def test_after_start_monitor_shows_the_new_run_and_not_the_last_one_as_done(visit, served, monkeypatch):
    """The engine needs a while before the run has its folder."""
    window = visit()
    tab = window.open()
    expect(tab.locator("#preflight-verdict")).to_have_text("24 of 24 images will train")
    monkeypatch.setattr(served.engine, "current_run", lambda: "an-older-run")
    queue = served.engine.queue
    waiting = []

    def delayed():
        return [*waiting, *queue()]

    monkeypatch.setattr(served.engine, "queue", delayed)
    entry = SimpleNamespace(id="new", task="train", title="brand_new", state="running", run="", message="")
    waiting.append(entry)
    tab = window.open("Monitor")
    expect(tab.locator("#monitor-empty strong")).to_contain_text("brand_new")
    expect(tab.locator("#monitor-run")).to_be_hidden()
    waiting.clear()
