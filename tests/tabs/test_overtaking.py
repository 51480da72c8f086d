"""Messages of one browser overtake each other, and answers come late: neither may hide what a person did last."""

from __future__ import annotations

import json
import re
import threading
import time
from types import SimpleNamespace

import gradio as gr
import pytest
from playwright.sync_api import expect
from test_page_train import box, unfold, until
from work_parts import heard, make_page

from core.record.problems import ProblemsError
from tabs.context import ANY_TAB, as_listener
from tabs.markup import BoardView, board, board_event, digest
from tabs.pulse import answer, run_command
from tabs.server import app
from tabs.server.browsers import TURN_SECONDS, Browsers
from tabs.train.tab import _edit


@pytest.fixture
def page(tmp_path):
    made = make_page(tmp_path)
    made.engine.status = lambda: {"device": "cpu"}
    return made


def slowly(monkeypatch, target, name: str, seconds: float, done: list | None = None) -> list:
    """Let a method take its time, as on a busy machine, and note when it has ended. Returns a list that has an entry as soon
    as the method was called."""
    quick, begun = getattr(target, name), []

    def slow(*arguments, **named):
        begun.append(name)
        time.sleep(seconds)
        try:
            return quick(*arguments, **named)
        finally:
            if done is not None:
                done.append(name)

    monkeypatch.setattr(target, name, slow)
    return begun


def test_a_tick_that_a_click_has_overtaken_sends_nothing(page):
    browser = page.browsers.of("one")

    def tick(clicked: bool) -> str:
        if clicked:
            heard(as_listener(page, lambda: "new", [None]))
        return "old"

    answer = as_listener(page, tick, [None], drop_if_overtaken=True)
    assert heard(answer, False)[0] == "old"
    assert heard(answer, True)[0] == gr.skip()
    assert heard(as_listener(page, tick, [None]), True)[0] == "old", "what was done is always answered"
    with page.browsers.acting(browser, ANY_TAB):  # begun before, and its answer will come later
        assert heard(answer, False)[0] == "old"
    assert heard(answer, True, session="another browser")[0] == "old"
    page.commands["toy"] = lambda data, browser: None

    def commands() -> str:
        run_command(page, {"name": "toy"}, browser)
        return "old"

    assert heard(as_listener(page, commands, [None], drop_if_overtaken=True))[0] == gr.skip()


def test_what_a_command_replaced_is_drawn_as_a_whole_by_the_first_tick_that_begins_afterwards(page):
    browser, made = page.browsers.of("one"), []
    page.pulse_bus = SimpleNamespace(tick_toy=lambda tick, *given, **more: made.append(tick))
    acts = []

    class Toy(BoardView):
        def stamp(self) -> str:
            return "now"

        def boards(self) -> dict[str, str]:
            return {}

        def tick(self, client: str) -> dict[str, str]:
            if acts:
                acts.pop()()
            return {"client": client or "whole"}

    page.on_change("Toy", Toy(), {"client": None})
    page.on_tick("Toy", lambda client, place: client or place, None, [None])
    asked = {"have": {}, "tab": "Toy", "shown": [digest("now")]}

    def ticks() -> list[str]:
        return [heard(made[0], "shown")[0], heard(made[1], "shown", "place")[0]]

    assert ticks() == ["shown"] * 2 and "due" not in json.loads(answer(page, asked, browser))
    page.browsers.say(browser, "done", "hello", redraws=True)
    assert "due" in json.loads(answer(page, asked, browser)) and ticks() == ["whole", "place"]
    assert ticks() == ["shown"] * 2 and "due" not in json.loads(answer(page, asked, browser))
    page.browsers.say(browser, "done", "again", redraws=True)
    acts.append(lambda: heard(as_listener(page, lambda: "new", [None])))
    assert heard(made[0], "shown")[0] == gr.skip(), "a click has overtaken it"
    assert "due" in json.loads(answer(page, asked, browser)) and ticks() == ["whole", "place"]
    page.browsers.say(browser, "done", "and again", redraws=True)
    acts.append(lambda: page.browsers.say(browser, "done", "meanwhile", redraws=True))
    assert [heard(made[0], "shown")[0] for _ in range(3)] == ["whole", "whole", "shown"]


