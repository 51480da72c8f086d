"""The dataset doctor on the page: its findings with their images, moving images to the trash, and restoring them."""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from core.dataset.doctor.examine import KINDS, Finding, treat
from core.dataset.doctor.finding import Key
from core.dataset.doctor.trash import Removal, put_back, undoable_actions
from core.dataset.report import Report
from core.dataset.sources.files import TRASH_FOLDER, printable
from core.record.problems import ProblemsError
from core.record.units import count, listed
from core.record.workspace import display_path, resolve_path
from core.settings.dataset.source import Source
from tabs.context import Page
from tabs.dataset.concepts import entries_of
from tabs.dataset.reading import Reading, key_of
from tabs.markup import button, esc, progress, row_of, section
from tabs.server.browsers import Browser

IMAGES_SHOWN = 12
REMOVED = " <span>would be removed</span>"
FINDINGS_SHOWN = 20
REMOVALS_SHOWN = 4
PUT_BACK = "put_back_images"  # command
MOST_AT_ONCE = 0.25  # of the images; more are moved only after a question


class DoctorHandlers:
    """Handlers of the dataset doctor's buttons. reading: provides the findings"""

    def __init__(self, page: Page, reading: Reading):
        self.page, self.reading = page, reading
        self._removals: tuple[object, list[Removal]] = (None, [])
        self._turn = 0
        self._finished: set[str] = set()
        page.commands[PUT_BACK] = self.undo

    def move_to_trash(self, finding_id: str, entries: Sequence[Source]) -> None:
        """Move the images that a finding advises to remove to the trash of their folders, read the dataset again, and offer Undo.

        Does nothing if repeated for the same finding. Raises ProblemsError if there is no such finding or a folder is not writable.
        """
        finding = next((each for each in self.reading.findings or () if each.id == finding_id), None)
        if finding is None and finding_id in self._finished:  # a second click on the same button
            return
        if finding is None:
            raise ProblemsError.one("This finding no longer exists", "Dataset", "check again", code="doctor.gone")
        moved: list[str] = []
        by_folder = self._by_folder(finding, entries)
        try:
            for folder, keys in by_folder.items():
                moved.append(treat(replace(finding, advised=tuple(keys)), folder))
        except ProblemsError:
            for token in moved:
                put_back(token)
            raise
        self.page.browser.moved_images = moved
        self._turn += 1
        self._finished.add(finding_id)
        self.reading.findings = tuple(each for each in self.reading.findings or () if each.id != finding_id)
        self.reading.want(now=True)
        trash = listed([display_path(resolve_path(folder) / TRASH_FOLDER) for folder in by_folder])
        text = f"{count(len(finding.advised), 'image')} moved to {trash}. Dataset doctor keeps a Restore button."
        self.page.say("done", text, undo_by=PUT_BACK)

    def undo(self, data: dict[str, Any], browser: Browser) -> None:
        """Restore the images that `browser` moved to the trash last. data: unused"""
        # at once: the second of two presses finds nothing to do
        tokens, browser.moved_images = browser.moved_images, []
        for token in tokens:
            self.put_back(token, entries_of(self.page.project.job))

    def _by_folder(self, finding: Finding, entries: Sequence[Source]) -> dict[str, list[Key]]:
        """Return {folder: keys of its images that the finding advises to remove}.

        Raises ProblemsError if the images are no longer in the dataset or a folder is not allowed.
        """
        report, enabled = self.reading.report, [entry for entry in entries if entry.enabled]
        rows = [row for row in report.rows if row.key in set(finding.advised)] if report else []
        if not rows or max(row.concept for row in rows) >= len(enabled):
            what = "The images are no longer in these folders"
            raise ProblemsError.one(what, "Dataset", "reload the folder", "doctor.no-images")
        keys: dict[str, list[Key]] = {}
        for row in rows:
            folder = str(self.page.roots.check_written(enabled[row.concept].folder, "dataset.folder"))
            keys.setdefault(folder, []).append(row.key)
        return keys

    def put_back(self, token: str, entries: Sequence[Source]) -> None:
        """Restore the images of the removal `token` and read the dataset again.

        Raises ProblemsError if no folder of `entries` has this removal in its trash.
        """
        if token not in [each.token for each in self.removals(entries)]:
            raise ProblemsError.one("This was already restored", "Dataset", "check the list", "doctor.already-restored")
        try:
            put_back(token)
        finally:
            self._turn += 1
        self.reading.want(now=True)
        self.page.say("done", "The images were restored from the trash.")

    def removals(self, entries: Sequence[Source]) -> list[Removal]:
        """Return the removals in the trash of the folders `entries` that can be undone, newest first; cached until the next change."""
        key = (self._turn, self.reading.version, tuple(entry.folder for entry in entries))
        if self._removals[0] != key:
            folders = dict.fromkeys(
                resolve_path(entry.folder) for entry in entries if self.page.roots.holds(resolve_path(entry.folder))
            )
            actions = [each for folder in folders for each in undoable_actions(folder)]
            self._removals = (key, sorted(actions, key=lambda each: -each.when))
        return self._removals[1]

    def html(self, entries: Sequence[Source]) -> str:
        """Return the HTML of the findings and the removals that can be undone; "" without either."""
        reading = self.reading
        body = cards(reading.findings, reading.report, self.page.thumb_url, reading.examining)
        body += removals_html(self.removals(entries))
        if not body:
            return ""
        number = len(reading.findings or ())
        return section("Dataset doctor", body, esc(count(number, "finding")) if number else "")


