"""The line about memory on the Generate tab: the models that are loaded, and what frees them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from core.record.units import memory_words
from tabs.context import Page
from tabs.markup import act_of, button, esc, short


class MemoryLine:
    """What the line shows and does."""

    def __init__(self, page: Page):
        self.page = page

    def html(self) -> str:
        now = self.page.engine.status()["job"]
        return line(self.page.engine.models.loaded(), used=bool(now and now.get("task") in ("generate", "grid")))

    def act(self, event: gr.EventData) -> str:
        if act_of(event)[0] == "unload":
            self.page.engine.models.release(wait=False)  # what is in use stays
        return self.html()


def line(held: Sequence[Any], used: bool) -> str:
    """held: of the store (core.generation.store.Held). used: whether one of them is in use"""
    sizes: dict[str, int] = {}
    for each in held:
        name = Path(each.name).stem
        sizes[name] = sizes.get(name, 0) + each.bytes
    listed = ", ".join(f"{name} {memory_words(size)}" for name, size in sizes.items())
    total = memory_words(sum(sizes.values()))
    what = short(next(iter(sizes)), 40) if len(sizes) == 1 else f"{len(sizes)} models"
    said = f'<span class="hint" title="{esc(listed)}">{esc(what)}, {total} in memory</span>' if sizes else ""
    unload = button("unload", "Unload", kind="quiet", disabled=used, title="Free the memory of loaded models")
    return f'<div class="strip gen-memory"><span class="grow"></span>{said}{unload if sizes else ""}</div>'
