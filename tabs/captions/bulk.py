"""Edits of many captions: filter, tags with counts, and changes with a preview and one undo step."""

import difflib
import hashlib
import re
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from core.captioning.bulk import (
    CaptionEdit,
    Item,
    changes_of,
    chosen,
    item_of,
    mixed_spellings,
    planned,
    tag_counts,
    tags_together,
)
from core.captioning.filters import Facts, is_expression
from core.captioning.tag_lists import normalized, tag_lists
from core.dataset.buckets.batches import Placed
from core.dataset.captions.history import ChangeResult, History
from core.dataset.captions.words import comparable, tag_words
from core.dataset.report import Report, Row
from core.record.problems import ProblemsError
from core.record.units import count
from core.settings.captioning.edits import EDITS, CaptionEditSettings
from core.settings.check import build
from core.settings.job import CaptionEditJob
from core.settings.needs import unmet_needs
from core.tasks import tasks
from tabs.captions.rewriting import Progress, Rewriting
from tabs.context import Page
from tabs.dataset.reading import Reading
from tabs.form.form_values import entries
from tabs.form.plain_form import Values
from tabs.form.task_form import TaskForm
from tabs.markup import esc, problems_html

KNOWN = entries(CaptionEditSettings, "edit_captions")
PREVIEWED = 20  # differences in a preview
# Compared characters before and after the first difference, since comparing is quadratic.
MAX_SAME, MAX_DIFFERENT = 400, 1200
_WORD = re.compile(r"\s+|,|[^\s,]+")
MAX_TAGS, QUICK, TOGETHER, OPTIONS = 400, 9, 12, 12
MAX_QUICK_LENGTH = 40  # characters


ORDERS: dict[str, Callable[[Facts], Any] | None] = {
    "folder": None,
    "name": lambda facts: [
        int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", facts.name.casefold())
    ],
    "short": lambda facts: len(facts.text),
    "long": lambda facts: -len(facts.text),
    "newest": lambda facts: -facts.changed,
}
TAG_ORDERS: dict[str, Callable[[tuple[str, int]], Any]] = {  # the most frequent first otherwise
    "rarest": lambda each: (each[1], comparable(each[0])),
    "name": lambda each: comparable(each[0]),
}


