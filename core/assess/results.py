"""assess.json in a run's folder: what was measured, and what it says in words. Loads no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from core.assess.measures import MEASURES
from core.record import atomic
from core.record.bounded_json import read_json_object
from core.record.problems import ProblemsError

FILE = "assess.json"
KEY = "key"
Cells = dict[str, dict[str, dict[str, Any]]]  # checkpoint's file -> measure -> data


def read_results(run: Path) -> Cells:
    """What was measured of a run; empty without a file, or for a damaged one."""
    try:
        cells = read_json_object(run / FILE)["cells"]
        return {
            str(file): {name: dict(data) for name, data in measured.items() if name in MEASURES}
            for file, measured in cells.items()
        }
    except (ProblemsError, KeyError, TypeError, ValueError, AttributeError):
        return {}


def write_results(run: Path, cells: Mapping[str, Any]) -> None:
    atomic.write_json(run / FILE, {"version": 1, "cells": cells})


def sentences(measured: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """{name, title, meaning, sentence, warning, files} of each measure of a checkpoint, in the order of the measures."""
    rows = []
    for name, measure in MEASURES.items():
        if (data := measured.get(name)) is None:
            continue
        try:
            row = {"sentence": measure.sentence(data), "warning": measure.warning(data)}
        except (KeyError, TypeError, ValueError, IndexError):  # a line changed by hand
            row = {"sentence": "Not readable: assess it again.", "warning": ""}
        rows.append(
            {"name": name, "title": measure.title, "meaning": measure.meaning, "files": data.get("files", [])} | row
        )
    return rows


def with_warnings(sentence: str, labels: Mapping[str, str], cells: Cells) -> str:
    """A sentence about a run's checkpoints with what was measured of some of them: "Steps 180 and 250 cannot be told apart by
    loss; step 250 nearly copies a training image (fox.png)." labels: of the checkpoints' files"""
    clauses: dict[str, list[str]] = {}
    for file, label in labels.items():
        for row in sentences(cells.get(file, {})):
            if row["warning"]:
                clauses.setdefault(row["warning"], []).append(label)
    parts = [f"{_listed(names)} {clause}" for clause, names in clauses.items()]
    return "; ".join([sentence.removesuffix("."), *parts]) + "." if parts else sentence


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def table_lines(labels: Mapping[str, str], cells: Cells) -> list[str]:
    """The results as a table of text, a line for each checkpoint."""
    names = [name for name in MEASURES if any(name in measured for measured in cells.values())]
    rows = [["checkpoint", *names]]
    for file, label in labels.items():
        measured = cells.get(file, {})
        rows.append([label, *(MEASURES[name].brief(measured[name]) if name in measured else "" for name in names)])
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
