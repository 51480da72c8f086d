""" "Run again with": queues a run for each of one to eight values of a setting, and estimates their time."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from core.engine.deleted import no_such_run
from core.engine.extend import GROUPS
from core.engine.run_summary import RunSummary
from core.record.problems import Problem, ProblemsError, errors, raise_if_errors
from core.record.run_folder import safe_name
from core.record.units import clock, count
from core.settings.base import Declared, value_of
from core.settings.check import build
from core.settings.job import TrainJob
from core.settings.presets.files import to_values
from core.settings.rules import ineffective
from core.settings.saving import SavingSettings
from core.settings.values import ONE_COMMA, THOUSANDS, text_of, value_from
from tabs.form.project import FIELDS
from tabs.markup import button, esc, options, problems_html, section

if TYPE_CHECKING:
    from tabs.context import Page

MOST = 8
_NAME = SavingSettings.model_fields["output_name"]
MOST_NAME = next(each.max_length for each in _NAME.metadata if hasattr(each, "max_length"))
KINDS = ("int", "float", "bool", "choice")  # of settings whose values are one word
LONGEST = 500  # characters of the field
SWITCH = {"on": True, "true": True, "off": False, "false": False}


@dataclass(frozen=True)
class PlannedRuns:
    """The runs to queue.

    entry    the varied setting
    values   as texts of the form
    jobs     one for each value
    seconds  estimated time of all runs, None if the run's speed is unknown
    """

    entry: Declared
    values: list[str]
    jobs: list[TrainJob]
    seconds: float | None


def planned_runs(job: TrainJob, path: str, text: str, run: RunSummary, facts: dict[str, Any]) -> PlannedRuns:
    """Return the planned runs, one for each value of setting `path`. Raises ProblemsError with the problems of all values.

    path   path, name or title of the setting
    text   1 to MOST values, separated by spaces, semicolons or commas
    facts  the run's snapshot
    """
    path = _path_of(path, offered(job))
    entry, parts = FIELDS[path], re.split(r"[;\s]+|,\s+", text.strip().strip(",;"))
    values = list(dict.fromkeys(each for part in parts for each in _parts(entry, part)))
    if not 1 <= len(values) <= MOST or not values[0]:
        what = f"{len(values)} values are given" if values[0] else "No value is given"
        raise ProblemsError.one(what, entry.title, f"write 1 to {MOST} values, separated by spaces", "again.values")
    problems: list[Problem] = []
    jobs: dict[Any, TrainJob] = {}  # by value: 1e-4 and 0.0001 are one run
    for each in values:
        try:
            value = SWITCH.get(each.lower(), each) if entry.kind == "bool" else value_from(entry, each)
            changed = to_values(job)
            changed.setdefault(entry.group, {})[entry.name] = value
            ending = f"-{entry.name}-{safe_name(each)}"
            name = job.saving.output_name[: MOST_NAME - len(ending)]
            changed["saving"] = changed.get("saving", {}) | {"output_name": f"{name}{ending}"}
            new = build(TrainJob, changed)
            jobs.setdefault(value_of(new, path), new)
        except ProblemsError as error:
            problems += error.problems
    raise_if_errors(problems)
    pace = run.seconds / run.step if run.step else None
    seconds = sum(_steps(each, job, int(facts.get("total") or 0)) for each in jobs.values()) * pace if pace else None
    return PlannedRuns(entry, [str(text_of(entry, value)) for value in jobs], [*jobs.values()], seconds)


def _parts(entry: Declared, text: str) -> list[str]:
    """Return the values between commas, "1e-3,1e-2"; a decimal comma or thousands separator, "0,5", does not separate."""
    is_single_value = re.fullmatch(ONE_COMMA, text, re.IGNORECASE) and (
        entry.kind != "int" or re.match(THOUSANDS, text)
    )
    return [text] if is_single_value else text.split(",")


def _path_of(text: str, fields: Mapping[str, Declared]) -> str:
    """Return the path of the setting in `fields` with the path, name or title `text`. Raises ProblemsError unless there is exactly one."""
    name = text.strip().lower()
    paths = [path for path, entry in fields.items() if name in (path, entry.name, entry.title.lower())]
    if len(paths) != 1:
        what, fix = f"'{text[:60]}' cannot be varied", "choose a setting of the list that has an effect in this run"
        raise ProblemsError.one(what, "Setting", fix, "again.setting")
    return paths[0]


def _steps(job: TrainJob, base: TrainJob, total: int) -> float:
    """Return the estimated number of steps of `job`. base, total: job and number of steps of the run that it is based on"""
    if job.schedule.steps_in_force is not None:
        return job.schedule.steps_in_force
    epochs = [each.schedule.max_train_epochs or 1 for each in (job, base)]
    images = [each.dataset.train_batch_size * each.schedule.gradient_accumulation_steps for each in (base, job)]
    return total * epochs[0] / epochs[1] * images[0] / images[1]


def offered(job: TrainJob) -> dict[str, Declared]:
    """Return {path: setting} of the settings that can be varied: those of one value that have an effect in this job."""
    unused = ineffective(job)
    fields = ((path, entry) for path, entry in FIELDS.items() if entry.kind in KINDS and entry.group not in GROUPS)
    return {path: entry for path, entry in fields if path not in unused}


class Agains:
    """Queues the runs of "Run again with", and shows the newest attempt for each run until the server ends."""

    def __init__(self, page: Page):
        self._page = page
        self._tasks: dict[str, Any] = {}

    def start(self, name: str, path: str, text: str) -> None:
        """Check the runs with each value in `text` of setting `path` in the background, and queue all of them or none.

        name: of the run to repeat. Raises ProblemsError.
        """
        engine = self._page.engine
        run = engine.run(name)
        if run is None:
            raise no_such_run(name, self._page.workspace)
        running = self._tasks.get(name)
        if running is not None and not running.done:
            raise ProblemsError.one("These runs are being checked", name, "wait a moment", "again.busy")
        planned = planned_runs(engine.run_job(name), path, text, run, engine.snapshot(name))
        self._tasks[name] = engine.light(self._queue, planned, engine.run_preset(name), title="Run again")

    def _queue(self, planned: PlannedRuns, preset: str, task: Any) -> int:
        """Check the jobs and queue all of them or none; return their number. Raises ProblemsError."""
        checks, engine = self._page.checks, self._page.engine
        problems: list[Problem] = []
        for job in planned.jobs:
            report = checks.report(job, task.token, decode=True)
            problems += errors(checks.problems(job, report, engine.find_device(), find_copies=True))
        raise_if_errors(list(dict.fromkeys(problems)))
        return len(self._page.submit_all("train", planned.jobs, preset))

    def html(self, run: RunSummary, job: TrainJob, facts: dict[str, Any], path: str, text: str) -> str:
        """Return the HTML of the fields, of the runs that they describe, and of the last attempt.

        facts: the run's snapshot; path, text: contents of the fields
        """
        known, name = offered(job), esc(run.name)
        listed = options((entry.title, each) for each, entry in known.items())
        current = ""
        with suppress(ProblemsError):
            setting = _path_of(path, known)
            current = str(text_of(FIELDS[setting], value_of(job, setting)))
        hint = f"now {current}" if current else "such as 4 8 16"
        fields = (
            f'<label>Setting <input type="text" list="again-settings" data-act="again-setting" data-arg="{name}" value="{esc(path)}" '
            f'placeholder="such as network.rank" maxlength="100" autocomplete="off" spellcheck="false"></label>'
            f'<label>Values <input type="text" data-act="again-values" data-live data-arg="{name}" value="{esc(text)}" '
            f'placeholder="{esc(hint)}" maxlength="{LONGEST}" autocomplete="off" spellcheck="false"></label>'
            f'<datalist id="again-settings">{listed}</datalist>'
        )
        help = f'<p class="hint">One value, or 2 to {MOST} for a sweep. Everything else, the seed too, stays as it was.</p>'
        return section(
            "Run again with", f'{help}<div class="again">{fields}</div>{self._plan(run, job, facts, path, text)}'
        )

    def _plan(self, run: RunSummary, job: TrainJob, facts: dict[str, Any], path: str, text: str) -> str:
        """Return the HTML of the runs that setting `path` and values `text` describe, with the button, and of the last attempt."""
        task = self._tasks.get(run.name)
        if task is not None and not task.done:
            return '<p class="hint" role="status">Checking the images ...</p>'
        outcome = ""
        if task is not None:
            queued = (
                f'<p class="run-message fine" role="status">{count(task.result or 0, "run")} added to the queue.</p>'
            )
            outcome = problems_html(task.error.problems) if task.error else queued
        try:
            if path:
                _path_of(path, offered(job))
            if not path or not text:
                return outcome
            planned = planned_runs(job, path, text, run, facts)
        except ProblemsError as error:
            return problems_html(error.problems)
        number = count(len(planned.jobs), "run")
        time = f"about {clock(planned.seconds)} in all at this run's pace" if planned.seconds else "time unknown"
        summary = f"{number}: {planned.entry.title} {', '.join(planned.values)}; {time}."
        return f'<p class="hint">{esc(summary)}</p>{button("again", f"Add {number} to the queue", run.name, kind="primary")}{outcome}'
