"""The comparison of two to four runs on the Runs tab. The page's URL contains their names; the server stores nothing."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.record.problems import ProblemsError
from core.record.run_folder import RunFolder, list_runs
from tabs.generate.grids import queue_runs
from tabs.monitor.charts import loss_series, validation_points, value_series
from tabs.runs import compare_view
from tabs.runs import view as runs_view
from tabs.runs.compared import Side, read_dataset
from tabs.server.browsers import Browser

if TYPE_CHECKING:
    from tabs.context import Page

LISTED = 300  # runs to choose from
MAX_CACHED = 20
Names = tuple[str, ...]


class Comparisons:
    """Provides the part "compare" of the page's periodic update for the runs that the browser names."""

    def __init__(self, page: Page):
        self._page = page
        self._first: dict[Names, Any] = {}  # what reads the journals for the first time
        self._comparisons: dict[Names, tuple[list[Any], dict[str, Any]]] = {}
        page.commands["grid_of_runs"] = self._generate

    def parts(self, tab: Any, body: dict[str, Any]) -> dict[str, Any]:
        """Return {"compare": data of `answer`} for two to four runs in body["wants"]["compare"] on the Runs tab; else {}."""
        wanted = body.get("wants")
        names = wanted.get("compare") if isinstance(wanted, dict) else None
        if tab != "Runs" or not isinstance(names, list) or not 2 <= len(names) <= len(runs_view.LETTERS):
            return {}
        return {"compare": self.answer(*(str(name)[:200] for name in names))}

    def answer(self, *names: str) -> dict[str, Any]:
        """Return the comparison of the named runs: {"runs", "reading", "head": HTML} and `_compared`.

        Instead of `_compared`, "reading" is True while journals are read, and "gone" has the problems if a run no longer exists.
        """
        data: dict[str, Any] = {"runs": list(names), "reading": False}
        data["head"] = compare_view.head(names, list_runs(self._page.workspace.runs)[:LISTED])
        try:
            return data | (self._compared(names) if self._ready(names) else {"reading": True})
        except ProblemsError as error:
            return data | {"gone": [problem.to_dict() for problem in error.problems]}

    def _generate(self, data: dict[str, Any], browser: Browser) -> None:
        """Queue a grid that compares the runs {"runs"} by their recommended checkpoints, and open it in Generate. Raises ProblemsError."""
        requested = data.get("runs")
        names = [Path(str(name)).name for name in requested] if isinstance(requested, list) else []
        if not 2 <= len(names) <= len(runs_view.LETTERS):
            raise ProblemsError.one("There are no runs to compare", "Runs", "choose two to four runs", "runs.none")
        queue_runs(self._page, names)
        self._page.browsers.say(browser, "done", "A grid of these runs is in Generate.", go="Generate")

    def _compared(self, names: Names) -> dict[str, Any]:
        """Return {"html": {part: HTML}, "curves"} of the comparison, cached until a run has new data."""
        facts = [self._page.engine.snapshot(name) for name in names]
        state = [(each["seq"], each["state"], len(each["files"])) for each in facts]
        cached = self._comparisons.get(names)
        if cached is None or cached[0] != state:
            sides = [self._side(letter, name) for letter, name in zip(runs_view.LETTERS, names, strict=False)]
            html = compare_view.comparison_parts(sides, self._page.thumb_url, self._page.file_url)
            cached = (state, {"html": html, "curves": [curves(side) for side in sides]})
            self._comparisons = newest(self._comparisons) | {names: cached}
        return cached[1]

    def _ready(self, names: Names) -> bool:
        """Return whether the runs' journals have been read. The first call starts that in the background, since it can take seconds."""
        task = self._first.get(names)
        if task is None or (task.done and task.error is not None):
            task = self._page.engine.light(self._read, names, title="Loading runs")
            self._first = newest(self._first) | {names: task}
        try:
            task.wait(runs_view.PATIENCE)
        except TimeoutError:
            return False
        return True

    def _read(self, names: Names, task: Any) -> None:
        """Read the journals of the runs and cache their comparison, in the background."""
        for letter, name in zip(runs_view.LETTERS, names, strict=False):
            task.token.check()
            self._side(letter, name)
        self._compared(names)

    def _side(self, letter: str, name: str) -> Side:
        """Return the run `name` as the side `letter` of a comparison."""
        facts = self._page.engine.snapshot(name)
        folder = RunFolder(self._page.workspace.runs / Path(name).name)
        preset = self._page.presets.display_name(folder.preset)
        return Side(letter, facts, self._page.readable_job(name), preset, read_dataset(folder.dataset_file))


def newest(cache: dict[Any, Any]) -> dict[Any, Any]:
    """Return the last MAX_CACHED entries of a cache."""
    return dict(list(cache.items())[-MAX_CACHED:])


def curves(side: Side) -> dict[str, Any]:
    """Return {"smooth", "corrected", "validation": {"steps", "values"} each, "total": number of steps} of a run.

    "smooth" is the smoothed training loss, "corrected" the training loss corrected for timesteps
    """
    loss, measured = loss_series(side.facts.get("loss", [])), validation_points(side.facts.get("validation", []))
    return {
        "smooth": {"steps": loss["steps"], "values": loss["smooth"]},
        "corrected": value_series(side.facts.get("corrected", [])),
        "validation": {"steps": measured["steps"], "values": measured["loss"]},
        "total": side.facts.get("total") or 0,
    }