class Bulk:
    """Filter, tags and bulk changes of captions.

    storage: (function that returns the stored form values, function that stores them)
    """

    def __init__(
        self,
        page: Page,
        reading: Reading,
        history: History,
        rewriting: Rewriting,
        storage: tuple[Callable[[], Any], Callable[[Values], None]],
    ):
        self._reading, self._history, self._workspace = reading, history, page.workspace
        self._rewriting = rewriting
        self.form = TaskForm(page, tasks()["edit_captions"], "cap-bulk", "bulk_field", storage)
        self._lock = threading.Lock()
        self._items_of: tuple[Report | None, Any] = (None, None)
        self._items: dict[tuple[str, str], tuple[Placed, Row, Item]] = {}
        self._planned: tuple[Any, list[CaptionEdit]] = (None, [])
        self._sorted: tuple[Any, str, Any, list[Row]] = (None, "", None, [])
        self._searched: tuple[Report | None, dict[tuple[str, str], tuple[Row, str]]] = (None, {})
        self._counted: tuple[Any, list[tuple[str, int]], dict[str, list[str]], int] = (None, [], {}, 0)

    # -- the images

    def items(self) -> dict[tuple[str, str], Item]:
        """Return {image key: item} of the images whose captions can be edited; items of unchanged rows are reused."""
        report, findings = self._reading.report, self._reading.findings
        with self._lock:
            if self._items_of[0] is not report or self._items_of[1] is not findings:
                placed = (
                    {each.image.key: each for each in (*report.validation, *reversed(report.placed))} if report else {}
                )
                kinds = _finding_kinds(findings or ())
                reusable = self._items if self._items_of[1] is findings else {}
                self._items = {
                    row.key: _entry(reusable.get(row.key), placed[row.key], row, kinds.get(row.key, ()))
                    for row in (report.rows if report else ())
                    if row.key in placed and row.bucket is not None
                }
                self._items_of = (report, findings)
            return {key: item for key, (_, _, item) in self._items.items()}

    def sorted(self, rows: list[Row], order: str) -> list[Row]:
        """Return the rows in an order of ORDERS; unchanged for an unknown order."""
        if order not in ORDERS or ORDERS[order] is None:
            return rows
        items, key = self.items(), ORDERS[order]
        sorted_rows, sorted_by, sorted_items, result = self._sorted
        if sorted_rows is not rows or sorted_by != order or sorted_items is not self._items:
            result = sorted(rows, key=lambda row: key(items[row.key]) if row.key in items else 0)  # type: ignore[misc]
            self._sorted = (rows, order, self._items, result)
        return result

    def filtered(self, rows: Sequence[Row], find: str) -> list[Row]:
        """Return the rows that match a text or a filter expression. Raises ProblemsError for an incomplete expression."""
        find = find.strip()
        if not find:
            return list(rows)
        if not is_expression(find):
            text, texts = normalized(find), self._search_texts()
            return [row for row in rows if text in _search_text(texts.get(row.key), row)[1]]
        items = self.items()
        matching = {id(each) for each in chosen(list(items.values()), find)}
        return [row for row in rows if row.key in items and id(items[row.key]) in matching]

    def _search_texts(self) -> dict[tuple[str, str], tuple[Row, str]]:
        """Return {image key: (row, normalized text to search)}; texts of unchanged rows are reused."""
        report = self._reading.report
        with self._lock:
            if self._searched[0] is not report:
                before = self._searched[1]
                texts = {row.key: _search_text(before.get(row.key), row) for row in (report.rows if report else ())}
                self._searched = (report, texts)
            return self._searched[1]

    # -- tags

    def tags(self, tag: str, find: str = "", order: str = "") -> dict[str, Any]:
        """Return the data of the tag list.

        tag    tag whose companions are listed, "" for none
        find   text that listed tags contain
        order  key of TAG_ORDERS; most frequent first otherwise

        "tags"      [(tag, count)], at most MAX_TAGS
        "found"     number of tags that contain `find`
        "all"       number of all tags
        "known"     the most frequent tags
        "quick"     short ones of the QUICK most frequent
        "shared"    tags of the QUICK most frequent that every caption has
        "mixed"     {listed tag: its other spellings}
        "together"  tags that often occur with `tag`; only if given
        """
        counts, mixed, captions = self._counts()
        text = comparable(find)
        listed = [each for each in counts if text in comparable(each[0])]
        if order in TAG_ORDERS:
            listed.sort(key=TAG_ORDERS[order])
        result: dict[str, Any] = {"tags": listed[:MAX_TAGS], "found": len(listed), "all": len(counts)}
        result["known"] = [each for each, _ in counts[: 10 * MAX_TAGS]]
        result["quick"] = [each for each, number in counts[:QUICK] if len(each) <= MAX_QUICK_LENGTH]
        result["shared"] = [each for each, number in counts[:QUICK] if number == captions]
        result["mixed"] = {each: mixed[each] for each, _ in listed[:MAX_TAGS] if each in mixed}
        if tag.strip():
            result["together"] = tags_together(self.items().values(), tag, TOGETHER)
        return result

    def _counts(self) -> tuple[list[tuple[str, int]], dict[str, list[str]], int]:
        """Return ([(tag, count)], `mixed_spellings`, number of captions) of the newest report."""
        self.items()  # updates `_items`
        with self._lock:
            if self._counted[0] is not self._items:
                # Items without a caption have class tokens of a folder, which are not tags.
                captioned = [item for _, _, item in self._items.values() if not item.missing]
                self._counted = (self._items, tag_counts(captioned), mixed_spellings(captioned), len(captioned))
            return self._counted[1:]

    def complete(self, text: str) -> dict[str, Any]:
        """Return {"options": [{"tag", "count", "alias": spelling that matched or ""}], "lists": problems of the tag lists as dicts}: at
        most OPTIONS tags that begin with `text`.

        Tags of the dataset come first, then those of the lists in models/tag_lists.
        """
        prefix = comparable(text)
        counts = self._counts()[0] if prefix else []
        matches = [(tag, number, "") for tag, number in counts if comparable(tag).startswith(prefix)][:OPTIONS]
        offered = {comparable(tag) for tag, _, _ in matches}
        lists, problems = tag_lists(self._workspace)
        listed = lists.complete(text, OPTIONS) if len(matches) < OPTIONS else []
        matches += [
            (tag_words(each.tag), each.post_count, each.alias) for each in listed if comparable(each.tag) not in offered
        ]
        names = ("tag", "count", "alias")
        options = [dict(zip(names, each, strict=True)) for each in matches[:OPTIONS]]
        return {"options": options, "lists": [problem.to_dict() for problem in problems]}

    # -- changes

    def settings(self) -> CaptionEditSettings:
        """Return the settings of the form's change. Raises ProblemsError."""
        return build(CaptionEditJob, {"edit_captions": self.form.load()}).edit_captions

    def plan(self, rows: Iterable[Row]) -> list[CaptionEdit]:
        """Return the edits that the form's change makes to these rows; cached between preview and apply. Raises ProblemsError."""
        self.form.check()
        items, settings = self.items(), self.settings()
        chosen_items = [items[row.key] for row in rows if row.key in items]
        planned_for, plan = self._planned
        if planned_for is None or planned_for != (settings, chosen_items):
            plan = planned(chosen_items, settings)
            self._planned = ((settings, chosen_items), plan)
        return plan

    def apply(self, rows: Sequence[Row], previewed: str, message_of: Callable[[ChangeResult, str], str]) -> str:
        """Write the form's change to the captions of `rows` and return a message.

        previewed   `plan_hash` of the preview; raises ProblemsError if it is another one by now
        message_of  function of (result, title) that returns the message
        """
        settings, plan = self.settings(), self.plan(rows)
        title = EDITS[settings.edit]
        if plan_hash(settings, plan) != previewed:
            what = f"A caption, the list or the form has changed: now {count(len(plan), 'caption')} would change"
            fix = "check the new preview, then press the button again"
            raise ProblemsError.one(what, "Change many captions", fix, code="edit.changed-meanwhile")
        if not plan:
            return "No caption would change."
        return self._rewriting.run(title, len(plan), lambda progress: self._write(title, plan, message_of, progress))

    def _prompts_note(self) -> str:
        """Return a note if Train's sample prompts still contain a replaced or removed text, else ""."""
        settings, prompts = self.settings(), self._reading.prompts
        edited = {"replace": [settings.find] if settings.match != "regex" else [], "remove": settings.tags.split(",")}
        remaining = [
            text.strip()
            for text in edited.get(settings.edit, ())
            if text.strip() and any(text.strip().casefold() in prompt.casefold() for prompt in prompts)
        ]
        return f"; the sample prompts on Train still have '{remaining[0][:60]}'" if remaining else ""

    def _write(
        self, title: str, plan: list[CaptionEdit], message_of: Callable[[ChangeResult, str], str], progress: Progress
    ) -> str:
        """Write the edits of a plan to the caption files and return the message. Arguments as of `apply`."""
        with self._reading.paused_for_writing(len(plan)):
            result = self._history.apply(title, changes_of(plan), progress=progress)
            return message_of(result, title) + self._prompts_note()

    # -- the form

    def html(self, rows: Sequence[Row]) -> str:
        """Return the HTML of the form of the chosen change, and of the change's preview for these rows."""
        settings = self.settings()
        hidden = {"filter", "preview", *unmet_needs(CaptionEditSettings, settings.__dict__)}
        if settings.edit != "separator" and settings.separator == KNOWN["separator"].default:
            hidden.add("separator")
        names = tuple(name for name in KNOWN if name not in hidden)
        preview = self._preview(rows)
        fields = f'<div class="concept-fields">{self.form.fields(names)}</div>'
        return f"{self.form.bar()}{fields}{self._affix_note(settings)}{preview}"

    def _affix_note(self, settings: CaptionEditSettings) -> str:
        """Return the HTML of a note on the prefix or suffix that training adds, if the change writes one into the files; else ""."""
        if settings.edit not in ("prefix", "suffix"):
            return ""
        captions = self._reading.job.captions
        added = captions.caption_prefix if settings.edit == "prefix" else captions.caption_suffix
        note = "Written into the caption files. The one on Train is added during training instead; use one of the two."
        if added:
            note = f"Training adds '{added}' to every caption as well: empty it on Train, or the captions have both."
        return f'<p class="hint">{esc(note)}</p>'

    def _preview(self, rows: Sequence[Row]) -> str:
        """Return the HTML of the differences that the change would make, or of its problems, whose fields are marked."""
        self.form.mark(())
        try:
            plan = self.plan(rows)
        except ProblemsError as error:
            if set(error.codes) <= {"edit.incomplete"}:
                missing = "; ".join(each.what for each in error.problems)
                return f'<p class="hint bulk-says" role="status">{esc(missing)}.</p>'
            self.form.mark(error.problems)
            return f'<div class="bulk-says">{problems_html(error.problems)}</div>'
        items = "".join(_difference(each) for each in plan[:PREVIEWED])
        more = f"<li>and {len(plan) - PREVIEWED:,} more</li>" if len(plan) > PREVIEWED else ""
        shown = plan_hash(self.settings(), plan)
        summary = f"{count(len(plan), 'caption')} of {len(rows):,} would change."
        apply = (
            f'<button type="button" class="btn primary" id="cap-bulk-go" data-act="bulk_apply" data-arg="{shown}">'
            f"Change {count(len(plan), 'caption')}</button>"
            if plan
            else ""
        )
        return f'<p class="hint bulk-says" role="status">{esc(summary)}</p>{apply}<ul class="plain differences">{items}{more}</ul>'