def test_fields_of_one_control_are_one_step_or_none_single_ones_keep_invalid_text_and_a_newer_edit_wins(page):
    browser, project = page.browsers.of("one"), page.project
    rank, alpha, before = "network.rank", "network.alpha", page.project.job
    with pytest.raises(ProblemsError):
        _edit(page, {"n": 1, "did": "both", "values": {rank: "7", alpha: "many"}}, browser)
    assert (project.job, project.bad) == (before, {})
    _edit(page, {"n": 2, "did": "both", "values": {rank: "7", alpha: "3"}}, browser)
    assert (project.job.network.rank, project.job.network.alpha, project.can_undo) == (7, 3.0, "change of both")
    _edit(page, {"n": 3, "values": {rank: "9", alpha: "many"}}, browser)
    _edit(page, {"n": 2, "values": {rank: "5"}}, browser)  # sent before, arrives after
    assert (project.job.network.rank, list(project.bad)) == (9, [alpha])


def test_a_message_is_later_than_the_one_before_even_when_the_clock_is_set_back(page, monkeypatch):
    browser, at = page.browsers.of("one"), []
    for now in (100.0, 50.0, 200.0):
        monkeypatch.setattr(time, "time", lambda now=now: now)
        page.browsers.say(browser, "error", "x", about="y")
        at.append(browser.message["at"])
        page.browsers.succeeded(browser, "y")
        at.append(browser.message["at"])
    assert at == sorted(set(at))


def test_a_port_that_another_program_takes_at_the_last_moment_is_not_the_end():
    tried = []

    def serve(server_port: int, failures: int = 1) -> None:
        tried.append(server_port)
        if len(tried) <= failures:
            raise OSError("Cannot find empty port")

    app._serve_at_free_port(serve, "127.0.0.1", 18500)
    assert len(tried) == 2 and tried[1] > tried[0]
    tried.clear()
    with pytest.raises(OSError, match="Cannot find"):
        app._serve_at_free_port(lambda server_port: serve(server_port, 99), "127.0.0.1", 18500)


# -- in a browser


@pytest.mark.slow
def test_a_double_click_is_one_start_also_when_its_second_click_is_handled_late(visit, served, monkeypatch):
    monkeypatch.setattr("tabs.server.browsers.DOUBLE_PRESS_SECONDS", 0.0)
    served.engine.pause_queue()
    tab = visit().open()
    before = len(served.engine.queue())
    click = "(button, detail) => button.dispatchEvent(new MouseEvent('click', {bubbles: true, detail}))"
    for detail in (1, 2):
        tab.locator("#enqueue").evaluate(click, detail)
        expect(tab.locator("#said")).to_contain_text("Added to the queue")
        tab.wait_for_timeout(700)
    assert len(served.engine.queue()) == before + 1
    tab.locator("#enqueue").click()
    assert until(lambda: len(served.engine.queue()) == before + 2)


@pytest.mark.slow
def test_what_is_typed_while_the_form_is_filled_stays_and_is_taken(visit, served, monkeypatch):
    tab = visit().open()
    unfold(tab, "network")
    box(tab, "network.rank").fill("7")
    tab.keyboard.press("Tab")
    expect(tab.locator("#preset-state")).to_have_text("1 field changed")
    begun = slowly(monkeypatch, served.page.project, "undo", 2.0)
    tab.locator("#preset-bar").get_by_role("button", name="Undo").click()
    assert until(lambda: begun)
    box(tab, "saving.output_name").fill("typed_meanwhile")
    expect(tab.locator("#preset-state")).to_have_text("as saved")
    expect(box(tab, "network.rank")).not_to_have_value("7")
    expect(box(tab, "saving.output_name")).to_have_value("typed_meanwhile")
    tab.keyboard.press("Tab")
    assert until(lambda: served.page.project.job.saving.output_name == "typed_meanwhile")
    assert tab.locator("#said.error").count() == 0


@pytest.mark.slow
def test_what_is_typed_into_the_json_while_it_is_applied_stays(visit, served, monkeypatch):
    tab = visit().open()
    unfold(tab, "json")
    pane = tab.locator("#json-text")
    expect(pane).to_have_value(re.compile("train_batch_size"))
    begun = slowly(monkeypatch, served.page.project, "replace", 1.5)
    text, size = pane.input_value(), '"train_batch_size": '
    pane.fill(text.replace(f"{size}4", f"{size}3"))
    tab.get_by_role("button", name="Apply").click()
    assert until(lambda: begun)
    pane.fill(text.replace(f"{size}4", f"{size}2"))
    assert until(lambda: served.page.project.job.dataset.train_batch_size == 3)
    expect(tab.locator("#preset-state")).to_have_text("1 field changed")
    assert f"{size}2" in pane.input_value()
    tab.get_by_role("button", name="Apply").click()
    assert until(lambda: served.page.project.job.dataset.train_batch_size == 2)


