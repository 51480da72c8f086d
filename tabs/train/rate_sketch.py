"""The learning-rate curve that the form's settings will train with, as points for the chart next to them."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from core.optimization.schedules import curve, without_curve
from core.record.problems import ProblemsError
from core.settings.job import TrainJob
from core.settings.rules import schedule as rules
from tabs.monitor.charts import rate_series

if TYPE_CHECKING:
    from core.engine.engine import Engine

POINTS = 120
GUESSED_STEPS = 1000  # while the number of images is not known yet


class RateSketch:
    """Keeps the last curve. Curves of torch's own classes are computed on the light lane: only they need torch."""

    def __init__(self, engine: Engine):
        self._engine = engine
        self._known: tuple[Any, dict[str, Any]] = (None, {})

    def facts(self, job: TrainJob, total: int) -> dict[str, Any]:
        """{"steps", "lines": [{"name", "values"}], "total", "about"}; no steps where there is nothing to draw."""
        key = (job.schedule, job.optimizer, job.method, job.network, job.dataset.train_batch_size, total)
        if self._known[0] == key:
            return self._known[1]
        empty: dict[str, Any] = {"steps": [], "lines": [], "total": total, "about": ""}
        if job.schedule.lr_scheduler_type and "torch" not in sys.modules:
            facts = empty | {"about": "The schedule is being calculated."}
            self._known = (key, facts)
            self._engine.light(self._later, job, total, key, title="learning-rate curve")
            return facts
        facts = self._drawn(job, total, empty)
        self._known = (key, facts)
        return facts

    def _later(self, job: TrainJob, total: int, key: Any, task: Any) -> None:
        import torch  # noqa: F401  the curve is one of its classes

        facts = self._drawn(job, total, {"steps": [], "lines": [], "total": total, "about": ""})
        if self._known[0] == key:
            self._known = (key, facts)

    def _drawn(self, job: TrainJob, total: int, empty: dict[str, Any]) -> dict[str, Any]:
        if any(problem.level == "error" for problem in rules.problems(job)):
            return empty | {"about": "The schedule is shown once its settings are valid."}
        if without_curve(job.optimizer):
            words = "The optimizer sets its own learning rate; the scheduler has no effect."
            empty |= {"about": words}
        steps = total or GUESSED_STEPS
        try:
            points = curve(job, steps, points=POINTS, processes=job.memory.num_processes)
        except (ValueError, TypeError, ArithmeticError, ProblemsError) as error:
            return empty | {"about": f"The schedule cannot be shown: {error}."}
        if not points or not points[0][1]:
            return empty | {"about": "Nothing is trained: every learning rate is 0."}
        drawn = rate_series([[step + 1, rates] for step, rates in points])
        about = empty["about"] or ("" if total else f"Shown for {GUESSED_STEPS} steps until the images are counted.")
        return drawn | {"total": steps, "about": about}
