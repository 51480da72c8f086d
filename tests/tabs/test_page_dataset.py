"""The Dataset tab in a real browser: cards, questions, the doctor, import and export."""

from __future__ import annotations

import re

import pytest
from page_server import WATCH, Served, Visit
from PIL import Image
from playwright.sync_api import expect
from work_parts import image, wait_until

from core.settings.dataset.source import Source
from tabs.dataset.concepts import entries_of, with_entries


@pytest.fixture
def window(visit):
    made = visit()
    yield made
    assert made.errors == [] and made.outside == []


@pytest.fixture
def folder(tmp_path, served):
    """Three images, one of them twice and one of them transparent; two have a sentence next to their tags."""
    home = tmp_path / "set"
    for number in range(3):
        path = image(home / f"{number}.png", (200, 200), caption=f"fox, red, day {number}")
        Image.effect_noise((200, 200), 90 + 40 * number).convert("RGB").save(path)
        (home / f"{number}.caption").write_text(f"a fox on day {number}")
    (home / "copy.png").write_bytes((home / "0.png").read_bytes())
    Image.new("RGBA", (200, 200), (200, 0, 0, 90)).save(home / "clear.png")
    job = with_entries(served.page.project.job, [Source(folder=str(home))])
    served.page.project.keep("Dataset", {})
    served.page.project.replace(job)
    return home


@pytest.mark.slow
def test_a_card_is_unfolded_changed_and_emptied(window, served, folder):
    tab = window.open("Dataset")
    card = tab.locator("#ds-sources .concept").first
    expect(card).to_contain_text("5 images")
    card.get_by_role("button", name="More").click()
    field = card.get_by_role("textbox", name="Resolution", exact=True)
    field.fill("160")
    field.press("Tab")
    card.get_by_role("combobox", name="Random horizontal flip").select_option("on")
    expect(card).to_contain_text("2 settings set here: Resolution 160, Random horizontal flip on")
    sizes = card.get_by_role("textbox", name="Additional resolutions (pixels)")
    sizes.fill("96\n96 x 128")
    sizes.blur()
    expect(card).to_contain_text("3 settings set here")
    wait_until(lambda: entries_of(served.page.project.job)[0].more_resolutions == [96, (96, 128)])
    expect(tab.locator("#ds-grid .tile").first).to_contain_text("160×160, 96×96")
    field.fill("large")
    field.blur()
    expect(tab.locator("#said")).to_contain_text("Resolution is 'large'")
    expect(field).to_have_value("160")
    card.get_by_role("button", name="Use common settings").click()
    expect(card).to_contain_text("same as all folders")
    expect(sizes).to_have_value("")
    assert served.page.project.job.dataset.folder == str(folder)


@pytest.mark.slow
def test_what_is_being_typed_in_one_field_stays_when_another_was_changed(window, served, folder):
    tab = window.open("Dataset")
    card = tab.locator("#ds-sources .concept").first
    card.get_by_role("textbox", name="Repeats").fill("3")
    card.get_by_role("textbox", name="Repeats").press("Tab")
    tab.keyboard.type("1")
    # The answer to the first field has come, and the images were read
    expect(card).to_contain_text("15 views an epoch")
    tab.keyboard.type("2")
    views = card.get_by_role("textbox", name="Images per epoch")
    expect(views).to_have_value("12")
    expect(views).to_be_focused()
    views.press("Enter")
    wait_until(lambda: entries_of(served.page.project.job)[0].samples_per_epoch == 12)


