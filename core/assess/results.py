"""assess.json in a run's folder: the measured values, and the texts that describe them. Loads no torch."""

from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from core.assess.measures import MEASURES
from core.record.bounded_json import read_json_object
from core.record.file_titles import MOST_NAMED
from core.record.problems import ProblemsError
from core.record.units import count, listed

FILE = "assess.json"
Cells = dict[str, dict[str, dict[str, Any]]]  # name of a checkpoint's file -> measure -> data


def read_results(run: Path) -> Cells:
    """Return {file name: {measure: data}} of a run; empty if assess.json is missing or damaged."""
    try:
        cells = read_json_object(run / FILE)["cells"]
        return {str(file): {name: dict(measured[name]) for name in measured} for file, measured in cells.items()}
    except (ProblemsError, KeyError, TypeError, ValueError, AttributeError):
        return {}


def best_strength(run: Path, file: str) -> float | None:
    """Return the strength that the assessment of the checkpoint `file` found best, in (0, 2]; None if there is none."""
    best = read_results(run).get(file, {}).get("strength", {}).get("best")
    return float(best) if isinstance(best, (int, float)) and 0 < best <= 2 else None


def rows_of(measured: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return a row for each measure of a checkpoint, in the order of MEASURES: {title, meaning, brief, sentence, warning, files}.
    measured: {measure: data}"""
    rows = []
    for measure in (each for name, each in MEASURES.items() if name in measured):
        data = measured[measure.name]
        try:
            texts = {name: measure.text(name, data) for name in ("brief", "sentence", "warning")}
        except (KeyError, TypeError, ValueError, IndexError, StopIteration):  # the file was changed by hand
            texts = {"brief": "?", "sentence": "Not readable.", "warning": ""}
        rows.append({"title": measure.title, "meaning": measure.meaning, "files": data.get("files", [])} | texts)
    return rows


def not_worse(best: Mapping[str, Any] | None, steps: Mapping[str, int | None]) -> set[str]:
    """Return the files whose loss is not clearly higher than the lowest; all of them if `best` is None.

    best    `Best.to_dict` of the run
    steps   {file: step}
    """
    if best is None:
        return {*steps}
    return {file for file, step in steps.items() if step in (best["step"], *best["as_good"], *best["unknown"])}


def with_warnings(sentence: str, labels: Mapping[str, str], cells: Cells, recommendable: Collection[str]) -> str:
    """Return `sentence` about a run's checkpoints with warnings appended.

    Example: "Steps 180 and 250 cannot be told apart by loss; step 250 nearly copies a training image (fox.png). Nothing that was
    measured speaks against step 180."

    labels          {file: label}
    recommendable   files that the last sentence may recommend, see `not_worse`
    """
    clauses: dict[str, list[str]] = {}
    for file, label in labels.items():
        if warnings := list(dict.fromkeys(row["warning"] for row in rows_of(cells.get(file, {})) if row["warning"])):
            clauses.setdefault(listed(warnings), []).append(label)
    warned = {label for labels_of in clauses.values() for label in labels_of}
    clear = [
        label for file, label in labels.items() if file in recommendable and cells.get(file) and label not in warned
    ]
    parts = (f"{', '.join(names)}{':' * (len(names) > 1)} {clause}" for clause, names in clauses.items())
    assessed = [label for file, label in labels.items() if cells.get(file)]
    worse = [label for label in assessed if label not in warned and label not in clear]
    what = listed(clear)
    if len(clear) > MOST_NAMED:
        exception = f", all but {listed(worse)}, of higher or unknown loss" if 0 < len(worse) <= MOST_NAMED else ""
        what = f"{len(clear)} of {len(assessed)} assessed checkpoints{exception}"
    remarks = _remarks(labels, cells)
    all_clear = f" Nothing{' else' * bool(remarks)} that was measured speaks against {what}." if clear else ""
    progress = (
        f" Only {len(assessed)} of {count(len(labels), 'checkpoint')} assessed so far."
        if 0 < len(assessed) < len(labels)
        else ""
    )
    return "; ".join([sentence.removesuffix("."), *parts]) + f".{remarks}{all_clear}{progress}"


def _remarks(labels: Collection[str], cells: Cells) -> str:
    """Return the measures' `remark` sentences about all measured checkpoints, each with a leading space."""
    remarks = []
    for name, measure in MEASURES.items():
        measured = [data for file in labels if (data := cells.get(file, {}).get(name)) and "why" not in data]
        with suppress(KeyError, TypeError):  # the file was changed by hand
            remarks += [remark] if measured and (remark := measure.call("remark", measured)) else []
    return "".join(f" {remark}" for remark in remarks)


def table_lines(labels: Mapping[str, str], cells: Cells) -> list[str]:
    """Format the results as text: a line for each checkpoint, a column for each measure."""
    names = [name for name in MEASURES if any(name in measured for measured in cells.values())]
    rows = [["checkpoint", *names]]
    for file, label in labels.items():
        data = cells.get(file, {})
        rows.append([label, *(MEASURES[name].text("brief", data.get(name, {"why": ""})) for name in names)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
