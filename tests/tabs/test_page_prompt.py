"""The prompt box in a browser, by keyboard: weights, completion with slow answers, faults, history and styles."""

from __future__ import annotations

import json
import re
import shutil

import numpy as np
import pytest
from page_server import choose_embedding
from playwright.sync_api import expect
from safetensors.numpy import save_file
from work_parts import wait_until

LISTED = {"fo": ["forest", "fox (animal)"], "fox": ["fox (animal)", "fox ears"]}


@pytest.fixture
def tab(visit, served):
    found = visit().open("Generate")
    found.wait_for_selector("#gen-prompt")
    return found


def text(tab):
    return tab.locator("#gen-prompt").input_value()


def weigh(tab, words, start, end, key, times=1):
    tab.locator("#gen-prompt").fill(words)
    tab.evaluate("([a, b]) => document.getElementById('gen-prompt').setSelectionRange(a, b)", [start, end])
    for _ in range(times):
        tab.keyboard.press(key)
    return text(tab)


@pytest.mark.slow
def test_weights_are_changed_by_keys_as_in_a1111_and_tab_takes_only_a_word_that_was_chosen(tab):
    up, down = "Control+ArrowUp", "Control+ArrowDown"
    assert weigh(tab, "a red fox", 3, 3, up) == "a (red:1.1) fox"
    tab.keyboard.press(down)
    assert text(tab) == "a red fox"
    assert weigh(tab, "a red fox", 2, 9, up, 2) == "a (red fox:1.2)"
    assert weigh(tab, "a (red fox:1.3)", 5, 5, down) == "a (red fox:1.2)"
    assert weigh(tab, "((fox)) b", 3, 3, up) == "(fox:1.3) b"
    assert weigh(tab, "[fox] b", 2, 2, down) == "(fox:0.8) b"
    assert weigh(tab, "x <lora:ink:0.8>", 6, 6, up) == "x <lora:ink:0.85>"
    assert weigh(tab, "x <lora:ink:0.8>", 16, 16, up) == "x <lora:ink:0.85>"  # right behind it
    assert weigh(tab, "x <lora:ink>", 6, 6, down) == "x <lora:ink:0.95>"
    assert weigh(tab, "a red fox", 3, 3, up) == "a (red:1.1) fox"
    tab.keyboard.press("Control+z")
    assert text(tab) == "a red fox"

    asked = []

    def answer(route):
        given = json.loads(route.request.post_data)
        if given["act"] != "complete":
            return route.continue_()
        asked.append(given["kind"])
        found = [{"name": name, "text": name, "about": "1", "alias": ""} for name in ("glyph style", "glyphs")]
        return route.fulfill(json={"options": found, "length": len(given["value"])})

    tab.route("**/atelier/prompt", answer)
    tab.locator("#gen-prompt").fill("")
    tab.locator("#gen-prompt").focus()
    tab.keyboard.type("a lion, glyph style")
    expect(tab.locator("#prompt-options li")).to_have_count(2)
    tab.keyboard.press("Tab")
    assert text(tab) == "a lion, glyph style"
    expect(tab.locator("#gen-prompt")).not_to_be_focused()
    expect(tab.locator("#prompt-options li")).to_have_count(0)
    tab.locator("#gen-prompt").press("End")
    tab.keyboard.type("s")
    expect(tab.locator("#prompt-options li")).to_have_count(2)
    tab.keyboard.press("ArrowDown")
    tab.keyboard.press("Tab")
    assert text(tab) == "a lion, glyph style, " and set(asked) == {"word"}
    expect(tab.locator("#gen-prompt")).to_be_focused()


@pytest.mark.slow
def test_the_tokens_are_counted_again_when_an_embedding_is_added_or_removed(tab, served):
    file = served.page.workspace.runs / "20260101-000000_fox" / "checkpoints" / "zunkel.safetensors"
    file.parent.mkdir(parents=True)
    save_file({"emb_params": np.zeros((9, 64), "f4")}, file)
    meter = tab.locator("#gen-prompt-meter")
    tab.locator("#gen-prompt").fill("a fox, zunkel")
    alone = "5/75 tokens"
    expect(meter).to_have_text(alone)
    choose_embedding(tab, "fox / zunkel")
    expect(meter).to_have_text("12/75 tokens")
    tab.locator("#gen-embeddings .token-remove").first.click()
    expect(meter).to_have_text(alone)
    for empty in (
        lambda field: field.locator(".remove-all").click(),
        lambda field: field.locator("input").press("Backspace"),
    ):
        choose_embedding(tab, "fox / zunkel")
        expect(meter).to_have_text("12/75 tokens")
        empty(tab.locator("#gen-embeddings"))
        expect(meter).to_have_text(alone)
    shutil.rmtree(file.parents[1])


