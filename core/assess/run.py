"""The task `assess`: takes the measures that a run's checkpoints lack, writes each to assess.json, and reports all results."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from core.assess.measures import Measure
from core.assess.results import FILE, not_worse, read_results, rows_of, table_lines, with_warnings
from core.assess.statistics import NotMeasured
from core.assess.target import Checkpoint, Target, find_target
from core.engine.verdict import measured_sentence
from core.engine.view import RunView
from core.record import atomic
from core.record.context import JobContext, Outcome
from core.record.problems import Problem, ProblemsError
from core.settings.tools.assess import AssessSettings

KEY = "key"
DIVERGED = "gives NaN or infinite values"


plan = find_target


def do(settings: AssessSettings, target: Target, context: JobContext) -> Outcome:
    """Take the missing measures, and return a table, the sentences of each checkpoint and a conclusion."""
    work = Assessment(target, context)
    work.run()
    cells, checkpoints = work.cells, target.checkpoints
    labels = {each.path.name: each.label for each in checkpoints if each.path.name in cells}
    measured = {
        file: {each.name: cells[file][each.name] for each in target.measures if each.name in cells[file]}
        for file in labels
    }
    lines = table_lines(labels, measured)
    for file, label in labels.items():
        lines += ["", f"{label}:", *(f"  {row['title']}: {row['sentence']}" for row in rows_of(measured[file]))]
    snapshot = RunView.read(target.run).snapshot(False)
    best, steps = snapshot.get("best"), {each["name"]: each["step"] for each in snapshot["files"]}
    lines += [
        "",
        with_warnings(
            measured_sentence(best, too_short=snapshot["too_short"], measured=snapshot["measured"]),
            labels,
            measured,
            not_worse(best, steps),
        ),
    ]
    return Outcome(lines=lines, facts={"cells": measured})


class Assessment:
    """Takes the measures that assess.json lacks. `cells`: all results; `unreadable`: {path of a checkpoint: its problem}."""

    def __init__(self, target: Target, context: JobContext):
        self.target, self.context = target, context
        self.cells = read_results(target.run.path)
        self.unreadable: dict[Path, Problem] = {}

    def run(self) -> None:
        """Take all missing measures. Raises ProblemsError if no checkpoint can be read."""
        todo: dict[Checkpoint, list[Measure]] = {}
        for checkpoint in self.target.checkpoints:
            with self._skipping_unreadable(checkpoint, self.target.measures):
                todo[checkpoint] = self._missing(checkpoint)
        for checkpoint, measures in todo.items():
            recorded = [each for each in measures if each.recorded]
            with self._skipping_unreadable(checkpoint, recorded):
                self._compute(checkpoint, recorded, "recorded", self.target, checkpoint)
        with_model: dict[Checkpoint, list[Measure]] = {}
        for checkpoint, measures in todo.items():
            if checkpoint.path not in self.unreadable and (missing := [each for each in measures if not each.recorded]):
                with_model[checkpoint] = missing
        if with_model:
            self._measure(with_model)
        if len(self.unreadable) == len(self.target.checkpoints):
            raise ProblemsError(list(self.unreadable.values()))

    def _missing(self, checkpoint: Checkpoint) -> list[Measure]:
        """Return the measures that `checkpoint` lacks and that can be taken. Of lacking measures that cannot, store the reason as
        result."""
        cells = self.cells.get(checkpoint.path.name, {})
        target, missing = self.target, list[Measure]()
        for measure in target.measures:
            if cells.get(measure.name, {}).get(KEY) != target.key(measure, checkpoint):
                if why := target.reason(measure):
                    self._store(checkpoint, measure, {"why": why})
                else:
                    missing.append(measure)
        return missing

    def _measure(self, todo: Mapping[Checkpoint, Sequence[Measure]]) -> None:
        """Take measures that need the model: load the base model once, then each checkpoint. `todo`: {checkpoint: its measures}."""
        from core.assess.bench import Bench

        measures = list({measure.name: measure for each in todo.values() for measure in each}.values())
        bench = Bench(self.target, self.context, self.target.predictions(list(todo), measures))
        bench.prepare(measures)
        for checkpoint, missing in todo.items():
            with self._skipping_unreadable(checkpoint, missing), bench.opened(checkpoint) as subject:
                self._compute(checkpoint, missing, "measure", bench, subject)

    def _compute(self, checkpoint: Checkpoint, measures: Sequence[Measure], function: str, *arguments: Any) -> None:
        """Take `measures` of `checkpoint` by calling `function` of their modules, and write each result at once; the reason if one cannot
        be measured.

        function    "recorded" or "measure"
        arguments   of the function: target and checkpoint, or bench and subject
        """
        for measure in measures:
            try:
                data = measure.call(function, *arguments)
                if not _is_finite(data):
                    data = {"why": "the result is NaN or infinite", "warning": DIVERGED}
            except NotMeasured as reason:
                data = {"why": str(reason)}
            except ProblemsError as error:
                data = {"why": error.problems[0].what}
            self._store(checkpoint, measure, data)

    @contextmanager
    def _skipping_unreadable(self, checkpoint: Checkpoint, measures: Sequence[Measure]) -> Iterator[None]:
        """Context that skips an unreadable checkpoint: warns, and stores the problem as the result of `measures` unless the file is
        gone."""
        path = checkpoint.path
        try:
            yield
        except (ProblemsError, FileNotFoundError) as error:
            if not path.exists():
                problem = Problem("The file no longer exists", "", "restore it", code="file.gone")
            elif not isinstance(error, ProblemsError):
                raise
            else:
                problem = error.problems[0]
                unread = {each.name: {KEY: "", "why": problem.what} for each in measures}
                self.cells[path.name] = self.cells.get(path.name, {}) | unread
                self._write()
            self.unreadable[path] = replace(problem, where=str(path))
            self.context.warn(replace(problem, what=f"{checkpoint.label} is not measured: {problem.what}"))

    def _store(self, checkpoint: Checkpoint, measure: Measure, data: Mapping[str, Any]) -> None:
        """Set the result of a measure of a checkpoint and write assess.json."""
        row = {KEY: self.target.key(measure, checkpoint), **data}
        self.cells.setdefault(checkpoint.path.name, {})[measure.name] = row
        self._write()

    def _write(self) -> None:
        """Write all results to the run's assess.json."""
        atomic.write_json(self.target.run.path / FILE, {"version": 1, "cells": self.cells})


def _is_finite(data: Any) -> bool:
    """Whether no number in `data`, JSON values, is NaN or infinite, as those of a training that diverged are."""
    try:
        json.dumps(data, allow_nan=False)
    except ValueError:
        return False
    return True
