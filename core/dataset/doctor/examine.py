"""The dataset doctor: finds duplicates, blur, borders, sizes and captions that harm training, each with a fix.

Uses the measurements of the decode pass (`look.look_at_all`) and decodes again only images that need a closer look.
Examining changes nothing; `treat` moves images to the trash folder, from where `trash.put_back` restores them.
"""

import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from core.dataset.buckets.batches import Placed
from core.dataset.doctor.captions import caption_findings
from core.dataset.doctor.finding import KINDS, ExaminedImage, Finding
from core.dataset.doctor.images import (
    Reading,
    appearance_findings,
    duplicate_findings,
    size_findings,
    unreadable_findings,
)
from core.dataset.doctor.trash import put_away
from core.dataset.images.look import look_at_all
from core.dataset.report import Report
from core.dataset.sources.image_info import ImageInfo
from core.record.cancel import CancelToken
from core.record.problems import Problem, ProblemsError

Progress = Callable[[int, int], None]


def examine(
    dataset: Report | Sequence[Placed],
    memo_path: Path | str | None,
    *,
    cancel: CancelToken | None = None,
    progress: Progress | None = None,
) -> tuple[Finding, ...]:
    """Return all findings about a dataset, errors first, then in the order of KINDS. Changes nothing.

    Images that cannot be read only occur in a finding that says so.

    dataset     a preflight's report, or placed images; of the latter, folders with that role are the validation set
    memo_path   where measurements are stored, as for the decode pass
    progress    called with (done, total) while images are decoded: first new ones, then those that need a closer look
    """
    items = _images_of(dataset)
    looks = look_at_all([item.image for item in items], cancel, progress, memo_path)
    readable = [replace(item, look=looks[item.key]) for item in items if not looks[item.key].reason]
    reading = Reading(memo_path, cancel, progress)
    findings = [
        *(unreadable_findings(dataset.rows) if isinstance(dataset, Report) else ()),
        *duplicate_findings(readable, reading),
        *appearance_findings(readable, reading),
        *size_findings(readable),
        *caption_findings(readable),
    ]
    order = {kind: index for index, kind in enumerate(KINDS)}
    return tuple(sorted(findings, key=lambda finding: (finding.level != "error", order[finding.kind])))


def held_out_copies(report: Report, memo_path: Path | str | None, cancel: CancelToken | None = None) -> list[Problem]:
    """Return the problem of exact duplicates in both the training and the validation set, the one finding that blocks training.

    [] without such duplicates or validation images. Decodes nothing.
    """
    if not report.validation:
        return []
    findings = duplicate_findings(_images_of(report), Reading(memo_path, cancel), only_exact=True)
    return [finding.problem() for finding in findings if finding.level == "error"]


def treat(finding: Finding, dataset_folder: Path | str) -> str:
    """Move the images that a finding suggests, and their files, to the trash; return a token for `trash.put_back`.

    Raises ProblemsError, also if the finding suggests none.
    """
    advised = set(finding.advised)
    to_move = [each for group in finding.images for each in group if each.key in advised]
    if not to_move:
        what = "This finding has no images to move to the trash"
        raise ProblemsError.one(what, KINDS.get(finding.kind, finding.kind), finding.fix, code="doctor.nothing-to-move")
    sidecars = {Path(os.path.abspath(each.path)): each.sidecars for each in to_move if each.sidecars}
    return put_away([each.path for each in to_move], dataset_folder, KINDS.get(finding.kind, finding.kind), sidecars)


def _images_of(dataset: Report | Sequence[Placed]) -> list[ExaminedImage]:
    """Return the images to examine, each once, at the first of its resolutions."""
    examined: dict[tuple[str, str], ExaminedImage] = {}
    if isinstance(dataset, Report):
        sets = [(dataset.placed, ""), (dataset.validation, "validation")]
    else:
        sets = [(tuple(dataset), "")]
    users: defaultdict[Path, set[Path]] = defaultdict(set)
    for image in (placed.image for members, _ in sets for placed in members):
        for partner in _partners(image):
            users[partner].add(image.path)
    for members, role in sets:
        for placed in members:
            unshared = tuple(partner for partner in _partners(placed.image) if len(users[partner]) == 1)
            examined.setdefault(placed.image.key, ExaminedImage(placed, role or placed.concept.role, unshared))
    return list(examined.values())


def _partners(image: ImageInfo) -> list[Path]:
    """Return the files of the image's mask and control image, without missing ones."""
    return [path for path in (image.conditioning, image.control) if path is not None]
