"""Renders heat maps and curves of a result (charts.py) as one PNG, for the command line."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.record import atomic
from core.record.problems import ProblemsError, raise_any
from core.record.workspace import display_path, resolve_path
from core.tools.output import output_problems

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw

CELL, ROW, MARGIN, TITLE = 46, 22, 20, 34
WIDTH, HEIGHT = 760, 320  # of the field of curves
INK, FAINT, PAPER = (28, 32, 38), (205, 210, 216), (255, 255, 255)
STRONG, AGAINST = (0x1F, 0x6F, 0xEB), (0xC2, 0x41, 0x0C)
LINES = [STRONG, AGAINST, (0x0F, 0x7B, 0x4F), (0x7C, 0x3A, 0xED)]
MOST_BYTES = 20_000_000


def check_png(name: str | None, where: str) -> None:
    """Raise ProblemsError if `name` is not a PNG file that can be written; without a name nothing is checked."""
    if not name:
        return
    target = resolve_path(name)
    if target.suffix.lower() != ".png":
        what, fix = f"'{target.name}' is not the name of a PNG file", "end the name in .png"
        raise ProblemsError.one(what, where, fix, "tools.not-a-png")
    raise_any(output_problems(target, [], MOST_BYTES, where))


def save_png(charts: Iterable[Mapping[str, Any]], name: str | None) -> list[str]:
    """Write the plots of a result to one PNG. Returns [a line with its path]; [] without plots or name."""
    plots = [each for each in charts if each["kind"] in ("heat", "curves")]
    if not name or not plots:
        return []
    target = Path(resolve_path(name))
    with atomic.open_atomic(target) as temporary:
        render(plots).save(temporary, "PNG")
    return [f"Saved: {display_path(target)}"]


def render(plots: Sequence[Mapping[str, Any]]) -> Image:
    """Return one image with the plots below each other on white."""
    from PIL import Image

    images = [_render_heat_map(each) if each["kind"] == "heat" else _render_curves(each) for each in plots]
    page = Image.new("RGB", (max(image.width for image in images), sum(image.height for image in images)), PAPER)
    top = 0
    for image in images:
        page.paste(image, (0, top))
        top += image.height
    return page


def _page(width: int, height: int, title: str) -> tuple[Image, ImageDraw, Any]:
    """Return (white image with a title, its ImageDraw, a font)."""
    from PIL import Image, ImageDraw, ImageFont

    image = Image.new("RGB", (width, height), PAPER)
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(12)
    pen.text((MARGIN, MARGIN - 8), title, INK, ImageFont.load_default(15))
    return image, pen, font


def _render_heat_map(plot: Mapping[str, Any]) -> Image:
    """Render a heat map."""
    rows, columns = plot["rows"], plot["columns"]
    left = MARGIN + 8 + 7 * max(map(len, rows), default=0)
    width = max(left + CELL * len(columns) + MARGIN, 24 + 9 * len(plot["title"]))
    top = TITLE + 18
    image, pen, font = _page(width, top + ROW * len(rows) + MARGIN, plot["title"])
    for number, column in enumerate(columns):
        pen.text((left + CELL * (number + 0.5), top - 10), column, INK, font, anchor="mm")
    for number, row in enumerate(rows):
        middle = top + ROW * (number + 0.5)
        pen.text((left - 8, middle), row, INK, font, anchor="rm")
        for x, column in enumerate(columns):
            value, note = plot["values"][number][x], plot["notes"].get(f"{row}|{column}")
            box = (left + CELL * x, top + ROW * number, left + CELL * (x + 1) - 2, top + ROW * (number + 1) - 2)
            color = color_of(value, plot["span"])
            pen.rectangle(box, fill=color, outline=AGAINST if note else FAINT, width=2 if note else 1)
            label = "" if value is None else f"{value:.2f}" if plot["span"][0] < 0 else significant_digits(value)
            ink = PAPER if sum(color) < 400 else INK
            pen.text((left + CELL * (x + 0.5) - 1, middle - 1), label, ink, font, anchor="mm")
    return image


def color_of(value: float | None, span: Sequence[float]) -> tuple[int, int, int]:
    """Return the RGB color of a value: white for 0 and None, blue at the largest absolute value in `span`, red at its negative."""
    if value is None:
        return PAPER
    share = min(1.0, abs(value) / (max(map(abs, span)) or 1.0))
    full = AGAINST if value < 0 else STRONG
    return tuple(round(255 + (end - 255) * share) for end in full)  # type: ignore[return-value]


def significant_digits(value: float) -> str:
    """Return the value with three significant digits as text, short enough for a cell."""
    if value == 0:
        return "0"
    return f"{value:.0e}" if abs(value) < 1e-3 or abs(value) >= 1e5 else f"{value:.3g}"


def _render_curves(plot: Mapping[str, Any]) -> Image:
    """Render a line plot."""
    lines, xs = plot["lines"], plot["x"]
    image, pen, font = _page(WIDTH + 110, HEIGHT + TITLE + 60, plot["title"])
    left, top, bottom = 70, TITLE + 8, TITLE + HEIGHT
    known = [_scaled(value, plot["log"]) for line in lines for value in line["values"] if _can_plot(value, plot["log"])]
    low, high = min([*known, 0.0] if not plot["log"] else known, default=0.0), max(known, default=1.0)
    high = high if high > low else low + 1

    def x(value: float) -> float:
        return left + (value - xs[0]) / ((xs[-1] - xs[0]) or 1) * (WIDTH - left)

    def y(value: float) -> float:
        return bottom - (_scaled(value, plot["log"]) - low) / (high - low) * (bottom - top)

    for number in range(5):
        level = low + (high - low) * number / 4
        height = bottom - (bottom - top) * number / 4
        pen.line((left, height, WIDTH, height), FAINT)
        pen.text((left - 8, height), significant_digits(10**level if plot["log"] else level), INK, font, anchor="rm")
    for number in range(6):
        value = xs[0] + (xs[-1] - xs[0]) * number / 5
        pen.text((x(value), bottom + 14), significant_digits(round(value)), INK, font, anchor="mm")
    pen.text((WIDTH, bottom + 32), plot["across"], INK, font, anchor="rm")
    pen.text((left, TITLE - 6), plot["up"], INK, font)
    for number, line in enumerate(lines):
        points = [(x(at), y(v)) for at, v in zip(xs, line["values"], strict=True) if _can_plot(v, plot["log"])]
        color = LINES[number % len(LINES)]
        if len(points) > 1:
            pen.line(points, color, 2, joint="curve")
        pen.text((WIDTH + 8, top + 18 * number), line["name"], color, font)
    return image


def _can_plot(value: float | None, log: bool) -> bool:
    """Return whether a value can be plotted: a number, above 0 on a logarithmic axis."""
    return value is not None and (not log or value > 0)


def _scaled(value: float, log: bool) -> float:
    """Return the value's coordinate: its decimal logarithm on a logarithmic axis."""
    return math.log10(value) if log else value