BELOW_THE_FAULT = """() => {
  const [listed, line] = ["#prompt-options", ".prompt-fault"].map((each) => document.querySelector(each)?.getBoundingClientRect());
  return listed && line && line.height && listed.top >= line.bottom && listed.right <= innerWidth;
}"""


@pytest.mark.slow
def test_faults_are_told_under_the_box_place_the_cursor_and_stay_readable_below_completion(tab):
    box = tab.locator(".prompt-box").first
    tab.locator("#gen-prompt").fill("a \U0001f98a (fox:1.2.3) b)")
    expect(box.locator(".prompt-under u")).to_have_count(2)
    assert box.locator(".prompt-under u").all_inner_texts() == ["1.2.3", ")"]
    expect(box.locator(".prompt-meter")).to_contain_text("/75")
    expect(tab.locator("#gen-prompt")).to_have_attribute("aria-invalid", "true")
    tab.locator("#gen-prompt").press("Home")
    tab.keyboard.type("my ")
    assert box.locator(".prompt-under u").first.inner_text() == "1.2.3"  # moves with its words before any answer
    box.locator(".prompt-said button").focus()
    tab.keyboard.press("Enter")
    chosen = "(() => { const f = document.activeElement; return f.value.slice(f.selectionStart, f.selectionEnd); })()"
    assert tab.evaluate(chosen) == "1.2.3"
    under, field = (box.locator(each).bounding_box() for each in (".prompt-under", "textarea"))
    assert abs(under["x"] - field["x"]) < 1 and abs(under["y"] - field["y"]) < 1
    tab.locator("#gen-prompt").fill("a fox")
    expect(box.locator(".prompt-fault")).to_have_count(0)
    tab.locator("#atelier-header .skip").focus()
    tab.keyboard.press("Enter")
    expect(tab.locator("#gen-prompt")).to_be_focused()
    tab.locator("#gen-prompt").fill("(fox")
    fault = tab.locator(".prompt-fault").first
    expect(fault).to_contain_text("for a literal bracket")
    assert fault.evaluate("e => e.scrollHeight <= e.clientHeight && e.scrollWidth <= e.clientWidth")
    assert tab.locator(".prompt-under u").bounding_box()["width"] >= 8

    found = [{"name": name, "text": name, "about": "1", "alias": ""} for name in LISTED["fox"]]

    def answer(route):
        asked = json.loads(route.request.post_data)
        return route.fulfill(json={"options": found, "length": 3}) if asked["act"] == "complete" else route.continue_()

    tab.route("**/atelier/prompt", answer)
    tab.locator("#gen-prompt").fill("(a:1.2.3), ")
    expect(fault).to_be_visible()
    for width in (1280, 390):
        tab.set_viewport_size({"width": width, "height": 860})
        tab.locator("#gen-prompt").press("End")
        tab.keyboard.type("fox")
        expect(tab.locator("#prompt-options li")).to_have_count(2)
        tab.wait_for_function(BELOW_THE_FAULT)  # both at one moment: the line is drawn again while one types
        tab.keyboard.press("Escape")


@pytest.mark.slow
def test_completion_takes_by_tab_and_drops_late_answers(tab):
    held = []

    def fulfill(route, value):
        found = [{"name": name, "text": name, "about": "1", "alias": ""} for name in LISTED.get(value, [])]
        route.fulfill(json={"options": found, "length": len(value)})

    def answer(route):
        asked = json.loads(route.request.post_data)
        if asked["act"] != "complete":
            route.continue_()
        elif asked["value"] == "fo":
            held.append(route)  # answered after what is typed next
        else:
            fulfill(route, asked["value"])

    tab.route("**/atelier/prompt", answer)
    field, options = tab.locator("#gen-prompt"), tab.locator("#prompt-options li")
    field.fill("")
    field.focus()
    with tab.expect_request(lambda asked: '"fo"' in (asked.post_data or "")):
        tab.keyboard.type("a, fo")
    tab.keyboard.type("x")
    expect(options).to_have_count(2)
    with tab.expect_response("**/atelier/prompt"):
        fulfill(held[0], "fo")
    tab.evaluate("new Promise((done) => setTimeout(done, 100))")  # it has been read, and dropped
    assert options.first.inner_text().startswith("fox (animal)")
    tab.keyboard.press("Enter")  # nothing was chosen: a new line
    assert text(tab) == "a, fox\n"
    tab.keyboard.press("Backspace")
    expect(options).to_have_count(2)
    tab.keyboard.press("ArrowDown")
    tab.keyboard.press("ArrowDown")
    tab.keyboard.press("Tab")
    assert text(tab) == "a, fox ears, "
    expect(options).to_have_count(0)
    tab.keyboard.type("fox")
    expect(options).to_have_count(2)
    tab.keyboard.press("Escape")
    expect(options).to_have_count(0)
    assert text(tab) == "a, fox ears, fox"


