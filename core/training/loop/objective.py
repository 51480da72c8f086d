"""Whether the loss fits the model, by the model's header, before anything is loaded or cached."""

from __future__ import annotations

from typing import TYPE_CHECKING

from core.diffusion.objectives import make_objective
from core.families import family
from core.families.components import Components
from core.families.locate import model_path
from core.formats.detect import identify
from core.record.context import JobContext
from core.record.problems import Problem, ProblemsError, raise_if_errors
from core.record.workspace import Workspace
from core.settings.job import TrainJob
from core.settings.methods import of_family
from core.settings.rules.noise import prediction_problems

if TYPE_CHECKING:
    from core.diffusion.objective import Objective


def objective_problems(job: TrainJob, workspace: Workspace) -> list[Problem]:
    """Problems of the loss settings with what the model's file says of its prediction type and noise schedule; none where
    the file does not say, where the setting does (the rules check that), or without a model."""
    try:
        kind = identify(model_path(job.model.base_model, workspace))
    except (ProblemsError, OSError):
        return []
    found = []
    if kind.zero_terminal_snr and not job.noise.zero_terminal_snr:
        what = "The base model was trained with zero terminal SNR, which is off"
        fix = "turn it on, or very dark and very bright images will look gray"
        found.append(Problem(what, "noise.zero_terminal_snr", fix, "advice", code="noise.model-has-zero-snr"))
    if job.model.prediction == "auto" and kind.prediction is not None:
        found += prediction_problems(job.noise, kind.prediction)
    return found


def objective_of(job: TrainJob, context: JobContext, components: Components) -> Objective:
    """The run's objective, for the loaded model."""
    prediction = _prediction(job, context, components.prediction)
    return make_objective(
        of_family(job, components.family), family(components.family).objective, prediction, context.device
    )


def _prediction(job: TrainJob, context: JobContext, loaded: str) -> str:
    """What the run's model predicts, "epsilon" or "v": as set, else as found when it was loaded. Some files do not tell
    before, so what does not go with it is heard here at the latest.

    loaded   what the loaded model was found to predict
    """
    if job.model.prediction != "auto":
        return job.model.prediction
    found = list(prediction_problems(job.noise, loaded))
    raise_if_errors(found)
    for problem in found:
        context.warn(problem)
    return loaded