def plan_hash(settings: CaptionEditSettings, plan: Iterable[CaptionEdit]) -> str:
    """Return a hash of a change and the files that it writes; not of their texts, one of which may be saved by the same click."""
    digest = hashlib.blake2b(repr(settings).encode("utf-8", "surrogatepass"), digest_size=12)
    for each in plan:
        digest.update(f"\0{each.item.path}".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def _difference(edit: CaptionEdit) -> str:
    """Return the HTML of a caption's change: removed and added parts marked, long equal parts shortened."""
    texts = edit.before, edit.after
    start = next((index for index, (a, b) in enumerate(zip(*texts)) if a != b), min(map(len, texts)))
    before, after = ([*_WORD.findall(text[max(0, start - MAX_SAME) : start + MAX_DIFFERENT])] for text in texts)
    parts = ["… "] if start > MAX_SAME else []
    for kind, a, b, c, d in difflib.SequenceMatcher(None, before, after, autojunk=False).get_opcodes():
        old, new = "".join(before[a:b]), "".join(after[c:d])
        if kind == "equal":
            parts.append(esc(old if len(old) <= 60 else f"{old[:25]} … {old[-25:]}"))
        else:
            parts += [f"<{tag}>{esc(text)}</{tag}>" for tag, text in (("del", old), ("ins", new)) if text]
    ending = " …" if max(map(len, texts)) > start + MAX_DIFFERENT else ""
    return f"<li><b>{esc(edit.item.name)}</b> {''.join(parts)}{ending}</li>"


def _finding_kinds(findings: Iterable[Any]) -> dict[tuple[str, str], tuple[str, ...]]:
    """Return {image key: kinds of the dataset doctor's findings about it}."""
    kinds: dict[tuple[str, str], tuple[str, ...]] = {}
    for finding in findings:
        for image in (each for group in finding.images for each in group):
            kinds[image.key] = (*kinds.get(image.key, ()), finding.kind)
    return kinds


def _search_text(cached: tuple[Row, str] | None, row: Row) -> tuple[Row, str]:
    """Return (row, normalized name and caption); `cached` if it belongs to the same row."""
    return cached if cached is not None and cached[0] is row else (row, normalized(f"{row.key[1]}\n{row.caption}"))


def _entry(cached: Any, placed: Placed, row: Row, finding_kinds: tuple[str, ...]) -> tuple[Placed, Row, Item]:
    """Return (placed, row, item) of an image; `cached`, whose tags are parsed already, if the image is unchanged."""
    if cached is not None and cached[0] is placed and cached[1] is row:
        return cached  # type: ignore[no-any-return]
    image, caption = placed.image, placed.caption
    bucket = f"{row.bucket[0]}x{row.bucket[1]}" if row.bucket else ""
    extension = placed.concept.captions.caption_extension
    return placed, row, item_of(image, caption, extension, row.tokens or 0, bucket, finding_kinds)
