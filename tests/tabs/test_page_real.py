"""The page with the real engine: a short training of the starter, begun, watched and fetched in a browser."""

from __future__ import annotations

import json
import struct

import pytest
from page_server import Served, Visit
from playwright.sync_api import expect

from tabs.project import with_value

STEPS = 4


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    from core.engine.engine import Engine

    page = Served(tmp_path_factory.mktemp("real"), engine=lambda workspace: Engine(workspace, "cpu"), port=17960)
    yield page
    page.close()


def test_start_trains_a_lora_that_can_be_fetched_from_monitor(real, chromium):
    job = real.page.project.job
    for path, value in (
        ("schedule.max_train_steps", STEPS),
        ("dataset.train_batch_size", 1),
        ("samples.sample_prompts", ["a fox"]),
        ("samples.sample_steps", 2),
        ("samples.sample_every_n_steps", STEPS),
        ("saving.output_name", "short"),
    ):
        job = with_value(job, path, value)
    real.page.project.replace(job)
    window = Visit(chromium, real.url)
    tab = window.open()
    tab.locator("#start").click()
    expect(tab.locator("#run-title")).to_have_text("short", timeout=240_000)
    expect(tab.locator("#run-state")).to_have_text("done", timeout=240_000)
    expect(tab.locator("#run-step")).to_have_text(f"step {STEPS} of {STEPS}")
    expect(tab.locator("#loss-chart path.smooth")).to_have_count(1)
    steps = [head.inner_text() for head in tab.locator("table.samples thead th").all()[1:]]
    assert steps == ["base model", f"step {STEPS}"]
    with tab.expect_download() as got:
        tab.get_by_role("link", name="short.safetensors", exact=True).click()
    content = got.value.path().read_bytes()
    header = json.loads(content[8 : 8 + struct.unpack("<Q", content[:8])[0]])
    assert header["__metadata__"]["ss_output_name"] == "short"
    assert any(name.endswith(".lora_down.weight") for name in header)
    assert window.errors == [] and window.outside == []
    window.close()
