"""The Captions tab: an image next to its caption.

The browser (assets/captions.js) holds the captions around the open one and the typed texts, so moving on needs no response. It requests
the captions around an image ("shelf") and the token count while typing ("look"), and sends saves.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cached_property
from itertools import islice
from typing import Any

import gradio as gr

from core.captioning.filters import field_names, unknown_field_in
from core.dataset.buckets.batches import Placed
from core.dataset.captions.files import rewrite_as_utf8
from core.dataset.captions.history import ChangeResult, Entry, History
from core.dataset.captions.pipeline import plain_caption
from core.dataset.report import Row
from core.dataset.sources.files import printable
from core.families.token_count import count_tokens
from core.record.problems import ProblemsError
from core.record.units import count
from tabs.captions import view
from tabs.captions.bulk import ORDERS, Bulk
from tabs.captions.edits import NO_HISTORY, Edits, caption_text
from tabs.captions.epochs import encoding_notice, non_utf8_captions, preview
from tabs.captions.mask_painting import Masks
from tabs.captions.rewriting import Progress, Rewriting
from tabs.captions.scores import Scores
from tabs.context import CURRENT_SESSION, Page
from tabs.dataset.reading import key_of, keys_of
from tabs.markup import page_of
from tabs.pieces import piece
from tabs.tools.forms import build_form, cards

TAB = "Captions"
REACH = 100  # captions on either side of the open one in a response
SEARCH_REACH = 30  # the same right after a search; the first step requests the others
DETAILED_REACH = 10  # the same with meter and notes, which take longer
MAX_SAVES = 200  # in one message
MAX_CHANGES = 30  # in the list of changes
MAX_EARLIER = 20  # earlier texts of an image
MAX_COUNTED = 1 << 16  # characters of a text whose tokens are counted while it is typed


def build(page: Page) -> None:
    """Create the tab's HTML, register the routes of its script, and create the forms of its tasks."""
    handlers = CaptionHandlers(page)
    with gr.Row(elem_id="cap-desk"):
        gr.HTML(piece("captions"), elem_id="captions-holder", apply_default_css=False)
        with gr.Column(elem_id="cap-side"):
            gr.HTML(piece("captions_more"), elem_id="captions-more-holder", apply_default_css=False)
            for card in sorted(cards(TAB), key=lambda card: card.name != "captioners"):
                build_form(page, card, handlers.captioner_limits if card.name == "captioners" else None)
    page.links.answer("captions", handlers.answer)
    page.complete_tags = handlers.bulk.complete
    page.links.answer("masks", Masks(page, handlers.edits).answer)
    page.pulse_parts.append(handlers.parts)
    page.on_show(TAB, None, js="() => { atelier.showCaptions(); return []; }")