def test_train_leads_to_the_cards_whose_fields_and_images_train_takes_and_a_folder_is_chosen_by_its_path(
    window, served, folder, tmp_path
):
    tab = window.open("Train")
    tab.locator("#group-dataset > button.label-wrap").click()
    tab.locator("#group-dataset").get_by_role("button", name="Open Dataset").click()
    card = tab.locator("#ds-sources .concept").first
    expect(card).to_be_visible()
    card.get_by_role("button", name="Suggest rare words").click()
    card.get_by_role("button", name="Use").first.click()
    expect(card).to_contain_text("is 1 token")
    assert (
        card.get_by_role("textbox", name="Identifier").input_value()
        == entries_of(served.page.project.job)[0].identifier
    )
    tile = tab.locator("#ds-grid .tile", has_text="1.png")
    tile.hover()
    tile.get_by_role("checkbox", name="Use 1.png for validation").click()
    expect(tile).to_contain_text("held out")
    expect(tab.locator("#ds-summary")).to_contain_text("4 of 5 images will train")
    assert entries_of(served.page.project.job)[0].validation_images == ["1.png"]
    use = card.get_by_role("checkbox", name="Use set")
    use.uncheck()
    expect(card).to_have_class(re.compile(r"\bis-off\b"))
    for part in (use, card.get_by_text("set", exact=True), card.get_by_role("textbox", name="Repeats")):
        expect(part).to_be_visible()
    use.check()
    expect(card).not_to_have_class(re.compile(r"\bis-off\b"))
    card.get_by_role("button", name="More").click()
    browse = card.get_by_role("button", name="Browse: Mask or control images")
    browse.press("Enter")
    tab.locator("#model-browser").get_by_role("button", name="Use this folder").press("Enter")
    wait_until(lambda: entries_of(served.page.project.job)[0].conditioning_data_dir)
    expect(card.get_by_role("textbox", name="Mask or control images")).not_to_have_value("")
    expect(browse).to_be_focused()

    for number in range(4):
        image(tmp_path / "foxes" / f"{number}.png", caption=f"fox {number}" if number else None)
    served.page.project.choose("starter_lora")
    box = tab.locator("#ds-folder").get_by_role("textbox")
    expect(box).to_have_value("models/starter/images")
    box.fill(str(tmp_path / "foxes"))
    box.press("Enter")
    expect(tab.locator("#ds-summary")).to_contain_text("4 of 4 images will train, 3 with a caption")
    assert served.page.project.job.dataset.folder == str(tmp_path / "foxes")
    repeats = tab.locator("#ds-sources").get_by_role("textbox", name="Repeats")
    repeats.fill("3")
    repeats.press("Tab")
    expect(tab.locator("#ds-summary")).to_contain_text("12 with repeats")
    repeats.fill("0")
    repeats.press("Tab")
    expect(tab.locator("#said.error .problem")).to_contain_text("'0'")
    expect(repeats).to_have_value("3")
    assert entries_of(served.page.project.job)[0].num_repeats == 3


@pytest.mark.slow
def test_after_a_move_to_the_trash_the_keyboard_is_at_its_restore_and_never_at_another_move(window, folder):
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n")
    tab = window.open("Dataset")
    tab.set_viewport_size({"width": 683, "height": 450})
    doctor = tab.locator("#ds-doctor")
    expect(doctor.locator("[data-act=away]")).to_have_count(3)
    doctor.locator(".finding", has_text="Duplicates").locator("[data-act=away]").press("Enter")
    restore = doctor.get_by_role("button", name="Restore")
    expect(restore).to_be_focused()
    expect(restore).to_be_in_viewport()
    restore.press("Enter")
    expect(doctor.locator("h3")).to_be_focused()
    expect(doctor.locator("h3")).to_be_in_viewport()
    doctor.locator(".finding", has_text="Duplicates").locator("[data-act=away]").press("Enter")
    expect(restore).to_be_focused()
    tab.locator("#said").get_by_role("button", name="Undo").press("Enter")
    expect(doctor.locator("h3")).to_be_focused()
    expect(doctor.locator("h3")).to_be_in_viewport()


@pytest.mark.slow
def test_questions_are_answered_and_copies_put_away_and_back(window, served, folder, monkeypatch):
    monkeypatch.setattr("tabs.dataset.doctor.MOST_AT_ONCE", 0.1)  # of five images one is many
    tab = window.open("Dataset")
    questions = tab.locator("#ds-questions")
    expect(questions.locator(".ask")).to_have_count(2)  # one is transparent: known once it was decoded
    expect(tab.locator("#ds-doctor .finding")).not_to_have_count(0)
    expect(tab.locator("#ds-summary .going > span")).to_have_count(0)
    asked = [f"#ds-questions .ask:nth-of-type({n}) .choice:nth-child({m})" for n in (1, 2) for m in (1, 2, 3, 4)]
    tab.evaluate(WATCH, ["#ds-main", "#ds-grid", "#ds-sources", "#ds-questions", *asked])
    questions.get_by_role("button", name="Both, joined").click()
    expect(questions.locator("[aria-pressed=true]")).to_contain_text("Both, joined")
    questions.get_by_role("button", name="Mask them out").click()
    expect(questions).to_contain_text("Decided")
    wait_until(lambda: not served.page.reading.busy)
    tab.wait_for_timeout(1200)
    assert tab.evaluate("movedBy()") == {}
    tab.get_by_role("tab", name="Train", exact=True).click()
    tab.get_by_role("tab", name="Dataset", exact=True).click()
    expect(questions).to_contain_text("Of several caption files: both, joined")
    assert served.page.project.job.captions.sidecars == "joined" and served.page.project.job.dataset.alpha_mask
    doctor = tab.locator("#ds-doctor")
    finding = doctor.locator(".finding", has_text="Duplicates")
    sure = tab.get_by_role("dialog")
    for answer in ("Cancel", "Move 1 to trash"):
        assert (folder / "copy.png").exists()
        finding.get_by_role("button", name="Move 1 to trash").click()
        expect(sure).to_contain_text("These are 1 of 5 images")
        sure.get_by_role("button", name=answer).click()
    expect(doctor).to_contain_text("1 image removed")
    expect(tab.locator("#ds-sources .counted").first).to_contain_text("4 images")
    assert not (folder / "copy.png").exists()
    doctor.get_by_role("button", name="Restore").click()
    expect(tab.locator("#ds-sources .counted").first).to_contain_text("5 images")
    assert (folder / "copy.png").exists()


