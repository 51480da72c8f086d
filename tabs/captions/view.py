"""HTML of the Captions tab: list of images, open image, meter and notes on its caption."""

import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from core.dataset.buckets.batches import Placed
from core.dataset.captions.encodings import decode_text
from core.dataset.captions.files import IMAGE_SOURCES, Caption
from core.dataset.captions.history import Change, Entry
from core.dataset.captions.pipeline import plain_caption
from core.dataset.report import Report, Row
from core.dataset.sources.files import printable
from core.families.token_count import cut_at
from core.record.units import count, first_of
from core.record.workspace import display_path
from core.settings.dataset.captions import CaptionSettings
from tabs.dataset.plots import WINDOWS
from tabs.dataset.reading import key_of, once_per_report
from tabs.markup import (
    button,
    empty_state,
    esc,
    framed_image,
    page_count,
    pager,
    pair_view_buttons,
    problems_html,
    progress,
    short,
)

PAGE_SIZE = 60
MAX_CUT = 600  # shown characters of the part that is not trained
MAX_EARLIER_BYTES = 20_000  # of an earlier text that can be used again

SHOWS: dict[str, tuple[str, Callable[[Row], bool]]] = {
    "all": ("all images", lambda row: True),
    "none": ("without a caption", lambda row: row.source not in IMAGE_SOURCES),
    "long": ("longer than 75 tokens", lambda row: (row.tokens or 0) > WINDOWS[0]),
}


@once_per_report
def listed(report: Report | None, show: str) -> list[Row]:
    """Return the training and validation rows of a view, a key of SHOWS."""
    belongs = SHOWS.get(show, SHOWS["all"])[1]
    return [row for row in report.rows if row.bucket is not None and belongs(row)] if report else []


@once_per_report
def choices(report: Report | None) -> list[tuple[str, str]]:
    """Return [(title with the number of images, view)] of SHOWS; [] without images."""
    trained = [row for row in report.rows if row.bucket is not None] if report else []
    return [
        (f"{title} ({sum(test(row) for row in trained):,})", name) for name, (title, test) in SHOWS.items() if trained
    ]


def image_list(
    report: Report | None,
    rows: Sequence[Row],
    key: str,
    page: int,
    thumb_url: Callable[..., str],
    busy: bool = False,
    first: Sequence[Row] = (),
) -> tuple[str, int]:
    """Return (HTML of a page of the list, index of its first row); a sentence if there is no image or no match.

    key   of the open image, which is marked
    page  index of the page, clamped to the valid ones
    busy  whether the dataset is being read: until there is a report, the rows `first` are listed
    """
    if report is None and busy:
        items = "".join(_item(row, False, thumb_url, ready=False) for row in first[:PAGE_SIZE])
        return (f'<ul class="picks">{items}</ul>' if items else "") + progress("Reading the folder", None), 0
    if report is None or all(row.bucket is None for row in report.rows):
        return empty_state("No images to caption.", "Choose a folder in Dataset."), 0
    if not rows:
        return empty_state("No matches.", "Choose another view, or clear the search."), 0
    pages = page_count(len(rows), PAGE_SIZE)
    page = max(0, min(page, pages - 1))
    begin = page * PAGE_SIZE
    items = "".join(_item(row, key_of(row) == key, thumb_url) for row in rows[begin : begin + PAGE_SIZE])
    return f'<ul class="picks">{items}</ul>{pager("page", page, pages)}', begin


def _item(row: Row, current: bool, thumb_url: Callable[..., str], ready: bool = True) -> str:
    """Return the HTML of a list row. current: whether its image is open; ready: whether it can be opened"""
    name = printable(row.key[1])
    caption = (
        esc(short(row.caption, 70))
        if row.source in IMAGE_SOURCES
        else f"<i>{'empty' if row.source == 'blank' else 'no'} caption</i>"
    )
    long = f' <span class="over">{row.tokens} tokens</span>' if (row.tokens or 0) > WINDOWS[0] else ""
    mark = ' aria-current="true"' if current else "" if ready else " disabled"
    return (
        f'<li><button type="button" class="pick" data-act="pick" data-arg="{key_of(row)}"{mark}>'
        f'<img src="{esc(thumb_url(row.path, 96))}" alt="" loading="lazy" decoding="async">'
        f'<span><b>{esc(name)}</b><span class="says">{caption}{long}</span></span></button></li>'
    )


