"""API keys of the Hub and wandb: password fields that write a private file of the user. Keys are never sent to a browser."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import gradio as gr

from core.record.problems import ProblemsError
from core.record.secrets import NAMES, is_stored, keys_file, store
from tabs.markup import esc
from tabs.server.browsers import Browser

if TYPE_CHECKING:
    from tabs.context import Page

TITLES = {"huggingface_token": "Hugging Face token", "wandb_api_key": "wandb key"}
USES = {
    "huggingface_token": "For uploads to the Hub, and for gated models.",
    "wandb_api_key": "For logging to wandb.",
}
MOST_LETTERS = 512
WHERE = "Keys"


def build(page: Page) -> None:
    """Create the Keys card on Tools and register its command."""
    page.commands |= {"key": lambda data, browser: keep(page, data, browser)}
    page.pulse_parts.append(lambda tab, body: {"keys": states()} if tab == "Tools" else {})
    gr.HTML(card(page.shared), elem_id="keys-holder", apply_default_css=False)


def card(shared: bool) -> str:
    """Return the HTML of a password field for each key; on a shared page, of the reason why there is none."""
    head = '<section class="card" id="keys" aria-label="Keys"><div class="card-head"><h3>Keys</h3></div>'
    if shared:
        reason = "Keys cannot be entered on a shared page: open it without sharing, or set HF_TOKEN or WANDB_API_KEY on the machine."
        return f'{head}<p class="hint">{reason}</p></section>'
    file = f"<code>{esc(keys_file().name)}</code> among your settings"
    about = f"Stored in a file only you can read ({file}), never in jobs, runs or logs. Keys are not shown again."
    rows = "".join(_row(name) for name in NAMES)
    return f'{head}<p class="hint">{about}</p>{rows}</section>'


def _row(name: str) -> str:
    """Return the HTML of a key's password field with the Save and Forget buttons."""
    title = TITLES[name]
    return (
        f'<form class="tool-line key-line" data-key="{name}"><label for="key-{name}">{title}</label>'
        f'<input type="password" id="key-{name}" autocomplete="off" spellcheck="false" maxlength="{MOST_LETTERS}">'
        f'<button type="submit" class="btn">Save</button>'
        f'<button type="button" class="btn quiet" data-forget="{name}" aria-label="Forget the {title}" hidden>Forget</button>'
        f'</form><p class="hint key-state"><span data-key-state="{name}"></span> {USES[name]}</p>'
    )


def states() -> dict[str, dict[str, Any]]:
    """Return {key name: {"words": text on whether it is set, "stored": whether it is in the file}}, without the keys themselves."""
    return {name: {"words": _state_text(name), "stored": is_stored(name)} for name in NAMES}


def _state_text(name: str) -> str:
    """Return the text on whether key `name` is set by an environment variable, stored, or not set."""
    variable_set = next((variable for variable in NAMES[name] if os.environ.get(variable, "").strip()), "")
    if variable_set:
        return f"Set by {variable_set}, which overrides the file."
    return "Kept." if is_stored(name) else "Not set."


def keep(page: Page, data: dict[str, Any], browser: Browser) -> None:
    """Store the key {"key": name, "value": text}; an empty value deletes it. Raises ProblemsError if invalid or on a shared page."""
    name, value = str(data.get("key", "")), str(data.get("value", "")).strip()
    if page.shared:
        fix = "open the page on the machine itself, or set the environment variable there"
        raise ProblemsError.one("Keys cannot be entered on a shared page", WHERE, fix, "keys.shared-page")
    if name not in NAMES:
        raise ProblemsError.one("Unknown key", WHERE, "use one of the fields", code="keys.unknown")
    if len(value) > MOST_LETTERS or any(not sign.isprintable() or sign.isspace() for sign in value):
        what, fix = f"This is not a valid {TITLES[name]}", "paste it again, without spaces"
        raise ProblemsError.one(what, WHERE, fix, code="keys.invalid")  # without the text, which may be a key
    store(name, value or None)
    text = f"The {TITLES[name]} was saved." if value else f"The {TITLES[name]} was deleted."
    page.browsers.say(browser, "done", text)
