"""Two runs compared in a real browser."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from made_runs import dataset, make_run
from playwright.sync_api import expect

from core.engine.engine import Engine
from tests.selection import slow_unless

CONTRAST = (Path(__file__).parent / "contrast.js").read_text("utf-8")
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

    visits = []

    def make(**context):
        visits.append(Visit(chromium, made.url, **context))
        return visits[-1]

    yield make
    for visit in visits:
        visit.close()
        assert visit.errors == [] and visit.outside == []


def tick(tab, name: str):
    return tab.get_by_role("checkbox", name=f"Select {name}")


@pytest.mark.slow
def test_two_runs_are_chosen_by_keyboard_compared_and_a_refresh_shows_the_same(window):
    tab = window().open("Runs")
    expect(tab.locator("table.runs tbody tr")).to_have_count(3)
    expect(tab.locator("table.runs tbody tr").filter(has_text="quick")).to_contain_text("0.1200 @ 40")
    tick(tab, "quick").focus()
    tab.keyboard.press("Space")
    expect(tab.locator(".picks-line")).to_contain_text("Select another run")
    expect(tick(tab, "quick")).to_be_focused()
    tick(tab, "slow").press("Space")
    tab.get_by_role("link", name="Compare").press("Enter")
    verdict = tab.locator("#compare .verdict")
    expect(verdict).to_contain_text("A's best validation loss is lower: 0.1200 at step 40 against 0.1344 at step 160;")
    expect(verdict).to_contain_text("so comparable")
    expect(tab.locator("#runs-main")).to_be_hidden()
    expect(tab.locator(".versus")).to_contain_text("quick-step00000040.safetensors")
    expect(tab.locator(".versus")).to_contain_text("3.0 GB of the GPU")
    expect(tab.locator("#compare .settings tbody tr")).to_have_count(2)
    expect(tab.locator(".versus-samples")).to_have_count(2)
    tab.wait_for_function("[...document.querySelectorAll('.versus-samples img')].some((each) => each.naturalWidth > 0)")
    assert tab.evaluate("location.hash") == f"#Runs/{A}/{B}"
    tab.reload()
    expect(verdict).to_contain_text("A's best validation loss is lower")
    expect(tab.get_by_role("tab", name="Runs", exact=True)).to_have_attribute("aria-selected", "true")


@pytest.mark.slow
def test_both_curves_stand_in_one_chart_with_a_legend_and_are_read_by_keyboard(window):
    tab = window().open(f"Runs/{A}/{B}")
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
    expect(tab.locator("#compare-units")).to_contain_text("the run's own mean")
    expect(tab.locator("#compare-legend")).not_to_contain_text("held-out")


@pytest.mark.slow
def test_another_run_takes_a_place_both_are_swapped_and_the_table_comes_back(window):
    tab = window().open(f"Runs/{A}/{B}")
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
    tab.get_by_role("link", name="All runs").click()
    expect(tab.locator("table.runs")).to_be_visible()
    expect(verdict).to_be_hidden()
    assert tab.evaluate("location.hash") == "#Runs"


@pytest.mark.slow
def test_the_address_is_kept_also_after_a_script_has_put_another_one_there_and_loses_no_choice_of_that_moment(window):
    """Gradio drops what follows the # when its view of the page's interface is closed, and no event tells."""
    tab = window().open(f"Runs/{A}/{B}")
    expect(tab.locator("#compare .verdict")).to_contain_text("A's best validation loss is lower")
    tab.evaluate("history.replaceState(null, '', location.pathname)")
    tab.wait_for_function(f"location.hash === '#Runs/{A}/{B}'")
    tab.evaluate(f"() => {{ location.hash = 'Runs/{C}/{A}'; atelier.keepAddress(); }}")  # before the event of the first
    expect(tab.locator("#compare .verdict")).to_contain_text("Only B measured validation loss")
    assert tab.evaluate("location.hash") == f"#Runs/{C}/{A}"
    tab.get_by_role("tab", name="Monitor", exact=True).click()
    tab.wait_for_function("location.hash.startsWith('#Monitor')")


NOWHERE = ["%E0%A4%A", "Runs/50%", "Nowhere/at/all", "Monitor/a%2Fb"]


@pytest.mark.slow
@pytest.mark.parametrize("place", slow_unless(NOWHERE[0].__eq__, NOWHERE))
def test_an_address_that_says_nothing_opens_the_page_all_the_same(window, place):
    tab = window().open(place)
    for other in [place, *NOWHERE]:  # those that are written into the line of an open page too
        tab.evaluate("(place) => { location.hash = place }", other)
        tab.get_by_role("tab", name="Dataset", exact=True).click()
        tab.wait_for_function("location.hash === '#Dataset'")


@pytest.mark.slow
def test_a_run_that_is_gone_is_said_in_its_place(window):
    tab = window().open(f"Runs/{A}/20200101-000000_gone")
    expect(tab.locator("#compare-gone")).to_contain_text("There is no such run")
    expect(tab.locator("#compare-found")).to_be_hidden()
    expect(tab.get_by_role("link", name="All runs")).to_be_visible()


@pytest.mark.slow  # by default: axe looks at two runs in test_page_filled
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_comparison_has_contrast_and_fits_800_pixels(window, scheme):
    tab = window(color_scheme=scheme).open(f"Runs/{A}/{B}")
    expect(tab.locator("#compare .settings")).to_be_visible()
    tab.wait_for_timeout(400)
    assert tab.evaluate(CONTRAST) == []
    tab.set_viewport_size({"width": 800, "height": 900})
    tab.wait_for_timeout(300)
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
