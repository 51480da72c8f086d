"""The task `assess`: measures what is missing of a run's checkpoints, cell by cell, and reports all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from core.assess.measures import Measure
from core.assess.results import KEY, Cells, read_results, sentences, table_lines, with_warnings, write_results
from core.assess.target import Checkpoint, Target, find_target
from core.engine.verdict import measured_sentence
from core.engine.view import RunView
from core.record.context import JobContext, Outcome
from core.record.problems import ProblemsError
from core.record.workspace import Workspace
from core.settings.tools.assess import AssessSettings
from core.tools.charts import table


def plan(settings: AssessSettings, workspace: Workspace) -> Target:
    return find_target(settings, workspace)


def do(settings: AssessSettings, target: Target, context: JobContext) -> Outcome:
    cells = read_results(target.run.path)
    todo = missing(target, cells)
    for checkpoint, measure in list(todo):
        if why := target.reason(measure):
            todo.remove((checkpoint, measure))
            _keep(target, cells, checkpoint, measure, {"why": why})
    if todo:
        _measure_all(target, cells, todo, context)
    return _outcome(target, cells)


def missing(target: Target, cells: Cells) -> list[tuple[Checkpoint, Measure]]:
    """What was not measured yet, or not of these files and settings."""
    return [
        (checkpoint, measure)
        for checkpoint in target.checkpoints
        for measure in target.measures
        if cells.get(checkpoint.file, {}).get(measure.name, {}).get(KEY) != target.key(measure, checkpoint)
    ]


def _measure_all(target: Target, cells: Cells, todo: list[tuple[Checkpoint, Measure]], context: JobContext) -> None:
    from core.assess.bench import Bench

    measures = list({measure.name: measure for _, measure in todo}.values())
    checkpoints = [checkpoint for checkpoint in target.checkpoints if any(checkpoint == each for each, _ in todo)]
    context.stage("loading the model")
    bench = Bench(target, context, target.predictions(checkpoints, measures))
    bench.prepare(measures)
    for checkpoint in checkpoints:
        with bench.opened(checkpoint) as subject:
            for measure in [measure for each, measure in todo if each == checkpoint]:
                try:
                    data = measure.measure(bench, subject)
                except ProblemsError as error:
                    data = {"why": error.problems[0].what}
                _keep(target, cells, checkpoint, measure, data)


def _keep(target: Target, cells: Cells, checkpoint: Checkpoint, measure: Measure, data: Mapping[str, Any]) -> None:
    cells.setdefault(checkpoint.file, {})[measure.name] = {KEY: target.key(measure, checkpoint), **data}
    write_results(target.run.path, cells)


def _outcome(target: Target, cells: Cells) -> Outcome:
    labels = {checkpoint.file: checkpoint.label for checkpoint in target.checkpoints}
    measured = {file: {measure.name: cells[file][measure.name] for measure in target.measures} for file in labels}
    best = RunView.read(target.run).snapshot(False).get("best")
    lines, shown = table_lines(labels, measured), []
    for file, label in labels.items():
        rows = sentences(measured[file])
        lines += ["", label, *(f"  {row['title']}: {row['sentence']}" for row in rows)]
        shown.append(table(label, ["Measure", "Result"], [[row["title"], row["sentence"]] for row in rows]))
    lines += ["", with_warnings(measured_sentence(best), labels, measured)]
    return Outcome(lines=lines, facts={"cells": measured, "shown": shown})
