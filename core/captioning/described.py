"""The result of a captioner for an image: caption, problem, tags with scores."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from core.captioning.combining import combined
from core.dataset.captions.files import caption_bytes
from core.dataset.sources.files import printable
from core.record.problems import HALF_PAIR, Problem
from core.settings.caption import CaptioningSettings

LONGEST = 100_000  # characters: no caption has that many
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
Scores = tuple[tuple[str, float | None], ...]
Join = Callable[[str, CaptioningSettings], str]  # (caption of the file, settings) -> caption to write


def with_scores(tags: Scores) -> str:
    """Return the tags as text with two decimals of each score: "fox 0.91, snow"."""
    return ", ".join(name if score is None else f"{name} {score:.2f}" for name, score in tags)


@dataclass(frozen=True, slots=True)
class CaptionResult:
    """The result of a captioner for an image.

    text          the caption
    problem       why there is no caption: the image is skipped, reported and counted
    scored        (tag, score) pairs of a tagger, for a preview
    counted       tags to count over all images
    means_empty   whether an empty text is written as an empty caption, instead of nothing
    separator     between the caption's parts; "" for the job's separator
    join          combines the caption with the existing one, instead of `combined`; its result is written unchanged
    """

    text: str
    problem: Problem | None = None
    scored: Scores = ()
    counted: tuple[str, ...] = ()
    means_empty: bool = False
    separator: str = ""
    join: Join | None = None

    def joined(self, existing: str, settings: CaptioningSettings) -> str:
        """Return the caption to write. `existing`: caption in the file, "" if there is none."""
        if self.join is not None:
            return self.join(existing, settings)
        return combined(existing, self.text, settings, self.separator)

    def caption_bytes(self, caption: str) -> bytes:
        """Return the content of the caption file for a caption from `joined`."""
        return caption_bytes(caption) if self.join is None else f"{caption}\n".encode()

    @classmethod
    def of(cls, caption: str | CaptionResult) -> CaptionResult:
        """Return the result for a captioner's output, which may be text only."""
        return cls(caption) if isinstance(caption, str) else caption


Described = CaptionResult  # its earlier name, for packages


def skipped(path: Path, what: str, fix: str, code: str) -> CaptionResult:
    """Return the result for an image that is skipped, with the problem as the reason."""
    return CaptionResult("", Problem(what, printable(path), fix, "advice", code=code))


def from_text(path: Path, text: str, if_blank: CaptionResult) -> CaptionResult:
    """Return the caption from untrusted text, or a problem if it is too long or not valid Unicode. `if_blank`: result for blank text."""
    if len(text) > LONGEST:
        what = f"The text for {printable(path.name)} has {len(text):,} characters, more than {LONGEST:,}"
        return skipped(path, what, "write its caption by hand", "source.too-long")
    text = " ".join(_CONTROL.sub(" ", text).split())
    if not text.strip(" ,"):
        return if_blank
    if HALF_PAIR.search(text):
        what = f"The name of {printable(path.name)} is not valid Unicode"
        return skipped(path, what, "rename the file or its folder", "source.not-unicode")
    return CaptionResult(text)
