"""The Tools tab: get a base model, and the tasks with a card for this tab; disk space, keys, the check of this machine."""

from __future__ import annotations

import gradio as gr

from tabs.context import Page
from tabs.pieces import piece
from tabs.tools import disk, keys, machine_check
from tabs.tools.forms import build_form, cards


def build(page: Page) -> None:
    page.pulse_parts.append(page.models.parts)
    gr.HTML(piece("tools"), elem_id="tools-holder", apply_default_css=False)
    for card in sorted(cards("Tools"), key=lambda card: card.name != "images"):
        build_form(page, card)
    keys.build(page)
    disk.build(page)
    page.machine_check = machine_check.build(page)
