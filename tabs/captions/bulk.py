"""Many captions at once on the Captions tab: the filter, the tags with their counts, and changes with a preview and one undo."""

from __future__ import annotations

import difflib
import hashlib
import re
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from core.captioning.bulk import Edited, Item, changes_of, chosen, item_of, planned, tag_counts, tags_together
from core.captioning.combining import comparable
from core.captioning.filters import Facts, is_expression
from core.captioning.tag_lists import tag_lists
from core.dataset.buckets.batches import Placed
from core.dataset.captions.history import Done, History
from core.dataset.captions.words import tag_words
from core.dataset.report import Report, Row
from core.record.problems import ProblemsError
from core.record.units import count
from core.settings.captioning.edits import EDITS, USES, CaptionEditSettings
from core.settings.check import build
from core.settings.job import CaptionEditJob
from core.tasks import tasks
from tabs.captions.rewriting import Progress, Rewriting
from tabs.context import Page
from tabs.dataset.reading import Reading
from tabs.form.form_values import entries
from tabs.form.plain_presets import Values
from tabs.form.task_form import TaskForm
from tabs.markup import esc, problems_html

KNOWN = entries(CaptionEditSettings, "edit_captions")
SHOWN = 20  # differences in a preview
LONGEST_SAME, LONGEST_SHOWN = (
    400,
    1200,
)  # characters of a difference before and after where it begins: comparing is quadratic
_WORD = re.compile(r"\s+|,|[^\s,]+")
MOST_TAGS, QUICK, TOGETHER, OPTIONS = 400, 9, 12, 12
LONGEST_QUICK = 40  # characters


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
    """rewriting: runs work on the light lane. kept: reads the fields of the form as plain values, and keeps them."""

    def __init__(
        self,
        page: Page,
        reading: Reading,
        history: History,
        rewriting: Rewriting,
        kept: tuple[Callable[[], Any], Callable[[Values], None]],
    ):
        self._reading, self._history, self._workspace = reading, history, page.workspace
        self._rewriting = rewriting
        self.form = TaskForm(page, tasks()["edit_captions"], "cap-bulk", "bulk_field", kept)
        self._lock = threading.Lock()
        self._of: tuple[Report | None, Any] = (None, None)
        self._items: dict[tuple[str, str], tuple[Placed, Row, Item]] = {}
        self._planned: tuple[Any, list[Edited]] = (None, [])
        self._sorted: tuple[Any, str, Any, list[Row]] = (None, "", None, [])
        self._searched: tuple[Report | None, dict[tuple[str, str], tuple[Row, str]]] = (None, {})
        self._counted: tuple[Any, list[tuple[str, int]]] = (None, [])

    # -- the images

    def items(self) -> dict[tuple[str, str], Item]:
        """Every image whose caption can be changed, by its key; what has not changed since is kept."""
        report, findings = self._reading.report, self._reading.findings
        with self._lock:
            if self._of[0] is not report or self._of[1] is not findings:
                placed = (
                    {each.image.key: each for each in (*report.validation, *reversed(report.placed))} if report else {}
                )
                found = _found(findings or ())
                before = self._items if self._of[1] is findings else {}
                self._items = {
                    row.key: _kept(before.get(row.key), placed[row.key], row, found.get(row.key, ()))
                    for row in (report.rows if report else ())
                    if row.key in placed and row.bucket is not None
                }
                self._of = (report, findings)
            return {key: item for key, (_, _, item) in self._items.items()}

    def sorted(self, rows: list[Row], order: str) -> list[Row]:
        """The rows in one of ORDERS; as the folder has them otherwise."""
        if order not in ORDERS or ORDERS[order] is None:
            return rows
        items, key = self.items(), ORDERS[order]
        of, by, known, found = self._sorted
        if of is not rows or by != order or known is not self._items:
            found = sorted(rows, key=lambda row: key(items[row.key]) if row.key in items else 0)  # type: ignore[misc]
            self._sorted = (rows, order, self._items, found)
        return found

    def filtered(self, rows: Sequence[Row], find: str) -> list[Row]:
        """The rows that a text or an expression takes. Raises ProblemsError for an expression that is not complete."""
        find = find.strip()
        if not find:
            return list(rows)
        if not is_expression(find):
            wanted, words = find.casefold(), self._words()
            return [row for row in rows if wanted in _searched(words.get(row.key), row)[1]]
        items = self.items()
        taken = {id(each) for each in chosen(list(items.values()), find)}
        return [row for row in rows if row.key in items and id(items[row.key]) in taken]

    def _words(self) -> dict[tuple[str, str], tuple[Row, str]]:
        """{address of an image: its row, and what is searched of it}; made again only of rows that are other ones now."""
        report = self._reading.report
        with self._lock:
            if self._searched[0] is not report:
                before = self._searched[1]
                words = {row.key: _searched(before.get(row.key), row) for row in (report.rows if report else ())}
                self._searched = (report, words)
            return self._searched[1]

    # -- tags

    def tags(self, beside: str, find: str = "", order: str = "") -> dict[str, Any]:
        """The tags of the dataset that contain a text, with their counts, in one of TAG_ORDERS; the quick ones of all, and those
        that stand next to one."""
        items = list(self.items().values())
        counts, wanted = self._counts(items), comparable(find)
        listed = [each for each in counts if wanted in comparable(each[0])]
        if order in TAG_ORDERS:
            listed.sort(key=TAG_ORDERS[order])
        found: dict[str, Any] = {"tags": listed[:MOST_TAGS], "found": len(listed), "all": len(counts)}
        found["known"] = [tag for tag, _ in counts[: 10 * MOST_TAGS]]
        found["quick"] = [tag for tag, number in counts[:QUICK] if len(tag) <= LONGEST_QUICK]
        if beside.strip():
            found["together"] = tags_together(items, beside, TOGETHER)
        return found

    def _counts(self, items: list[Item]) -> list[tuple[str, int]]:
        """All tags with their counts, of the newest report."""
        with self._lock:
            if self._counted[0] is not self._items:
                own = (each for each in items if not each.missing)  # the words of a folder are not tags
                self._counted = (self._items, tag_counts(own, 1 << 30))
            return self._counted[1]

    def complete(self, text: str) -> dict[str, Any]:
        """Known tags that begin like this: of the dataset first, then of the lists in models/tag_lists; and what is wrong
        with those lists."""
        wanted = comparable(text)
        counts = self._counts(list(self.items().values())) if wanted else []
        found = [(tag, number, "") for tag, number in counts if comparable(tag).startswith(wanted)][:OPTIONS]
        known = {comparable(tag) for tag, _, _ in found}
        lists, problems = tag_lists(self._workspace)
        listed = lists.complete(text, OPTIONS) if len(found) < OPTIONS else []
        found += [(tag_words(each.tag), each.times, each.alias) for each in listed if comparable(each.tag) not in known]
        names = ("tag", "count", "alias")
        options = [dict(zip(names, each, strict=True)) for each in found[:OPTIONS]]
        return {"options": options, "lists": [problem.to_dict() for problem in problems]}

    # -- changes

    def settings(self) -> CaptionEditSettings:
        return build(CaptionEditJob, {"edit_captions": self.form.load()}).edit_captions

    def plan(self, rows: Iterable[Row]) -> list[Edited]:
        """What the change would do. Raises ProblemsError. The one of the preview is that of the change while nothing differs."""
        self.form.check()
        items, settings = self.items(), self.settings()
        asked = [items[row.key] for row in rows if row.key in items]
        before, plan = self._planned
        if before is None or before != (settings, asked):
            plan = planned(asked, settings)
            self._planned = ((settings, asked), plan)
        return plan

    def apply(self, rows: Sequence[Row], seen: str, done: Callable[[Done, str], str]) -> str:
        """Make the change; what to say. `done` is called with what became of it.

        seen   the mark of the plan that was shown. Raises ProblemsError where it is another one now: form and filter are those of
               every window
        """
        title, plan = EDITS[self.settings().edit], self.plan(rows)
        if mark_of(plan) != seen:
            what = "The list or the form has changed since the preview"
            fix = "check the new preview, then press the button again"
            raise ProblemsError.one(what, "Change many captions", fix, code="edit.changed-meanwhile")
        if not plan:
            return "No caption would change."
        return self._rewriting.run(title, len(plan), lambda progress: self._write(title, plan, done, progress))

    def _also_in_prompts(self) -> str:
        """That a text which is replaced or removed still stands in the sample prompts of Train."""
        settings, prompts = self.settings(), self._reading.prompts
        gone = {"replace": [settings.find] if settings.match != "regex" else [], "remove": settings.tags.split(",")}
        left = [
            words.strip()
            for words in gone.get(settings.edit, ())
            if words.strip() and any(words.strip().casefold() in prompt.casefold() for prompt in prompts)
        ]
        return f"; the sample prompts on Train still have '{left[0][:60]}'" if left else ""

    def _write(self, title: str, plan: list[Edited], done: Callable[[Done, str], str], progress: Progress) -> str:
        with self._reading.undisturbed(len(plan)):
            result = self._history.apply(title, changes_of(plan), progress=progress)
            return done(result, title) + self._also_in_prompts()

    # -- the form

    def html(self, rows: Sequence[Row]) -> str:
        """The fields of the chosen change, and what it would do to the images of the list."""
        settings = self.settings()
        names = ("edit", *USES.get(settings.edit, ()))
        if settings.edit == "add" and settings.place != "after":
            names = tuple(name for name in names if name != "after")
        if settings.separator != KNOWN["separator"].default and "separator" not in names:
            names += ("separator",)
        preview = self._preview(rows)
        fields = f'<div class="concept-fields">{self.form.fields(names)}</div>'
        return f"{self.form.bar()}{fields}{self._twice(settings)}{preview}"

    def _twice(self, settings: CaptionEditSettings) -> str:
        """That training adds a prefix or suffix of its own."""
        if settings.edit not in ("prefix", "suffix"):
            return ""
        captions = self._reading.job.captions
        own = captions.caption_prefix if settings.edit == "prefix" else captions.caption_suffix
        says = "Written into the caption files. The one on Train is added during training instead; use one of the two."
        if own:
            says = f"Training adds '{own}' to every caption as well: empty it on Train, or the captions have both."
        return f'<p class="hint">{esc(says)}</p>'

    def _preview(self, rows: Sequence[Row]) -> str:
        """What the change would do; the fields that are wrong are marked."""
        self.form.mark(())
        try:
            plan = self.plan(rows)
        except ProblemsError as error:
            if set(error.codes) <= {"edit.incomplete"}:
                says = "; ".join(each.what for each in error.problems)
                return f'<p class="hint bulk-says" role="status">{esc(says)}.</p>'
            self.form.mark(error.problems)
            return f'<div class="bulk-says">{problems_html(error.problems)}</div>'
        lines = "".join(_difference(each) for each in plan[:SHOWN])
        more = f"<li>and {len(plan) - SHOWN:,} more</li>" if len(plan) > SHOWN else ""
        says = f"{count(len(plan), 'caption')} of {len(rows):,} would change."
        go = (
            f'<button type="button" class="btn primary" id="cap-bulk-go" data-act="bulk_apply" data-arg="{mark_of(plan)}">'
            f"Change {count(len(plan), 'caption')}</button>"
            if plan
            else ""
        )
        return f'<p class="hint bulk-says" role="status">{esc(says)}</p>{go}<ul class="plain differences">{lines}{more}</ul>'


