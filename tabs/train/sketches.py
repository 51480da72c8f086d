"""Charts of the form's learning rate schedule and timestep distribution, as points."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from core.diffusion.timesteps import density
from core.optimization.schedules import curve, without_schedule
from core.record.problems import ProblemsError
from core.settings.job import TrainJob
from core.settings.noise import NoiseSettings
from core.settings.rules import schedule as rules
from tabs.monitor.charts import rate_series

if TYPE_CHECKING:
    from core.engine.engine import Engine

POINTS = 120
GUESSED_STEPS = 1000  # while the number of images is not known yet
BANDS = 50  # of timesteps


class RateSketch:
    """The newest learning rate chart. Schedules of torch's classes are computed in the background, as torch must be loaded."""

    def __init__(self, engine: Engine):
        self._engine = engine
        self._cached: tuple[Any, dict[str, Any]] = (None, {})

    def facts(self, job: TrainJob, total: int) -> dict[str, Any]:
        """Return the chart {"steps", "lines": [{"name", "values"}], "total", "about"}; "steps" is [] if nothing can be shown.

        total: optimizer steps, 0 while unknown
        """
        key = (job.schedule, job.optimizer, job.method, job.network, job.dataset.train_batch_size, total)
        if self._cached[0] != key:
            needs_torch = job.schedule.lr_scheduler_type and "torch" not in sys.modules
            self._cached = (
                key,
                _nothing(total, "The schedule is being calculated.") if needs_torch else self._computed(job, total),
            )
            if needs_torch:
                self._engine.light(self._later, job, total, key, title="learning-rate curve")
        return self._cached[1]

    def _later(self, job: TrainJob, total: int, key: Any, task: Any) -> None:
        """Load torch and compute the chart, in the background. key: the settings that the chart depends on"""
        import torch  # noqa: F401  the curve is one of its classes

        facts = self._computed(job, total)
        if self._cached[0] == key:
            self._cached = (key, facts)

    def _computed(self, job: TrainJob, total: int) -> dict[str, Any]:
        """Return the chart of `facts`, computed now."""
        if any(problem.level == "error" for problem in rules.problems(job)):
            return _nothing(total, "The schedule is shown once its settings are valid.")
        steps = total or GUESSED_STEPS
        try:
            points = curve(job, steps, points=POINTS, processes=job.memory.num_processes)
        except (ValueError, TypeError, ArithmeticError, ProblemsError) as error:
            return _nothing(total, f"The schedule cannot be shown: {error}.")
        if not points or not points[0][1]:
            return _nothing(total, "Nothing is trained: every learning rate is 0.")
        about = "" if total else f"Shown for {GUESSED_STEPS} steps until the images are counted."
        if without_schedule(job.optimizer):
            about = "The optimizer sets its own learning rate; the scheduler has no effect."
        return rate_series([[step + 1, rates] for step, rates in points]) | {"total": steps, "about": about}


def _nothing(total: int, about: str) -> dict[str, Any]:
    """Return a chart (`RateSketch.facts`) without points. about: the reason"""
    return {"steps": [], "lines": [], "total": total, "about": about}


def timestep_facts(noise: NoiseSettings) -> dict[str, Any]:
    """Return the chart of the timestep distribution: {"steps", "lines": [{"name", "values"}], "total", "across": axis title, "about":
    ""}; "steps" is [] if it is uniform or the timestep range is empty.
    """
    if noise.uniform_timesteps or noise.min_timestep >= noise.max_timestep:
        return {"steps": [], "lines": [], "about": ""}
    middles = [(number + 0.5) * 1000 / BANDS for number in range(BANDS)]
    values = [round(value, 3) for value in density(noise, BANDS)]
    line = {"name": "times as often as uniform", "values": values}
    return {"steps": middles, "lines": [line], "total": 1000, "across": "timestep", "about": ""}
