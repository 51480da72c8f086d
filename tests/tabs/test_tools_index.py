"""The index of Tools names every tool; results and files of tools reach the page."""

from __future__ import annotations

import torch
from work_parts import wait_until

from core import tasks
from core.networks.adapter_file import save_lora
from tabs.tools import index
from tabs.tools.forms import cards


def test_every_tool_with_a_card_is_in_the_index_once():
    shown = index.html()
    for task in tasks.tasks().values():
        if task.card is not None:
            assert shown.count(f'data-tool="{task.name}"') == 1, task.name
    titles = list(index.groups())
    assert titles[:3] == ["LoRAs", "Models and files", "Images"] and {index.CAPTIONS, index.MACHINE} <= set(titles)
    assert [card.name for card in index.ordered("Tools")][:3] == list(index.FIRST)
    assert set(index.ordered("Tools")) == set(cards("Tools"))


def test_what_a_tool_shows_and_wrote_is_sent(page):
    layer = "lora_unet_mid_block_attentions_0_proj_in"
    tensors = {f"{layer}.lora_down.weight": torch.ones(2, 8), f"{layer}.lora_up.weight": torch.ones(8, 2)}
    path = save_lora(page.workspace.outputs / "fox.safetensors", tensors, {"ss_base_model_version": "sd_v1"})
    browser = page.browsers.of("tools")
    for tool in ("hashes", "strip_metadata"):
        page.works.use({"tool": tool, "about": str(path)}, browser)
        wait_until(lambda: page.works.parts("Tools", {})["works"][0]["state"] == "done")
        work = page.works.parts("Tools", {})["works"][0]
        if tool == "hashes":
            assert work["shown"][0]["kind"] == "table" and work["file"] is None
        else:
            assert work["file"]["name"] == "fox_shared.safetensors" and "atelier/file?" in work["file"]["url"]
