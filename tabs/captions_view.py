"""The Captions tab as HTML: the list, the picture, and what is to be said about a caption."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from core.dataset.batches import Placed
from core.dataset.caption_files import OWN, Caption
from core.dataset.captions import plain_caption
from core.dataset.files import printable
from core.dataset.report import Report, Row
from core.record.workspace import display_path
from core.settings.captions import CaptionSettings
from tabs.caption_edits import key_of
from tabs.context import empty_state, problems_html
from tabs.markup import button, choice_list, count, crop_frame, esc, page_count, pager, progress, section, short
from tabs.tokens import WINDOWS, words_on_length

PAGE_SIZE = 60

SHOWS: dict[str, tuple[str, Callable[[Row], bool]]] = {
    "all": ("all pictures", lambda row: True),
    "none": ("without a caption of their own", lambda row: row.source not in OWN),
    "long": ("longer than 75 tokens", lambda row: (row.tokens or 0) > WINDOWS[0]),
}


def listed(report: Report | None, show: str, find: str = "") -> list[Row]:
    """The pictures that train or are held out, of the chosen kind, whose name or caption holds the words looked for."""
    test = SHOWS.get(show, SHOWS["all"])[1]
    wanted = find.casefold().strip()
    rows = [row for row in report.rows if row.bucket is not None and test(row)] if report else []
    return [row for row in rows if wanted in f"{row.key[1]}\n{row.caption}".casefold()] if wanted else rows


def picture_list(
    report: Report | None,
    rows: Sequence[Row],
    key: str,
    page: int,
    show: str,
    find: str,
    thumb_url: Callable[..., str],
    busy: bool = False,
) -> str:
    """One page of the list; the open picture is marked."""
    if report is None and busy:
        return section("Pictures", progress("Reading the folder", None))
    if report is None or all(row.bucket is None for row in report.rows):
        return section("Pictures", empty_state("No pictures to caption.", "Choose a folder in Dataset."))
    trained = [row for row in report.rows if row.bucket is not None]
    choices = [(f"{words} ({sum(test(row) for row in trained):,})", name) for name, (words, test) in SHOWS.items()]
    pages = page_count(len(rows), PAGE_SIZE)
    page = max(0, min(page, pages - 1))
    part = rows[page * PAGE_SIZE : (page + 1) * PAGE_SIZE]
    items = "".join(
        _item(row, key_of(row) == key, number + page * PAGE_SIZE, thumb_url) for number, row in enumerate(part)
    )
    body = (
        f'<ul class="picks">{items}</ul>'
        if items
        else empty_state("None of these.", "Choose another view, or clear the words to find.")
    )
    controls = (
        f'<div class="list-controls">{choice_list("show", choices, show, "Which pictures are listed")}'
        f'<input type="text" data-act="find" value="{esc(find)}" placeholder="find in names and captions" '
        f'aria-label="Find in names and captions"></div>'
    )
    return section("Pictures", controls + body + pager("page", page, pages))


def _item(row: Row, current: bool, number: int, thumb_url: Callable[..., str]) -> str:
    name = printable(row.key[1])
    said = esc(short(row.caption, 70)) if row.source in OWN else "<i>no caption of its own</i>"
    long = f' <span class="over">{row.tokens} tokens</span>' if (row.tokens or 0) > WINDOWS[0] else ""
    mark = ' aria-current="true"' if current else ""
    return (
        f'<li><button type="button" class="pick" data-act="pick" data-arg="{number}"{mark}>'
        f'<img src="{esc(thumb_url(row.path, 96))}" alt="" loading="lazy" decoding="async">'
        f'<span><b>{esc(name)}</b><span class="says">{said}{long}</span></span></button></li>'
    )


def picture(placed: Placed | None, place: int, total: int, thumb_url: Callable[..., str]) -> str:
    """The picture, as large as fits, with the frame of what trains."""
    if placed is None:
        return '<div class="stage empty-stage"></div>'
    name = printable(placed.picture.relative)
    width, height = placed.picture.width, placed.picture.height
    frame = crop_frame(placed.placement.frame)
    bucket = placed.placement.bucket
    where = f"{place + 1:,} of {total:,}" if place >= 0 else f"not in this list of {total:,}"
    return (
        f'<figure class="stage"><div class="pic {"wide" if width >= height else "tall"}" '
        f'style="aspect-ratio:{width}/{height}">'
        f'<img src="{esc(thumb_url(placed.picture.path, 768))}" alt="{esc(name)}">{frame}</div>'
        f"<figcaption><b>{esc(name)}</b><span>{esc(where)}</span>"
        f'<span class="hint">{width} × {height}, trains at {bucket[0]} × {bucket[1]}</span></figcaption></figure>'
    )


def meter(tokens: int, longest: int) -> str:
    """A bar with the marks of one, two and three passes through the text encoder."""
    scale = max(WINDOWS[-1], tokens)
    kept = min(tokens, longest)
    over = tokens - kept
    marks = "".join(
        f'<span class="notch{" limit" if at == longest else ""}" style="left:{100 * at / scale:.2f}%"><i>'
        f"</i>{at}</span>"
        for at in WINDOWS
    )
    words = words_on_length(tokens, longest)
    return (
        f'<div class="meter{" too-long" if over else ""}"><div class="counted" role="status">{esc(words)}</div>'
        f'<div class="track" role="img" aria-label="{esc(words)}"><span class="kept" '
        f'style="width:{100 * kept / scale:.2f}%"></span>'
        f'<span class="over" style="width:{100 * over / scale:.2f}%"></span>{marks}</div></div>'
    )


def notes(caption: Caption, text: str, settings: CaptionSettings, words: str = "") -> str:
    """Where the text comes from, and what will be learnt when that is not the text itself."""
    name = esc(printable(caption.path.name))
    said = {
        "file": f"From <code>{name}</code>.",
        "blank": f"<code>{name}</code> is empty, so the picture is learnt as an empty caption.",
        "metadata": "From the folder's metadata file, which comes before a caption file: edit it there.",
        "words": f"No caption file: these are the folder's words. Saving writes <code>{name}</code>.",
        "none": f"No caption file, and the folder has no words. Saving writes <code>{name}</code>.",
    }[caption.source]
    parts = [f'<p class="hint" title="{esc(display_path(caption.path))}">{said}</p>']
    learnt = plain_caption(text, settings, words)
    if learnt.strip() != text.strip():
        lines = sum(bool(line.strip()) for line in text.split("\n"))
        why = "Only the first line is learnt: " if lines > 1 and settings.caption_lines == "first" else "Learnt as: "
        parts.append(f'<p class="hint">{why}<q>{esc(learnt)}</q></p>')
    if caption.problem is not None:
        parts.append(problems_html([caption.problem]))
    return "".join(parts)


def actions(place: int, total: int, undo_name: str, redo_name: str, enabled: bool) -> str:
    """Previous, next, save, undo; each names its key."""
    before = button(
        "previous", "Previous", title="Alt + Left, or Left when not typing", disabled=not enabled or total < 2
    )
    after = button("next", "Next", title="Alt + Right, or Right when not typing", disabled=not enabled or total < 2)
    save = button("save", "Save", kind="primary", title="Ctrl + S", disabled=not enabled)
    undo_button = button(
        "undo", "Undo", title=f"Take back the last saving: {undo_name}" if undo_name else "", disabled=not undo_name
    )
    redo_button = button("redo", "Redo", title=f"Repeat: {redo_name}" if redo_name else "", disabled=not redo_name)
    keys = (
        "Left and Right change the picture, with Alt while typing. Ctrl + S saves. Going on saves too; Undo "
        "brings the earlier text back."
    )
    return (
        f'<div class="actions">{before}{after}{save}<span class="grow"></span>{undo_button}{redo_button}</div>'
        f'<p class="hint">{keys}</p>'
    )


def status(text: str, unsaved: bool = False) -> str:
    return f'<div class="save-state{" unsaved" if unsaved else ""}" role="status">{esc(text)}</div>'


def elsewhere(theirs: str) -> str:
    """Someone else has saved another text for the picture: which of the two is to stay."""
    there = f"There it is: <q>{esc(short(theirs, 300))}</q>" if theirs else "There it is empty."
    mine = button("mine", "Keep what stands here", kind="primary", title="Saves it; Undo brings the other back")
    return (
        '<div class="question" role="alert"><span>Not saved: another window or program has changed this caption in the '
        f'meantime. {there}</span><span class="does">{mine}{button("theirs", "Take the other")}</span></div>'
    )


def tally(report: Report | None) -> str:
    """How many captions there are, in one line."""
    if report is None or not report.placed:
        return ""
    own = report.captions_found
    rest = report.trained - own
    without = "" if not rest else f", {rest:,} without"
    longest = f" The longest has {count(report.longest_tokens, 'token')}." if report.longest_tokens is not None else ""
    return f"{count(own, 'picture')} with a caption of their own{without}.{longest}"
