"""The dataset as small charts: sizes, views of an epoch, lengths of captions. Data in, SVG or HTML out.

Everything is counted into a few hundred marks on the server, so 10,000 images make no larger page than 100.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from core.dataset.report import Report
from core.record.units import count
from core.settings.job import TrainJob
from tabs.markup import esc, section
from tabs.tokens import WINDOWS

WIDTH, HEIGHT = 420, 210
LEFT, BOTTOM, TOP, RIGHT = 44, 24, 8, 10
CELLS = (48, 32, 20)  # to a side of the scatter; the first that gives few enough marks
MOST_MARKS = 500
BIN = 5  # tokens
MOST_BINS = 90


def _svg(body: str, label: str) -> str:
    return (
        f'<svg class="plot" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{esc(label)}" '
        f'preserveAspectRatio="xMidYMid meet">{body}</svg>'
    )


def _text(x: float, y: float, words: str, anchor: str = "middle", kind: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{kind}">{esc(words)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{kind}"/>'


def _ticks(top: float, most: int = 5) -> list[int]:
    """Round numbers from 0 to `top`, at most so many steps."""
    if top <= 0:
        return [0]
    raw = top / most
    size = 10 ** math.floor(math.log10(raw))
    step = next(size * factor for factor in (1, 2, 5, 10) if size * factor >= raw)
    step = max(1, int(step))
    return list(range(0, int(top) + 1, step))


# -- sizes of images


def size_marks(sizes: Sequence[tuple[int, int]]) -> tuple[list[tuple[float, float, int]], float]:
    """Images of nearly one size as one mark: [(mean width, mean height, images)], and the longest side."""
    longest = max((max(size) for size in sizes), default=0)
    marks: list[tuple[float, float, int]] = []
    for cells in CELLS:
        cell = longest / cells if longest else 1
        groups: dict[tuple[int, int], list[float]] = {}
        for (width, height), number in Counter(sizes).items():
            held = groups.setdefault((int(width / cell), int(height / cell)), [0.0, 0.0, 0.0])
            held[0] += width * number
            held[1] += height * number
            held[2] += number
        marks = [(w / n, h / n, int(n)) for w, h, n in groups.values()]
        if len(marks) <= MOST_MARKS:
            break
    return marks, float(longest)


def sizes_plot(job: TrainJob, report: Report | None) -> str:
    """Width by height of every image, with the line of the resolution's area: below it, images are enlarged."""
    sizes = [row.size for row in report.rows if row.size is not None] if report else []
    if not sizes:
        return ""
    marks, longest = size_marks(sizes)
    side = job.dataset.resolution
    area = side * side if isinstance(side, int) else side[0] * side[1]
    top = max(longest, math.sqrt(area)) * 1.06
    across, up = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def at(width: float, height: float) -> tuple[float, float]:
        return LEFT + across * width / top, TOP + up * (1 - height / top)

    body = _axes(_ticks(top), _ticks(top), top, top)
    points = (top * step / 60 for step in range(1, 61))
    curve = [at(width, area / width) for width in points if area / width <= top]
    body += f'<polyline class="area" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in curve)}"/>'
    most = max(number for _, _, number in marks)
    for width, height, number in sorted(marks, key=lambda mark: -mark[2]):
        x, y = at(width, height)
        said = f"{width:,.0f} × {height:,.0f}: {count(number, 'image')}"
        radius = 2.5 + 6 * math.sqrt(number / most)
        body += f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}"><title>{esc(said)}</title></circle>'
    small = sum(width * height < area for width, height in sizes)
    told = f"{len(sizes):,} images by width and height; {small:,} have fewer pixels than the resolution"
    caption = f'<p class="hint">Width across, height up. Below the line an image has fewer pixels than the resolution ({small:,} do).</p>'
    return section(
        "Sizes",
        _svg(body, told) + caption,
        esc(f"{len(set(sizes)):,} different" if len(set(sizes)) > 1 else "all the same"),
    )


def _axes(across: Sequence[int], up: Sequence[int], right: float, top: float) -> str:
    """Grid lines with their numbers."""
    width, height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
    body = ""
    for value in across:
        x = LEFT + width * value / right
        body += _text(x, HEIGHT - 8, f"{value:,}")
    for value in up:
        y = TOP + height * (1 - value / top)
        body += _line(LEFT, y, WIDTH - RIGHT, y, "rule") + _text(LEFT - 6, y + 4, f"{value:,}", "end")
    return body


# -- views of an epoch


def balance(names: Sequence[str], roles: Sequence[str], views: Sequence[int]) -> str:
    """How many views of an epoch each folder has. All three are by folder."""
    total = sum(views)
    if len(names) < 2 or not total:
        return ""
    rows = ""
    for name, role, number in zip(names, roles, views, strict=True):
        share = number / total
        of = "" if role == "train" else f' <span class="hint">{esc(role)}</span>'
        rows += (
            f'<div class="share-row {esc(role)}" title="{number:,} of {total:,} views"><span class="name">{esc(name)}{of}</span>'
            f'<span class="track"><i style="width:{100 * share:.1f}%"></i></span>'
            f'<span class="num">{number:,}</span><span class="num hint">{share:.0%}</span></div>'
        )
    return section("Views per epoch", f'<div class="shares">{rows}</div>', esc(f"{total:,} in all"))


# -- lengths of captions


def length_bins(tokens: Sequence[int]) -> tuple[list[int], int]:
    """Captions counted by length: (number in each bin, tokens a bin)."""
    longest = max(tokens, default=0)
    size = BIN
    while longest // size + 1 > MOST_BINS:
        size *= 2
    bins = [0] * (longest // size + 1)
    for number in tokens:
        bins[number // size] += 1
    return bins, size


def lengths_plot(report: Report | None) -> str:
    """How many captions have how many tokens, with the marks where they would be cut."""
    tokens = [row.tokens for row in report.rows if row.trains and row.tokens is not None] if report else []
    if report is None or not tokens:
        return ""
    bins, size = length_bins(tokens)
    limit = report.token_limit
    beyond = max((mark for mark in WINDOWS if mark <= len(bins) * size), default=0)
    marks = [mark for mark in WINDOWS if mark <= max(beyond + WINDOWS[0], limit)]  # those reached, and the next
    right = max(len(bins) * size, max(marks)) * 1.04
    most = max(bins)
    across, up = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
    body = _axes(
        [tick for tick in _ticks(right) if all(abs(tick - mark) > right / 14 for mark in marks)],
        _ticks(most, 4),
        right,
        most * 1.1,
    )
    for place, number in enumerate(bins):
        if not number:
            continue
        x, width = LEFT + across * place * size / right, across * size / right
        high = up * number / (most * 1.1)
        cut = " cut" if place * size > limit else ""
        said = f"{place * size} to {place * size + size - 1} tokens: {count(number, 'caption')}"
        body += (
            f'<rect class="column{cut}" x="{x + 0.5:.1f}" y="{TOP + up - high:.1f}" width="{max(width - 1, 1):.1f}" '
            f'height="{high:.1f}"><title>{esc(said)}</title></rect>'
        )
    for mark in marks:
        x = LEFT + across * mark / right
        kind = "mark limit" if mark == limit else "mark"
        body += _line(x, TOP, x, TOP + up, kind) + _text(x, HEIGHT - 8, str(mark), kind=kind)
    over = sum(number > limit for number in tokens)
    told = f"Captions by tokens; {over:,} are longer than {limit} and are truncated"
    aside = f"{count(over, 'caption')} truncated at {limit}" if over else f"none is truncated at {limit}"
    return section("Caption length in tokens", _svg(body, told), esc(aside))
