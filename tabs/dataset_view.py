"""The Dataset tab's pictures and lists as HTML: data in, text out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from core.dataset.files import printable
from core.dataset.preflight import ENLARGED_FROM, KEPT_BELOW, Report, Row
from core.dataset.scan import Folder
from core.record.problems import Problem
from core.record.workspace import display_path, resolve_path
from core.settings.dataset import Source
from core.settings.job import TrainJob
from tabs.context import empty_state, problems_html
from tabs.markup import button, choice_list, count, crop_frame, esc, page_count, pager, progress, section

PAGE_SIZE = 48
BUCKETS_SHOWN = 16
FOLDERS_SHOWN = 12
PROBLEMS_SHOWN = 30
NO_SIZE = (0, 0)

SHOWS: dict[str, tuple[str, Callable[[Row], bool]]] = {
    "all": ("all pictures", lambda row: True),
    "out": ("left out or broken", lambda row: not row.trains),
    "words": ("without a caption of their own", lambda row: row.trains and row.source != "file"),
    "small": ("enlarged to their bucket", lambda row: (row.scale or 0) > ENLARGED_FROM),
    "cropped": ("cropped by more than half", lambda row: kept(row) < KEPT_BELOW),
}


def kept(row: Row) -> float:
    """Share of the picture inside the crop frame, 1 where nothing trains."""
    if row.frame is None:
        return 1.0
    left, top, right, bottom = row.frame
    return (right - left) * (bottom - top)


# -- what is shown on top


def summary(report: Report | None, layout: str, doing: tuple[str, float]) -> str:
    """The layout in one sentence, how many of what will train, and what is going on."""
    parts = []
    if report is not None and report.rows:
        share = f"{report.trained:,} of {count(len(report.rows), 'picture')} will train"
        captions = f"{report.captions_found:,} with a caption of their own"
        sentence = report.sentence.rstrip(".") + "."
        parts.append(f'<p class="lead"><strong>{esc(share)}</strong>, {esc(captions)}. {esc(sentence)}</p>')
    if layout:
        parts.append(f'<p class="hint">{esc(layout)}</p>')
    text, share_done = doing
    if text:
        parts.append(progress(text, share_done if share_done > 0 else None))
    return f'<div class="summary">{"".join(parts)}</div>'


# -- folders


def sources(entries: Sequence[Source], report: Report | None, busy: bool = False) -> str:
    """One row a chosen folder, with what was found below it."""
    if not entries:
        return section(
            "Folders", empty_state("No folder is chosen.", "Write its path above, browse to it, or drop pictures.")
        )
    return section(
        "Folders",
        "".join(
            _source(number, entry, _folders_of(entry, report), busy and report is None)
            for number, entry in enumerate(entries)
        ),
    )


def _folders_of(entry: Source, report: Report | None) -> list[Folder]:
    """The found folders that belong to a chosen one: itself, or those right below it."""
    if report is None or not entry.enabled:
        return []
    root = resolve_path(entry.folder)
    return [folder for folder in report.folders if folder.path == root or folder.path.parent == root]


def _source(number: int, entry: Source, found: Sequence[Folder], unread: bool) -> str:
    root = resolve_path(entry.folder)
    shown, name = display_path(root), printable(root.name or entry.folder)
    pictures = "no pictures" if entry.enabled else "left out"
    if found:
        pictures = count(sum(folder.pictures for folder in found), "picture")
    elif unread:
        pictures = ""
    repeats, words = {folder.repeats for folder in found}, {folder.words for folder in found}
    repeats_hint = str(next(iter(repeats))) if len(repeats) == 1 else ("by name" if repeats else "1")
    words_hint = (next(iter(words)) or "none") if len(words) == 1 else ("by name" if words else "")
    use = (
        f'<label class="switch"><input type="checkbox" data-act="enable" '
        f'data-arg="{number}"{" checked" if entry.enabled else ""}>'
        f'<span><b>{esc(name)}</b><span class="hint path" title="{esc(shown)}">{esc(shown)}</span></span></label>'
    )
    taken_off = "Takes it off this list; its files stay where they are"
    remove = button("remove", "Remove", number, kind="quiet", title=taken_off, label=f"Remove {name}")
    fields = (
        f"<label>Repeats {_field('repeats', number, entry.num_repeats, repeats_hint, 'number')}</label>"
        f'<label class="grow">Words without a caption '
        f"{_field('words', number, entry.class_tokens, words_hint, 'text')}</label>"
    )
    inner = [folder for folder in found if folder.path != root]
    rows = "".join(_inner(folder) for folder in inner[:FOLDERS_SHOWN])
    if len(inner) > FOLDERS_SHOWN:
        rows += f"<tr><td colspan='4' class='hint'>and {count(len(inner) - FOLDERS_SHOWN, 'more folder')}</td></tr>"
    table = (
        f"<table><tr><th>Inside</th><th class='num'>Pictures</th><th class='num'>Repeats</th><th>Words</th>"
        f"</tr>{rows}</table>"
        if rows
        else ""
    )
    off = "" if entry.enabled else " off"
    return (
        f'<div class="source{off}"><div class="strip">{use}<span class="num">{esc(pictures)}</span>{remove}</div>'
        f'<div class="strip inputs">{fields}</div>{table}</div>'
    )


def _field(act: str, number: int, value: Any, hint: str, kind: str) -> str:
    more = ' min="1" max="10000" step="1"' if kind == "number" else ""
    return (
        f'<input type="{kind}" data-act="{act}" data-arg="{number}" value="{esc("" if value is None else value)}" '
        f'placeholder="{esc(hint)}"'
        f' title="Empty takes what the folder\'s name says"{more}>'
    )


def _inner(folder: Folder) -> str:
    words = esc(folder.words) or "<span class='hint'>none</span>"
    name, number = esc(printable(folder.path.name)), f"{folder.pictures:,}"
    return f"<tr><td>{name}</td><td class='num'>{number}</td><td class='num'>{folder.repeats}</td><td>{words}</td></tr>"


# -- checks


def checks(job: TrainJob, report: Report | None, problems: Sequence[Problem]) -> str:
    """Errors first, then advice; the consent to leave out what cannot train stands with the pictures it is about."""
    broken = sum(not row.trains for row in report.rows) if report else 0
    body = ""
    if broken or job.dataset.skip_broken:
        said = (
            f"Leave out broken pictures ({count(broken, 'picture')}, named below)"
            if broken
            else "Leave out broken pictures"
        )
        ticked = " checked" if job.dataset.skip_broken else ""
        body += (
            f'<label class="switch consent"><input type="checkbox" data-act="skip"{ticked}>'
            f"<span>{esc(said)}</span></label>"
        )
    ordered = sorted(problems, key=lambda problem: problem.level != "error")
    shown = ordered[:PROBLEMS_SHOWN]
    if shown:
        body += problems_html(shown)
    if len(ordered) > len(shown):
        body += f'<p class="hint">and {count(len(ordered) - len(shown), "more finding")}</p>'
    errors = sum(problem.level == "error" for problem in problems)
    if not problems and report is not None:
        body += '<p class="good">Nothing to complain about.</p>'
    tally = [count(errors, "error")] if errors else []
    tally += [count(len(problems) - errors, "piece", "pieces") + " of advice"] if len(problems) > errors else []
    return section("Checks", body or '<p class="hint">Not read yet.</p>', esc(", ".join(tally)))


# -- shapes


def histogram(report: Report | None, show: str) -> str:
    """Buckets as bars; a click shows the pictures of one."""
    if report is None or not report.buckets:
        return ""
    most = max(number for number, _ in report.buckets.values())
    ordered = sorted(report.buckets.items(), key=lambda item: (-item[1][0], item[0]))
    rows = []
    for (width, height), (number, views) in ordered[:BUCKETS_SHOWN]:
        value = f"{width}x{height}"
        pressed = "true" if show == value else "false"
        longer = "width" if width >= height else "height"
        shape = f'<i class="shape" style="aspect-ratio:{width}/{height};{longer}:14px"></i>'
        repeated = f", {views:,} with repeats" if views != number else ""
        rows.append(
            f'<button type="button" class="bar" data-act="show" data-arg="{value if show != value else "all"}" '
            f'aria-pressed="{pressed}"'
            f' title="{number:,} pictures{repeated}"><span class="shape-box">{shape}</span><span '
            f'class="size">{width} × {height}</span>'
            f'<span class="track"><i style="width:{100 * number / most:.1f}%"></i></span><span '
            f'class="num">{number:,}</span></button>'
        )
    if len(ordered) > BUCKETS_SHOWN:
        rows.append(f'<p class="hint">and {count(len(ordered) - BUCKETS_SHOWN, "smaller bucket")}</p>')
    return section("Buckets", "".join(rows), esc(f"{len(ordered)} {'size' if len(ordered) == 1 else 'sizes'}"))


# -- pictures


def shown_rows(report: Report | None, show: str) -> list[tuple[int, Row]]:
    """The rows that the chosen view shows, each with its place in the report."""
    rows = list(enumerate(report.rows)) if report else []
    if show in SHOWS:
        return [(number, row) for number, row in rows if SHOWS[show][1](row)]
    width, _, height = show.partition("x")
    if width.isdecimal() and height.isdecimal():
        return [(number, row) for number, row in rows if row.bucket == (int(width), int(height))]
    return rows


def grid(report: Report | None, show: str, page: int, thumb_url: Callable[..., str], busy: bool) -> str:
    """One page of thumbnails with caption, bucket and crop frame, and the choice of which are shown."""
    if report is None:
        if busy:
            return section(
                "Pictures",
                '<div class="tiles waiting" aria-hidden="true">' + '<div class="tile"></div>' * 12 + "</div>",
            )
        return section("Pictures", empty_state("No pictures yet.", "Choose a folder above, or drop pictures or a zip."))
    rows = shown_rows(report, show)
    pages = page_count(len(rows), PAGE_SIZE)
    page = max(0, min(page, pages - 1))
    part = rows[page * PAGE_SIZE : (page + 1) * PAGE_SIZE]
    tiles = "".join(tile(number, row, thumb_url) for number, row in part)
    body = (
        f'<ul class="tiles">{tiles}</ul>'
        if tiles
        else empty_state("No picture here.", "Choose another view at the right.")
    )
    choices = [(f"{words} ({sum(test(row) for row in report.rows):,})", name) for name, (words, test) in SHOWS.items()]
    if show not in SHOWS:
        choices.append((f"bucket {show.replace('x', ' × ')} ({len(rows):,})", show))
    where = pager("page", page, pages, len(rows), "pictures")
    return section(
        "Pictures",
        where + body + (where if len(part) > 12 else ""),
        choice_list("show", choices, show, "Which pictures are shown"),
    )


def tile(number: int, row: Row, thumb_url: Callable[..., str]) -> str:
    """A thumbnail; the frame on it is what trains."""
    name = printable(row.key[1])
    if row.size is None or not (row.trains or "narrow" in row.why or "bucket" in row.why):
        picture = '<span class="pic none">cannot be read</span>'
    else:
        width, height = row.size
        shape = "wide" if width >= height else "tall"
        frame = crop_frame(row.frame) if row.frame else ""
        picture = (
            f'<span class="pic {shape}" style="aspect-ratio:{width}/{height}"><img '
            f'src="{esc(thumb_url(row.path, 256))}" loading="lazy"'
            f' decoding="async" alt="{esc(name)}">{frame}</span>'
        )
    sizes = f"{row.size[0]}×{row.size[1]}" if row.size else ""
    if row.trains and row.bucket:
        facts = f"{sizes} → <b>{row.bucket[0]}×{row.bucket[1]}</b>"
        facts += f" · {row.repeats} times" if row.repeats != 1 else ""
        words = (
            f'<div class="says{"" if row.source == "file" else " folder"}" '
            f'title="{esc(row.caption)}">{_caption(row)}</div>'
        )
        opener = (
            f'<button type="button" class="shot" data-act="open" data-arg="{number}" aria-label="Edit the '
            f'caption of {esc(name)}">'
        )
        body = opener + picture + "</button>"
    else:
        facts = f'<span class="out">left out</span> {sizes}'
        words = f'<div class="says">{esc("It " + row.why if row.why else "It does not train.")}</div>'
        body = f'<div class="shot">{picture}</div>'
    return (
        f'<li class="tile">{body}<div class="name" title="{esc(name)}">{esc(name)}</div>{words}<div '
        f'class="sizes">{facts}</div></li>'
    )


def _caption(row: Row) -> str:
    if row.source == "file":
        return esc(row.caption)
    if row.source == "words":
        return f"{esc(row.caption)} <i>folder's words</i>"
    return "<i>empty caption</i>"
