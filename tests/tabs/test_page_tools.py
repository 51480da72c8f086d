"""The index of Tools, and results of tools, in a real browser."""

from __future__ import annotations

import re

import pytest
from PIL import Image
from playwright.sync_api import expect

from core.tools.charts import curves, heat_map, table

WORK = {"id": "w", "tool": "check_weights", "card": "loras", "ends_paused": False, "about": "Check weights: fox", "state": "done",
        "stopping": False, "text": "", "share": None, "lines": ["a line"], "previews": [], "problems": [], "file": None}  # fmt: skip

CARDS = """() => [...document.querySelectorAll('.column:has(> #tools-holder) > .block[id]:not(.tab-heading)')].filter(
    (node) => node.id !== 'tool-index-holder' && node.offsetHeight > 1).map((node) => node.id)"""


def test_a_tool_is_found_by_its_index_and_opens_in_its_card_which_shows_the_page_that_it_wrote(window, served):
    tab = window.open("Tools")
    tab.locator("#tool-index").get_by_role("button", name="Merge checkpoints").click()
    choice = tab.locator("#tools-models").get_by_label("Tool", exact=True)
    expect(choice).to_have_value("merge_models")
    expect(tab.locator("#tool-merge_models-models")).to_be_in_viewport()
    expect(choice).to_be_focused()
    search, listed = tab.get_by_label("Find a tool"), tab.locator("#tool-index li:visible")
    search.fill("norms block")
    expect(listed).to_have_count(0)
    expect(tab.locator("#tool-none")).to_be_visible()
    for words, names in (("hashes", ["Inspect a file", "Hashes"]), ("canny", ["Preprocess", "Generate pairs"])):
        search.fill(words)
        expect(listed).to_have_text(names)
    for word, tool in (("smaller", "Resize a LoRA"), ("dim", "Resize a LoRA"), ("thumbnail", "Resize")):
        search.fill(word)
        expect(listed.filter(has_text=re.compile(f"^{tool}$"))).to_have_count(1)
    search.fill("hashes")
    tab.evaluate("addEventListener('keypress', (event) => { window.acts = !event.defaultPrevented; })")
    search.press("Enter")
    expect(tab.locator("#tools-models").get_by_label("Tool", exact=True)).to_be_focused()
    assert not tab.evaluate("window.acts"), "the same Enter presses nothing in the tool"
    search.fill("norms")
    expect(listed).to_have_text(["Check weights"])
    search.press("Enter")
    expect(tab.locator("#tools-loras").get_by_label("Tool", exact=True)).to_have_value("check_weights")
    search.fill("")
    assert tab.evaluate(CARDS) == ["tools-loras"]
    card = served.workspace.outputs / "fox_card.html"
    card.write_text("<h1>Fox</h1>")
    file = {"name": card.name, "url": served.page.file_url(card), "page": True}
    tab.evaluate("works => atelier.parts.works(works)", [WORK | {"file": file}])
    results = tab.locator("#tools-loras-tasks")
    expect(results.frame_locator("iframe").get_by_role("heading", name="Fox")).to_be_visible()
    expect(results.get_by_role("link", name="Open in a tab")).to_have_attribute("target", "_blank")


