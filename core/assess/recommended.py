"""The recommended checkpoint of a run, for pages and tools where the user names none. Loads no torch."""

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from core.assess.results import FILE as RESULTS
from core.assess.results import read_results, rows_of
from core.engine.verdict import FILE as COMPARISON
from core.engine.verdict import compared_files
from core.record.file_titles import steps_of
from core.record.kept import last_kept
from core.record.preference import FILE as CHOICES
from core.record.preference import preference, read_choices
from core.record.stamps import Stamp, cached_until_changed, stamp_or_none


def recommended(run: Path, best: Mapping[str, Any] | None) -> tuple[Path | None, str]:
    """Return (path of the checkpoint to use, code of the reason); (None, "") if no checkpoint was kept, preferred or measured.

    The first that applies:

    "kept"        the user kept this checkpoint last
    "preferred"   the blind choices prefer this one
    "clear"       has no warnings and may be as good as the lowest loss, whose checkpoint has warnings
    "trained"     has the lowest loss, on training images, which cannot show overfitting
    "lowest"      has the lowest held-out loss
    "only"        was the only one measured

    best          `Best.to_dict` of the run, None without losses
    """
    if kept_file := last_kept(run):
        return run / kept_file, "kept"
    checkpoints = run / "checkpoints"
    chosen = _preferred(run, *(stamp_or_none(run / each) for each in (COMPARISON, CHOICES)))
    if chosen and (checkpoints / chosen).exists():
        return checkpoints / chosen, "preferred"
    if best is None:
        return None, ""
    warned = _warned(run)
    if warned.get(Path(best["file"]).name) and (clear := _clear(run, best, warned)):
        return checkpoints / clear, "clear"
    if best.get("measured_on") == "training":
        return run / best["file"], "trained"
    return run / best["file"], "lowest" if best.get("others", 1) else "only"


@lru_cache(maxsize=2000)
def _preferred(run: Path, comparison: Stamp | None, choices: Stamp | None) -> str | None:
    """Return the file name of the checkpoint that the blind choices of the run prefer; None if there is none.

    Cached for lists of runs until either file changes: `comparison` and `choices` are their stamps.
    """
    answers = read_choices(run) if choices else []
    names = compared_files(run, answers) if answers else []
    return preference(names, answers).preferred if names else None


@cached_until_changed(2000, missing={}, name=RESULTS)
def _warned(run: Path) -> Mapping[str, bool]:
    """Return {file name: whether the assessment warns of it} of the checkpoints that were assessed."""
    return {file: any(row["warning"] for row in rows_of(measured)) for file, measured in read_results(run).items()}


def _clear(run: Path, best: Mapping[str, Any], warned: Mapping[str, bool]) -> str | None:
    """Return the checkpoint without warnings, among those that may be as good as `best` by loss, whose step is nearest; None if
    there is none."""
    steps, step, steps_as_good = steps_of(run), best.get("step"), best.get("as_good")
    if not isinstance(step, int) or not isinstance(steps_as_good, list | tuple):  # changed by hand
        return None
    clear = [file for file, has_warning in warned.items() if not has_warning and steps.get(file) in steps_as_good]
    existing = [file for file in clear if (run / "checkpoints" / file).exists()]
    return min(existing, key=lambda file: (abs(steps[file] - step), steps[file]), default=None)
