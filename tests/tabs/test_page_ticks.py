"""How often the page asks what is new."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

COUNTED = """() => {
  const pulse = atelier.pulse(), before = pulse.trigger;
  window.raised = [];
  pulse.trigger = (event, data) => event.startsWith("tick") ? raised.push(event) : before(event, data);  // no answer counts here
  atelier.tick = () => raised.push("tick");
}"""
# The page's clock is moved by hand: every look of ticks.js is made as if a tenth of a second had passed.
CLOCK = """(() => {
  const real = Date.now, set = window.setInterval, looks = [];
  let shift = 0;
  Date.now = () => real() + shift;
  window.setInterval = (fn, every) => { if (every === 100) looks.push(fn); return set(fn, every); };
  window.clockTo = async (milliseconds) => {
    for (let at = 0; at < milliseconds; at += 100) {
      shift += 100;
      if (at % 500 === 0) await new Promise((done) => setTimeout(done, 0));
      for (const look of looks) look();
    }
  };
})()"""
MINUTE = "async () => { const before = raised.length; await clockTo(60000); return raised.length - before; }"
HIDE = "(hidden) => Object.defineProperty(document, 'hidden', {configurable: true, get: () => hidden})"
SECONDS = MINUTE.replace("raised.length", "raised.filter((event) => event === 'tick').length")
SHOWN = """async () => {
  raised.length = 0;
  document.dispatchEvent(new Event("visibilitychange"));
  await clockTo(200);
  return raised.length;
}"""


TOLD = """(busy) => {
  window.told ||= atelier.arrived;
  told("status", {busy});
  atelier.arrived = () => {};
  return clockTo(25000);
}"""


@pytest.mark.slow
def test_an_idle_page_asks_at_most_twelve_times_a_minute_a_hidden_one_hardly_ever_and_a_busy_one_each_second(visit):
    seen = visit()
    seen.tab.add_init_script(CLOCK)
    tab = seen.open("Dataset")
    tab.evaluate(COUNTED)
    tab.evaluate(TOLD, False)
    assert 5 < tab.evaluate(MINUTE) <= 12
    tab.evaluate("clockTo(240000)")
    assert 2 <= tab.evaluate(MINUTE) <= 4, "after five minutes without a touch"
    tab.evaluate(HIDE, True)
    assert tab.evaluate(MINUTE) <= 4
    tab.evaluate(HIDE, False)
    assert tab.evaluate(SHOWN) >= 1  # at once
    tab.evaluate(TOLD, True)
    assert tab.evaluate(SECONDS) >= 50, "while something runs"
    tab.evaluate(TOLD, False)
    tab.mouse.click(5, 5)
    assert tab.evaluate(MINUTE) >= 20, "after a click"


FRAMES = """(() => {
  const real = window.requestAnimationFrame;
  window.frames_asked = 0;
  window.requestAnimationFrame = (work) => { window.frames_asked += 1; return real.call(window, work); };
})()"""


@pytest.mark.slow
def test_a_page_at_rest_leaves_the_processor_to_the_training(visit):
    """Gradio's script walks through the whole page for each message of its own, and a clock of it would go on for ever."""
    seen = visit()
    seen.tab.add_init_script(FRAMES)
    tab = seen.open("Monitor")
    asked: list[str] = []
    tab.on("request", lambda request: asked.append(request.url))
    for _ in range(30):  # the sign that the page loads swings out for some seconds
        before = tab.evaluate("frames_asked")
        asked.clear()
        tab.wait_for_timeout(1000)
        if tab.evaluate("frames_asked") - before < 10 and any(url.endswith("/atelier/pulse") for url in asked):
            break
    else:
        pytest.fail("60 a second where anything moves")
    assert not any("run/predict" in url for url in asked)


@pytest.mark.slow
def test_an_image_that_failed_is_asked_for_again_when_the_server_is_heard(visit, served):
    tab = visit().open("Train")
    tab.route("**/robots.txt?image", lambda route: route.fulfill(path="tabs/assets/favicon.png"))
    tab.route("**/robots.txt?image", lambda route: route.abort(), times=1)  # asked before the other, and once
    tab.evaluate(
        """() => new Promise((failed) => {
          window.late = Object.assign(new Image(), {src: 'robots.txt?image', onerror: failed});
          document.body.append(late);
        })"""
    )
    served.engine.submit("train", served.page.project.job, title="news")
    tab.wait_for_function("late.naturalWidth > 0")


@pytest.mark.slow
def test_a_window_without_a_login_says_so_asks_seldom_and_goes_on_after_the_next_login(window, served):
    tab, asked = window.open("Train"), []

    def refuse(route):
        asked.append(route.request.url)
        route.fulfill(status=401, body="{}")

    tab.route("**/atelier/pulse", refuse)
    expect(tab.locator("#said")).to_contain_text("Log in again", timeout=15_000)
    expect(tab.locator("#said").get_by_role("link", name="Log in")).to_have_attribute("target", "_blank")
    before = len(asked)
    tab.wait_for_timeout(4000)
    assert len(asked) - before <= 1
    tab.unroute("**/atelier/pulse")
    expect(tab.locator("#said")).to_be_hidden(timeout=20_000)
    window.errors.clear()  # Chromium writes each 401 to the console


@pytest.mark.slow
def test_a_server_that_does_not_answer_is_reported_and_the_message_goes_when_it_answers(window):
    tab = window.open("Monitor")
    said, missed = tab.locator("#said"), []

    def lose(route):
        missed.append(route.request.url)
        route.abort()

    for _ in range(2):
        missed.clear()
        tab.route("**/atelier/pulse", lose)
        expect(said).to_be_visible(timeout=8_000)
        expect(said).to_contain_text("The server does not answer")
        assert len(missed) >= 3
        tab.unroute("**/atelier/pulse")
        expect(said).to_be_hidden()
    tab.evaluate("() => { const whole = AbortSignal.timeout; AbortSignal.timeout = (wait) => whole(wait / 20) }")
    tab.route("**/atelier/pulse", lambda route: None)  # it hangs
    expect(said).to_contain_text("The server does not answer", timeout=20_000)
    tab.unroute("**/atelier/pulse")
    expect(said).to_be_hidden()
    window.errors.clear()  # Chromium writes each lost request to the console
