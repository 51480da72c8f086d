"""The Tools tab: index, cards of tools, base models, disk space, keys, and the machine check."""

from functools import partial

import gradio as gr

from tabs.context import Page
from tabs.pieces import piece
from tabs.tools import disk, index, keys, machine_check
from tabs.tools.forms import build_form
from tabs.tools.pairs import train_pairs


def build(page: Page) -> None:
    """Create the tab's components and register their listeners and commands."""
    page.pulse_parts.append(page.models.parts)
    gr.HTML(index.html(), elem_id="tool-index-holder", apply_default_css=False)
    cards = index.ordered("Tools")
    for card in cards[: len(index.FIRST)]:
        build_form(page, card)
    gr.HTML(piece("tools"), elem_id="tools-holder", apply_default_css=False)
    for card in cards[len(index.FIRST) :]:
        build_form(page, card)
    keys.build(page)
    disk.build(page)
    page.machine_check = machine_check.build(page)
    page.commands["train_pairs"] = partial(train_pairs, page)
