"""HTML of the dataset's images as pages of thumbnails with crop frame, bucket and caption."""

from collections.abc import Callable, Sequence

from core.dataset.advice import AREA_BELOW, ENLARGED_FROM
from core.dataset.captions.files import IMAGE_SOURCES
from core.dataset.report import Report, Row
from core.dataset.sources.files import printable
from core.record.problems import errors
from core.record.units import count
from core.settings.dataset.source import Source
from tabs.dataset.reading import key_of
from tabs.markup import (
    choice_list,
    empty_state,
    esc,
    framed_image,
    page_count,
    pager,
    pair_view_buttons,
    row_of,
    section,
)

PAGE_SIZE = 48
PAGERS = ("Pages", "Pages, below the images")  # labels of the pagers above and below the images


def crop_fraction(row: Row) -> float:
    """Return the fraction (0 to 1) of the image's area inside its crop frame; 1 without a frame."""
    if row.frame is None:
        return 1.0
    left, top, right, bottom = row.frame
    return (right - left) * (bottom - top)


def left_out(row: Row) -> bool:
    """Return whether the image is used neither for training nor for validation."""
    return not row.trains and row.role != "validation"


SHOWS: dict[str, tuple[str, Callable[[Row], bool]]] = {
    "all": ("all images", lambda row: True),
    "out": ("left out or broken", left_out),
    "held": ("validation images", lambda row: row.role == "validation"),
    "words": ("without a caption", lambda row: row.trains and row.source not in IMAGE_SOURCES),
    "small": ("enlarged to their bucket", lambda row: (row.scale or 0) > ENLARGED_FROM),
    "cropped": ("cropped by more than half", lambda row: crop_fraction(row) < AREA_BELOW),
    "masks": ("with a mask", lambda row: row.mask),
    "control": ("with a control image", lambda row: row.control is not None),
}
RARE = ("held", "masks", "control")  # in the list only if they have images


def rows_of_view(report: Report | None, show: str) -> list[tuple[int, Row]]:
    """Return [(index in the report, row)] of the images of a view: a key of SHOWS, or a bucket such as "512x768"."""
    rows = list(enumerate(report.rows)) if report else []
    if show in SHOWS:
        return [(index, row) for index, row in rows if SHOWS[show][1](row)]
    width, _, height = show.partition("x")
    if width.isdecimal() and height.isdecimal():
        size = (int(width), int(height))
        return [(index, row) for index, row in rows if row.bucket == size or size in row.more]
    return rows


def validation_states(entries: Sequence[Source]) -> Callable[[Row], str]:
    """Return a function of a row: "named" if the image is in validation_images, "free" if it can be chosen for validation, else ""."""
    enabled = [entry for entry in entries if entry.enabled]
    named = [set(entry.validation_images) for entry in enabled]

    def state(row: Row) -> str:
        if not 0 <= row.concept < len(enabled) or enabled[row.concept].role != "train" or row.bucket is None:
            return ""
        if row.key[1] in named[row.concept] or row.path.name in named[row.concept]:
            return "named"
        return "free" if row.trains else ""  # held out by the folder's validation split

    return state


def grid(
    report: Report | None,
    show: str,
    page: int,
    thumb_url: Callable[..., str],
    busy: bool,
    validation_state: Callable[[Row], str] = lambda row: "",
    first: Sequence[Row] = (),
) -> str:
    """Return the HTML of one page of thumbnails, with pagers and the list of views.

    show              the view, as for `rows_of_view`
    page              index of the page, clamped to the valid ones
    busy              whether the dataset is being read
    validation_state  function of a row that returns the `validation_state` of its `tile`
    first             rows shown until there is a report
    """
    if report is None:
        if busy and first:
            return section(
                "Images", f'<ul class="tiles">{"".join(first_tile(row, thumb_url) for row in first[:PAGE_SIZE])}</ul>'
            )
        if busy:
            waiting = '<div class="tiles waiting" aria-hidden="true">' + '<div class="tile"></div>' * 12 + "</div>"
            return section("Images", waiting)
        return section("Images", empty_state("No images yet.", "Choose a folder above, or drop images or a zip."))
    rows = rows_of_view(report, show)
    pages = page_count(len(rows), PAGE_SIZE)
    page = max(0, min(page, pages - 1))
    visible_rows = rows[page * PAGE_SIZE : (page + 1) * PAGE_SIZE]
    tiles = "".join(tile(number, row, thumb_url, validation_state(row)) for number, row in visible_rows)
    failed = [] if report.rows else errors(report.problems)
    empty = empty_state("No images here.", "Choose another view on the right.")
    if failed:
        empty = empty_state(f"{failed[0].what}.", f"{failed[0].fix[:1].upper()}{failed[0].fix[1:]}")
    body = f'<ul class="tiles">{tiles}</ul>' if tiles else empty
    choices = []
    for name, (title, belongs) in SHOWS.items():
        number = sum(map(belongs, report.rows))
        if number or name not in RARE or name == show:
            choices.append((f"{title} ({number:,})", name))
    if show not in SHOWS:
        choices.append((f"bucket {show.replace('x', ' × ')} ({len(rows):,})", show))
    above, below = (pager("page", page, pages, len(rows), "images", label) for label in PAGERS)
    chooser = choice_list("show", choices, show, "Which images are shown")
    if any(row.control for row in report.rows):
        chooser = pair_view_buttons() + chooser
    return section("Images", above + body + (below if len(visible_rows) > 12 else ""), chooser)


