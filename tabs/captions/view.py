"""The Captions tab as HTML: the list, the image, and what is to be said about a caption."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from core.dataset.buckets.batches import Placed
from core.dataset.captions.encodings import decode_text
from core.dataset.captions.files import IMAGE_SOURCES, Caption
from core.dataset.captions.history import Change, Entry
from core.dataset.captions.pipeline import plain_caption
from core.dataset.report import Report, Row
from core.dataset.sources.files import printable
from core.families.token_count import cut_at
from core.record.units import count
from core.record.workspace import display_path
from core.settings.dataset.captions import CaptionSettings
from tabs.dataset.plots import WINDOWS
from tabs.dataset.reading import key_of, once_per_report
from tabs.markup import (
    button,
    control_over,
    crop_frame,
    empty_state,
    esc,
    page_count,
    pager,
    pair_ways,
    problems_html,
    progress,
    short,
)

PAGE_SIZE = 60
LONGEST_CUT = 600  # characters that are shown of a text that is not trained
LONGEST_EARLIER = 20_000  # bytes of an earlier text that can be put into the box again

SHOWS: dict[str, tuple[str, Callable[[Row], bool]]] = {
    "all": ("all images", lambda row: True),
    "none": ("without a caption", lambda row: row.source not in IMAGE_SOURCES),
    "long": ("longer than 75 tokens", lambda row: (row.tokens or 0) > WINDOWS[0]),
}


@once_per_report
def listed(report: Report | None, show: str) -> list[Row]:
    """The images that train or are held out, of the chosen kind."""
    test = SHOWS.get(show, SHOWS["all"])[1]
    return [row for row in report.rows if row.bucket is not None and test(row)] if report else []


@dataclass(frozen=True)
class Listed:
    """One page of the list as HTML, and the number of its first row."""

    html: str
    first: int = 0


@once_per_report
def choices(report: Report | None) -> list[tuple[str, str]]:
    """(words, value) of the views of the list, with how many images each holds; none while there is nothing to list."""
    trained = [row for row in report.rows if row.bucket is not None] if report else []
    return [
        (f"{words} ({sum(test(row) for row in trained):,})", name) for name, (words, test) in SHOWS.items() if trained
    ]


def image_list(
    report: Report | None,
    rows: Sequence[Row],
    key: str,
    page: int,
    thumb_url: Callable[..., str],
    busy: bool = False,
    first: Sequence[Row] = (),
) -> Listed:
    """One page of the list; the open image is marked. first: shown while there is no report yet"""
    if report is None and busy:
        items = "".join(_item(row, False, thumb_url, ready=False) for row in first[:PAGE_SIZE])
        return Listed((f'<ul class="picks">{items}</ul>' if items else "") + progress("Reading the folder", None))
    if report is None or all(row.bucket is None for row in report.rows):
        return Listed(empty_state("No images to caption.", "Choose a folder in Dataset."))
    if not rows:
        return Listed(empty_state("No matches.", "Choose another view, or clear the search."))
    pages = page_count(len(rows), PAGE_SIZE)
    page = max(0, min(page, pages - 1))
    begin = page * PAGE_SIZE
    items = "".join(_item(row, key_of(row) == key, thumb_url) for row in rows[begin : begin + PAGE_SIZE])
    return Listed(f'<ul class="picks">{items}</ul>{pager("page", page, pages)}', begin)


def _item(row: Row, current: bool, thumb_url: Callable[..., str], ready: bool = True) -> str:
    """ready: it can be opened"""
    name = printable(row.key[1])
    said = (
        esc(short(row.caption, 70))
        if row.source in IMAGE_SOURCES
        else f"<i>{'empty' if row.source == 'blank' else 'no'} caption</i>"
    )
    long = f' <span class="over">{row.tokens} tokens</span>' if (row.tokens or 0) > WINDOWS[0] else ""
    mark = ' aria-current="true"' if current else "" if ready else " disabled"
    return (
        f'<li><button type="button" class="pick" data-act="pick" data-arg="{key_of(row)}"{mark}>'
        f'<img src="{esc(thumb_url(row.path, 96))}" alt="" loading="lazy" decoding="async">'
        f'<span><b>{esc(name)}</b><span class="says">{said}{long}</span></span></button></li>'
    )


def name_of(placed: Placed) -> str:
    return printable(placed.image.relative)


def image(placed: Placed, place: int, total: int, thumb_url: Callable[..., str]) -> str:
    """The image, as large as fits, with the frame of what trains."""
    name = name_of(placed)
    width, height = placed.image.width, placed.image.height
    frame = crop_frame(placed.placement.frame)
    bucket = placed.placement.bucket
    where = f"{place + 1:,} of {total:,}" if place >= 0 else f"not in this list of {total:,}"
    shape = (
        f'{"wide" if width >= height else "tall"}" style="--ratio:{width / height:.4f};aspect-ratio:{width}/{height}"'
    )
    over, beside, ways = "", "", ""
    if placed.image.control is not None:
        url = thumb_url(placed.image.control, 768)
        over, ways = control_over(url), pair_ways()
        beside = (
            f'<div class="pic control {shape}><img src="{esc(url)}" alt="Control image of {esc(name)}">{frame}</div>'
        )
    image = f'<div class="pic {shape}><img src="{esc(thumb_url(placed.image.path, 768))}" alt="{esc(name)}">{over}{frame}</div>'
    both = f'<div class="with-control">{image}{beside}</div>{ways}' if beside else image
    return (
        f'<figure class="stage">{both}'
        f"<figcaption><b>{esc(name)}</b><span>{esc(where)}</span>"
        f'<span class="hint">{width} × {height}, trains at {bucket[0]} × {bucket[1]}</span></figcaption></figure>'
    )


def words_on_length(tokens: int, longest: int) -> str:
    """What a length means: "9 of 75 tokens", "81 of 75 tokens: the last 6 are not trained"."""
    said = f"{tokens} of {longest} tokens"
    if tokens <= longest:
        return said
    over = tokens - longest
    return said + (": the last one is not trained" if over == 1 else f": the last {over} are not trained")


def meter(tokens: int, longest: int) -> str:
    """A bar with the marks of one, two and three passes through the text encoder."""
    scale = max(WINDOWS[-1], tokens)
    shown = WINDOWS if scale < 2 * WINDOWS[-1] else (longest,)  # else they would stand on one another
    kept = min(tokens, longest)
    over = tokens - kept
    marks = "".join(
        f'<span class="notch{" limit" if at == longest else ""}" style="left:{100 * at / scale:.2f}%"><i>'
        f"</i>{at}</span>"
        for at in shown
    )
    words = words_on_length(tokens, longest)
    return (
        f'<div class="meter{" too-long" if over else ""}"><div class="counted" role="status">{esc(words)}</div>'
        f'<div class="track" role="img" aria-label="{esc(words)}"><span class="kept" '
        f'style="width:{100 * kept / scale:.2f}%"></span>'
        f'<span class="over" style="width:{100 * over / scale:.2f}%"></span>{marks}</div></div>'
    )


def notes(
    caption: Caption, text: str, settings: CaptionSettings, words: str = "", fixed: str = "", longest: int = 0
) -> str:
    """Where the text comes from, what will be trained when that is not the text itself, and where it is cut.

    longest   tokens that are trained; 0 for no limit
    """
    name = esc(printable(caption.path.name))
    said = {
        "file": f"From <code>{name}</code>.",
        "blank": f"<code>{name}</code> is empty, so the image is trained with an empty caption.",
        "metadata": f"Read only. {esc(fixed)}. Edit it there, then press Reload on the Dataset tab.",
        "words": f"No caption file: the image is trained with the class tokens of its folder. Saving a text creates <code>{name}</code>.",
        "none": f"No caption file, and the folder has no class tokens. Saving a text creates <code>{name}</code>.",
    }[caption.source]
    use = button("use_text", "Use as caption", words, kind="quiet") if caption.source == "words" and not fixed else ""
    parts = [f'<p class="hint" title="{esc(display_path(caption.path))}">{said} {use}</p>']
    trained = plain_caption(text, settings, words)
    if trained.strip() != text.strip():
        lines = sum(bool(line.strip()) for line in text.split("\n"))
        why = "Only the first line is trained: " if lines > 1 and settings.caption_lines == "first" else "Trained as: "
        parts.append(f'<p class="hint">{why}<q>{esc(trained)}</q></p>')
    kept, cut = cut_at(trained, longest) if longest else (trained, "")
    if cut:
        parts.append(
            f'<p class="hint cut">Cut after {longest} tokens: … {esc(kept[-60:])} <del>{esc(short(cut, LONGEST_CUT))}</del></p>'
        )
    if caption.problem is not None and caption.source != "blank":  # which is said already
        parts.append(problems_html([caption.problem]))
    return "".join(parts)


def lead(report: Report | None) -> str:
    """How many captions there are, and the way to those that models write."""
    if report is None or not report.placed:
        return ""
    model = button("captioners", "Caption or tag with a model", kind="quiet")
    return f'<p class="lead">{tally(report)}{model}</p>'


@once_per_report
def tally(report: Report | None) -> str:
    """How many captions there are, in one line; of held-out images too, as the list has them."""
    if report is None or not report.placed:
        return ""
    rows = listed(report, "all")
    own = sum(row.source in IMAGE_SOURCES for row in rows)
    rest = len(rows) - own
    without = "" if not rest else f", {rest:,} without"
    longest = f" The longest has {count(report.longest_tokens, 'token')}." if report.longest_tokens is not None else ""
    return f"{count(own, 'image')} with a caption{without}.{longest}"


def earlier(found: Sequence[tuple[Entry, Change]]) -> str:
    """The earlier texts of an image, newest first, each with what replaced it."""
    if not found:
        return '<p class="hint">This caption has not been changed here.</p>'
    items = "".join(
        f"<li><span><b>{_when(entry.at)}</b> {esc(entry.title)}: {_was(change.old)}</span>{_again(change.old)}</li>"
        for entry, change in found
    )
    return f'<ul class="plain earlier">{items}</ul>'


def _was(old: bytes | None) -> str:
    return (
        "before: <i>no caption file</i>" if old is None else f"before: <q>{esc(short(decode_text(old).text, 300))}</q>"
    )


def _again(old: bytes | None) -> str:
    """A button that puts an earlier text into the box, where it is saved like a typed one."""
    if not old or len(old) > LONGEST_EARLIER:
        return ""
    return button("use_text", "Use", decode_text(old).text.strip(), kind="quiet", label="Use this earlier text")


def changes(entries: Iterable[tuple[Entry, int, int]]) -> str:
    """The latest changes, each with how many files it is of, how many of its lines are damaged, and its undo."""
    items = "".join(
        f"<li><span><b>{esc(entry.title)}</b> {esc(_of_what(entry, files, damaged))} <small>{_when(entry.at)}</small></span>"
        f"{button('revert', 'Undo', entry.id, kind='quiet')}</li>"
        for entry, files, damaged in entries
    )
    return f'<ul class="plain changes">{items}</ul>' if items else '<p class="hint">No changes yet.</p>'


def _when(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


def _of_what(entry: Entry, files: int, damaged: int) -> str:
    """The file that was changed, or how many were."""
    what = str(entry.about.get("first", "")) if files == 1 and "first" in entry.about else count(files, "file")
    return f"{what} ({count(damaged, 'damaged line')} left out)" if damaged else what
