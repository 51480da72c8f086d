"""Whether the loss settings fit the base model, by the header of its file."""

from __future__ import annotations

from core.families.locate import model_path
from core.formats.detect import identify
from core.record.problems import Problem, ProblemsError
from core.record.workspace import Workspace
from core.settings.job import TrainJob
from core.settings.rules.noise import prediction_problems


def objective_problems(job: TrainJob, workspace: Workspace) -> list[Problem]:
    """Problems of the loss settings with the prediction type and noise schedule that the model's file states.

    Empty without a model, where the file does not state them, and where the setting does (the rules check that).
    """
    try:
        kind = identify(model_path(job.model.base_model, workspace))
    except (ProblemsError, OSError):
        return []
    problems = []
    if kind.zero_terminal_snr and not job.noise.zero_terminal_snr:
        what = "The base model was trained with zero terminal SNR, which is off"
        fix = "turn it on, or very dark and very bright images will look gray"
        problems.append(Problem(what, "noise.zero_terminal_snr", fix, "advice", code="noise.model-has-zero-snr"))
    if job.model.prediction == "auto" and kind.prediction is not None:
        problems += prediction_problems(job.noise, kind.prediction)
    return problems
