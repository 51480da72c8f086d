"""The dataset doctor: copies, blur, borders, sizes and captions that harm a training, each with a way to fix it.

It reads what the decode pass has measured (`decoding.look_at_all`) and decodes anew only what must be seen twice.
Nothing is changed by an examination; `treat` moves images into the trash folder, from where `trash.put_back` returns
them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from core.dataset.batches import Placed
from core.dataset.decoding import look_at_all
from core.dataset.doctor_captions import caption_findings
from core.dataset.doctor_finding import KINDS, Finding, Patient, Seen
from core.dataset.doctor_images import Limits, copies, copies_by_content, looks_wrong, wrong_size
from core.dataset.report import Report
from core.dataset.trash import put_away
from core.record.cancel import CancelToken
from core.record.problems import Problem, ProblemsError

__all__ = ["KINDS", "Finding", "Limits", "Seen", "examine", "held_out_copies", "treat"]

Progress = Callable[[int, int], None]


def examine(
    dataset: Report | Sequence[Placed],
    memo_path: Path | str | None,
    *,
    cancel: CancelToken | None = None,
    progress: Progress | None = None,
    settings: Limits | None = None,
) -> tuple[Finding, ...]:
    """Everything the doctor finds, errors first, then in the order of KINDS. Changes nothing.

    dataset    a preflight's report, or images with their places (validation is then told by their folder's role)
    memo_path  where measures of files are remembered, as for the decode pass
    progress   called with (done, all) while images are decoded: first those never seen, then those to see twice
    """
    limits = settings or Limits()
    patients = _patients(dataset)
    if not patients:
        return ()
    images = [patient.image for patient in patients]
    seen = {key: look for key, look in look_at_all(images, cancel, progress, memo_path).items() if not look.reason}
    whole = [patient for patient in patients if patient.key in seen]
    found = [
        *copies(whole, seen, limits, memo_path, cancel, progress),
        *looks_wrong(whole, seen, limits, memo_path, cancel, progress),
        *wrong_size(whole, limits),
        *caption_findings(whole),
    ]
    order = {kind: place for place, kind in enumerate(KINDS)}
    return tuple(sorted(found, key=lambda finding: (finding.level != "error", order[finding.kind])))


def held_out_copies(report: Report, memo_path: Path | str | None, cancel: CancelToken | None = None) -> list[Problem]:
    """The one finding that blocks a training: exact copies that both train and validate. Decodes nothing, and looks at
    nothing where nothing is held out."""
    if not report.validation:
        return []
    found = copies_by_content(_patients(report), memo_path, cancel)
    return [finding.problem() for finding in found if finding.level == "error"]


def treat(finding: Finding, dataset_folder: Path | str) -> str:
    """Put the advised images of a finding away, with what belongs to them; a token for `trash.put_back`."""
    advised = set(finding.advised)
    chosen = [seen for group in finding.images for seen in group if seen.key in advised]
    if not chosen:
        raise ProblemsError.one(
            "This finding has no images to put away.", KINDS.get(finding.kind, finding.kind), finding.fix
        )
    beside = {Path(os.path.abspath(seen.path)): seen.beside for seen in chosen if seen.beside}
    return put_away([seen.path for seen in chosen], dataset_folder, KINDS.get(finding.kind, finding.kind), beside)


def _patients(dataset: Report | Sequence[Placed]) -> list[Patient]:
    """Each image once, however many resolutions it trains at: at the first, which comes first."""
    found: dict[tuple[str, str], Patient] = {}
    if isinstance(dataset, Report):
        both = [(dataset.placed, ""), (dataset.validation, "validation")]
    else:
        both = [(tuple(dataset), "")]
    for members, role in both:
        for placed in members:
            found.setdefault(placed.image.key, Patient(placed, role or placed.concept.role))
    return list(found.values())
