"""Two runs compared in a real browser."""

from __future__ import annotations

import re

import pytest
from made_runs import dataset, make_run
from playwright.sync_api import expect

from core.engine.engine import Engine

A, B, C = "20260101-120000_quick", "20260102-130000_slow", "20260103-140000_unmeasured"
PROMPTS = ("a fox, glyph style", "an owl in the snow, glyph style")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A page over three finished runs; nothing trains."""
    from page_server import Served

    page = Served(tmp_path_factory.mktemp("compared"), engine=lambda workspace: Engine(workspace, "cpu"))
    runs, same = page.workspace.runs, {"about": dataset(), "preset": "starter_lora", "prompts": PROMPTS}
    measured = [(step, 0.2 - 0.08 * (1 - abs(step - 40) / 80)) for step in range(0, 121, 20)]
    make_run(runs, A, steps=120, validated=measured, saved=(20, 40), drawn=(0, 40, 120), peak=3 << 30, **same)
    slower = {"optimizer": {"learning_rate": 3e-4}}
    make_run(runs, B, steps=160, settings=slower, validated=[(0, 0.2), (160, 0.1344)], drawn=(0, 50, 160), **same)
    make_run(runs, C, steps=60)
    yield page
    page.close()


@pytest.fixture
def window(made, chromium):
    from page_server import Visit

    visit = Visit(chromium, made.url)
    yield visit
    visit.close()
    assert visit.errors == [] and visit.outside == []


def tick(tab, name: str):
    return tab.get_by_role("checkbox", name=f"Select {name}")


@pytest.mark.slow
def test_two_runs_are_chosen_by_keyboard_compared_and_their_curves_read(window):
    tab = window.open("Runs")
    expect(tab.locator("table.runs tbody tr")).to_have_count(3)
    expect(tab.locator("table.runs tbody tr").filter(has_text="quick")).to_contain_text("0.1200 @ 40")
    tick(tab, "quick").focus()
    tab.keyboard.press("Space")
    expect(tab.locator(".picks-line")).to_contain_text("Select another run")
    expect(tick(tab, "quick")).to_be_focused()
    tick(tab, "slow").press("Space")
    tab.get_by_role("link", name="Compare").press("Enter")
    tab.get_by_role("link", name="All runs").press("Enter")
    expect(tick(tab, "quick")).not_to_be_checked()  # who has compared them is done with them
    tick(tab, "quick").press("Space")
    tick(tab, "slow").press("Space")
    tab.get_by_role("link", name="Compare").press("Enter")
    verdict = tab.locator("#compare .verdict")
    expect(verdict).to_contain_text("A's best validation loss is lower: 0.1200 at step 40 against 0.1344 at step 160;")
    expect(tab.locator("#runs-main")).to_be_hidden()
    expect(tab.locator(".versus")).to_contain_text("quick-step00000040.safetensors")
    expect(tab.locator("#compare .settings tbody tr")).to_have_count(2)
    expect(tab.locator(".versus-samples")).to_have_count(2)
    tab.wait_for_function("[...document.querySelectorAll('.versus-samples img')].some((each) => each.naturalWidth > 0)")
    assert tab.evaluate("location.hash") == f"#Runs/{A}/{B}"
    tab.reload()
    expect(verdict).to_contain_text("A's best validation loss is lower")
    lines = tab.locator("#compare-chart path.line")
    expect(lines).to_have_count(4)
    expect(tab.locator("#compare-chart circle.dot.held")).to_have_count(7 + 2)
    for words in ("A smoothed", "B smoothed", "A held-out", "B held-out"):
        expect(tab.locator("#compare-legend")).to_contain_text(words)
    tab.locator("#compare-chart svg").focus()
    tab.keyboard.press("End")
    tip = tab.locator("#compare-chart .chart-tip")
    expect(tip).to_contain_text("Step 160")
    expect(tip).to_contain_text(re.compile(r"A smoothed [\d.]+ \(step 120\)"))  # the shorter run's last one
    expect(tip).to_contain_text(re.compile(r"B smoothed [\d.]+A held-out"))
    tab.keyboard.press("Home")
    expect(tip).to_contain_text("Step 1")
    tab.locator("#compare-kind").select_option("corrected")
    expect(lines).to_have_count(2)
    expect(tab.locator("#compare-legend")).not_to_contain_text("held-out")


NOWHERE = ("%E0%A4%A", "Runs/50%", "Nowhere/at/all", "Monitor/a%2Fb")


@pytest.mark.slow
def test_runs_are_swapped_and_replaced_and_the_address_says_which_whatever_was_written_there(window):
    """Gradio drops what follows the # when its view of the page's interface is closed, and no event tells."""
    tab = window.open(NOWHERE[0])
    for place in NOWHERE:  # those that are written into the line of an open page too
        tab.evaluate("(place) => { location.hash = place }", place)
        tab.get_by_role("tab", name="Dataset", exact=True).click()
        tab.wait_for_function("location.hash === '#Dataset'")
    tab.evaluate(f"location.hash = 'Runs/{A}/20200101-000000_gone'")
    expect(tab.locator("#compare-gone")).to_contain_text("There is no such run")
    expect(tab.locator("#compare-found")).to_be_hidden()
    tab.evaluate(f"location.hash = 'Runs/{A}/{B}'")
    verdict = tab.locator("#compare .verdict")
    expect(verdict).to_contain_text("A's best validation loss is lower")
    tab.get_by_role("link", name="Swap").click()
    expect(verdict).to_contain_text("B's best validation loss is lower: 0.1200")
    tab.get_by_label("Run A", exact=True).focus()
    tab.get_by_label("Run A", exact=True).select_option(C)
    expect(verdict).to_contain_text("Only B measured validation loss: 0.1200 at step 40 at best")
    expect(tab.get_by_label("Run A", exact=True)).to_be_focused()
    assert tab.evaluate("location.hash") == f"#Runs/{C}/{A}"
    tab.go_back()
    expect(verdict).to_contain_text("B's best validation loss is lower: 0.1200")
    tab.evaluate("history.replaceState(null, '', location.pathname)")
    tab.wait_for_function(f"location.hash === '#Runs/{B}/{A}'")
    tab.evaluate(f"() => {{ location.hash = 'Runs/{C}/{A}'; atelier.keepAddress(); }}")  # before the event of the first
    expect(verdict).to_contain_text("Only B measured validation loss")
    assert tab.evaluate("location.hash") == f"#Runs/{C}/{A}"
    tab.get_by_role("link", name="All runs").click()
    expect(tab.locator("table.runs")).to_be_visible()
    expect(verdict).to_be_hidden()
    assert tab.evaluate("location.hash") == "#Runs"


def test_a_space_that_went_down_before_a_row_was_drawn_anew_still_ticks_it(window):
    tab = window.open("Runs")
    tick(tab, "quick").focus()
    tab.keyboard.down("Space")
    tab.evaluate("""() => {
      const old = document.activeElement, fresh = old.cloneNode(true);
      old.replaceWith(fresh);
      fresh.focus();
    }""")
    tab.keyboard.up("Space")
    expect(tab.locator(".picks-line")).to_contain_text("Select another run")
    expect(tick(tab, "quick")).to_be_checked()
