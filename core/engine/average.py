"""Averages some of a run's LoRA checkpoints and saves the result as a further checkpoint of the run."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from core.record.atomic import numbered
from core.record.cancel import CancelToken
from core.record.commands import NoCommands
from core.record.context import JobContext
from core.record.events import Saved
from core.record.file_titles import is_average
from core.record.journal import Journal, SilentJournal
from core.record.problems import ProblemsError
from core.record.run_folder import RunFolder
from core.record.workspace import Workspace
from core.settings.tools.loras import MergeLorasSettings
from core.tools.loras import merge_loras

SIGMA_REL = 0.2  # relative width of the power function: the last third counts most
MOST_NAMES = 100


def average_weights(steps: Sequence[int], power: bool) -> list[float]:
    """Return a weight for the checkpoint at each step; the weights add up to 1.

    steps   ascending
    power   False: equal weights; True: a power-function average (Karras et al. 2023, arXiv:2312.02696), weight ~ step^gamma times
            the distance to the neighboring steps
    """
    if not power or len(steps) < 2:
        return [1 / len(steps)] * len(steps)
    positions = np.array(steps, float)
    gaps = np.diff(positions)
    widths = np.concatenate((gaps[:1], (gaps[1:] + gaps[:-1]) / 2, gaps[-1:]))
    weights = (positions / positions[-1]) ** power_of(SIGMA_REL) * widths
    return [float(each) for each in weights / weights.sum()]


def power_of(sigma_rel: float) -> float:
    """Return the exponent gamma of a power-function average with relative width `sigma_rel` (algorithm 2 of the paper)."""
    inverse = sigma_rel**-2
    roots = np.roots([1.0, 7.0, 16.0 - inverse, 12.0 - inverse])
    return float(max(root.real for root in roots if abs(root.imag) < 1e-9))


def save_average(
    run: RunFolder,
    facts: Mapping[str, Any],
    names: Sequence[str],
    power: bool,
    workspace: Workspace,
    cancel: CancelToken,
) -> Path:
    """Average checkpoints of a run that has ended; save the file, record it in the journal and return its path. Raises ProblemsError, also
    if one is an average or gone or their number is below two, and Cancelled.

    facts   `RunView.snapshot` of the run
    names   file names of the checkpoints
    power   as in `average_weights`
    """
    chosen = sorted((file for file in facts["files"] if file["name"] in set(names)), key=lambda file: file["step"])
    if averages := [file["name"] for file in chosen if is_average(file["name"])]:
        what, fix = f"{averages[0]} is an average itself", "choose checkpoints of the training"
        raise ProblemsError.one(what, run.name, fix, "average.of-average")
    if len(chosen) < 2:
        raise ProblemsError.one("An average needs two checkpoints", run.name, "choose more", "average.too-few")
    if missing := sorted(set(names) - {file["name"] for file in chosen}):
        what, fix = f"{missing[0]} no longer exists", "choose from those that are left"
        raise ProblemsError.one(what, run.name, fix, "file.gone")
    if run.held:
        raise ProblemsError.one("The run is still training", run.name, "wait until it has ended", "average.running")
    steps = [int(file["step"]) for file in chosen]
    target = _free_name(run, Path(chosen[-1]["path"]), f"-average-{steps[0]}-to-{steps[-1]}{'-power' if power else ''}")
    ratios = ", ".join(f"{weight:.9g}" for weight in average_weights(steps, power))
    models = [str(file["path"]) for file in chosen]
    settings = MergeLorasSettings(models=models, ratios=ratios, method="plain", output=str(target))
    context = JobContext(workspace, run, SilentJournal(), NoCommands(), token=cancel)
    try:
        merge_loras.do(settings, merge_loras.plan(settings, workspace), context)
    except ProblemsError as error:
        fix = "merge them in Tools with the method svd"
        raise ProblemsError(
            [replace(each, fix=fix) if each.code == "merge.needs-svd" else each for each in error.problems]
        ) from None
    with Journal(run.path) as journal:
        journal.put(Saved(steps[-1], f"checkpoints/{target.name}", target.stat().st_size))
    if journal.unwritten:
        target.unlink()
        what, fix = "The average cannot be recorded, and was removed", "free some space and average again"
        raise ProblemsError.one(what, str(journal.path), fix, "average.not-recorded")
    return target


def _free_name(run: RunFolder, newest: Path, ending: str) -> Path:
    """Return an unused path in the run's checkpoints: the name of `newest` without its step, then `ending`. Raises ProblemsError if
    MOST_NAMES are used."""
    stem = newest.stem.partition("-step")[0]
    for name in islice(numbered(stem + ending, newest.suffix), MOST_NAMES - 1):
        path = run.checkpoints / name
        if not path.exists():
            return path
    raise ProblemsError.one("There are too many averages of these steps", run.name, "delete some", "average.no-name")
