"""HTML of charts of the dataset: image sizes, views per epoch, caption lengths.

Images are binned on the server into a few hundred marks, so that the page stays small for 10,000 images.
"""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from core.dataset.report import Report
from core.record.units import count
from core.settings.job import TrainJob
from tabs.markup import client_rendered, esc, section

CELLS = (48, 32, 20)  # to a side of the scatter; the first that gives few enough marks
MOST_MARKS = 500
BIN = 5  # tokens
MOST_BINS = 90
WINDOWS = (75, 150, 225)  # tokens of one, two and three passes through the text encoder


# -- sizes of images


def size_marks(sizes: Sequence[tuple[int, int]]) -> tuple[list[tuple[float, float, int]], float]:
    """Group (width, height) pairs in pixels into marks.

    Returns ([(mean width, mean height, number of images)], longest side), at most about MOST_MARKS marks.
    """
    longest = max((max(size) for size in sizes), default=0)
    marks: list[tuple[float, float, int]] = []
    for cells in CELLS:
        cell = longest / cells if longest else 1
        groups: dict[tuple[int, int], list[float]] = {}
        for (width, height), number in Counter(sizes).items():
            sums = groups.setdefault((int(width / cell), int(height / cell)), [0.0, 0.0, 0.0])
            sums[0] += width * number
            sums[1] += height * number
            sums[2] += number
        marks = [(w / n, h / n, int(n)) for w, h, n in groups.values()]
        if len(marks) <= MOST_MARKS:
            break
    return marks, float(longest)


def sizes_plot(job: TrainJob, report: Report | None) -> str:
    """Return the chart of image widths and heights, with a line at the area of the training resolution; "" without sizes."""
    sizes = [row.size for row in report.rows if row.size is not None] if report else []
    if not sizes:
        return ""
    marks, longest = size_marks(sizes)
    side = job.dataset.resolution
    area = side * side if isinstance(side, int) else side[0] * side[1]
    top = max(longest, math.sqrt(area)) * 1.06
    widths = [top * step / 60 for step in range(1, 61) if area * 60 / step <= top * top]
    most = max(number for _, _, number in marks)
    spots = [
        (
            round(width),
            round(height),
            round(2.5 + 6 * math.sqrt(number / most), 1),
            f"{width:,.0f} × {height:,.0f}: {count(number, 'image')}",
        )
        for width, height, number in sorted(marks, key=lambda mark: -mark[2])
    ]
    small = sum(width * height < area for width, height in sizes)
    label = f"{len(sizes):,} images by width and height; {small:,} have fewer pixels than the resolution"
    line = {
        "kind": "area",
        "steps": [round(width) for width in widths],
        "values": [round(area / width) for width in widths],
    }
    chart = client_rendered("chart", _axes(label, top, top, "width", "height") | {"lines": [line], "spots": spots})
    caption = f'<p class="hint">Below the line an image has fewer pixels than the resolution ({small:,} do).</p>'
    distinct = len(set(sizes))
    return section("Sizes", chart + caption, f"{distinct:,} different" if distinct > 1 else "all the same")


def _axes(label: str, right: float, top: float, across: str, up: str) -> dict[str, Any]:
    """Return chart options {"label", "right", "top", "across", "up", "lines": []} for axes from 0 to `right` and `top`, titled `across` (x)
    and `up` (y).
    label: text for screen readers"""
    return {"label": label, "right": round(right, 1), "top": round(top, 1), "across": across, "up": up, "lines": []}


# -- views of an epoch


def balance(names: Sequence[str], roles: Sequence[str], views: Sequence[int]) -> str:
    """Return the chart of the views per epoch of each folder; "" for fewer than two folders or without views.

    names, roles, views: one item per folder
    """
    total = sum(views)
    if len(names) < 2 or not total:
        return ""
    rows = ""
    for name, role, number in zip(names, roles, views, strict=True):
        share = number / total
        role_note = "" if role == "train" else f' <span class="hint">{esc(role)}</span>'
        rows += (
            f'<div class="share-row {esc(role)}" title="{number:,} of {total:,} views"><span class="name">{esc(name)}{role_note}</span>'
            f'<span class="track"><i style="width:{100 * share:.1f}%"></i></span>'
            f'<span class="num">{number:,}</span><span class="num hint">{share:.0%}</span></div>'
        )
    return section("Views per epoch", f'<div class="shares">{rows}</div>', esc(f"{total:,} in all"))


# -- lengths of captions


def length_bins(tokens: Sequence[int]) -> tuple[list[int], int]:
    """Return (number of captions in each bin, tokens per bin) of caption lengths in tokens."""
    longest = max(tokens, default=0)
    size = BIN
    while longest // size + 1 > MOST_BINS:
        size *= 2
    bins = [0] * (longest // size + 1)
    for number in tokens:
        bins[number // size] += 1
    return bins, size


def lengths_plot(report: Report | None) -> str:
    """Return the chart of caption lengths in tokens, with marks at each 75-token window; "" until tokens are counted."""
    tokens = [row.tokens for row in report.rows if row.trains and row.tokens is not None] if report else []
    if report is None or not tokens:
        return ""
    bins, size = length_bins(tokens)
    limit = report.token_limit
    beyond = max((mark for mark in WINDOWS if mark <= len(bins) * size), default=0)
    marks = [mark for mark in WINDOWS if mark <= max(beyond + WINDOWS[0], limit)]  # those reached, and the next
    right = max(len(bins) * size, max(marks)) * 1.04
    filled = [(index * size, number) for index, number in enumerate(bins) if number]
    columns = [
        (begin, size, number, f"{begin} to {begin + size - 1} tokens: {count(number, 'caption')}", begin > limit)
        for begin, number in filled
    ]
    over = sum(number > limit for number in tokens)
    label = f"Captions by tokens; {over:,} are longer than {limit} and are truncated"
    aside = f"{count(over, 'caption')} truncated at {limit}" if over else f"none is truncated at {limit}"
    chart_options = _axes(label, right, max(bins) * 1.1, "tokens", "captions")
    chart = client_rendered("chart", chart_options | {"columns": columns, "marks": marks, "limit": limit})
    return section("Caption length in tokens", chart, aside)
