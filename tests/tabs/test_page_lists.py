"""Lists and boxes that are opened, passed through and left in a real browser: only what a person chooses changes anything."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect
from test_overtaking import slowly
from test_page_train import box, choose_preset, preset, unfold, until
from work_parts import image, wait_until

from core.settings.dataset.source import Source
from tabs.dataset.concepts import entries_of, with_entries


@pytest.fixture
def changed(visit, served, tmp_path):
    """Train with two unsaved changes: a rank, and a second folder."""
    second = image(tmp_path / "second" / "ant.png", (200, 200), caption="an ant").parent
    project = served.page.project
    entries = entries_of(project.job)
    project.replace(with_entries(project.job, [*entries, Source(folder=str(second), num_repeats=3)]))
    project.edit("network.rank", "7")
    tab = visit().open()
    expect(tab.locator("#preset-state")).to_contain_text("changed")
    return tab


def by_tab(tab):
    preset(tab).focus()
    for key in ("Tab", "Shift+Tab", "Shift+Tab"):
        tab.keyboard.press(key)


def by_escape(tab):
    preset(tab).focus()
    for key in ("ArrowDown", "Escape", "Tab"):
        tab.keyboard.press(key)


def by_enter_on_the_same(tab):
    preset(tab).focus()
    for key in ("Enter", "Enter", "Tab"):
        tab.keyboard.press(key)


@pytest.mark.slow
def test_a_preset_that_is_chosen_over_changes_shows_the_way_back_to_them(changed, served):
    project = served.page.project
    other = served.page.presets.save("another", project.reference(), replace=True)
    changed.evaluate("atelier.refill()")
    before = project.job
    changed.evaluate(
        "((real) => { window.setTimeout = (work, after, ...more) => real(work, after / 10, ...more); })(setTimeout)"
    )
    choose_preset(changed, "another")
    wait_until(lambda: project.preset == other)
    said = changed.locator("#said")
    expect(said).to_contain_text("unsaved change")
    changed.wait_for_timeout(1300)  # others go after 5 to 10 of these tenths of a second, this one after 20
    said.get_by_role("button", name="Undo").click()
    wait_until(lambda: project.job == before)
    assert project.preset == "starter_lora" and len(entries_of(project.job)) == 2
    expect(said).to_be_hidden()
    unfold(changed, "network")
    expect(box(changed, "network.rank")).to_have_value("7")
    changed.evaluate("atelier.act('put_all_back')")
    expect(said.get_by_role("button", name="Undo")).to_be_visible()
    box(changed, "network.rank").fill("9")
    changed.keyboard.press("Tab")
    assert until(lambda: project.job.network.rank == 9)
    expect(said.get_by_role("button", name="Undo")).to_be_hidden()  # no longer the last step


@pytest.mark.slow
def test_boxes_that_are_not_filled_yet_are_passed_through_without_emptying_what_is_kept(visit, served, monkeypatch):
    from tabs.dataset import tab as dataset
    from tabs.generate import tab as generate

    project = served.page.project
    values = generate.form.stored_values({}, project.job) | {"prompt": "a fox on the hill", "steps": 17}
    project.keep("Generate", {"values": values})
    kept = project.tab_state("Generate")
    done: list[str] = []
    slowly(monkeypatch, generate.GenerateHandlers, "_form", 2.0, done)
    slowly(monkeypatch, dataset.DatasetHandlers, "boards", 2.0, done)
    tab = visit().open()
    folder = project.job.dataset.folder
    tab.get_by_role("tab", name="Generate", exact=True).click()
    tab.locator("#gen-prompt").focus()
    for _ in range(25):
        tab.keyboard.press("Tab")
    tab.get_by_role("tab", name="Dataset", exact=True).click()
    tab.locator("#ds-folder textarea, #ds-folder input").first.focus()
    tab.keyboard.press("Tab")
    assert until(lambda: {"_form", "boards"} <= set(done))
    assert project.tab_state("Generate") == kept and project.job.dataset.folder == folder
    tab.get_by_role("tab", name="Generate", exact=True).click()
    expect(tab.locator("#gen-prompt")).to_have_value("a fox on the hill")
    tab.locator("#gen-prompt").fill("a bear")
    tab.keyboard.press("Tab")
    wait_until(lambda: project.tab_state("Generate")["values"]["prompt"] == "a bear")


KEYS = ("Shift", "Control", "F1", "Escape", "Tab", "Shift+Tab", "ArrowDown", "Escape", "ArrowUp", "Escape")
SHORTCUTS = (
    "Control+c",
    "Control+a",
    "Control+z",
    "Meta+c",
    "Control+Shift+k",
    "Alt+ArrowDown",
    "Control+ArrowUp",
    "Control+s",
)


@pytest.mark.slow
def test_lists_and_fields_are_passed_and_left_by_keys_without_changing_the_form(changed, served):
    """The browser's own list would take the next choice at each arrow key, and the form with it."""
    project, keys = served.page.project, changed.keyboard
    before, revision = project.job, project.revision
    for leave in (by_tab, by_enter_on_the_same, by_escape):
        for _ in range(2):
            leave(changed)
    unfold(changed, "captions")
    for name in ("#preset-list", "#field-method-kind select", "#field-captions-max-token-length select"):
        one = changed.locator(name)
        held = one.input_value()
        one.focus()
        for key in KEYS:
            keys.press(key)
        expect(one).to_have_value(held)
    unfold(changed, "optimizer")
    preset(changed).focus()
    for _ in range(60):
        keys.press("Tab")
    changed.wait_for_timeout(700)
    assert (project.job, project.revision) == (before, revision)