def mark_of(plan: Iterable[Edited]) -> str:
    """Differs for plans that write other texts or other files."""
    mark = hashlib.blake2b(digest_size=12)
    for each in plan:
        mark.update(f"{each.item.path}\0{each.after}\0".encode("utf-8", "surrogatepass"))
    return mark.hexdigest()


def _difference(each: Edited) -> str:
    """A caption before and after: what goes and what comes is marked, what stays is shortened."""
    texts = each.before, each.after
    same = next((at for at, (a, b) in enumerate(zip(*texts)) if a != b), min(map(len, texts)))
    before, after = ([*_WORD.findall(text[max(0, same - LONGEST_SAME) : same + LONGEST_SHOWN])] for text in texts)
    parts = ["… "] if same > LONGEST_SAME else []
    for kind, a, b, c, d in difflib.SequenceMatcher(None, before, after, autojunk=False).get_opcodes():
        gone, new = "".join(before[a:b]), "".join(after[c:d])
        if kind == "equal":
            parts.append(esc(gone if len(gone) <= 60 else f"{gone[:25]} … {gone[-25:]}"))
        else:
            parts += [f"<{tag}>{esc(text)}</{tag}>" for tag, text in (("del", gone), ("ins", new)) if text]
    cut = " …" if max(map(len, texts)) > same + LONGEST_SHOWN else ""
    return f"<li><b>{esc(each.item.name)}</b> {''.join(parts)}{cut}</li>"


def _found(findings: Iterable[Any]) -> dict[tuple[str, str], tuple[str, ...]]:
    """{key of an image: the kinds of its findings}."""
    found: dict[tuple[str, str], tuple[str, ...]] = {}
    for finding in findings:
        for seen in (each for group in finding.images for each in group):
            found[seen.key] = (*found.get(seen.key, ()), finding.kind)
    return found


def _searched(before: tuple[Row, str] | None, row: Row) -> tuple[Row, str]:
    """Name and caption of an image without case; those before where the row is the same."""
    return before if before is not None and before[0] is row else (row, f"{row.key[1]}\n{row.caption}".casefold())


def _kept(before: Any, placed: Placed, row: Row, found: tuple[str, ...]) -> tuple[Placed, Row, Item]:
    """The item of an image; the one before where nothing changed: its tags are known."""
    if before is not None and before[0] is placed and before[1] is row:
        return before  # type: ignore[no-any-return]
    image, caption = placed.image, placed.caption
    bucket = f"{row.bucket[0]}x{row.bucket[1]}" if row.bucket else ""
    extension = placed.concept.captions.caption_extension
    return placed, row, item_of(image, caption, extension, row.tokens or 0, bucket, found)