class CaptionHandlers:
    """Handlers of the tab's requests. The project stores the view, `reading` has the images, `edits` saves and undoes."""

    def __init__(self, page: Page):
        self.page = page
        self.reading = page.reading
        self._lock = page.project.lock
        history = History(page.workspace.captions, page.workspace.person)
        self.edits = Edits(self.reading, history, lambda: self._state().get("edits", {}), self._keep_edits)
        self.rewriting = Rewriting(page.engine.light)
        form = (lambda: dict(self._state().get("bulk", {})), lambda values: self._keep(bulk=values))
        self.bulk = Bulk(page, self.reading, history, self.rewriting, form)
        self._history = history
        self.scores = Scores(page)

    @cached_property
    def _handlers(self) -> dict[str, Callable[[str, str, str], dict[str, Any]]]:
        """{act: handler} of the requests whose answer does not include the list of images. handler: (key of an image, or keys separated by
        spaces, arg, value) of the request, see `answer`, -> answer"""
        return {
            "complete": lambda key, arg, value: self.bulk.complete(value[:200]),
            "bulk": lambda keys, arg, value: self._form(keys),
            "bulk_field": self._fill,
            "earlier": lambda key, arg, value: self._earlier(key),
            "scores": lambda key, arg, value: {"form": self.scores.form(), "result": self._scored(key)},
            "scores_field": self._fill_scores,
            "scores_write": lambda key, arg, value: self.scores.choose(),
            "changes": lambda key, arg, value: {"changes": view.changes(self._latest())},
        }

    def _state(self) -> dict[str, Any]:
        """Return the stored state of the tab, by name: the view of the list, the undo and redo stacks ..."""
        return self.page.project.tab_state(TAB)

    def _keep(self, **changes: Any) -> None:
        """Store changed keys of the tab's state."""
        self.page.project.update_tab(TAB, **changes)

    def _keep_edits(self, changes: dict[str, Any]) -> None:
        """Store changed undo and redo stacks."""
        with self._lock:
            self._keep(edits=self._state().get("edits", {}) | changes)

    def _keep_list(self, **changes: Any) -> None:
        """Store changed keys of the list's view. Unless "page" is among them, the list shows the page of the open image."""
        with self._lock:
            state = {name: each for name, each in self._state().items() if name != "page"}
            self.page.project.keep(TAB, state | changes)

    # -- the requests

    def parts(self, tab: Any, body: dict[str, Any]) -> dict[str, Any]:
        """Return the tab's part of the page's periodic update: {"captions": {"stamp", "work"}}.

        stamp: changes when the script should request the list again; work: progress of a running change of many captions
        """
        if tab != TAB:
            return {}
        self.reading.want()
        if not self.reading.writing and self.reading.report is not None:
            self.edits.follow()
            self.edits.reload_changed(_text(self._state().get("key")))
        return {"captions": {"stamp": self._stamp(), "work": self.rewriting.state()}}

    def _stamp(self) -> str:
        """Return a text that changes whenever the list changes for a reason other than opening an image."""
        view_state = {name: each for name, each in self._state().items() if name != "key"}
        return f"{self.reading.version} {self.reading.busy and self.reading.report is None} {view_state}"

    def answer(self, body: dict[str, Any]) -> dict[str, Any]:
        """Answer a request {"act", "key": of an image, or keys, "arg", "value", ...} of the script. Raises ProblemsError, with nothing
        changed.

        "look"       `text_state` of "text"
        "save"       {"answers": `save` of each of "saves"}
        "give_up"    discard the typed text: `_steps`
        "tags"       `Bulk.tags` with "find" and "order"
        "preset_*"   `_preset`, with "session"

        The acts of `_handlers` are answered by these, all others by `list_state` with "said": message.
        """
        act, key, arg, value = (_text(body.get(name)) for name in ("act", "key", "arg", "value"))
        if act == "look":
            return self.text_state(key, _text(body.get("text"))[:MAX_COUNTED])
        if act == "save":
            saves = body.get("saves")
            return {"answers": [self._saved(each) for each in saves[:MAX_SAVES]] if isinstance(saves, list) else []}
        if act == "give_up":
            self.edits.discard_typed(key, value)
            return self._steps()
        if act == "tags":
            return self.bulk.tags(arg, *(_text(body.get(name))[:200] for name in ("find", "order")))
        if act.startswith("preset_"):
            return self._preset(act, key, arg, value, body.get("session"))
        if act in self._handlers:
            return self._handlers[act](key, arg, value)
        opened, message = self._handle(act, key, arg, value)
        return self.list_state(opened, SEARCH_REACH if act == "find" else REACH) | {"said": message}

    def _saved(self, body: Any) -> dict[str, Any]:
        """Return the answer of `save`, or its {"problems"}, so that the other saves of the message are still done."""
        try:
            return self.save(body if isinstance(body, dict) else {})
        except ProblemsError as error:
            return {"problems": [problem.to_dict() for problem in error.problems]}

    def save(self, body: dict[str, Any]) -> dict[str, Any]:
        """Save the caption {"key", "text", "over": texts that the file may have, "visit"} as `Edits.save` does.

        Returns {"disk": caption on disk, "wrote": whether the file was written, "said": message} and `_steps`; {"conflict": caption on
        disk} if another program has changed the file; {"unknown"} for an unknown image, True unless the dataset is still being read.
        """
        over = body.get("over")
        saved = self.edits.save(
            str(body.get("key", "")),
            _text(body.get("text")),
            [_text(each) for each in over] if isinstance(over, list) else [],
            str(body.get("visit", ""))[:40],
        )
        if saved is None:
            return {"unknown": not self.reading.busy}
        if saved.refused:
            return {"conflict": saved.disk}
        message = f"Saved to {saved.file} at {time.strftime('%H:%M:%S')}" if saved.file else "Saved"
        return {"disk": saved.disk, "wrote": bool(saved.file), "said": message, **self._steps()}

    def text_state(self, key: str, text: str) -> dict[str, Any]:
        """Return {"disk": caption on disk, "meter", "notes"} for a text being typed; {"unknown": True} if the image is gone."""
        placed = self.edits.image(key)
        if placed is None:
            return {"unknown": True}
        if self._state().get("key") != key:
            self._keep(key=key)
        return {"disk": caption_text(self.edits.caption(placed)), **self._about(placed, text)}

    def _handle(self, act: str, key: str, arg: str, value: str) -> tuple[str, str]:
        """Handle an act that changes many captions or the list. Returns (key of the image to open, message or "").

        "open"                      read the dataset if it changed
        "follow"                    show the list's page of the open image
        "undo", "redo"              `_step`
        "bulk_apply"                change the images with the keys `arg`; value: hash of the previewed plan
        "revert"                    undo the change with the id `arg`
        "utf8"                      rewrite the caption files as UTF-8
        "show", "sort", "find", "page"
                                    set this part of the list's view to `value`
        """
        if act == "open":
            self.reading.want(again=True)
            self.reading.wait_for_first()
        if act == "follow":
            self._keep_list()
        elif act in ("undo", "redo"):
            return self._step(act, key)
        elif act == "bulk_apply":
            return key, self.bulk.apply(self._chosen(arg), value, self._changed)
        elif act == "revert":
            return key, self._revert(arg)
        elif act == "utf8":
            return key, self._rewrite_as_utf8()
        elif act == "show":
            self._keep_list(show=value if value in view.SHOWS else "all")
        elif act == "sort":
            self._keep_list(sort=value if value in ORDERS else "folder")
        elif act == "find":
            self._keep_list(find=value[:200])
        elif act == "page":
            self._keep_list(page=page_of(value or arg, 10**6))
        return key, ""

    def _fill(self, keys: str, arg: str, value: str) -> dict[str, Any]:
        """Set field `arg` of the bulk form to the text `value`; an invalid one stays in the field. Returns `_form(keys)`."""
        with suppress(ProblemsError):  # the preview shows the problem
            self.bulk.form.change(arg, value)
        return self._form(keys)

    def _preset(self, act: str, keys: str, arg: str, value: str, session: Any) -> dict[str, Any]:
        """Handle an event of the bulk form's preset bar: `act`, `arg` and `value` as in `PlainForm.act`. Returns `_form(keys)`.
        session: of the browser to which the next periodic update brings the message"""
        current = CURRENT_SESSION.set(_text(session))
        try:
            self.bulk.form.act(act, arg, value)
        finally:
            CURRENT_SESSION.reset(current)
        return self._form(keys)

    def _form(self, keys: str) -> dict[str, Any]:
        """Return {"bulk": HTML of the bulk form and its preview}. keys: of the selected images, separated by spaces"""
        return {"bulk": self.bulk.html(self._chosen(keys))}

    def _fill_scores(self, key: str, arg: str, value: str) -> dict[str, Any]:
        """Set field `arg` of the scores form to the text `value`. Returns {"result": HTML of the tags of the image with this key}."""
        self.scores.fill(arg, value)
        return {"result": self._scored(key)}

    def _scored(self, key: str) -> str:
        """Return the HTML of the tags from stored scores of the image with this key."""
        return self.scores.result(self.edits.image(key))

    def _chosen(self, keys: str, rows: list[Row] | None = None) -> list[Row]:
        """Return the selected rows of the list, or all if none is selected.

        keys: of the selected images, separated by spaces; rows: of the list, None to determine them
        """
        rows, selected = self._rows()[0] if rows is None else rows, set(keys.split())
        return [row for row in rows if key_of(row) in selected] if selected else rows

    def captioner_limits(self, keys: str) -> dict[str, Any]:
        """Return {"only": paths} that limits a captioner to the selected or listed images; {} if these are the whole dataset.

        keys: of the selected images, separated by spaces. Raises ProblemsError if the filter is invalid or no image is listed.
        """
        if not (keys or self._is_filtered()):
            return {}
        rows, filter_problem = self._rows()
        if filter_problem:
            raise ProblemsError.one(filter_problem, "Find", "correct the filter, or empty it", "captions.wrong-filter")
        chosen, report = self._chosen(keys, rows), self.reading.report
        if report is not None and len(chosen) == len(report.rows):
            return {}
        if not chosen:
            what = "The list has no image" if report is not None else "The folder is still being read"
            raise ProblemsError.one(what, "Find", "empty the filter, or wait", "captions.none-listed")
        return {"only": [str(row.path) for row in chosen]}

    def _is_filtered(self) -> bool:
        """Return whether the list is limited by a search or a view."""
        state = self._state()
        return bool(state.get("find")) or str(state.get("show", "all")) != "all"

    def _rows(self) -> tuple[list[Row], str]:
        """Return (rows of the list, problem of the search filter or ""). A filter with a problem matches all rows."""
        state = self._state()
        rows = view.listed(self.reading.report, str(state.get("show", "all")))
        rows = self.bulk.sorted(rows, str(state.get("sort", "")))
        find = str(state.get("find", ""))
        try:
            matches = self.bulk.filtered(rows, find)
        except ProblemsError as error:
            return rows, error.problems[0].what
        unknown = unknown_field_in(find) if rows and not matches else ""
        return matches, f"'{unknown}' is not a field; fields are {', '.join(field_names())}" if unknown else ""

    def _revert(self, id: str) -> str:
        """Undo the change `id` of the history and return a message."""
        files = self._history.file_count(id)

        def work(progress: Progress) -> str:
            with self.reading.paused_for_writing(files):
                result = self._history.undo(id, progress)
                return self._changed(result, self._history.entry(result.id).title if result.id else "Nothing to undo")

        return self.rewriting.run(f"Undo: {self._history.entry(id).title}", files, work)

    def _rewrite_as_utf8(self) -> str:
        """Rewrite all caption files in other encodings as UTF-8 and return a message."""
        title = "Rewrite as UTF-8"

        def work(progress: Progress) -> str:
            paths = [caption.path for caption in non_utf8_captions(self.reading.report)]
            return self._changed(rewrite_as_utf8(self._history, paths), title)

        return self.rewriting.run(title, len(non_utf8_captions(self.reading.report)), work)

    def _latest(self) -> list[tuple[Entry, int, int]]:
        """Return [(change, number of its files, number of its damaged lines)] of the latest MAX_CHANGES changes."""
        latest = islice(self._history.entries(), MAX_CHANGES)
        return [(entry, self._history.file_count(entry.id), self._history.damaged_lines(entry.id)) for entry in latest]

    def _earlier(self, key: str) -> dict[str, Any]:
        """Return {"texts": HTML of the image's earlier captions}."""
        placed = self.edits.image(key)
        texts = self._history.changes_of(self.edits.caption(placed).path, MAX_EARLIER) if placed else []
        return {"texts": view.earlier(texts)}

    def _changed(self, result: ChangeResult, title: str) -> str:
        """Add a change of many captions to the undo stack and return its message."""
        self.edits.changed(result, title)
        left = f"; {count(len(result.changed_since), 'file')} changed since and skipped" if result.changed_since else ""
        noun = "mask" if any(path.suffix == ".png" for path in result.written) else "caption"
        return f"{title}: {count(len(result.written), noun)}{left}"

    def _step(self, act: str, key: str) -> tuple[str, str]:
        """Undo or redo one step (`act`). Returns (key of the image to open, message)."""
        opened = [key]
        next_step = self.edits.next_step(act)

        def work(progress: Progress) -> str:
            try:
                stepped = self.edits.step(act, progress)
            except ProblemsError as error:
                if NO_HISTORY not in error.codes:
                    raise
                return f"The earlier caption of {next_step.name} is no longer available; nothing changed"
            if stepped is None:
                return ""
            step, result = stepped
            self._keep_list()
            if not key or len(result.written) <= 1:
                opened[0] = step.key
            skipped = count(len(result.changed_since), "file") if result.changed_since else ""
            message = f"{'Undone' if act == 'undo' else 'Redone'}: {step.name}"
            return f"{message}; {skipped} changed since and skipped" if skipped else message

        title = f"{'Undo' if act == 'undo' else 'Redo'}: {next_step.name}"
        message = self.rewriting.run(title, self._history.file_count(next_step.id), work)
        return opened[0], message

    def _steps(self) -> dict[str, str]:
        """Return {"undo", "redo": name of the next step, "" for none}."""
        return {which: self.edits.next_step(which).name for which in ("undo", "redo")}

    # -- the images around one

    def list_state(self, key: str, reach: int = REACH) -> dict[str, Any]:
        """Return the list and the captions around the open image, at most `reach` on either side.

        The open image is that of `key`, else the last open one, else the first of the list.

        "open"   key of the open image
        "chain"  keys of the captions around it, in the order of the list
        "at"     index of the open image in "chain"
        "ring"   whether "chain" is the whole list
        "items"  {key: data of the image for the browser}
        "list"   HTML of the list's page, "page" the keys on it
        """
        stamp, state, report = self._stamp(), self._state(), self.reading.report
        show, find = str(state.get("show", "all")), str(state.get("find", ""))
        rows, filter_problem = self._rows()
        known_keys = keys_of(report)
        keys = [known_keys[row.key] if row.key in known_keys else key_of(row) for row in rows]
        key = next((each for each in (key, str(state.get("key", "")), *keys) if self.edits.image(each) is not None), "")
        positions = {each: index_in_list for index_in_list, each in enumerate(keys)}
        page = int(state.get("page", 0)) if "page" in state else positions.get(key, 0) // view.PAGE_SIZE
        if key and state.get("key") != key:
            self._keep(key=key)
        chain, index, is_whole = self._neighbors(key, keys, positions, reach)
        html, first = view.image_list(
            report, rows, key, page, self.page.thumb_url, self.reading.busy, self.reading.first
        )
        on_page = keys[first : first + view.PAGE_SIZE]
        detailed = {key, *chain[max(0, index - DETAILED_REACH) : index + DETAILED_REACH]}
        items = {
            each: self._item(each, positions, len(keys), each in detailed)
            for each in dict.fromkeys([key, *chain, *on_page])
        }
        return {
            "stamp": stamp,
            "open": key,
            "chain": chain,
            "at": index,
            "ring": is_whole,
            "items": {each: item for each, item in items.items() if item},
            "list": html,
            "page": on_page,
            "choices": view.choices(report),
            "show": show,
            "sort": str(state.get("sort", "folder")),
            "find": find,
            "wrong": filter_problem,
            "narrowed": len(rows) if self._is_filtered() and not filter_problem else None,
            "tally": view.counts_html(report) + encoding_notice(report),
            **self._steps(),
        }

    def _neighbors(
        self, key: str, keys: Sequence[str], positions: dict[str, int], reach: int
    ) -> tuple[list[str], int, bool]:
        """Return (keys around the open image, its index among them, whether they are the whole list). The list is circular.

        An open image that no longer matches the view keeps its position. positions: {key: index in `keys`}; reach: keys on either side
        """
        if not keys:
            return ([key], 0, False) if key else ([], -1, False)
        if key in positions and len(keys) <= 2 * reach + 1:
            return list(keys), positions[key], True
        next_index = positions[key] + 1 if key in positions else self._next_listed_index(key, keys)
        previous_index = next_index - 2 if key in positions else next_index - 1
        reach = min(reach, len(keys))
        before = [keys[(previous_index - number) % len(keys)] for number in range(reach)][::-1]
        after = [keys[(next_index + number) % len(keys)] for number in range(reach)]
        return [*before, key, *after], reach, False

    def _next_listed_index(self, key: str, keys: Sequence[str]) -> int:
        """Return the index of the first listed image that follows the unlisted image `key` in the dataset."""
        in_list = set(keys)
        order = list(keys_of(self.reading.report).values())
        position = order.index(key) if key in order else -1
        next_key = next((each for each in order[position + 1 :] if each in in_list), keys[0])
        return keys.index(next_key)

    def _item(self, key: str, positions: dict[str, int], total: int, detailed: bool) -> dict[str, Any] | None:
        """Return an image's data for the browser; None if the image is gone.

        positions   {key: index in the list}
        total       length of the list
        detailed    whether to add "meter" and "notes", see `_about`
        returns     {"name", "disk": caption on disk, "words": class tokens if there is no caption, else "", "fixed": whether it is
                    read-only, "stage": HTML of the image}
        """
        placed = self.edits.image(key)
        if placed is None:
            return None
        caption = self.edits.caption(placed)
        text = caption_text(caption)
        return {
            "name": printable(placed.image.relative),
            "disk": text,
            "words": placed.image.class_tokens if caption.missing else "",
            "fixed": bool(self.edits.read_only(placed)),
            "stage": view.image(placed, positions.get(key, -1), total, self.page.thumb_url),
            **(self._about(placed, text) if detailed else {}),
        }

    def _about(self, placed: Placed, text: str) -> dict[str, str]:
        """Return {"meter", "notes": HTML} for a text of an image; without text and caption file, for the folder's class tokens."""
        settings, class_tokens = placed.concept.captions, placed.image.class_tokens
        caption = self.edits.caption(placed)
        text = class_tokens if caption.missing and not text.strip() else text
        tokens = count_tokens(plain_caption(text, settings, class_tokens))
        limit = self.reading.job.captions.max_token_length
        sharing = view.images_sharing(self.reading.report, placed.image.path, caption.path)
        notes = view.notes(caption, text, settings, class_tokens, self.edits.read_only(placed), limit, sharing)
        return {
            "meter": view.meter(tokens, limit),
            "notes": notes + preview(self.reading.job, self.reading.report, placed, text),
        }


def _text(value: Any) -> str:
    """Return a browser's text with lone surrogates replaced by question marks; "" if it is not a text."""
    return value.encode("utf-8", "replace").decode("utf-8") if isinstance(value, str) else ""
