"""The Captions tab: a picture beside its caption, one after the other by keys."""

from __future__ import annotations

import threading
import time
from typing import Any

import gradio as gr

from core.dataset.batches import Placed
from core.dataset.captions import plain_caption
from core.dataset.report import Row
from core.record.problems import ProblemsError
from tabs import captions_view as view
from tabs.caption_edits import Edits, key_of
from tabs.caption_epochs import Encodings, preview
from tabs.context import Page
from tabs.markup import act_of, board, news, on_act, page_of
from tabs.reading import Reading, reading_of
from tabs.tokens import count_tokens

TAB = "Captions"

# One listener for the whole page, deaf while another tab is open.
KEYS = """
document.addEventListener('keydown', (event) => {
  if (!element.isConnected || element.offsetParent === null) return;
  const control = event.ctrlKey || event.metaKey;
  const arrow = {ArrowLeft: 'previous', ArrowUp: 'previous', ArrowRight: 'next', ArrowDown: 'next'}[event.key];
  const busy = event.target.closest('input, textarea, select, [contenteditable=true], [role=radio], [role=listbox]');
  const sideways = event.key === 'ArrowLeft' || event.key === 'ArrowRight';
  let act = '';
  if (control && !event.altKey && !event.shiftKey && event.key.toLowerCase() === 's') act = 'save';
  else if (arrow && event.altKey && !control && !event.shiftKey) act = arrow;
  else if (sideways && !busy && !event.altKey && !control && !event.shiftKey) act = arrow;
  if (!act) return;
  event.preventDefault();
  if (!event.repeat || act !== 'save') trigger('act', {act: act, arg: ''});
});
// Gradio's own input event misses the first change after the server has filled the box.
let pause = 0;
document.addEventListener('input', (event) => {
  if (!element.isConnected || !event.target.closest('#cap-box')) return;
  clearTimeout(pause);
  pause = setTimeout(() => trigger('typed'), 120);
});
// The open picture stays in view in its list.
watch('value', () => {
  const open = element.querySelector('[aria-current=true]'), list = element.querySelector('.picks');
  if (!open || !list || open.dataset.seen) return;
  element.querySelectorAll('[data-seen]').forEach((each) => delete each.dataset.seen);
  open.dataset.seen = '1';
  const box = open.getBoundingClientRect(), frame = list.getBoundingClientRect();
  if (box.top >= frame.top && box.bottom <= frame.bottom) return;
  list.scrollTop += box.top - frame.top - frame.height / 2 + box.height / 2;
});
"""
# The browser's tab keeps its visit, so that a refresh finds what was typed while the question which of two texts stays is open.
KEEP_VISIT = "(text, visit) => { sessionStorage.setItem('atelier-caption', visit); return [text, visit]; }"
KEPT_VISIT = "(text, visit) => [text, visit || sessionStorage.getItem('atelier-caption') || '']"


def build(page: Page) -> None:
    """Widgets and listeners of the tab."""
    desk = Desk(page)
    tally = board("cap-tally")
    with gr.Row(equal_height=False, elem_id="cap-main"):
        with gr.Column(scale=3, min_width=270):
            pictures = board("cap-list", script=KEYS)
        with gr.Column(scale=4, min_width=320):
            stage = board("cap-stage")
        with gr.Column(scale=4, min_width=340):
            box = gr.Textbox(label="Caption", lines=5, max_lines=14, elem_id="cap-box")
            visit = gr.Textbox(visible="hidden", elem_id="cap-visit", label="visit")
            meter = board("cap-meter")
            buttons = board("cap-buttons")
            state = board("cap-state")
            notes = board("cap-notes")
    seen = gr.State({})
    lists = [tally, pictures, stage, meter, state, buttons, notes]
    everything = [box, visit, *lists]
    page.on_show(TAB, desk.show, [box, visit], [seen, *everything], js=KEPT_VISIT)
    page.on_tick(TAB, desk.tick, [seen, box, visit], [seen, *everything])
    told, left = [meter, state, notes], [tally, pictures, meter, state, buttons, notes]
    typing: dict[str, Any] = {"js": KEEP_VISIT, "gives_way": True}
    page.listen(pictures.typed, desk.typed, [box, visit], told, trigger_mode="always_last", **typing)
    page.listen(box.blur, desk.left_box, [box, visit], left, **typing)
    on_act(page, [pictures, buttons, tally, state], desk.acted, [box, visit], [*everything, seen])


