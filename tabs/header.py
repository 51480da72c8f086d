"""The header that stands above all tabs. Its texts are filled in by assets/header.js from the tick."""

from __future__ import annotations

from typing import TYPE_CHECKING

import gradio as gr

if TYPE_CHECKING:
    from tabs.context import Page

HEADER = """
<header id="atelier-header">
  <a class="skip" href="#train-form">To the form</a>
  <span class="product">Atelier</span>
  <span id="header-project" class="chip" title="The project: the output name in Train"></span>
  <span id="header-family" class="chip" hidden></span>
  <span class="grow"></span>
  <span class="device">
    <span id="header-device"></span>
    <span id="header-meter" class="memory-meter" role="meter" aria-label="Memory in use" aria-valuemin="0" aria-valuemax="100"><i id="header-memory"></i></span>
    <span id="header-memory-words" class="figures"></span>
  </span>
  <span class="job">
    <span id="header-idle" class="chip quiet">nothing runs</span>
    <a id="header-job" class="chip figures" hidden></a>
    <button id="header-stop" type="button" class="btn small" hidden>Stop</button>
  </span>
  <button id="theme-toggle" type="button" class="btn small quiet">Dark</button>
</header>
<div id="said" class="said" hidden></div>
"""

# The carriers of messages: nothing to see, only a value that the page's script reads, and an event that it raises.
BUS = """
(window.atelierBuses = window.atelierBuses || []).push({name: "%s", element, props, watch, trigger, server: typeof server === "undefined" ? null : server});
if (window.atelier && window.atelier.attach) window.atelier.attach();
/* raises "%s" */
"""


def build(page: Page) -> None:
    """The header and the two carriers: one for the form, one for everything that runs."""
    gr.HTML(HEADER, elem_id="header-holder", apply_default_css=False)
    page.form_bus = gr.HTML("", html_template="", js_on_load=BUS % ("form", "act"), elem_id="form-bus", elem_classes="carrier")
    page.pulse_bus = gr.HTML("", html_template="", js_on_load=BUS % ("pulse", "command"), elem_id="pulse-bus", elem_classes="carrier")
    page.envelope = gr.Textbox("", visible="hidden", elem_id="envelope", elem_classes="carrier", label="message")