@pytest.mark.slow
def test_a_config_is_exported_and_taken_in_again(window, served, folder, tmp_path):
    served.page.project.replace(with_entries(served.page.project.job, [Source(folder=str(folder), num_repeats=3)]))
    tab = window.open("Dataset")
    expect(tab.locator("#ds-summary .lead")).to_be_visible()
    tab.evaluate(WATCH, ["#ds-folder", "#ds-exchange", "#ds-main", "#ds-grid"])
    tab.get_by_role("button", name="Export TOML").click()
    with tab.expect_download() as given:
        tab.get_by_role("link", name="Download dataset.toml").click()
    given.value.save_as(tmp_path / "dataset.toml")
    assert "num_repeats = 3" in (tmp_path / "dataset.toml").read_text("utf-8")
    served.page.project.edit("dataset.folder", "")
    served.page.project.replace(with_entries(served.page.project.job, []))
    tab.locator("#ds-import input[type=file], input[type=file][accept*='.toml']").first.set_input_files(
        str(tmp_path / "dataset.toml")
    )
    expect(tab.locator("#said")).to_contain_text("dataset.toml: 1 folder with their settings")
    wait_until(lambda: entries_of(served.page.project.job) and entries_of(served.page.project.job)[0].num_repeats == 3)
    assert tab.evaluate("movedBy()") == {}


@pytest.mark.slow
def test_a_guest_logs_in_on_a_shared_page_and_browses_only_open_folders(chromium, tmp_path):
    page = Served(tmp_path / "page", shared=True, auth=("guest", "secret"))
    window = None
    try:
        inside = page.workspace.outputs / "set"
        image(inside / "a.png", (64, 64))
        page.page.project.replace(with_entries(page.page.project.job, [Source(folder=str(inside))]))
        window = Visit(chromium, page.url, fresh=True)
        tab = window.tab
        tab.goto(f"{page.url}#Dataset")
        for password, right in (("wrong", False), ("secret", True)):
            if right:  # after a wrong password the name is still there
                expect(tab.locator("input[type=password]")).to_be_focused()
                expect(tab.locator("input:not([type=password])").first).to_have_value("guest")
            else:
                tab.locator("input:not([type=password])").first.fill("guest")
            tab.locator("input[type=password]").fill(password)
            with tab.expect_response("**/login") as answer:
                tab.get_by_role("button", name="Login").click()
            assert answer.value.ok is right
        tab.wait_for_selector("body[data-atelier=ready]")
        card, browser = tab.locator("#ds-sources .concept").first, tab.locator("#model-browser")
        card.get_by_role("button", name="More").click()
        card.get_by_role("textbox", name="Mask or control images").fill(str(tmp_path))
        card.get_by_role("button", name="Browse: Mask or control images").click()
        at = browser.locator(".at code")
        expect(at).not_to_be_empty()
        assert page.page.roots.holds(at.inner_text()) and str(tmp_path) != at.inner_text()
        while (parent := browser.get_by_role("button", name=".. parent folder")).count():
            before = at.inner_text()
            parent.click()
            expect(at).not_to_have_text(before)
            assert page.page.roots.holds(at.inner_text())
    finally:
        if window:
            window.close()
        page.close()


