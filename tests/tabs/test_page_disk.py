"""The card of Tools about space on the disk, in a real browser."""

from __future__ import annotations

import pytest
from page_server import WATCH
from playwright.sync_api import expect


def written(path, size: int):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * size)
    return path


@pytest.mark.slow
def test_a_cache_is_emptied_at_once_and_deleted_runs_after_a_question(window, served):
    cached = written(served.workspace.cache / "text" / "0a" / "one.safetensors", 2_000_000)
    run = written(served.workspace.trash / "run-1" / "fox.safetensors", 4_000)
    tab = window.open("Tools")
    card = tab.locator("#tools-disk")
    row = card.locator("li").filter(has_text="Cached text encoder outputs")
    expect(row).to_contain_text("2.0 MB")
    tab.evaluate(WATCH, [*(f"#tools-disk li:nth-child({n})" for n in range(1, 7)), ".disk-keep", "#keys", "#tools"])
    keep = card.get_by_label("GB of each cache to keep")
    keep.fill("much")
    keep.press("Tab")
    row.get_by_role("button", name="Empty").click()
    expect(tab.locator("#said.error")).to_contain_text("'much' is not a number of GB")
    assert cached.exists()
    keep.fill("0,0")
    keep.press("Tab")
    row.get_by_role("button", name="Empty").click()
    expect(tab.locator("#said.done")).to_contain_text("2.0 MB freed.")
    expect(row).to_contain_text("nothing")
    expect(row.get_by_role("button")).to_have_count(0)
    gone = card.locator("li").filter(has_text="Deleted runs")
    gone.get_by_role("button", name="Delete for good: Deleted runs").click()
    gone.get_by_role("button", name="Keep").click()
    gone.get_by_role("button", name="Delete for good: Deleted runs").click()
    assert run.exists()
    gone.get_by_role("button", name="Delete 4.0 kB").click()
    expect(tab.locator("#said.done")).to_contain_text("4.0 kB freed.")
    assert not cached.exists() and not run.exists()
    assert tab.evaluate("movedBy()") == {}