class Desk:
    """What the tab's handlers do. The project keeps views, the reading the pictures, the edits the open captions."""

    def __init__(self, page: Page):
        self.page = page
        self.reading: Reading = reading_of(page)
        self._lock = threading.RLock()
        self.edits = Edits(self.reading, lambda: self._state().get("edits", {}), self._keep_edits)
        self.encodings = Encodings(self.reading, self._state, self._keep)

    def _state(self) -> dict[str, Any]:
        return self.page.project.tab_state(TAB)

    def _keep(self, **changes: Any) -> None:
        with self._lock:
            self.page.project.keep(TAB, self._state() | changes)

    def _keep_edits(self, changes: dict[str, Any]) -> None:
        with self._lock:
            self._keep(edits=self._state().get("edits", {}) | changes)

    # -- showing

    def show(self, text: str, token: str):
        self.edits.save_drafts()
        self.reading.want(again=True)
        visit = self.edits.visit(token)
        if visit is not None and visit.theirs is not None:  # the choice is still open; after a refresh the box is empty
            typed = text or visit.draft or ""
            return {}, gr.Textbox(value=typed, interactive=True), token, *self._asking(typed, token)
        return {}, *self._open(str(self._state().get("key", "")))

    def tick(self, seen: dict[str, Any], text: str, token: str):
        """Lists follow what changed elsewhere; the box is touched only when its picture is gone, or none was there."""
        self.reading.want()
        stamp = f"{self.reading.version} {self.reading.busy and self.reading.report is None} {self._state()}"
        if stamp == seen.get("stamp"):
            return gr.skip()
        visit = self.edits.visit(token)
        if visit is None and self.edits.moving_on(token):
            return gr.skip()  # else this answer would take the place of the one to the click, with its words
        if visit is None or self.edits.picture(visit.key) is None:
            return {}, *self._open(str(self._state().get("key", "")))
        tally, pictures, stage, _, _, buttons, _ = self._render(visit.key, text, False)
        told, tally, pictures, stage, buttons = news(seen, stamp, (tally, pictures, stage, buttons))
        # What depends on the text is left to typing: this answer may be older than the newest key.
        return told, gr.skip(), gr.skip(), tally, pictures, stage, gr.skip(), gr.skip(), buttons, gr.skip()

    def _open(self, key: str, said: str = "") -> tuple[Any, ...]:
        """Begin with a picture: the asked one, else the first of the list. Returns all of `everything`."""
        rows = self._rows()
        placed = self.edits.picture(key) or next((self.edits.picture(key_of(row)) for row in rows), None)
        if placed is None:
            return gr.Textbox(value="", interactive=False), "", *self._render("", "", False, said)
        token, caption = self.edits.open(placed)
        if self._state().get("key") != key_of(placed):
            self._keep(key=key_of(placed))
        return (
            gr.Textbox(value=caption.text, interactive=True),
            token,
            *self._render(key_of(placed), caption.text, False, said),
        )

    def _asking(self, text: str, token: str) -> tuple[Any, ...]:
        """What `lists` shows while a person has to choose between two texts."""
        visit = self.edits.visit(token)
        tally, pictures, stage, meter, _, buttons, notes = self._render(visit.key if visit else "", text, True)
        return tally, pictures, stage, meter, view.elsewhere(self.edits.elsewhere(token) or ""), buttons, notes

    def _rows(self) -> list[Row]:
        state = self._state()
        return view.listed(self.reading.report, str(state.get("show", "all")), str(state.get("find", "")))

    def _render(self, key: str, text: str, unsaved: bool, said: str = "") -> tuple[Any, ...]:
        """What `lists` in `build` shows, in its order."""
        state, report = self._state(), self.reading.report
        show, find = str(state.get("show", "all")), str(state.get("find", ""))
        rows = self._rows()
        placed = self.edits.picture(key)
        place = next((number for number, row in enumerate(rows) if key_of(row) == key), -1) if placed else -1
        page = int(state.get("page", 0)) if "page" in state else max(place, 0) // view.PAGE_SIZE
        return (
            f'<p class="lead">{view.tally(report)}</p>{self.encodings.html()}' if report else "",
            view.picture_list(report, rows, key, page, show, find, self.page.thumb_url, self.reading.busy),
            view.picture(placed, place, len(rows), self.page.thumb_url),
            self._meter(text, placed) if placed else "",
            view.status(said or ("Not saved yet" if unsaved else ""), unsaved and not said),
            view.actions(
                place, len(rows), self.edits.next_step("undo"), self.edits.next_step("redo"), placed is not None
            ),
            self._notes(placed, text) if placed else "",
        )

    def _meter(self, text: str, placed: Placed) -> str:
        settings = placed.concept.captions
        learnt = plain_caption(text, settings, placed.picture.words)
        return view.meter(count_tokens(learnt), self.reading.job.captions.max_token_length)

    def _notes(self, placed: Placed, text: str) -> str:
        said = view.notes(self.edits.caption(placed), text, placed.concept.captions, placed.picture.words)
        return said + preview(self.reading.job, self.reading.report, placed, text)

    # -- editing

    def typed(self, text: str, token: str):
        """While typing: the count, and that it is not saved yet."""
        visit = self.edits.visit(token)
        before = visit is not None and visit.draft is not None
        unsaved = self.edits.typed(token, text)
        placed = self.edits.picture(visit.key) if visit else None
        if placed is None:
            return gr.skip()
        # A message that comes after the text was saved must not wipe away that it was.
        told = (unsaved or before) and self.edits.elsewhere(token) is None
        state = view.status("Not saved yet" if unsaved else "", unsaved) if told else gr.skip()
        return self._meter(text, placed), state, self._notes(placed, text)

    def left_box(self, text: str, token: str):
        """Leaving the box saves."""
        name = self.edits.flush(token, text)
        visit = self.edits.visit(token)
        if self.edits.elsewhere(token) is not None:
            tally, pictures, _, meter, state, buttons, notes = self._asking(text, token)
            return tally, pictures, meter, state, buttons, notes
        if not name or visit is None:
            return gr.skip()
        tally, pictures, _, meter, state, buttons, notes = self._render(visit.key, text, False, _saved(name))
        return tally, pictures, meter, state, buttons, notes

    def acted(self, text: str, token: str, event: gr.EventData):
        """`act`, after which the next tick sends all lists: what the browser was sent before no longer holds."""
        return *self.act(text, token, event), {}

    def act(self, text: str, token: str, event: gr.EventData):
        """Keys, buttons and the list. What was typed is saved before anything else is shown."""
        act, arg, value = act_of(event)
        if act in ("mine", "theirs"):
            self.edits.choose(token, act == "mine")
        name = self.edits.flush(token, text, always=act in ("save", "mine"))
        if self.edits.elsewhere(token) is not None:
            return gr.skip(), gr.skip(), *self._asking(text, token)
        visit = self.edits.visit(token)
        key = visit.key if visit else str(self._state().get("key", ""))
        if act in ("save", "mine") and visit is not None:
            return gr.skip(), gr.skip(), *self._render(key, text, False, _saved(name) if name else "Saved")
        self.edits.leave(token)
        said = _saved(name) if name else ""
        if act in ("undo", "redo"):
            return self._take_back(act, key)
        if act in ("utf8", "utf8_back"):
            return self._open(key, self.encodings.rewrite() if act == "utf8" else self.encodings.take_back())
        if act in ("next", "previous", "pick"):
            self._keep_page(None)
            key = self._neighbour(key, act, arg)
        elif act == "show":
            self._keep(show=value if value in view.SHOWS else "all")
            self._keep_page(None)
        elif act == "find":
            self._keep(find=value[:200])
            self._keep_page(None)
        elif act == "page":
            self._keep_page(page_of(value or arg, 10**6))
        return self._open(key, said)

    def _keep_page(self, page: int | None) -> None:
        """A page of the list that was chosen; None follows the open picture."""
        with self._lock:
            kept = {name: each for name, each in self._state().items() if name != "page"}
            self.page.project.keep(TAB, kept | ({} if page is None else {"page": page}))

    def _neighbour(self, key: str, act: str, arg: str) -> str:
        """The key of the picture to go to. The list goes round; a picture that just left it leads to its first."""
        keys = [key_of(row) for row in self._rows()]
        if not keys:
            return key
        if act == "pick":
            number = int(arg) if arg.isdecimal() and len(arg) < 9 else -1
            return keys[number] if 0 <= number < len(keys) else key
        if key not in keys:
            return self._next_to_gone(key, act, keys)
        return keys[(keys.index(key) + (1 if act == "next" else -1)) % len(keys)]

    def _next_to_gone(self, key: str, act: str, keys: list[str]) -> str:
        """The picture was captioned, so the list "without a caption" no longer holds it: go on from where it stood."""
        report = self.reading.report
        order = [key_of(row) for row in report.rows] if report else []
        if key not in order:
            return keys[0]
        here, held = order.index(key), set(keys)
        ahead = order[here + 1 :] + order[:here] if act == "next" else order[:here][::-1] + order[here + 1 :][::-1]
        return next((each for each in ahead if each in held), keys[0])

    def _take_back(self, act: str, key: str) -> tuple[Any, ...]:
        name = self.edits.next_step(act)
        try:
            found = self.edits.step(act)
        except ProblemsError:
            return self._open(
                key, f"The earlier caption of {name} is no longer in the trash folder; nothing was changed"
            )
        self._keep_page(None)
        done = "Taken back" if act == "undo" else "Repeated"
        return self._open(found or key, f"{done}: {name}" if found else "")


def _saved(name: str) -> str:
    return f"Saved to {name} at {time.strftime('%H:%M:%S')}"