@pytest.mark.slow
def test_a_late_answer_is_not_drawn_over_a_newer_one(window, served):
    tab = window.open("Dataset")
    opened, late = tab.locator("#ds-sources .concept-more"), []
    expect(tab.locator("#ds-sources [data-act=more]").first).to_be_visible()

    def answered_late(route):
        if late:
            return route.fallback()
        answer = route.fetch()
        if "concept-more" not in answer.text():
            return route.fulfill(response=answer)
        late.append((route, answer))

    tab.route("**/run/predict", answered_late)
    project = served.page.project
    project.keep("Dataset", project.tab_state("Dataset") | {"open": [0]})  # in another window
    until(lambda: tab.wait_for_timeout(50) or late)
    tab.locator("#ds-sources [data-act=more]").first.click()
    until(lambda: tab.wait_for_timeout(50) or not project.tab_state("Dataset")["open"])
    tab.wait_for_timeout(300)
    route, answer = late[0]
    route.fulfill(response=answer)
    tab.wait_for_timeout(2000)
    expect(opened).to_have_count(0)


def kept(served) -> object:
    return served.page.forms["convert_lora"].values().get("output")


@pytest.mark.slow
def test_a_field_of_a_card_keeps_what_was_typed_last_and_a_button_comes_after_it(window, served):
    """The first message is held back on its way to the server, as by a slow connection; the next is sent meanwhile."""
    tab = window.open("Tools")
    tab.evaluate("""() => {
      const quick = window.fetch;
      window.over = 0;
      window.fetch = async (where, how) => {
        const first = how && String(how.body).includes("typed-first");
        if (first) { window.over = 1; await new Promise((go) => setTimeout(go, 1000)); }
        const answer = await quick(where, how);
        if (first) window.over = 2;
        return answer;
      };
    }""")
    form = "#tool-convert_lora-output"
    tab.locator(form).fill("typed-first")
    tab.locator(form).press("Tab")
    tab.wait_for_function("over === 1")
    tab.locator(form).fill("typed-second")
    tab.locator(form).press("Tab")
    tab.wait_for_function("over === 2")
    assert until(lambda: kept(served) == "typed-second"), kept(served)
    tab.reload()
    expect(tab.locator(form)).to_have_value("typed-second")


@pytest.mark.slow
def test_acts_are_handled_in_the_order_of_their_numbers_and_a_lost_one_is_waited_for_once():
    browsers = Browsers()
    browser, done = browsers.of("one"), []

    def handled(number: int) -> None:
        with browsers.in_turn(browser, number):
            done.append(number)

    acts = [threading.Thread(target=handled, args=(number,)) for number in (3, 2, 1)]
    for act in acts:
        act.start()
        time.sleep(0.05)
    for act in acts:
        act.join()
    assert done == [1, 2, 3]
    begun = time.monotonic()
    for number in (5, 6, 7):
        handled(number)
    assert done == [1, 2, 3, 5, 6, 7] and time.monotonic() - begun < 2 * TURN_SECONDS


class Act(gr.EventData):
    """A change of a field of a board, as the board's script tells of it."""

    def __init__(self, turn, value):
        super().__init__(None, {"act": "field", "arg": "prompt", "value": value, "turn": turn, "field": True})


@pytest.mark.slow
def test_a_change_that_comes_after_a_newer_one_of_the_same_field_does_nothing():
    page, kept = SimpleNamespace(browsers=Browsers(), workspace=None), []

    def change(event: gr.EventData) -> str:
        kept.append(board_event(event)[2])
        return kept[-1]

    change.__annotations__ = {"event": gr.EventData}
    handle = as_listener(page, change, [board("some")])
    assert heard(handle, Act(1, "a"))[0].startswith("a<!--1.")
    assert heard(handle, Act(3, "c"))[0].startswith("c<!--3.")  # the second took too long
    assert heard(handle, Act(2, "b"))[0] == gr.skip()
    assert kept == ["a", "c"]