@pytest.mark.slow
def test_what_a_folder_contains_describes_its_field_and_is_announced(window, served, folder):
    tab = window.open("Dataset")
    field, state, heard = (
        tab.locator("#ds-folder").get_by_role("textbox"),
        tab.locator("#ds-state"),
        tab.locator("#heard"),
    )
    expect(state).to_have_text("5 images found in set.")
    field.fill(str(folder / "nowhere"))
    field.press("Enter")
    expect(heard).to_contain_text("The image folder does not exist")
    expect(field).to_have_accessible_description("The image folder does not exist")


def dropped(tab, selector, path):
    """Drop a file or folder of this machine on an element; returns where the browser lets it fall."""
    box = tab.locator(selector).bounding_box()
    data = {"items": [], "files": [str(path)], "dragOperationsMask": 1}
    at = {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2, "data": data}
    session = tab.context.new_cdp_session(tab)
    for kind in ("dragEnter", "dragOver", "drop"):
        session.send("Input.dispatchDragEvent", {"type": kind, **at})
    session.detach()


@pytest.mark.slow
def test_a_folder_is_dropped_with_all_its_files_and_elsewhere_nothing_leaves_the_page(window, served, tmp_path):
    home, repeated = tmp_path / "my foxes", image(tmp_path / "10_fox" / "a.png").parent
    (tmp_path / "none").mkdir()
    for number in range(101):  # a browser lists a hundred at once
        image(home / f"{number}.png", (64, 64), caption=f"fox {number}")
    tab = window.open("Train")
    dropped(tab, "[role=tab][data-tab-id=Train]", home)
    expect(tab.locator("#said")).to_contain_text("cannot be dropped here")
    tab.locator("[role=tab][data-tab-id=Dataset]").click()
    tab.locator("#ds-drop button").wait_for()
    dropped(tab, "#ds-summary", home / "1.png")
    dropped(tab, "#ds-drop", home.parent)
    expect(tab.locator("#said")).to_contain_text("folders inside")
    dropped(tab, "#ds-drop", tmp_path / "none")
    expect(tab.locator("#said")).to_contain_text("no files")
    dropped(tab, "#ds-drop", repeated)
    wait_until(lambda: any(served.workspace.datasets.glob("*/10_fox/a.png")))
    expect(tab.locator("#said")).to_be_hidden()
    expect(tab.locator("#ds-summary")).to_contain_text("10_fox")
    expect(tab.locator("#ds-drop [title=Clear], #ds-intake [data-act=cancel]")).to_have_count(0)
    dropped(tab, "#ds-drop", home / "0.txt")
    expect(tab.locator("#ds-intake")).to_contain_text("no images")
    dropped(tab, "#ds-intake", home)
    wait_until(lambda: any(len(list(each.iterdir())) == 202 for each in served.workspace.datasets.glob("*")))
    tab.locator("#ds-intake [data-act=add]").wait_for()
    tab.locator("#ds-intake [data-act=close]").click()
    expect(tab.locator("#ds-intake [data-act=add]")).to_have_count(0)
    assert len(tab.context.pages) == 2  # with the one that a window keeps


@pytest.mark.slow
def test_an_upload_or_a_press_that_failed_is_reported_and_the_area_takes_the_next_one(visit, served, tmp_path):
    path = image(tmp_path / "lone fox.png")
    tab = visit().open("Dataset")
    tab.locator("#ds-drop button").wait_for()
    full = {"status": 507, "json": {"error": "The disk has no room for 3 GB."}}
    for answers, says in (
        (lambda route: route.abort(), "The server does not answer"),
        (lambda route: route.fulfill(**full), "The disk has no room for 3 GB"),
    ):
        tab.route("**/upload?*", answers)
        dropped(tab, "#ds-drop", path)
        expect(tab.locator("#said")).to_contain_text(f"{says}lone fox.png")
        expect(tab.locator("#ds-drop .error, .toast-item").filter(visible=True)).to_have_count(0)
        tab.unroute("**/upload?*")
    dropped(tab, "#ds-drop", path)
    wait_until(lambda: any(served.workspace.datasets.glob("lone fox*/*.png")))
    expect(tab.locator("#said")).to_be_hidden()
    for status, says in ((500, "The server answered 500"), (413, "Shorten what you entered")):
        tab.route("**/run/predict", lambda route, _, status=status: route.fulfill(status=status))
        tab.get_by_role("button", name="Reload").click()
        expect(tab.locator("#said")).to_contain_text(says)