def cards(
    findings: Sequence[Finding] | None,
    report: Report | None,
    thumb_url: Callable[..., str],
    examining: tuple[str, float] | None = None,
) -> str:
    """Return the HTML of the first FINDINGS_SHOWN findings with thumbnails; "" if nothing was examined.

    findings: None before the examination; examining: (text, fraction done) while it runs
    """
    if findings is None:
        return progress(examining[0], examining[1] or None) if examining else ""
    if not findings:
        if report is None or not report.placed:
            return ""  # nothing was examined
        return '<p class="good">No duplicates, blurred images or harmful captions.</p>'
    rows = {row.key: (index, row) for index, row in enumerate(report.rows)} if report else {}
    body = "".join(_finding(finding, rows, thumb_url) for finding in findings[:FINDINGS_SHOWN])
    if len(findings) > FINDINGS_SHOWN:
        body += f'<p class="hint">and {count(len(findings) - FINDINGS_SHOWN, "more finding")}</p>'
    return body


def _finding(finding: Finding, rows: dict, thumb_url: Callable[..., str]) -> str:
    """Return the HTML of a finding with thumbnails. rows: {image key: (index, row) in the report}"""
    advised = set(finding.advised)
    names = Counter(image.key[-1] for group in finding.images for image in group)
    images, images_shown = "", 0
    for group in finding.images:
        if images_shown >= IMAGES_SHOWN:
            break
        items = ""
        for image in group[: IMAGES_SHOWN - images_shown]:
            images_shown += 1
            name, removed = printable(image.key[-1]), image.key in advised
            folder = f"{printable(image.key[0])}/" if names[image.key[-1]] > 1 else ""
            tooltip = ", ".join(
                part for part in (folder + name, image.note, "would be removed" if removed else "") if part
            )
            row = rows.get(image.key)
            opens = f' data-act="open" data-arg="{row[0]}"{row_of(key_of(row[1]))}' if row else " disabled"
            items += (
                f'<button type="button" class="seen{" goes" if removed else ""}"{opens} title="{esc(tooltip)}">'
                f'<img src="{esc(thumb_url(image.path, 96))}" alt="" loading="lazy" decoding="async">'
                f"{folder and f'<b>{esc(folder)}</b>'}<b>{esc(name)}</b> <span>{esc(image.note)}</span>"
                f"{REMOVED if removed else ''}</button>"
            )
        images += f'<div class="seen-group">{items}</div>'
    hidden = finding.count - images_shown
    more = f'<p class="hint">and {count(hidden, "more image")}</p>' if hidden > 0 else ""
    trash_button = ""
    if finding.action == "put away" and finding.advised:
        number = len(finding.advised)
        tooltip = "Moves them with their captions to the trash folder next to the dataset; they can be restored"
        question = (
            f"These are {number:,} of {len(rows):,} images. {tooltip}." if number > MOST_AT_ONCE * len(rows) else ""
        )
        trash_button = button(
            "away", f"Move {number:,} to trash", finding.id, title=tooltip, sure=question, then="back"
        )
    kind = "Error" if finding.level == "error" else "Advice"
    return (
        f'<article class="finding {esc(finding.level)}"><div class="finding-head"><span class="kind">{kind}</span>'
        f"<div><strong>{esc(KINDS.get(finding.kind, finding.kind))}</strong><p>{esc(finding.what)}</p>"
        f'<p class="hint">{esc(finding.fix)}</p></div>{trash_button}</div><div class="seen-row">{images}</div>{more}</article>'
    )


def removals_html(removals: Sequence[Removal]) -> str:
    """Return the HTML of the first REMOVALS_SHOWN removals with a Restore button each, and the number of others; "" without any."""
    rows = ""
    for each in removals[:REMOVALS_SHOWN]:
        when = time.strftime("%d %B, %H:%M", time.localtime(each.when))
        message = f"{count(len(each.images), 'image')} removed on {when}: {each.reason}"
        undo = button("back", "Restore", each.token, label=f"Restore: {message}")
        trash = esc(display_path(Path(each.token).parent))
        rows += f'<div class="told"><span title="{trash}">{esc(message)}</span>{undo}</div>'
    if len(removals) > REMOVALS_SHOWN:
        rows += f'<p class="hint">and {count(len(removals) - REMOVALS_SHOWN, "earlier action")} in the trash folder</p>'
    return f'<div class="away">{rows}</div>' if rows else ""