def test_a_result_has_the_number_of_what_it_holds_not_of_what_has_ended_since():
    page = SimpleNamespace(browsers=Browsers(), workspace=None)
    browser = page.browsers.of("one")

    def change(event: gr.EventData) -> str:
        return board_event(event)[2]

    def slow(event: gr.EventData) -> str:
        browser.turn = 2  # the next event ends before this result is sent
        return board_event(event)[2]

    for handler in (change, slow):
        handler.__annotations__ = {"event": gr.EventData}
    assert heard(as_listener(page, slow, [board("some")]), Act(1, "a"))[0].startswith("a<!--1.")
    assert heard(as_listener(page, change, [board("some")]), Act(3, "c"))[0].startswith("c<!--3.")


@pytest.mark.slow
def test_two_changes_of_a_field_that_has_the_keyboard_end_with_the_second(visit, served):
    """Ctrl+Enter sends a prompt without leaving its field, so that the field follows what the server answers."""
    tab = visit().open("Generate")
    tab.evaluate("""() => {
      const quick = window.fetch;
      window.over = 0;
      window.fetch = async (where, how) => {
        const answer = await quick(where, how);
        if (how && String(how.body).includes('"value":"first"')) {
          await new Promise((go) => setTimeout(go, 3000));
          setTimeout(() => { window.over += 1; }, 300);
        }
        return answer;
      };
    }""")
    prompt = tab.locator("#gen-prompt")
    for words in ("first", "second"):
        prompt.fill(words)
        prompt.evaluate("(field) => field.dispatchEvent(new Event('change', {bubbles: true}))")
    tab.wait_for_function("window.over === 1")
    expect(prompt).to_have_value("second")
    assert served.page.project.tab_state("Generate")["values"]["prompt"] == "second"
    prompt.evaluate("(field) => field.blur()")
    tab.reload()
    expect(prompt).to_have_value("second")


# Of what waits for the same answer, the page looks last at what has waited longest.
SEVERAL_ACTIONS = """async (presets) => {
  const bus = atelierBuses.find((each) => each.name === "form"), {trigger} = bus, later = window.setTimeout, waiting = [], sent = [];
  bus.trigger = (name, data) => { sent.push(data.preset); trigger(name, data); };
  window.setTimeout = (work, milliseconds) => milliseconds === 25 ? waiting.push(work) : later(work, milliseconds);
  setInterval(() => waiting.splice(0).reverse().forEach((work) => work()), 25);
  await Promise.all(presets.map((preset) => atelier.act("load", {preset})));
  await atelier.settle();
  return sent;
}"""


@pytest.mark.slow
def test_of_several_actions_at_once_the_last_is_the_last(window, served):
    tab = window.open()
    presets = ["sd15_lora_style_8gb", "sd15_lora_style_6gb", "sd15_lora_style_4gb"]
    assert tab.evaluate(SEVERAL_ACTIONS, presets) == presets
    assert served.page.project.preset == presets[-1]
    expect(tab.locator("#preset-list")).to_have_value(presets[-1])


@pytest.mark.slow
def test_a_start_that_is_answered_late_does_not_take_a_person_away_from_where_they_have_gone(
    window, served, monkeypatch
):
    served.engine.pause_queue()
    tab = window.open()
    begun = slowly(monkeypatch, served.engine, "submit", 1.5)
    tab.locator("#start").click()
    assert until(lambda: begun)
    tab.get_by_role("tab", name="Dataset", exact=True).click()
    expect(tab.locator("#said")).to_contain_text("Started")
    expect(tab.get_by_role("tab", name="Dataset", exact=True)).to_have_attribute("aria-selected", "true")
    tab.locator("#said").get_by_role("link").click()
    expect(tab.get_by_role("tab", name="Monitor", exact=True)).to_have_attribute("aria-selected", "true")


@pytest.mark.slow
def test_what_was_typed_while_the_server_was_away_is_named_when_the_page_comes_back(visit):
    window = visit()
    tab = window.open()
    tab.route("**/run/predict", lambda route: route.abort())
    box(tab, "saving.output_name").fill("typed-while-away")
    with tab.expect_event("requestfailed"):
        tab.keyboard.press("Tab")
    tab.unroute("**/run/predict")
    tab.reload()
    expect(tab.locator("#said")).to_contain_text("typed-while-away")
    tab.reload()
    tab.wait_for_selector("body[data-atelier=ready]")
    tab.wait_for_timeout(500)
    expect(tab.locator("#said")).not_to_contain_text("typed-while-away")
    assert all("Failed to load" in error or "fetch" in error for error in window.errors)
    window.errors.clear()