def image(placed: Placed, index: int, total: int, thumb_url: Callable[..., str]) -> str:
    """Return the HTML of the open image with crop frame and control image.

    index: in the list of `total` images, -1 if the image is not in the list
    """
    name = printable(placed.image.relative)
    width, height = placed.image.width, placed.image.height
    bucket = placed.placement.bucket
    position_text = f"{index + 1:,} of {total:,}" if index >= 0 else f"not in this list of {total:,}"
    control = thumb_url(placed.image.control, 768) if placed.image.control is not None else ""
    url = thumb_url(placed.image.path, 768)
    image = framed_image(url, name, (width, height), placed.placement.frame, control)
    return (
        f'<figure class="stage">{image}{pair_view_buttons() if control else ""}'
        f"<figcaption><b>{esc(name)}</b><span>{esc(position_text)}</span>"
        f'<span class="hint">{width} × {height}, trains at {bucket[0]} × {bucket[1]}</span></figcaption></figure>'
    )


def length_text(tokens: int, limit: int) -> str:
    """Return the text on a caption's length: "9 of 75 tokens", or "81 of 75 tokens: the last 6 are not trained"."""
    text = f"{tokens} of {limit} tokens"
    if tokens <= limit:
        return text
    truncated = tokens - limit
    return text + (": the last one is not trained" if truncated == 1 else f": the last {truncated} are not trained")


def meter(tokens: int, longest: int) -> str:
    """Return the HTML of a bar of the token count with marks at the text encoder's windows.

    longest: maximum of trained tokens; the only mark for very long captions
    """
    scale = max(WINDOWS[-1], tokens)
    limits = WINDOWS if scale < 2 * WINDOWS[-1] else (longest,)  # else the marks would overlap
    trained = min(tokens, longest)
    truncated = tokens - trained
    marks = "".join(
        f'<span class="notch{" limit" if limit == longest else ""}" style="left:{100 * limit / scale:.2f}%"><i>'
        f"</i>{limit}</span>"
        for limit in limits
    )
    message = length_text(tokens, longest)
    return (
        f'<div class="meter{" too-long" if truncated else ""}"><div class="counted" role="status">{esc(message)}</div>'
        f'<div class="track" role="img" aria-label="{esc(message)}"><span class="kept" '
        f'style="width:{100 * trained / scale:.2f}%"></span>'
        f'<span class="over" style="width:{100 * truncated / scale:.2f}%"></span>{marks}</div></div>'
    )


@once_per_report
def _by_stem(report: Report | None) -> dict[tuple[Path, str], list[str]]:
    """Return {(folder, stem): file names} of the training images."""
    names: dict[tuple[Path, str], list[str]] = {}
    for each in report.placed if report else ():
        names.setdefault((each.image.path.parent, each.image.path.stem), []).append(each.image.path.name)
    return names


def images_sharing(report: Report | None, image: Path, caption: Path) -> list[str]:
    """Return the names of other images that use the caption file `caption`: those in the image's folder with the same stem."""
    names = _by_stem(report).get((image.parent, image.stem), []) if caption.stem == image.stem else []
    return [name for name in names if name != image.name]


