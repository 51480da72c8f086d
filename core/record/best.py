"""Which checkpoint of a run is best by the loss measured at each save, and how certain that is."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any

from core.record import atomic
from core.record.bounded_json import read_json_object
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
    """The saved checkpoint with the lowest measured loss.

    file         relative to the run folder
    measured_on  "held_out", or "training": training images, which cannot show overfitting
    images       how many were measured
    others       how many other checkpoints were measured the same way
    as_good      steps within noise of it                     unknown   steps that cannot be compared with it
    unclear      how many are within noise although their loss is higher than that of a clearly worse one
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
        """Text on what was measured: "loss on 12 held-out images"."""
        count = f"{self.images} {'held-out' if self.measured_on == 'held_out' else 'training'} images"
        if self.measured_on == "held_out":
            return f"loss on {count}"
        return f"loss on {count} (fixed noise), which cannot show overfitting"

    @property
    def sure(self) -> str:
        """Text on how certain the choice is: "clearly better than ...", "the only existing checkpoint that was measured"."""
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
        """The mark after its name in a list of files: "best" if held-out images were measured and no other may be as good, else
        "lowest loss"; "" if no other existing one was measured."""
        if not self.others:
            return ""
        if self.measured_on != "held_out":
            return f"{LOWEST}{ON_TRAINED}"
        return LOWEST if self.as_good or self.unknown else "best"

    def to_dict(self) -> dict[str, Any]:
        return vars(self) | {"what": self.what, "sure": self.sure, "label": self.label}


def short_label(label: str) -> str:
    """`Best.label` for a small place: without what was measured."""
    return label.removesuffix(ON_TRAINED)


def best_checkpoint(saved: Iterable[tuple[int, str]], measured: Iterable[Mapping[str, Any]]) -> Best | None:
    """Return the checkpoint with the lowest loss among those that exist and were measured on the same images as the newest;
    None if none was measured.

    saved      (step, file) of existing ones; the first of several files of one step counts
    measured   "validated" events as in the journal, the newest of a step last
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
    """Whether `losses` are significantly lower than `others`: a paired t-test over (image, timestep).

    compared   number of comparisons: the significance level is divided by it (Bonferroni)
    returns    None if the two are not comparable, or too few to tell
    """
    if len(losses) != len(others) or len(losses) < LEAST_PAIRS:
        return None
    differences = [other - loss for loss, other in zip(losses, others, strict=True)]
    mean = math.fsum(differences) / len(differences)
    spread = math.fsum((each - mean) ** 2 for each in differences) / (len(differences) - 1)
    error = math.sqrt(spread / len(differences))
    return mean > student_t(1 - (1 - CONFIDENCE) / (2 * max(compared, 1)), len(differences) - 1) * error


def student_t(probability: float, freedom: int) -> float:
    """The quantile of Student's t, by its expansion around the normal one (Abramowitz & Stegun 26.7.5): within 2% for 3
    degrees of freedom at 0.975, and closer for more."""
    z = NormalDist().inv_cdf(probability)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / freedom ** (power + 1) for power, term in enumerate(terms))


class BestTracker:
    """Collects "validated" and "saved" events of a journal, line by line, for `best`."""

    def __init__(self) -> None:
        self.measured: list[Line] = []
        self.saved: list[Line] = []
        self._cached: tuple[Any, Best | None] | None = None

    def take(self, line: Line) -> None:
        """Add a line of the journal. A run resumed from an earlier state repeats steps: the newer lines count."""
        if line["kind"] == "validated":
            self.measured = [old for old in self.measured if old["step"] < line["step"]] + [line]
        elif line["kind"] == "saved":
            self.saved = [old for old in self.saved if old["file"] != line["file"]] + [line]

    def best(self, folder: Path) -> Best | None:
        """Return the best checkpoint; computed again only after a new measurement or file, or when a file is gone."""
        existing = tuple((line["step"], line["file"]) for line in self.saved if (folder / line["file"]).exists())
        key = (existing, len(self.measured), self.measured[-1]["seq"] if self.measured else 0)
        if self._cached is None or self._cached[0] != key:
            self._cached = (key, best_checkpoint(existing, self.measured))
        return self._cached[1]


# ---- for lists of files, which do not read journals


def write_best(folder: Path, best: Best | None) -> None:
    """Write the best checkpoint to best.json in the run folder, for lists of files."""
    if best is not None:
        atomic.write_json(folder / FILE, best.to_dict())


def stored_best(folder: Path) -> dict[str, Any] | None:
    """`Best.to_dict` as last stored by the run; None if its file is gone."""
    content = _read_best(folder)
    return content if content is not None and (folder / str(content.get("file"))).exists() else None


@cached_until_changed(2000, missing=None, name=FILE)  # lists of files need hundreds
def _read_best(folder: Path) -> dict[str, Any] | None:
    """The content of best.json, None if it is damaged."""
    try:
        return read_json_object(folder / FILE)
    except (ProblemsError, OSError, ValueError):
        return None


def read_best(folder: Path) -> tuple[str, str] | None:
    """(file relative to the run folder, its label) of `stored_best`."""
    content = stored_best(folder) or {}
    return (str(content["file"]), str(content["label"])) if "label" in content else None