@pytest.mark.slow
def test_a_press_that_the_server_does_not_answer_names_its_button_at_once_or_when_the_page_comes_back(visit):
    window = visit()
    tab = window.open()
    said, name = tab.locator("#said"), tab.locator("#enqueue").inner_text()
    tab.route("**/run/predict", lambda route: route.fulfill(status=500), times=1)
    tab.locator("#enqueue").click()
    expect(said).to_contain_text(name)
    said.get_by_role("button").click()
    tab.route("**/run/predict", lambda route: route.abort())
    with tab.expect_event("requestfailed"):
        tab.locator("#enqueue").click()
    tab.unroute("**/run/predict")
    expect(said).to_contain_text(name)
    tab.reload()
    tab.wait_for_selector("body[data-atelier=ready]")
    tab.wait_for_timeout(500)
    expect(said).to_be_hidden(timeout=1)
    window.errors.clear()


def lose_edits(tab) -> None:
    """From now on a proxy answers changes of the form with an error."""

    def handle(route):
        lost = '"name":"edit"' in (route.request.post_data or "")
        route.fulfill(status=502) if lost else route.continue_()

    tab.route("**/run/predict", handle)


@pytest.mark.slow
@pytest.mark.parametrize("order", ["named, then not started", "not started, then named"])
def test_a_change_that_the_server_never_confirms_is_named_and_no_start_uses_the_value_before_it(visit, served, order):
    window = visit()
    tab = window.open()
    lose_edits(tab)
    name = box(tab, "saving.output_name")
    before = name.input_value()
    name.fill("never-arrives")
    tab.keyboard.press("Tab")
    tab.wait_for_timeout(300)
    expect(name).to_have_value("never-arrives")
    tab.locator("#start").click()
    if order == "not started, then named":
        tab.wait_for_timeout(500)  # the start waits for the change by now
    tab.evaluate("() => { const now = Date.now; Date.now = () => now() + 21000; }")
    expect(name).to_have_value(before)
    expect(tab.locator("#said")).to_contain_text("Not started")
    assert served.engine.queue() == []
    name.fill("nor-this")
    tab.keyboard.press("Tab")
    tab.evaluate("() => { const now = Date.now; Date.now = () => now() + 21000; }")
    expect(tab.locator("#said")).to_contain_text("nor-this")
    expect(name).to_have_value(before)
    tab.unroute("**/run/predict")
    name.fill("arrives")
    tab.keyboard.press("Tab")
    assert until(lambda: served.page.project.job.saving.output_name == "arrives")
    expect(name).to_have_value("arrives")
    assert all("502" in error or "Failed" in error or "fetch" in error or "JSON" in error for error in window.errors), (
        window.errors
    )
    window.errors.clear()


def lose_fields(tab, answers: list[int]) -> None:
    """From now on a proxy answers changes of fields of boards with these statuses, one after the other; then the server does."""

    def handle(route):
        lost = '"field":true' in (route.request.post_data or "") and answers
        route.fulfill(status=answers.pop(0)) if lost else route.continue_()

    tab.route("**/run/predict", handle)


LOST_FIELDS = [  # tab, field, a change that is sent again, one that is lost
    ("Tools", "#tool-convert_lora-output", "sent-again", "never-arrives"),
    ("Generate", "#gen-prompt", "a red fox", "a blue fox"),
    ("Generate", "#gen-steps", "31", "32"),
]


@pytest.mark.slow
def test_a_change_of_a_board_that_a_proxy_loses_is_sent_again_or_named(visit, served):
    window, answers = visit(), list[int]()
    lose_fields(window.tab, answers)
    for place, selector, sent, lost in LOST_FIELDS:
        tab = window.open(place)
        if place == "Tools":
            tab.locator("#tools-loras").get_by_label("Tool", exact=True).select_option("convert_lora")
        field = tab.locator(selector)
        expect(field).to_be_visible()
        answers.extend([502, 503])
        change = f'"value":"{sent}","field":true'
        with tab.expect_response(
            lambda answer, change=change: answer.ok and change in (answer.request.post_data or "")
        ):
            field.fill(sent)
            field.press("Tab")
        assert answers == []
        tab.reload()
        expect(field).to_have_value(sent)
        answers.extend([502] * 3)
        field.fill(lost)
        field.press("Tab")
        expect(tab.locator("#said")).to_contain_text(lost)
        expect(field).to_have_value(sent)
    assert all("50" in error or "Failed" in error or "JSON" in error for error in window.errors), window.errors
    window.errors.clear()