@pytest.mark.slow
def test_results_stand_in_the_card_of_their_tool_are_drawn_saved_as_png_and_scroll_within(window, tmp_path):
    tab = window.open("Tools")
    rows, notes = [[1.0, None], [-0.004, -0.25]], {"to_q|IN01": "untrained"}
    shown = [
        heat_map("Norms", ["to_q", "to_k"], ["IN01", "MID"], rows, span=(-1.0, 1.0), notes=notes),
        curves("Kept norm", "rank", "kept", [1, 2, 3], {"all": [0.5, 0.9, 1.0], "median": [0.6, 0.8, 1.0]}),
        table("Hashes", ["File", "SHA-256"], [["fox", "ab12"]], copied=True),
    ]
    tab.evaluate("works => atelier.parts.works(works)", [WORK | {"shown": shown}])
    results = tab.locator("#tools-loras-tasks")
    expect(results.locator("table.heat td.noted")).to_have_text("1.00 !")
    expect(results.locator("table.heat td")).to_contain_text(["1.00", "", re.compile("^0.00$"), "-0.25"])
    expect(results.get_by_text("! to_q, IN01: untrained")).to_be_visible()
    expect(results.locator("svg path.line")).to_have_count(2)
    for name in ("Norms", "Kept norm"):
        with tab.expect_download() as download:
            results.get_by_role("button", name=f"Save as PNG: {name}").click()
        download.value.save_as(tmp_path / "plot.png")
        with Image.open(tmp_path / "plot.png") as plot:
            assert plot.width > 200 and len(plot.getcolors(1 << 20)) > 10
    expect(results.get_by_role("button", name="Copy ab12")).to_be_visible()
    blocks = [f"OUT{number:02}" for number in range(40)]
    wide = heat_map("Norms", ["time_emb_proj"], blocks, [[0.00514, *[0.123] * 39]])
    tab.evaluate("works => atelier.parts.works(works)", [WORK | {"shown": [wide]}])
    expect(results.locator("table.heat td").first).to_have_text("0.0051")
    holder, task = (results.locator(at).first.bounding_box() for at in (".html-container", ".tool-task"))
    assert task["x"] + task["width"] <= holder["x"] + holder["width"] + 1
    assert results.locator(".result-scroll").evaluate("node => node.scrollWidth > node.clientWidth")
    for stopping in (False, True):  # what is being cancelled takes no second click
        going = WORK | {"state": "running", "text": "cancelling ...", "stopping": stopping}
        tab.evaluate("works => atelier.parts.works(works)", [going])
        expect(results.get_by_role("button", name="Cancel")).to_be_enabled(enabled=not stopping)
        expect(results.get_by_role("button", name="Pause")).to_have_count(0 if stopping else 1)
    waits = WORK | {"state": "waiting", "text": "starts after fox", "on_cpu": True}
    tab.evaluate(
        "works => { atelier.command = (...sent) => { window.sent = sent; }; atelier.parts.works(works); }", [waits]
    )
    results.get_by_role("button", name="Start now on the CPU").click()
    assert tab.evaluate("[sent[0], sent[1].work]") == ["tool_on_cpu", "w"]
    tab.route("**/atelier/pulse", lambda route: route.fulfill(status=204))  # what the server has is not of this visit
    tab.reload()
    tab.wait_for_selector("body[data-atelier=ready]")
    tab.locator("#tool-index").get_by_role("button", name="Space on the disk").click()
    expect(tab.locator("#tools-disk li").first).to_be_visible()
    works = [WORK | {"shown": []}, WORK | {"id": "v", "state": "running", "card": "images"}]
    tab.evaluate("works => atelier.parts.works(works)", works)
    assert sorted(tab.evaluate(CARDS)) == ["tools-disk", "tools-images-tasks"]  # and what runs
    tab.locator("#tool-index").get_by_role("button", name="Check weights").click()
    expect(tab.locator("#tools-loras-tasks summary")).to_have_text("Earlier result: Check weights: fox")
    expect(tab.locator("#tools-loras-tasks").get_by_text("a line")).to_be_hidden()


@pytest.mark.slow
@pytest.mark.parametrize("act", ["go", "report-card"])  # the latter is a button of Runs
def test_a_result_below_a_low_window_leaves_the_pressed_button_in_view_or_comes_into_view(window, act):
    tab = window.open("Tools")
    card, tool = {"go": ("loras", "Check weights"), "report-card": ("models", "Report card")}[act]
    tab.locator("#tool-index").get_by_role("button", name=tool).click()
    tab.set_viewport_size({"width": 683, "height": 450})
    press = tab.locator(f"#tools-{card} [data-act=go]").first
    press.scroll_into_view_if_needed()
    press.evaluate("(node, act) => { node.dataset.act = act; node.click(); }", act)
    tab.evaluate(
        "work => atelier.parts.works([work])",
        WORK | {"lines": [f"line {number}" for number in range(60)], "card": card},
    )
    expect(tab.locator(f"#tools-{card}-tasks .tool-task")).to_be_in_viewport()
    expect(press if act == "go" else tab.locator(f"#tools-{card}-tasks strong")).to_be_in_viewport()