@pytest.mark.slow
def test_no_shortcut_opens_a_list_and_the_page_still_hears_it(changed, served):
    keys = changed.keyboard
    for name in ("#preset-list", "#field-method-kind select"):
        one = changed.locator(name)
        held = one.input_value()
        one.focus()
        for key in SHORTCUTS:
            keys.press(key)
            expect(one).to_have_value(held)
    keys.press("Control+Alt+z")
    assert until(lambda: served.page.project.job.network.rank != 7)


@pytest.mark.slow
def test_a_choice_by_keyboard_begins_at_what_is_chosen_and_what_is_typed_or_pasted_is_entered(changed, served):
    kind = changed.locator("#field-method-kind select")
    names = kind.locator("option").evaluate_all("(options) => options.map((option) => option.value)")
    following = names[names.index(kind.input_value()) + 1]
    kind.focus()
    for key in ("Enter", "ArrowDown", "Enter"):
        changed.keyboard.press(key)
    expect(kind).to_have_value(following)
    assert until(lambda: served.page.project.job.method.kind == following)
    one = changed.locator("#field-model-base-model input")
    one.focus()
    changed.keyboard.press("Control+A")
    changed.keyboard.type("nowhere.safetensors")
    changed.keyboard.press("Enter")
    assert until(lambda: served.page.project.job.model.base_model == "nowhere.safetensors")
    one.focus()
    changed.keyboard.press("Control+A")
    changed.keyboard.insert_text("pasted.safetensors")
    changed.keyboard.press("Tab")
    assert until(lambda: served.page.project.job.model.base_model == "pasted.safetensors")


@pytest.mark.slow
def test_a_list_of_train_obeys_the_keyboard_where_the_browser_cannot_open_it_from_a_script(visit, served):
    window = visit()
    tab = window.open()
    tab.evaluate("() => { delete HTMLSelectElement.prototype.showPicker; }")
    kind = tab.locator("#field-method-kind select")
    held = kind.input_value()
    kind.focus()
    for key in ("Enter", "ArrowDown", "Enter"):  # Enter opens it in some browsers
        tab.keyboard.press(key)
    assert until(lambda: served.page.project.job.method.kind != held)
    assert window.errors == []