@pytest.mark.slow
def test_what_is_typed_and_what_was_sent_outlast_an_older_answer(visit, served):
    """The answer to the first change of an input comes while the second is on its way, or a third is being typed."""
    tab = visit().open("Generate")
    tab.evaluate("""() => {
      const quick = window.fetch;
      window.over = 0;
      window.fetch = async (where, how) => {
        const answer = await quick(where, how), late = how && /"value":"1[12]"/.test(String(how.body));
        if (late) await new Promise((go) => setTimeout(go, 1500));
        if (late) setTimeout(() => { window.over += 1; }, 300);
        return answer;
      };
    }""")
    steps = tab.locator("#gen-steps")
    steps.fill("11")
    steps.press("Tab")
    steps.fill("12")
    steps.press("Tab")
    steps.focus()
    steps.press("End")
    steps.press("3")
    tab.wait_for_function("over === 2")
    expect(steps).to_have_value("123")
    steps.press("Tab")
    assert until(lambda: served.page.project.tab_state("Generate")["values"]["steps"] == 123)


def test_what_one_window_changes_is_drawn_anew_in_the_others_alone(page):
    one, other = page.browsers.of("one"), page.browsers.of("other")
    page.browsers.redraw_others(one, "Toy")
    assert one.is_drawn(("Toy", 0)) and not other.is_drawn(("Toy", 0)) and other.is_drawn(("Train", 0))
    other.drawn["Toy", 0] = other.redraws_of("Toy")
    assert other.is_drawn(("Toy", 0)) and not other.is_drawn(("Toy", 1))


@pytest.mark.slow
def test_a_second_window_follows_what_is_changed_in_generate_and_keeps_what_is_typed_in_it(served, visit):
    one, other = visit().open("Generate"), visit().open("Generate")
    box = "#gen-prompt"
    other.locator(box).fill("")
    other.locator(box).press_sequentially("a bear")
    one.locator("#gen-steps").fill("17")
    one.locator("#gen-steps").press("Tab")
    expect(other.locator("#gen-steps")).to_have_value("17", timeout=15_000)
    expect(other.locator(box)).to_have_value("a bear")
    expect(other.locator(box)).to_be_focused()
    other.locator("#gen-steps").focus()  # leaves the prompt
    expect(one.locator(box)).to_have_value("a bear", timeout=15_000)
    drawn = "(node) => { node.dataset.old = 'yes'; }"
    one.locator(box).evaluate(drawn)
    one.locator("#gen-steps").fill("18")
    one.locator("#gen-steps").press("Tab")
    expect(other.locator("#gen-steps")).to_have_value("18", timeout=15_000)


@pytest.mark.slow
@pytest.mark.parametrize("tab, box", [("Generate", "#gen-prompt"), ("Train", "[data-set='saving.output_name']")])
def test_what_is_typed_when_the_page_is_loaded_again_is_kept(served, visit, tab, box):
    window = visit().open(tab)
    field = window.locator(box).first
    field.fill("")
    field.press_sequentially("a-fox", delay=20)
    window.reload()
    expect(window.locator(box).first).to_have_value("a-fox", timeout=15_000)


@pytest.mark.slow
def test_only_what_the_server_does_not_have_is_named_after_a_reload(visit):
    """A request that the reload aborts may have arrived, and the server writes numbers in its own form."""
    tab, rate = visit().open("Generate"), '#train-form [data-set="optimizer.learning_rate"]'
    for name, field, text in (
        ("Generate", "#gen-steps", "09"),
        ("Generate", "#gen-prompt", "a fox"),
        ("Train", rate, "3.0e-4"),
    ):
        tab.get_by_role("tab", name=name, exact=True).click()
        tab.locator(field).first.fill(text)
        tab.reload()
        tab.wait_for_selector("body[data-atelier=ready]")
        tab.wait_for_timeout(500)
        expect(tab.locator("#said")).to_be_hidden(timeout=1)
    tab.get_by_role("tab", name="Generate", exact=True).click()

    def lose(route):
        return route.abort() if "a lost fox" in (route.request.post_data or "") else route.continue_()

    tab.route("**/*", lose)
    tab.locator("#gen-prompt").fill("a lost fox")
    tab.locator("#gen-prompt").press("Tab")
    tab.wait_for_timeout(300)
    tab.reload()
    expect(tab.locator("#said")).to_contain_text('Prompt to "a lost fox"')
