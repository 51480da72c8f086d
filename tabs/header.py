"""The header above all tabs. assets/header.js fills in its texts from the tick."""

from __future__ import annotations

from typing import TYPE_CHECKING

import gradio as gr

from core import __version__
from tabs.markup import esc
from tabs.pieces import piece

if TYPE_CHECKING:
    from tabs.context import Page


# Message buses: hidden components with a value that the page's script reads, and events that it triggers.
BUS = """
(window.atelierBuses = window.atelierBuses || []).push({name: "%s", element, props, watch, trigger});
if (window.atelier && window.atelier.attach) window.atelier.attach();
/* raises %s */
"""
EVENTS = ("command", *(f"tick_{name}" for name in ("dataset", "captions", "generate", "runs", "tools")))


def build(page: Page) -> None:
    """Build the header, the two message buses `form_bus` and `pulse_bus`, and the hidden input `envelope`."""
    account, person = "", esc(page.workspace.person or page.engine.owner)
    if page.login:
        person_html = f'<span class="who">{person}</span>' if person else ""
        tooltip = f' title="Logged in as {person}"' if person else ""
        account = f'<button id="log-out" type="button" class="btn small quiet"{tooltip}>Log out {person_html}</button>'
    html = piece("header").replace("{version}", __version__).replace("{account}", account)
    gr.HTML(html, elem_id="header-holder", apply_default_css=False)
    page.form_bus = gr.HTML(
        "", html_template="", js_on_load=BUS % ("form", '"act"'), elem_id="form-bus", elem_classes="carrier"
    )
    page.pulse_bus = gr.HTML(
        "",
        html_template="",
        js_on_load=BUS % ("pulse", ", ".join(f'"{event}"' for event in EVENTS)),
        elem_id="pulse-bus",
        elem_classes="carrier",
    )
    page.envelope = gr.Textbox("", visible="hidden", elem_id="envelope", elem_classes="carrier", label="message")
