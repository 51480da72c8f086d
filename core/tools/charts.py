"""Tables, heat maps and curves of a tool's result, as JSON for the page (`facts["shown"]`)."""

from collections.abc import Mapping, Sequence
from typing import Any

Cells = Sequence[Sequence[float | None]]


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], copied: bool = False) -> dict[str, Any]:
    """Return a table for the page, {"kind": "table", "title", "columns", "rows", "copied"}. The page right-aligns numbers.

    rows     a sequence of cells each: text, numbers or None
    copied   whether each cell gets a copy button
    """
    cells = [[_plain(cell) for cell in row] for row in rows]
    return {"kind": "table", "title": title, "columns": list(columns), "rows": cells, "copied": copied}


def heat_map(
    title: str,
    rows: Sequence[str],
    columns: Sequence[str],
    values: Cells,
    unit: str = "",
    span: tuple[float, float] | None = None,
    notes: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Return a heat map for the page, {"kind": "heat", "title", "rows", "columns", "values", "unit", "span": [low, high], "notes"}.

    values   by row and column, None for an empty cell
    unit     of the values, as text
    span     values of the palest and the strongest color; two colors if it starts below 0. None: from 0 to the largest value
    notes    {"row|column": note}, which marks the cell
    """
    cells = [[_plain(cell) for cell in row] for row in values]
    numbers = [cell for row in cells for cell in row if cell is not None]
    low, high = span or (0.0, max(numbers, default=0.0))
    return {
        "kind": "heat",
        "title": title,
        "rows": list(rows),
        "columns": list(columns),
        "values": cells,
        "unit": unit,
        "span": [low, high],
        "notes": dict(notes or {}),
    }


def curves(
    title: str, across: str, up: str, x: Sequence[float], lines: Mapping[str, Sequence[float | None]], log: bool = False
) -> dict[str, Any]:
    """Return a line plot for the page, {"kind": "curves", "title", "across", "up", "x", "lines": [{"name", "values"}], "log"}.

    across, up   titles of the horizontal and vertical axis
    x            common to all lines
    lines        {name: y values}, None for a gap
    log          whether the vertical axis is logarithmic
    """
    series = [{"name": name, "values": [_plain(value) for value in values]} for name, values in lines.items()]
    return {"kind": "curves", "title": title, "across": across, "up": up, "x": list(x), "lines": series, "log": log}


def _plain(value: Any) -> Any:
    """Return a cell for JSON: floats rounded to six significant digits, None for NaN and infinity."""
    if isinstance(value, float):
        return float(f"{value:.6g}") if abs(value) < float("inf") else None
    return value
