"""Settings of other programs in a real browser: dropped, pasted and chosen, with their report, and the export."""

from __future__ import annotations

import json
import os

import pytest
from axe_look import VIOLATIONS, on_every_screen, open_page
from playwright.sync_api import expect
from test_imports import COMMAND, KOHYA
from test_page_train import box, menu

from core.imports.projects.report import MAX_BYTES
from tabs.form.presets import MAX_BYTES as PRESET_BYTES

DATA = """([text, name]) => {
  const data = new DataTransfer();
  if (name) data.items.add(new File([text], name)); else data.setData("text/plain", text);
  return data;
}"""
PASTE = f"""([text, where]) => document.querySelector(where)
  .dispatchEvent(new ClipboardEvent("paste", {{bubbles: true, cancelable: true, clipboardData: ({DATA})([text, ""])}}))"""
AI_TOOLKIT = """job: extension
config:
  process:
    - {type: sd_trainer, network: {linear: 7}, model: {name_or_path: a}}
"""


def drop(tab, text, name):
    tab.dispatch_event("#tabs", "drop", {"dataTransfer": tab.evaluate_handle(DATA, [text, name])})


def paste(tab, text, where="body"):
    tab.evaluate(PASTE, [text, where])


def compatibility(served):
    return served.page.project.job.model.compatibility


@pytest.mark.slow
@on_every_screen
def test_another_trainers_settings_are_opened_looked_at_saved_and_given_back(window, served, tmp_path, screen):
    tab, project = open_page(window, screen, "Runs"), served.page.project
    report, rank = tab.get_by_role("region", name="Imported from kohya_ss"), box(tab, "network.rank")
    gone = str(tmp_path / "gone")
    drop(tab, json.dumps(KOHYA | {"train_data_dir": gone, "logging_dir": "D:\\log"}), "fox.json")
    expect(report).to_contain_text("max_grad_norm")
    expect(report).to_be_focused()
    assert tab.evaluate("atelier.openTab()") == "Train" and project.job.network.rank == 32
    expect(report.locator("details li").first).to_be_hidden()
    assert tab.evaluate(VIOLATIONS) == []
    report.get_by_label("Compute as sd-scripts").check()
    tab.wait_for_function("!atelier.isUnsaved('model.compatibility')")
    assert compatibility(served) == "sd-scripts-0.10"

    if os.name != "nt":
        report.get_by_role("button", name="Leave empty: Logging folder").click()
        expect(report.locator("[data-missing='logging.logging_dir']")).to_contain_text("Now empty")
        assert not project.job.logging.logging_dir
    missing = report.locator("[data-missing='dataset.folder']")
    missing.get_by_role("button", name="Browse").click()
    tab.get_by_role("button", name="Use this folder").click()
    expect(missing).to_have_class("found")
    assert project.job.dataset.folder == str(tmp_path)

    menu(tab, "Save as ...")
    tab.get_by_role("button", name="Save", exact=True).last.click()
    expect(tab.locator("#preset-state")).to_have_text("as saved")
    report.get_by_role("button", name="Close the report").click()
    tab.locator("#preset-list").select_option("")
    expect(rank).not_to_have_value("32")
    tab.locator("#preset-list").select_option(project.presets.names("train")[-1])
    expect(rank).to_have_value("32")
    menu(tab, "Import report")
    expect(report).to_contain_text("max_grad_norm")

    paste(tab, COMMAND.format(3, "field"), "#field-search")
    paste(tab, "the weather of today")
    paste(tab, COMMAND.format(4, "fox") + COMMAND.format(6, "owl"))
    tab.get_by_role("dialog").get_by_role("button", name="owl").click()
    expect(rank).to_have_value("6")
    expect(report).to_have_count(0)
    expect(tab.get_by_role("region", name="Imported from sd-scripts")).to_be_visible()
    tab.locator("#preset-bar").get_by_role("button", name="Undo").click()
    expect(rank).to_have_value("32")
    expect(tab.locator("#import-report")).to_have_count(0)

    paste(tab, AI_TOOLKIT)
    expect(rank).to_have_value("7")
    drop(tab, json.dumps({"model_family": "sdxl", "lora_rank": 12}), "config.json")
    expect(rank).to_have_value("12")
    expect(tab.get_by_role("region", name="Imported from SimpleTuner")).to_be_visible()

    revision = project.revision
    paste(tab, "python flux_train_network.py --network_dim 4")
    expect(tab.locator("#said.error")).to_contain_text("FLUX")
    drop(tab, "x" * (PRESET_BYTES + 1), "large.txt")
    expect(tab.locator("#said.error")).to_contain_text("large.txt")
    expect(tab.locator("#said.error")).to_contain_text(f"{MAX_BYTES:,} characters")
    assert project.revision == revision

    menu(tab, "Import from another trainer ...")
    pasted = tab.get_by_label("Or a command line")
    pasted.fill("a shopping list")
    tab.get_by_role("button", name="Import text").click()
    expect(tab.get_by_role("dialog").get_by_role("alert")).to_contain_text("no known program")
    expect(pasted).to_have_value("a shopping list")
    pasted.fill(COMMAND.format(5, "cat"))
    assert tab.evaluate(VIOLATIONS) == []
    tab.get_by_role("button", name="Import text").click()
    expect(rank).to_have_value("5")
    expect(tab.get_by_role("dialog")).to_have_count(0)
    file = tmp_path / "bird.ps1"
    file.write_text(COMMAND.format(9, "bird"), "utf-16")
    menu(tab, "Import from another trainer ...")
    tab.get_by_label("Files", exact=True).set_input_files(str(file))
    expect(rank).to_have_value("9")

    menu(tab, "Export for sd-scripts ...")
    assert "--network_dim=9" in tab.get_by_label("Command line", exact=True).input_value()
    assert tab.evaluate(VIOLATIONS) == []
    with tab.expect_download() as download:
        tab.get_by_role("button", name="Config file").click()
    assert download.value.suggested_filename == "bird.toml"
    assert "network_dim = 9" in download.value.path().read_text()
    tab.keyboard.press("Escape")
    menu(tab, "Export for kohya_ss ...")
    assert '"network_dim": 9' in tab.get_by_role("dialog").get_by_label("Preset", exact=True).input_value()


@pytest.mark.slow
def test_a_link_that_is_dropped_is_told_and_what_nothing_takes_does_not_leave_the_page(window):
    tab = window.open("Monitor")
    drag = """([kind, type, on = "body"]) => { const dataTransfer = new DataTransfer(); dataTransfer.setData(type, "https://example.org/a.png");
      return !document.querySelector(on).dispatchEvent(new DragEvent(kind, {bubbles: true, cancelable: true, dataTransfer})); }"""
    assert tab.evaluate(drag, ["dragover", "text/html"]) and not tab.evaluate(drag, ["drop", "text/html"])
    assert tab.locator("#said.error").count() == 0
    assert tab.evaluate(drag, ["dragover", "text/uri-list"]) and tab.evaluate(drag, ["drop", "text/uri-list"])
    expect(tab.locator("#said.error")).to_be_visible()
    for type, refused in (("text/uri-list", True), ("text/plain", False)):  # a link is no caption or prompt
        prevented = [tab.evaluate(drag, [kind, type, "#train-form textarea"]) for kind in ("dragover", "drop")]
        assert prevented == [refused] * 2
