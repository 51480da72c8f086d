"""The best checkpoint of a run by the loss measured at each save, and how significant its lead is."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any

from core.record import atomic
from core.record.bounded_json import read_json_object
from core.record.file_titles import is_average
from core.record.journal import Line
from core.record.problems import ProblemsError
from core.record.stamps import cached_until_changed
from core.record.units import first_of

FILE = "best.json"
LOWEST, ON_TRAINED = "lowest loss", " on training images"  # marks of a checkpoint
TOO_SHORT = "validation.too-short"  # code of the log message of a run that measures no checkpoint
LEAST_PAIRS = 4
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Best:
    """The saved checkpoint with the lowest measured loss, and how the other measured checkpoints compare with it.

    file         relative to the run folder
    measured_on  "held_out", or "training": training images, which cannot show overfitting
    images       number of images measured
    others       number of other checkpoints measured on the same images
    as_good      steps of checkpoints whose loss is not significantly higher
    unknown      steps of checkpoints that cannot be compared
    unclear      number of checkpoints whose loss is not significantly higher, but above that of a significantly worse one
    """

    file: str
    step: int
    loss: float
    measured_on: str
    images: int
    others: int
    as_good: tuple[int, ...] = ()
    unknown: tuple[int, ...] = ()
    unclear: int = 0

    @property
    def what(self) -> str:
        """What was measured, as text: "loss on 12 held-out images"."""
        count = f"{self.images} {'held-out' if self.measured_on == 'held_out' else 'training'} images"
        if self.measured_on == "held_out":
            return f"loss on {count}"
        return f"loss on {count} (fixed noise), which cannot show overfitting"

    @property
    def sure(self) -> str:
        """How certain the choice is, as text: "clearly better than the other 3", "certainty was not measured"."""
        if not self.others:
            return "the only existing checkpoint that was measured"
        if self.unknown and not self.as_good:
            return "certainty was not measured"
        better = self.others - len(self.as_good) - len(self.unknown)
        comparison = "better" if self.unclear else "clearly better"
        if not self.as_good:
            return f"{comparison} than the other {better}" if better > 1 else f"{comparison} than the other one"
        steps = first_of([f"{step:,}" for step in self.as_good], 6)
        noise = f"within noise of step{'s' if len(self.as_good) > 1 else ''} {steps}, which may be as good"
        return f"{noise}; {comparison} than the other {better}" if better else noise

    @property
    def label(self) -> str:
        """Mark for lists of files: "best" if measured on held-out images and no other checkpoint may be as good, else "lowest loss" or
        "lowest loss on training images"; "" if no other checkpoint was measured."""
        if not self.others:
            return ""
        if self.measured_on != "held_out":
            return f"{LOWEST}{ON_TRAINED}"
        return LOWEST if self.as_good or self.unknown else "best"

    def to_dict(self) -> dict[str, Any]:
        """Return the fields together with `what`, `sure` and `label`."""
        return vars(self) | {"what": self.what, "sure": self.sure, "label": self.label}


def short_label(label: str) -> str:
    """Shorten a `Best.label` for narrow lists: without " on training images"."""
    return label.removesuffix(ON_TRAINED)


def best_checkpoint(saved: Iterable[tuple[int, str]], measured: Iterable[Mapping[str, Any]]) -> Best | None:
    """Return the checkpoint with the lowest loss among those that exist and were measured on the same images as the newest;
    None if none was measured.

    saved      (step, file) of existing checkpoints; of several files of one step the first counts
    measured   "validated" events of the journal in order; of several of one step the last counts
    """
    files: dict[int, str] = {}
    for step, file in saved:
        files.setdefault(step, file)
    by_step = {line["step"]: line for line in measured}
    candidates = [line for step, line in by_step.items() if step in files and math.isfinite(line["loss"])]
    if not candidates:
        return None
    newest = max(candidates, key=lambda line: line["step"])
    same = [line for line in candidates if line.get("each_of", "") == newest.get("each_of", "")]
    best = min(same, key=lambda line: (line["loss"], line["step"]))
    others = [line for line in same if line is not best]
    pairs = len(same) * len(others) // 2  # picking the lowest compares all of them
    verdicts = {line["step"]: clearly_lower(best.get("each") or (), line.get("each") or (), pairs) for line in others}
    clearly_worse = min((line["loss"] for line in others if verdicts[line["step"]]), default=math.inf)
    # A checkpoint with a higher loss than a clearly worse one is not as good.
    near = {line["step"] for line in others if line["loss"] < clearly_worse}
    within_noise = sorted(step for step, clearly in verdicts.items() if clearly is False)
    return Best(
        files[best["step"]],
        best["step"],
        best["loss"],
        best.get("measured_on", "held_out"),
        best["images"],
        len(others),
        tuple(step for step in within_noise if step in near),
        tuple(sorted(step for step, clearly in verdicts.items() if clearly is None)),
        sum(step not in near for step in within_noise),
    )


def clearly_lower(losses: Sequence[float], others: Sequence[float], compared: int = 1) -> bool | None:
    """Whether `losses` are significantly lower than `others`: a paired t-test.

    losses, others   losses of two checkpoints at the same (image, timestep) pairs in the same order
    compared         number of comparisons, by which the significance level is divided (Bonferroni)
    returns          None if the lengths differ or there are fewer than LEAST_PAIRS losses
    """
    if len(losses) != len(others) or len(losses) < LEAST_PAIRS:
        return None
    differences = [other - loss for loss, other in zip(losses, others, strict=True)]
    mean = math.fsum(differences) / len(differences)
    spread = math.fsum((each - mean) ** 2 for each in differences) / (len(differences) - 1)
    error = math.sqrt(spread / len(differences))
    return mean > student_t(1 - (1 - CONFIDENCE) / (2 * max(compared, 1)), len(differences) - 1) * error


def student_t(probability: float, freedom: int) -> float:
    """Return the quantile of Student's t distribution at `probability`, with `freedom` degrees of freedom.

    Expansion around the normal quantile (Abramowitz & Stegun 26.7.5): within 2% for 3 degrees of freedom at 0.975, closer for more.
    """
    z = NormalDist().inv_cdf(probability)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / freedom ** (power + 1) for power, term in enumerate(terms))


class BestTracker:
    """Collects a journal's "validated" and "saved" events and computes the best checkpoint from them."""

    def __init__(self) -> None:
        self.measured: list[Line] = []
        self.saved: list[Line] = []
        self._cached: tuple[Any, Best | None] | None = None

    def take(self, line: Line) -> None:
        """Add an event of the journal. A run resumed from an earlier state repeats steps: its newer events replace the older ones."""
        if line["kind"] == "validated":
            self.measured = [old for old in self.measured if old["step"] < line["step"]] + [line]
        elif line["kind"] == "saved" and not is_average(line["file"]):  # the loss of its last step is not its own
            self.saved = [old for old in self.saved if old["file"] != line["file"]] + [line]

    def best(self, folder: Path) -> Best | None:
        """Return the best of the checkpoints that still exist in run folder `folder`, or None. Cached until an event is added or a file is
        deleted."""
        existing = tuple((line["step"], line["file"]) for line in self.saved if (folder / line["file"]).exists())
        key = (existing, len(self.measured), self.measured[-1]["seq"] if self.measured else 0)
        if self._cached is None or self._cached[0] != key:
            self._cached = (key, best_checkpoint(existing, self.measured))
        return self._cached[1]


# ---- for lists of files, which do not read journals


def write_best(folder: Path, best: Best | None) -> None:
    """Write `best` to best.json in the run folder, for lists of files; does nothing for None."""
    if best is not None:
        atomic.write_json(folder / FILE, best.to_dict())


def stored_best(folder: Path) -> dict[str, Any] | None:
    """Return the `Best.to_dict` stored in best.json of a run folder; None if best.json is missing or damaged, or the checkpoint is gone."""
    content = _read_best(folder)
    return content if content is not None and (folder / str(content.get("file"))).exists() else None


@cached_until_changed(2000, missing=None, name=FILE)  # lists of files need hundreds
def _read_best(folder: Path) -> dict[str, Any] | None:
    """Return the content of best.json in a run folder; None if it is missing or damaged."""
    try:
        return read_json_object(folder / FILE)
    except (ProblemsError, OSError, ValueError):
        return None


def read_best(folder: Path) -> tuple[str, str] | None:
    """Return (file relative to the run folder, label) of the `stored_best`; None without one."""
    content = stored_best(folder) or {}
    return (str(content["file"]), str(content["label"])) if "label" in content else None
