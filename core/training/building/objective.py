"""The loss objective of a run, for the loaded base model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from core.diffusion.objectives import make_objective
from core.families import family
from core.families.components import Components
from core.record.context import JobContext
from core.record.problems import raise_if_errors
from core.settings.job import TrainJob
from core.settings.rules.noise import prediction_problems

if TYPE_CHECKING:
    from core.diffusion.objective import Objective


def objective_of(job: TrainJob, context: JobContext, components: Components) -> Objective:
    """Return the objective of the run for the loaded base model. Raises ProblemsError where the loss settings do not fit the model."""
    prediction = _prediction(job, context, components.prediction)
    name = components.family
    job = job.with_settings(model={"family": name})
    return make_objective(job, family(name).objective, prediction, context.device)


def _prediction(job: TrainJob, context: JobContext, loaded: str) -> str:
    """Return the prediction type of the run, "epsilon" or "v": from the settings, else `loaded`, the loaded model's.

    Raises ProblemsError where the loss settings do not fit `loaded`: some files show their type only when loaded.
    """
    if job.model.prediction != "auto":
        return job.model.prediction
    problems = list(prediction_problems(job.noise, loaded))
    raise_if_errors(problems)
    for problem in problems:
        context.warn(problem)
    return loaded