@pytest.mark.slow
def test_history_and_styles_put_prompts_back(tab, served, monkeypatch):
    asked = []
    monkeypatch.setattr(served.engine, "submit", lambda task, job, **about: asked.append(job.generate) or "e1")
    tab.locator("#gen-negative_prompt").fill("blurry <b>")
    tab.locator("#gen-prompt").fill("<i>first</i> {prompt}")
    tab.locator("#gen-prompt").press("Control+Enter")
    wait_until(lambda: asked)
    tab.locator("#gen-styles summary").click()
    tab.locator("#gen-style-name").fill("<img src=x>")
    tab.get_by_role("button", name="Save prompts as").click()
    tab.get_by_role("checkbox", name="<img src=x>").check()
    expect(tab.get_by_role("button", name="Remove the style <img src=x>")).to_be_visible()
    tab.locator("#gen-negative_prompt").fill("")
    tab.locator("#gen-prompt").fill("second")
    tab.keyboard.press("Alt+ArrowUp")
    expect(tab.locator("#gen-prompt")).to_have_value("<i>first</i> {prompt}")
    expect(tab.locator("#gen-negative_prompt")).to_have_value("blurry <b>")
    tab.keyboard.press("Alt+ArrowDown")
    expect(tab.locator("#gen-prompt")).to_have_value("second")
    tab.locator("#gen-prompt").press("Control+Enter")
    wait_until(lambda: len(asked) == 2)
    assert (asked[1].prompt, asked[1].negative_prompt) == ("<i>first</i> second", "blurry <b>")  # in the style
    tab.locator("#gen-history").click()
    expect(tab.get_by_label("Find in the history")).to_be_focused()
    tab.keyboard.type("FIRST")
    expect(tab.locator(".prompt-history li button").first).to_contain_text("first")
    tab.locator(".prompt-history li button").first.click()
    expect(tab.locator("#gen-prompt")).to_have_value("<i>first</i> {prompt}")
    tab.locator("#gen-styles summary").click()
    tab.get_by_role("button", name="Delete the style <img src=x>").click()
    tab.get_by_role("button", name="Undo: Deleted <img src=x>").click()
    expect(tab.get_by_role("checkbox", name="<img src=x>")).to_be_visible()
    styles, summary = tab.locator("#gen-styles"), tab.locator("#gen-styles > summary")
    tab.keyboard.press("Escape")
    expect(styles).to_have_js_property("open", False)
    expect(summary).to_be_focused()
    for is_open in (True, False):
        summary.click()
        expect(styles).to_have_js_property("open", is_open)


@pytest.mark.slow
def test_a_dropped_text_is_named_and_the_zone_is_ready_for_the_next_file(tab, tmp_path):
    (tmp_path / "notes.txt").write_text("a fox")
    zone = tab.locator("#gen-drop")
    zone.locator("input[type=file]").set_input_files(str(tmp_path / "notes.txt"))
    expect(tab.locator("#said")).to_contain_text("notes.txt")
    expect(zone.locator("[data-testid=upload-text]")).to_be_visible()
    expect(tab.locator(".toast-body")).to_have_count(0)


@pytest.mark.slow
def test_an_images_text_in_the_prompt_becomes_settings_by_one_click(tab):
    field = tab.locator("#gen-prompt")
    field.fill("a fox\nNegative prompt: blurry\nSteps: 12, Sampler: Euler a, CFG scale: 5, Seed: 42, Size: 128x192")
    tab.get_by_role("button", name="Use the settings in this text").click()
    expect(tab.locator("#gen-negative_prompt")).to_have_value("blurry")
    expect(field).to_have_value("a fox")
    expect(tab.locator("#gen-steps")).to_have_value("12")
    tab.locator("#said").get_by_role("button", name="Undo").click()
    expect(field).to_have_value(re.compile("Steps: 12"))
