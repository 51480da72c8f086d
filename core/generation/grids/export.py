"""Exports a grid as one image with labels, and as one self-contained HTML file."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from core.dataset.images.opening import open_rgb
from core.dataset.images.thumbnails import jpeg_url
from core.generation.grids.folder import GridContent, GridFolder, Index
from core.record import atomic

PAPER, INK, GRAY, EMPTY = (255, 255, 255), (20, 20, 20), (110, 110, 110), (236, 236, 236)
MOST_SIDE, MOST_PIXELS = 16_000, 120_000_000  # of the cells together, so that most programs can open the image
LARGEST_IN_HTML = 768  # pixels of a cell's longer side
GAP, MOST_LINES = 6, 8


def export(folder: GridFolder) -> None:
    """Write grid.png and grid.html with the cells generated so far.

    Raises ProblemsError for a damaged grid.json, and ValueError if no cell has an image.
    """
    content = folder.content()
    pages = [Page.of(folder, content, z) for z in range(content.size[2])]
    image = image_of(content, pages)
    buffer = BytesIO()
    image.save(buffer, format="PNG", optimize=False)
    atomic.write_bytes(folder.png, buffer.getvalue())
    atomic.write_text(folder.html, html_of(content, pages))


@dataclass(frozen=True)
class CellImage:
    """The image file of a cell, or None and the reason (`why`) for it."""

    path: Path | None
    why: str


@dataclass(frozen=True)
class Page:
    """The table of one value of the Z axis, or the only table: its label and its cells, row by row."""

    label: str
    rows: list[list[CellImage]]

    @classmethod
    def of(cls, folder: GridFolder, content: GridContent, z: int) -> Page:
        """Create the table for the index `z` on the Z axis, with the cells generated so far."""
        existing = folder.generated()
        columns, rows, _ = content.size

        def cell(position: Index) -> CellImage:
            source = content.source(position)
            if source in existing:
                return CellImage(folder.cell(source), "")
            return CellImage(None, content.failed.get(source, "not made"))

        return cls(label(content, "z", z), [[cell((x, y, z)) for x in range(columns)] for y in range(rows)])


def label(content: GridContent, letter: str, number: int) -> str:
    """Return the label of a column, row or table, "title: value" with the value's note on a second line; "" without that axis.

    letter   "x", "y" or "z"
    number   index of the value on the axis
    """
    axis = content.axis(letter)
    if axis is None:
        return ""
    note = f"\n{axis.notes[number]}" if axis.notes[number] else ""
    return f"{axis.title}: {axis.texts[number]}{note}"


# -- one image


def image_of(content: GridContent, pages: Sequence[Page]) -> Image.Image:
    """Return all tables below one another as one image, with wrapped labels. Raises ValueError if no cell has an image.

    Cells are scaled down, to at least 16 pixels a side, so that together they fit MOST_SIDE and MOST_PIXELS; labels and gaps
    are added to that.
    """
    columns, rows, _ = content.size
    wide, high = _cell_size(pages)
    scale = min(1.0, _scale_to_limits(columns, rows * len(pages), wide, high))
    wide, high = max(int(wide * scale), 16), max(int(high * scale), 16)
    font = ImageFont.load_default(size=max(12, min(wide // 18, 40)))
    tops = [_wrapped(label(content, "x", x), font, wide - 2 * GAP) for x in range(columns)]
    label_width = _left_width(content, wide)
    sides = [_wrapped(label(content, "y", y), font, label_width - 2 * GAP) for y in range(rows)]
    line_height = _line_height(font)
    top = max(map(len, tops)) * line_height + 2 * GAP if content.axis("x") else 0
    total = label_width + columns * (wide + GAP) + GAP
    titles = [_wrapped(page.label, font, total - 2 * GAP) for page in pages]
    heights = [top + len(title) * line_height + (2 * GAP if title else 0) + rows * (high + GAP) for title in titles]
    sheet = Image.new("RGB", (total, sum(heights) + GAP), PAPER)
    draw = ImageDraw.Draw(sheet)
    page_top = 0
    for page, title, height in zip(pages, titles, heights, strict=True):
        y = page_top + GAP
        for number, text in enumerate(title):
            draw.text((GAP, y + number * line_height), text, INK, font)
        y += len(title) * line_height + (GAP if title else 0)
        for x, lines in enumerate(tops):
            _centered(draw, lines, font, (label_width + GAP + x * (wide + GAP), y, wide, top - GAP if top else 0))
        y += top - GAP if top else 0
        for row, cells in enumerate(page.rows):
            _centered(draw, sides[row], font, (0, y, label_width, high))
            for x, cell in enumerate(cells):
                _paste(sheet, draw, cell, (label_width + GAP + x * (wide + GAP), y, wide, high))
            y += high + GAP
        page_top += height
    return sheet


def _cell_size(pages: Sequence[Page]) -> tuple[int, int]:
    """Return the largest width and the largest height of the cells' images, in pixels. Raises ValueError if there are none."""
    sizes = set()
    for path in {cell.path for page in pages for row in page.rows for cell in row if cell.path is not None}:
        with Image.open(path) as image:
            sizes.add(image.size)
    return max(width for width, _ in sizes), max(height for _, height in sizes)


