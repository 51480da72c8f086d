"""The page by keyboard, by screen reader and on a small screen."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect


@pytest.mark.slow
def test_f1_opens_the_note_beside_its_field_and_tab_goes_from_field_to_field(window):
    tab = window.open("Train")
    name = tab.locator("#field-saving-output-name").locator("input, textarea").first
    name.focus()
    tab.keyboard.press("F1")
    note = tab.locator("#field-note")
    expect(note).to_contain_text("--saving.output_name")
    block, own = tab.locator("#field-saving-output-name").bounding_box(), note.bounding_box()
    assert own["y"] >= block["y"] + block["height"] or own["y"] + own["height"] <= block["y"]
    assert "field-note" in name.get_attribute("aria-describedby")
    tab.locator("h1").dispatch_event("mouseover")  # the page scrolled under a resting mouse
    expect(note).to_be_visible()
    tab.keyboard.press("Escape")
    expect(note).to_have_count(0)
    assert "field-note" not in name.get_attribute("aria-describedby")
    tab.keyboard.press("Tab")
    assert not tab.evaluate("document.activeElement.matches('.field-help')")
    assert tab.locator(".field-help:not([tabindex='-1'])").count() == 0


@pytest.mark.slow
def test_arrows_go_through_the_tabs_and_a_tab_opened_by_something_else_takes_the_keyboard_along(window, served):
    tab = window.open("Runs")
    tab.get_by_role("tab", name="Runs", exact=True).focus()
    for key, name in (("ArrowRight", "Tools"), ("ArrowRight", "Dataset"), ("ArrowLeft", "Tools"), ("Home", "Dataset")):
        tab.keyboard.press(key)
        expect(tab.get_by_role("tab", name=name, exact=True)).to_be_focused()
        expect(tab.get_by_role("tab", name=name, exact=True)).to_have_attribute("aria-selected", "true")
    tab.evaluate("atelier.goTo('Train')")
    tab.wait_for_function(  # a tab is not shown, nor takes the keyboard, before its first answer is drawn
        "() => { const start = document.getElementById('start'); start.focus(); return document.activeElement === start; }"
    )
    tab.keyboard.press("Enter")
    expect(tab.locator("#monitor-run")).to_be_visible()
    expect(tab.locator(".tab-heading h2", has_text="Monitor")).to_be_focused()
    for entry in served.engine.queue():
        served.engine.cancel(entry.id)


@pytest.mark.slow
def test_the_keyboard_stays_at_what_takes_the_place_of_a_button_that_goes(window, served):
    tab = window.open("Train")
    rank = tab.locator("#field-network-rank input").first
    rank.fill("7")
    rank.press("Tab")
    restore = tab.locator("#field-network-rank").get_by_role("button", name="Restore")
    restore.focus()
    tab.keyboard.press("Enter")
    expect(rank).to_be_focused()
    undo = tab.locator("#preset-bar [data-do=undo]")
    undo.press("Enter")
    expect(undo).to_be_focused()
    tab.locator("#preset-bar [data-do=redo]:enabled").press("Enter")  # there is nothing more to redo
    expect(undo).to_be_focused()
    served.engine.step_seconds = 0.5
    tab.locator("#start").press("Enter")
    expect(tab.locator("#run-state")).to_have_text("training")
    for name, next_name in (("Pause", "Resume"), ("Resume", "Pause")):
        tab.get_by_role("button", name=name, exact=True).press("Enter")
        expect(tab.get_by_role("button", name=next_name, exact=True)).to_be_focused()
    tab.locator("#header-stop").press("Enter")
    expect(tab.locator("#run-state")).not_to_have_text("training")
    expect(tab.locator("body")).not_to_be_focused()


@pytest.mark.slow
def test_a_low_window_shows_where_the_keyboard_is_led(window):
    tab = window.open("Dataset")
    tab.set_viewport_size({"width": 683, "height": 450})
    tab.locator("#atelier-header .skip").press("Enter")
    expect(tab.locator("#ds-choose :focus")).to_be_visible()
    tab.get_by_role("button", name="Edit the caption of banana.png").press("Enter")
    expect(tab.locator("#cap-text")).to_be_focused()
    expect(tab.locator("#cap-text")).to_be_in_viewport()
    tab.get_by_role("button", name="Keys", exact=True).press("Enter")
    expect(tab.locator("dialog h2")).to_be_in_viewport()


@pytest.mark.slow
def test_the_keyboard_keeps_its_place_in_the_queue_and_moves_are_heard(window, served):
    engine = served.engine
    engine.pause_queue()
    for title in ("one", "two", "two"):
        engine.submit("train", served.page.project.job, title)
    tab = window.open("Monitor")
    tab.set_viewport_size({"width": 683, "height": 450})
    queue, heard = tab.locator("#monitor .queue-card"), tab.locator("#heard")
    queue.get_by_role("button", name="Move two, 1 of 2 up").press("Enter")
    expect(queue.get_by_role("button", name="Move two, 1 of 2 down")).to_be_focused()
    expect(heard).to_contain_text("two: 1 of 3 in the queue")
    queue.get_by_role("button", name="Cancel one").press("Enter")
    expect(queue.locator("h3").first).to_be_focused()
    tab.locator("#said").get_by_role("button", name="Undo").press("Enter")
    expect(queue.locator("h3").first).to_be_focused()
    expect(queue.locator("h3").first).to_be_in_viewport()
    expect(heard).to_contain_text("Back in the queue: one.")
    engine.step_seconds = 0.5
    queue.locator(".queue-pause").press("Enter")
    expect(tab.locator("#run-state")).to_have_text("training")
    expect(queue.locator(".queue-pause")).to_be_focused()
    expect(queue.locator(".queue-pause")).to_be_in_viewport()


@pytest.mark.slow
def test_a_board_without_a_heading_keeps_the_keyboard_when_its_button_goes(window):
    """Another button that takes it would be pressed by the next key, such as Forever after Cancel."""
    tab = window.open("Tools")
    put = """([id, words]) => {
        const board = document.getElementById(id) || document.createElement("div");
        Object.assign(board, {id, className: "board", innerHTML: `<button type="button">${words}</button>`});
        document.body.append(board);
    }"""
    tab.evaluate(put, ["first", "Cancel this"])
    tab.get_by_role("button", name="Cancel this").press("Enter")
    tab.evaluate(put, ["first", "Forever"])
    tab.evaluate("atelier.goOn(document.getElementById('first'))")
    assert tab.evaluate("document.activeElement.id") == "first"
    tab.evaluate(put, ["second", "Cancel that"])
    tab.get_by_role("button", name="Cancel that").focus()
    tab.keyboard.press("Shift")
    tab.evaluate(put, ["second", "Forever"])
    tab.wait_for_function("document.activeElement.id === 'second'")


@pytest.mark.slow
def test_save_now_is_heard_and_the_keyboard_goes_on_from_it(window, served):
    served.engine.step_seconds = 0.5
    served.engine.submit("train", served.page.project.job, "fox")
    tab = window.open("Monitor")
    tab.locator("[data-action=save]:enabled").press("Enter")
    expect(tab.locator("#heard")).to_contain_text("Saving ...")
    tab.wait_for_timeout(300)  # longer than the page takes to look for a lost focus
    assert tab.evaluate("document.activeElement.dataset.action") == "save"
    tab.evaluate("atelier.command = (name) => { window.again = name }")
    tab.keyboard.press("Enter")
    assert tab.evaluate("window.again") is None
    tab.keyboard.press("Tab")
    expect(tab.locator("[data-action=pause]")).to_be_focused()


@pytest.mark.slow
def test_a_search_for_a_tool_opens_the_one_of_that_name(window):
    tab = window.open("Tools")
    tab.locator("#tool-search").fill("merge loras")
    tab.keyboard.press("Enter")
    expect(
        tab.locator("#tools-loras select[data-arg=action], #tools-models select[data-arg=action]").locator(
            "visible=true"
        )
    ).to_have_value("merge_loras")


TRANSLATED = """() => {
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), found = [];
  while (walker.nextNode()) if (walker.currentNode.data.trim()) found.push(walker.currentNode);
  for (const node of found.filter(({parentElement}) => !parentElement.closest("script, style, textarea"))) {
    const words = document.createElement("font");
    words.textContent = `ü${node.data}`;
    node.replaceWith(words);
  }
}"""


@pytest.mark.slow
def test_a_page_that_the_browser_translates_still_knows_its_tabs(window):
    tab = window.open("Train")
    tab.evaluate(TRANSLATED)
    tab.locator("#tabs > .tab-wrapper [role=tab]").filter(has_text="üRuns").click()
    tab.wait_for_url("**/#Runs*")
    assert tab.evaluate("[atelier.openTab(), atelier.hasTab('Tools'), atelier.goTo('Tools')]") == ["Runs", True, True]


@pytest.mark.slow
def test_the_enter_that_chooses_a_word_of_an_input_method_chooses_nothing_else(window):
    tab = window.open("Train")
    search = tab.locator("#field-search")
    search.fill("rank")
    for composing in ({"isComposing": True}, {"keyCode": 229}):  # Safari's is the second
        search.dispatch_event("keydown", {"key": "Enter", "bubbles": True, **composing})
        expect(search).to_have_value("rank")
    search.press("Enter")
    expect(search).to_have_value("")


@pytest.mark.slow
def test_the_page_works_below_a_path_that_only_a_proxy_knows(window, served):
    root = served.url.rstrip("/")
    tab = window.open("Train")
    tab.route(f"{root}/gradio_api/**", lambda route: route.abort())
    tab.route(
        f"{root}/below/**",
        lambda route: route.fulfill(response=route.fetch(url=route.request.url.replace("/below", ""))),
    )
    tab.route(f"{root}/below/gradio_api/heartbeat/**", lambda route: None)  # it never ends, so it is not passed on
    tab.goto(f"{root}/below/")
    tab.wait_for_function("window.atelier && atelier.stamp")