def notes(
    caption: Caption,
    text: str,
    settings: CaptionSettings,
    class_tokens: str = "",
    fixed: str = "",
    longest: int = 0,
    others: Sequence[str] = (),
) -> str:
    """Return the HTML of a caption's source, its trained form if that differs, the part that is cut off, and its problem.

    caption       as on disk
    text          in the editor
    class_tokens  of the folder
    fixed         reason why the caption is read-only, or ""
    longest       maximum of trained tokens, 0 for no limit
    others        names of other images that use this caption file
    """
    name = esc(printable(caption.path.name))
    sharing_note = f", also the caption of {esc(printable(first_of(others, 3)))}" if others else ""
    source = {
        "file": f"From <code>{name}</code>{sharing_note}.",
        "blank": f"<code>{name}</code> is empty, so the image is trained with an empty caption.",
        "metadata": f"Read only. {esc(fixed)}. Edit it there, then press Reload on the Dataset tab.",
        "words": f"No caption file: the image is trained with the class tokens of its folder. Saving a text creates <code>{name}</code>.",
        "none": f"No caption file, and the folder has no class tokens. Saving a text creates <code>{name}</code>.",
    }[caption.source]
    usable = caption.source == "words" and not fixed
    use = button("use_text", "Use as caption", class_tokens, kind="quiet") if usable else ""
    parts = [f'<p class="hint" title="{esc(display_path(caption.path))}">{source} {use}</p>']
    trained = plain_caption(text, settings, class_tokens)
    if trained.strip() != text.strip():
        lines = sum(bool(line.strip()) for line in text.split("\n"))
        why = "Only the first line is trained: " if lines > 1 and settings.caption_lines == "first" else "Trained as: "
        parts.append(f'<p class="hint">{why}<q>{esc(trained)}</q></p>')
    used, cut = cut_at(trained, longest) if longest else (trained, "")
    if cut:
        parts.append(
            f'<p class="hint cut">Cut after {longest} tokens: … {esc(used[-60:])} <del>{esc(short(cut, MAX_CUT))}</del></p>'
        )
    if caption.problem is not None and caption.source != "blank":  # which the first note mentions
        parts.append(problems_html([caption.problem]))
    return "".join(parts)


def counts_html(report: Report | None) -> str:
    """Return the HTML of the caption counts and the button to caption with a model; "" without images."""
    if report is None or not report.placed:
        return ""
    model = button("captioners", "Caption or tag with a model", kind="quiet")
    return f'<p class="lead">{tally(report)}{model}</p>'


@once_per_report
def tally(report: Report | None) -> str:
    """Return the text on the number of images with and without a caption, validation images included; "" without images."""
    if report is None or not report.placed:
        return ""
    rows = listed(report, "all")
    captioned = sum(row.source in IMAGE_SOURCES for row in rows)
    missing = len(rows) - captioned
    missing_text = "" if not missing else f", {missing:,} without"
    longest = f" The longest has {count(report.longest_tokens, 'token')}." if report.longest_tokens is not None else ""
    return f"{count(captioned, 'image')} with a caption{missing_text}.{longest}"


def earlier(changes: Sequence[tuple[Entry, Change]]) -> str:
    """Return the HTML of an image's earlier captions, newest first, each with the change that replaced it."""
    if not changes:
        return '<p class="hint">This caption has not been changed here.</p>'
    items = "".join(
        f"<li><span><b>{_when(entry.at)}</b> {esc(entry.title)}: {_old_text(change.old)}</span>{_use_button(change.old)}</li>"
        for entry, change in changes
    )
    return f'<ul class="plain earlier">{items}</ul>'


def _old_text(old: bytes | None) -> str:
    """Return the HTML of an earlier caption. old: bytes of the caption file, None if there was none"""
    return (
        "before: <i>no caption file</i>" if old is None else f"before: <q>{esc(short(decode_text(old).text, 300))}</q>"
    )


def _use_button(old: bytes | None) -> str:
    """Return the HTML of a button that puts an earlier caption into the editor; "" if it is empty or too long."""
    if not old or len(old) > MAX_EARLIER_BYTES:
        return ""
    return button("use_text", "Use", decode_text(old).text.strip(), kind="quiet", label="Use this earlier text")


def changes(entries: Iterable[tuple[Entry, int, int]]) -> str:
    """Return the HTML of the latest changes, each with an Undo button. entries: (change, number of files, number of damaged lines)"""
    items = "".join(
        f"<li><span><b>{esc(entry.title)}</b> {esc(_changed_files(entry, files, damaged))} <small>{_when(entry.at)}</small></span>"
        f"{button('revert', 'Undo', entry.id, kind='quiet')}</li>"
        for entry, files, damaged in entries
    )
    return f'<ul class="plain changes">{items}</ul>' if items else '<p class="hint">No changes yet.</p>'


def _when(seconds: float) -> str:
    """Return a time in seconds since 1970 as local date and time."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


def _changed_files(entry: Entry, files: int, damaged: int) -> str:
    """Return the name of the changed file, or the number of changed files, and who changed them."""
    files_text = str(entry.about.get("first", "")) if files == 1 and "first" in entry.about else count(files, "file")
    person = f", by {entry.about['person']}" if "person" in entry.about else ""
    return f"{files_text}{person} ({count(damaged, 'damaged line')} left out)" if damaged else f"{files_text}{person}"
