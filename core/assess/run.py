"""The task `assess`: measures what is missing of a run's checkpoints, cell by cell, and reports all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from core.assess.measures import Measure
from core.assess.results import FILE, Cells, read_results, rows_of, table_lines, with_warnings
from core.assess.statistics import NotMeasured
from core.assess.target import Checkpoint, Target, find_target
from core.engine.verdict import measured_sentence
from core.engine.view import RunView
from core.record import atomic
from core.record.context import JobContext, Outcome
from core.record.problems import ProblemsError
from core.record.workspace import Workspace
from core.settings.tools.assess import AssessSettings

KEY = "key"


def plan(settings: AssessSettings, workspace: Workspace) -> Target:
    return find_target(settings, workspace)


def do(settings: AssessSettings, target: Target, context: JobContext) -> Outcome:
    cells = read_results(target.run.path)
    todo = [
        (checkpoint, measure)
        for checkpoint in target.checkpoints
        for measure in target.measures
        if cells.get(checkpoint.path.name, {}).get(measure.name, {}).get(KEY) != target.key(measure, checkpoint)
    ]
    for each in todo:
        if why := target.reason(each[1]):
            _keep(target, cells, *each, {"why": why})
    if todo := [each for each in todo if not target.reason(each[1])]:
        _measure(target, cells, todo, context)
    labels = {checkpoint.path.name: checkpoint.label for checkpoint in target.checkpoints}
    measured = {file: {each.name: cells[file][each.name] for each in target.measures} for file in labels}
    lines = table_lines(labels, measured)
    for file, label in labels.items():
        lines += ["", f"{label}:", *(f"  {row['title']}: {row['sentence']}" for row in rows_of(measured[file]))]
    best = RunView.read(target.run).snapshot(False).get("best")
    lines += ["", with_warnings(measured_sentence(best), labels, measured)]
    return Outcome(lines=lines, facts={"cells": measured})


def _measure(target: Target, cells: Cells, todo: Sequence[tuple[Checkpoint, Measure]], context: JobContext) -> None:
    from core.assess.bench import Bench

    measures = list({measure.name: measure for _, measure in todo}.values())
    checkpoints = list(dict.fromkeys(checkpoint for checkpoint, _ in todo))
    bench = Bench(target, context, target.predictions(checkpoints, measures))
    bench.prepare(measures)
    for checkpoint in checkpoints:
        with bench.opened(checkpoint) as subject:
            for measure in [measure for each, measure in todo if each == checkpoint]:
                try:
                    data = measure.call("measure", bench, subject)
                except NotMeasured as reason:
                    data = {"why": str(reason)}
                except ProblemsError as error:
                    data = {"why": error.problems[0].what}
                _keep(target, cells, checkpoint, measure, data)


def _keep(target: Target, cells: Cells, checkpoint: Checkpoint, measure: Measure, data: Mapping[str, Any]) -> None:
    """Add a cell to assess.json."""
    cells.setdefault(checkpoint.path.name, {})[measure.name] = {KEY: target.key(measure, checkpoint), **data}
    atomic.write_json(target.run.path / FILE, {"version": 1, "cells": cells})
