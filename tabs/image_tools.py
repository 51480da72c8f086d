"""The image tools of the Tools tab: one form for all, which shows what the chosen tool asks for."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import gradio as gr

from core.record.problems import ProblemsError
from core.settings.check import build
from core.settings.image_tools import ImageToolSettings
from core.settings.job import ImagesJob
from tabs.context import Page
from tabs.markup import act_of, board, button, esc, news, on_act
from tabs.own_settings import changed_values, entries, fields

TAB = "Tools"
FIELDS = entries(ImageToolSettings, "images")
COPIES = {"output", "recursive", "copy_captions", "format", "quality"}
# What a tool asks for beside its folder. A setting that no tool claims is shown with all of them.
ASKS: dict[str, set[str]] = {
    "resize": COPIES | {"max_resolution", "divisible_by", "interpolation"},
    "crop": COPIES | {"crop_size", "crop_scaled", "interpolation"},
    "convert": COPIES,
    "number": {"output", "recursive", "copy_captions", *(name for name in FIELDS if name.startswith("number_"))},
    "undo_number": set(),
    "faces": COPIES - {"format", "quality"}
    | {"crop_size", "interpolation", "resize_face_size", "multiple_faces"}
    | {name for name in FIELDS if name.startswith("face_")},
    "edges": {"output", "recursive", *(name for name in FIELDS if name.startswith("edge_"))},
}
CLAIMED = set().union(*ASKS.values())


def asked_by(action: str) -> list[str]:
    """The settings that matter to a tool, in the order of declaration."""
    mine = ASKS.get(action, set())
    return [name for name in FIELDS if name in ("action", "folder") or name in mine or name not in CLAIMED]


class ImageTools:
    """What is filled in is kept by the project; the work itself is one of the tab's tools."""

    def __init__(self, page: Page, start: Callable[[ImagesJob], None]):
        self.page, self._start = page, start

    def _state(self) -> dict[str, Any]:
        return self.page.project.tab_state(TAB)

    def values(self) -> dict[str, Any]:
        return dict(self._state().get("images", {}))

    def _keep(self, **changes: Any) -> None:
        self.page.project.keep(TAB, self._state() | changes)

    def html(self) -> str:
        values = self.values()
        if not values.get("folder"):
            values["folder"] = self.page.project.job.dataset.folder or ""
        drawn = fields(FIELDS, values, asked_by(values.get("action", "resize")), "images", {"output": "by itself"})
        go = button("go", FIELDS["action"].labels[values.get("action", "resize")], kind="primary")
        turn = f"<div data-n='{self._state().get('turn', 0)}'>"
        return (
            f'{turn}<section class="card block-part" aria-label="Image tools"><h3>Image tools</h3>'
            f'<p class="hint">Copies of a folder\'s images; the images themselves stay as they are.</p>'
            f'<div class="concept-fields">{drawn}</div><div class="class-line">{go}'
            f'<span class="hint">{esc(self._about(values))}</span></div></section></div>'
        )

    def _about(self, values: dict[str, Any]) -> str:
        """The sentence on the chosen tool out of the declared help, which has one for each."""
        action = values.get("action", "resize")
        for part in FIELDS["action"].help.rstrip(".").split("; "):
            name, _, words = part.partition(" ")
            if name == action:
                return words[:1].upper() + words[1:] + "."
        return ""

    def show(self) -> Any:
        return {}, self.html()

    def tick(self, seen: dict[str, Any]) -> Any:
        stamp = f"{self._state()} {self.page.project.job.dataset.folder}"
        return gr.skip() if stamp == seen.get("stamp") else news(seen, stamp, (self.html(),))

    def act(self, event: gr.EventData) -> str:
        act, arg, value = act_of(event)
        try:
            if act == "images" and arg in FIELDS:
                self._keep(images=changed_values(FIELDS, self.values(), arg, value, self.page.roots))
            elif act == "go":
                self._go()
        except ProblemsError:
            self._keep(turn=time.time_ns())  # so that the field goes back to what holds
            raise
        return self.html()

    def _go(self) -> None:
        values = self.values()
        values["folder"] = values.get("folder") or self.page.project.job.dataset.folder or ""
        self._start(build(ImagesJob, {"images": values}))


def build_board(page: Page, start: Callable[[ImagesJob], None]) -> None:
    """The form's area and its listeners."""
    tools = ImageTools(page, start)
    area = board("tools-images")
    seen = gr.State({})
    page.on_show(TAB, tools.show, None, [seen, area])
    page.on_tick(TAB, tools.tick, seen, [seen, area])
    on_act(page, area, tools.act, None, area)
