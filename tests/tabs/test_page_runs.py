"""The Runs tab in a real browser: title, note, search, the path of a file, its copy elsewhere, a narrow window."""

from __future__ import annotations

import json

import pytest
from made_runs import make_run
from playwright.sync_api import expect
from work_parts import wait_until

from core.engine.engine import Engine
from core.record.run_folder import seal_state

ONE, TWO, THREE = "20260101-120000_one", "20260102-130000_two", "20260103-140000_three"
NO_CLIPBOARD = "Object.defineProperty(navigator, 'clipboard', {value: undefined})"  # as on a page of another machine


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    from page_server import Served

    page = Served(tmp_path_factory.mktemp("runs"), engine=lambda workspace: Engine(workspace, "cpu"))
    make_run(page.workspace.runs, ONE, saved=(20,), settings={"dataset": {"folder": "sets/foxes"}})
    make_run(page.workspace.runs, TWO)
    yield page
    page.close()


# By default test_runs_tab.py holds titles, notes and the filter.
@pytest.mark.slow
def test_a_run_gets_a_title_and_a_note_is_found_by_them_and_its_path_is_copied(made, chromium):
    from page_server import Visit

    window = Visit(chromium, made.url)
    window.tab.add_init_script(NO_CLIPBOARD)
    tab = window.open("Runs")
    rows = tab.locator("table.runs tbody tr")
    expect(rows).to_have_count(2)
    expect(rows.filter(has_text="foxes")).to_have_count(1)
    tab.locator("table.runs").get_by_role("button", name="one", exact=True).click()
    tab.locator("#runs-main").get_by_label("Title", exact=True).fill("Red <b>fox</b>")
    tab.locator("#runs-main").get_by_label("Title", exact=True).press("Enter")
    expect(tab.locator(".run-head h2")).to_have_text("Red <b>fox</b>")
    note = tab.locator("#runs-main").get_by_label("Note", exact=True)
    note.fill("too strong")
    note.blur()
    about = made.workspace.runs / ONE / "about.json"
    wait_until(lambda: json.loads(about.read_text("utf-8")) == {"title": "Red <b>fox</b>", "note": "too strong"})
    path = str(made.workspace.runs / ONE / "checkpoints" / "one-step00000020.safetensors")
    tab.get_by_role("button", name="Copy path").click()
    expect(tab.get_by_role("button", name="Copy path")).to_have_text("Copied")
    tab.get_by_role("button", name="All runs").click()
    find = tab.get_by_label("Find runs")
    find.focus()
    tab.keyboard.press("Control+V")
    expect(find).to_have_value(path)
    find.fill("strong foxes")
    find.press("Enter")
    expect(rows).to_have_count(1)
    expect(rows).to_contain_text("Red <b>fox</b>")
    window.close()
    assert window.errors == []


@pytest.mark.slow
def test_a_file_is_copied_to_another_program_by_keyboard_and_then_in_one_click_also_after_a_reload(
    made, chromium, tmp_path
):
    from page_server import Visit

    loras = tmp_path / "ComfyUI" / "models" / "loras"
    loras.mkdir(parents=True)
    file = "one-step00000020.safetensors"
    window = Visit(chromium, made.url)
    tab = window.open("Runs")
    opener = tab.get_by_role("button", name=f"Copy to ... another folder: {file}")

    def press(locator, key="Enter"):
        locator.focus()
        tab.keyboard.press(key)

    press(tab.locator(f"table.runs button.open[data-arg='{ONE}']"))
    opener.focus()
    top = tab.locator("#runs-main").bounding_box()["y"]
    press(opener)
    field = tab.get_by_label(f"Folder to copy {file} to")
    expect(field).to_be_focused()
    assert tab.locator("#runs-main").bounding_box()["y"] == top
    tab.keyboard.press("Escape")
    expect(field).to_have_count(0)
    expect(opener).to_be_focused()
    tab.keyboard.press("Enter")
    expect(field).to_be_focused()
    tab.keyboard.type(str(tmp_path / "none"))
    tab.keyboard.press("Enter")
    expect(tab.locator("#said")).to_contain_text("does not exist")
    expect(field).to_have_value(str(tmp_path / "none"))  # what was typed stays
    field.fill(str(tmp_path / "ComfyUI"))
    press(tab.get_by_role("button", name="Browse", exact=True))
    for folder in (loras.parent, loras):
        press(tab.locator("#model-browser").get_by_role("button", name=f"{folder.name}/", exact=True))
        expect(tab.locator("#model-browser .at code")).to_have_text(str(folder))
    press(tab.get_by_role("button", name="Use this folder"))
    expect(field).to_have_value(str(loras))
    expect(tab.get_by_role("button", name="Browse", exact=True)).to_be_focused()
    field.press("Enter")
    expect(tab.locator(".copying")).to_contain_text(f"Copied: {loras / file}")
    assert (loras / file).stat().st_size == 2_300_000
    expect(opener).to_be_focused()

    (loras / file).unlink()
    tab.reload()  # the address has the open run
    tab.get_by_role("button", name=f"Copy {file} to {loras}").click()
    wait_until(lambda: (loras / file).is_file())
    expect(tab.locator(".copying")).to_contain_text("Copied: ")
    tab.get_by_role("button", name=f"Copy {file} to {loras}").click()
    expect(tab.locator(".copying")).to_contain_text("Already there: ")
    assert [path.name for path in loras.iterdir()] == [file]
    window.close()
    assert window.errors == []


@pytest.mark.slow
def test_a_resumed_run_is_shown_in_monitor_where_another_one_was_chosen(made, chromium):
    from page_server import Visit

    gone = {"dataset": {"folder": "sets/gone"}}
    state = make_run(made.workspace.runs, THREE, settings=gone, ended=("stopped", "", "")) / "state" / "step00000030"
    state.mkdir(parents=True)
    (state / "training.pt").write_bytes(b"weights")
    seal_state(state)
    window = Visit(chromium, made.url)
    tab = window.open(f"Monitor/{ONE}")
    tab.get_by_role("tab", name="Runs", exact=True).click()
    tab.locator("table.runs tr", has_text="three").get_by_role("button", name="Resume training").click()
    expect(tab.locator("#run-title")).to_have_text("three")
    expect(tab.locator("#run-errors")).to_contain_text("sets/gone")
    tab.get_by_role("tab", name="Runs", exact=True).click()
    tab.locator(f"table.runs button.open[data-arg='{ONE}']").click()
    tab.get_by_role("link", name="Compare checkpoints").click()
    expect(tab.locator("#run-title")).not_to_have_text("three")
    window.close()
    assert window.errors == []
