"""Loading settings into Generate from runs and tool results, and Undo of that."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.assess.results import best_strength
from core.formats.detect import identify
from core.generation.model.library import portable_name
from core.record.file_titles import title_of_file
from core.record.problems import ProblemsError
from core.record.units import listed
from tabs.generate import form
from tabs.generate.cards import CARDS
from tabs.server.browsers import Browser

if TYPE_CHECKING:
    from tabs.context import Page

TAB = "Generate"
TAKE_BACK = "take_back_settings"  # command


@contextmanager
def replacing(page: Page) -> Iterator[None]:
    """Context that records which settings of Generate change inside it, so that `take_back` can restore them."""
    with page.project.lock:
        before = page.project.tab_state(TAB)
        yield
        after = page.project.tab_state(TAB)
        changed = [name for name in before | after if before.get(name) != after.get(name)]
        page.replaced = {name: (before.get(name), after.get(name)) for name in changed}


def take_back(page: Page, data: dict[str, Any], browser: Browser) -> None:
    """Restore the settings that the last `replacing` changed, except those changed since; does nothing if repeated. data: not used"""
    with page.project.lock:
        if not page.replaced:
            return
        state = page.project.tab_state(TAB)
        restored = state | {
            name: _restored(old, loaded, state.get(name)) for name, (old, loaded) in page.replaced.items()
        }
        loaded_fields = page.replaced.get("values", (None, state.get("values")))[1]
        changed_since = loaded_fields != state.get("values")  # only fields count: the page itself changes other values
        page.project.keep(TAB, {name: value for name, value in restored.items() if value is not None})
        page.replaced = {}
    text = "Your settings are back, except what was changed since." if changed_since else "Your settings are back."
    page.browsers.say(browser, "done", text, redraws=True)


def _restored(before: Any, loaded: Any, current: Any) -> Any:
    """Return `before`, or `current` if the value was changed after it was set to `loaded`; dictionaries are restored key by key."""
    if isinstance(loaded, dict) and isinstance(current, dict):
        old = before if isinstance(before, dict) else {}
        fields = {name: _restored(old.get(name), loaded.get(name), current.get(name)) for name in old | current}
        return {name: value for name, value in fields.items() if name in old or value is not None}
    return before if current == loaded else current


def use_run(page: Page, browser: Browser, name: str, file: str = "", go: str = "") -> None:
    """Fill in Generate with a checkpoint of run `name` and show what to do next. Raises ProblemsError if the run has no checkpoint.

    file: checkpoint file, "" for the recommended or last one; go: tab that a button in the message opens, "" for no button
    """
    with replacing(page):
        seed_before = form.stored_values(page.project.tab_state(TAB), page.project.job)["seed"]
        values = form.generate_with(page, name, file)
    then = "Press Generate." if values["prompt"] else "Enter a prompt and press Generate."
    seed = f" The seed of its samples, {values['seed']}, is set." if values["seed"] not in (None, seed_before) else ""
    best = ""
    for use in values["loras"]:  # at most one
        measured = best_strength(page.workspace.runs / name, Path(use["file"]).name)
        if use["strength"] == measured != 1:
            best = f" Its strength {measured:g} is the best by its assessment."
    others = [card.title for card in CARDS if card.is_used(values)]
    still = f" Still set: {listed(others)}." if others else ""
    page.browsers.say(browser, "done", f"Loaded in Generate.{best}{seed}{still} {then}", go=go, undo_by=TAKE_BACK)


def use_result(page: Page, data: dict[str, Any], browser: Browser) -> None:
    """Use the LoRA or base model written by the tool run data["work"] in Generate. Raises ProblemsError if the file no longer exists."""
    path = page.works.written_file(str(data.get("work")))
    if path is None:
        raise ProblemsError.one("The file no longer exists", "Generate", "start the tool again", "file.gone")
    kind = identify(path)
    with replacing(page):
        state = page.project.tab_state(TAB)
        values = form.stored_values(state, page.project.job)
        if kind.kind == "lora":
            values = form.add_lora(values, path, page.workspace)
        else:
            values |= {"base_model": portable_name(path, page.workspace)}
        page.project.keep(TAB, state | {"values": values})
    title = title_of_file(path, page.workspace.runs)
    page.browsers.say(browser, "done", f"{title} is used in Generate.", go=TAB, undo_by=TAKE_BACK)


def commands(page: Page) -> dict[str, Callable[[dict[str, Any], Browser], None]]:
    """Return {command of the script: handler} for undo and for using a tool's file."""
    return {TAKE_BACK: partial(take_back, page), "use_result": partial(use_result, page)}