def tile(index: int, row: Row, thumb_url: Callable[..., str], validation_state: str = "") -> str:
    """Return the HTML of an image with crop frame, caption and facts.

    index             index of the image in the report's rows
    validation_state  "named" if the image is chosen for validation, "free" if it can be, "" if it cannot
    """
    name = printable(row.key[1])
    image = _image(row, name, thumb_url)
    editable = row.bucket is not None
    if editable:
        caption = f'<div class="says{"" if row.source in IMAGE_SOURCES else " folder"}" title="{esc(row.caption)}">{_caption(row)}</div>'
        label = f"Edit the caption of {name}"
        opener = f'<button type="button" class="shot" data-act="open" data-arg="{index}" aria-label="{esc(label)}">'
        body = opener + image + "</button>"
    else:
        caption = f'<div class="says">{esc("It " + row.why if row.why else "It is not trained.")}</div>'
        body = f'<div class="shot">{image}</div>'
    return (
        f'<li class="tile"{row_of(key_of(row))}>{body}<div class="name" title="{esc(name)}">{esc(name)}</div>{caption}'
        f'<div class="sizes">{_facts(row)}</div>{_validation_checkbox(index, name, validation_state)}</li>'
    )


def first_tile(row: Row, thumb_url: Callable[..., str]) -> str:
    """Return the HTML of an image whose header alone was read, before there is a report."""
    name = printable(row.key[1])
    size = f"{row.size[0]}×{row.size[1]}" if row.size else ""
    return (
        f'<li class="tile"><div class="shot">{_image(row, name, thumb_url)}</div>'
        f'<div class="name" title="{esc(name)}">{esc(name)}</div><div class="says">{_caption(row)}</div>'
        f'<div class="sizes"><div>{size}</div></div></li>'
    )


def _image(row: Row, name: str, thumb_url: Callable[..., str]) -> str:
    """Return the HTML of an image's thumbnail with crop frame and control image."""
    if row.size is None or not row.readable:
        return '<span class="pic none">cannot be read</span>'
    control = thumb_url(row.control, 256) if row.control else ""
    badge = '<span class="badge-on">mask</span>' if row.mask else ""
    url, lazy = thumb_url(row.path, 256), ' loading="lazy" decoding="async"'
    return framed_image(url, name, row.size, row.frame, control, badge, lazy)


def _facts(row: Row) -> str:
    """Return the HTML of an image's size and bucket, and below them scale, caption length and repeats."""
    sizes = f"{row.size[0]}×{row.size[1]}" if row.size else ""
    if row.bucket is None:
        return f'<span class="out">{"left out" if row.readable else "unreadable"}</span> {sizes}'
    buckets = ", ".join(f"{width}×{height}" for width, height in (row.bucket, *row.more))
    parts = [f"{row.scale:.2g} times the size" if row.scale and row.scale > ENLARGED_FROM else ""]
    parts += [count(row.tokens, "token") if row.tokens is not None else ""]
    parts += [f"{row.repeats} times" if row.repeats != 1 and row.trains else ""]
    listed = " · ".join(f"<span>{part}</span>" for part in parts if part)
    role = (
        f'<span class="role">{"held out" if row.role == "validation" else esc(row.role)}</span> '
        if row.role != "train"
        else ""
    )
    return f"<div>{sizes} → <b>{buckets}</b></div><div>{role}{listed}</div>"


def _validation_checkbox(index: int, name: str, state: str) -> str:
    """Return the HTML of the checkbox that uses an image for validation; "" if it cannot be used. state: as `hold` of `tile`"""
    if not state:
        return ""
    ticked = " checked" if state == "named" else ""
    return (
        f'<label class="switch hold"><input type="checkbox" data-act="hold" data-arg="{index}"{ticked} '
        f'aria-label="Use {esc(name)} for validation"><span>validate</span></label>'
    )


def _caption(row: Row) -> str:
    """Return the HTML of an image's caption, or a note that it has class tokens or none."""
    if row.source in IMAGE_SOURCES:
        return esc(row.caption)
    if row.source == "words":
        return f"{esc(row.caption)} <i>class tokens</i>"
    return "<i>empty caption</i>"