def _scale_to_limits(columns: int, rows: int, wide: int, high: int) -> float:
    """Return the factor by which a table of cells of `wide` x `high` pixels fits MOST_SIDE and MOST_PIXELS."""
    area = (MOST_PIXELS / (columns * wide * rows * high)) ** 0.5
    return min(area, MOST_SIDE / (columns * wide), MOST_SIDE / (rows * high))


def _left_width(content: GridContent, wide: int) -> int:
    """Return the width of the row labels in pixels, 0 without a Y axis. wide: width of a cell"""
    return max(80, min(wide // 2, 320)) if content.axis("y") else 0


def _line_height(font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> int:
    """Return the height of a line of text in pixels."""
    box = font.getbbox("Äjg|")
    return int(box[3] * 1.2) + 1


def _wrapped(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> list[str]:
    """Wrap a text into lines of at most `width` pixels, between words and within longer ones; at most MOST_LINES lines."""
    lines: list[str] = []
    for part in text.split("\n") if text else []:
        line = ""
        for word in part.split():
            for piece in _pieces(word, font, width):
                longer = f"{line} {piece}".strip()
                if line and font.getlength(longer) > width:
                    lines.append(line)
                    line = piece
                else:
                    line = longer
        lines += [line] if line else []
    return [*lines[: MOST_LINES - 1], "…"] if len(lines) > MOST_LINES else lines


def _pieces(word: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> list[str]:
    """Split a word into pieces of at most `width` pixels."""
    pieces, piece = [], ""
    for letter in word:
        if piece and font.getlength(piece + letter) > width:
            pieces.append(piece)
            piece = letter
        else:
            piece += letter
    return [*pieces, piece]


def _centered(
    draw: ImageDraw.ImageDraw,
    lines: Sequence[str],
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    box: tuple[int, int, int, int],
    ink: tuple[int, int, int] = INK,
) -> None:
    """Draw lines of text in the center of a box (left, top, width, height)."""
    x, y, width, height = box
    line_height = _line_height(font)
    y += max(0, (height - line_height * len(lines)) // 2)
    for number, text in enumerate(lines):
        corner = x + (width - font.getlength(text)) / 2, y + number * line_height
        draw.text(corner, text, ink, font)


def _paste(
    sheet: Image.Image,
    draw: ImageDraw.ImageDraw,
    cell: CellImage,
    box: tuple[int, int, int, int],
) -> None:
    """Draw a cell into a box (left, top, width, height): its image, scaled down if needed, or the reason why there is none."""
    x, y, wide, high = box
    if cell.path is None:
        draw.rectangle((x, y, x + wide - 1, y + high - 1), EMPTY)
        small = ImageFont.load_default(size=max(10, min(wide // 24, 20)))
        _centered(draw, _wrapped(cell.why, small, wide - 2 * GAP), small, box, GRAY)
        return
    with Image.open(cell.path) as opened:
        image = opened.convert("RGB")
    image.thumbnail((wide, high), Image.Resampling.LANCZOS)
    sheet.paste(image, (x + (wide - image.width) // 2, y + (high - image.height) // 2))


# -- one HTML file

STYLE = """
:root { color-scheme: light dark; }
body { margin: 16px; font: 14px/1.4 system-ui, sans-serif; }
h1 { font-size: 18px; } h2 { font-size: 15px; margin: 20px 0 6px; white-space: pre-line; }
table { border-collapse: separate; border-spacing: 4px; }
th { position: sticky; background: Canvas; font-weight: 600; padding: 4px; white-space: pre-line; overflow-wrap: anywhere; }
thead th { top: 0; z-index: 1; max-width: 240px; } tbody th { left: 0; max-width: 160px; text-align: start; }
button { border: 0; padding: 0; background: none; cursor: zoom-in; }
td img { display: block; max-width: 240px; max-height: 240px; } .none { width: 160px; color: GrayText; text-align: center; }
dialog { border: 0; padding: 8px; max-width: 96vw; max-height: 96vh; } dialog img { max-width: 92vw; max-height: 84vh; }
"""
SCRIPT = """
const cells = [...document.querySelectorAll('td button')], box = document.querySelector('dialog');
let now = 0;
function show(number) {
  if (!cells[number]) return;
  now = number;
  box.querySelector('img').src = cells[now].querySelector('img').src;
  box.querySelector('p').textContent = cells[now].title;
  if (!box.open) box.showModal();
}
cells.forEach((cell, number) => cell.addEventListener('click', () => show(number)));
box.addEventListener('click', () => box.close());
document.addEventListener('keydown', (event) => {
  if (!box.open) return;
  if (event.key === 'ArrowLeft') show(now - 1);
  if (event.key === 'ArrowRight') show(now + 1);
});
"""


def html_of(content: GridContent, pages: Sequence[Page]) -> str:
    """Return an HTML page with the tables and embedded images. A click enlarges an image; arrow keys show the next one."""
    embedded: dict[Path, str] = {}
    tables = "".join(_table(content, page, embedded) for page in pages)
    title = html.escape(content.title)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style></head><body><h1>{title}</h1>'
        f"<p>{html.escape(content.prompt)}</p>{tables}"
        f'<dialog aria-label="Enlarged image"><img alt=""><p></p></dialog><script>{SCRIPT}</script></body></html>\n'
    )


def _table(content: GridContent, page: Page, embedded: dict[Path, str]) -> str:
    """Return a table as HTML. embedded: {image: its data URL}, extended here"""
    columns, _, _ = content.size
    tops = [label(content, "x", x) for x in range(columns)]
    corner = "<td></td>" if content.axis("y") else ""
    head = "".join(f'<th scope="col">{html.escape(text)}</th>' for text in tops)
    head = f"<thead><tr>{corner}{head}</tr></thead>" if content.axis("x") else ""
    body = ""
    for y, row in enumerate(page.rows):
        side = label(content, "y", y)
        first = f'<th scope="row">{html.escape(side)}</th>' if content.axis("y") else ""
        cells = "".join(
            _cell(cell, ", ".join(filter(None, (top, side, page.label))), embedded)
            for cell, top in zip(row, tops, strict=True)
        )
        body += f"<tr>{first}{cells}</tr>"
    title = f"<h2>{html.escape(page.label)}</h2>" if page.label else ""
    return f"{title}<table>{head}<tbody>{body}</tbody></table>"


def _cell(cell: CellImage, title: str, embedded: dict[Path, str]) -> str:
    """Return a cell as HTML. title: labels of its row, column and table; embedded: {image: its data URL}, extended here"""
    if cell.path is None:
        return f'<td class="none">{html.escape(cell.why)}</td>'
    if cell.path not in embedded:
        embedded[cell.path] = jpeg_url(open_rgb(cell.path), LARGEST_IN_HTML)
    title = html.escape(title.replace("\n", ", "))
    return f'<td><button type="button" title="{title}"><img src="{embedded[cell.path]}" alt="{title}"></button></td>'
