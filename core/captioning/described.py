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
    return ", ".join(name if score is None else f"{name} {score:.2f}" for name, score in tags)


@dataclass(frozen=True, slots=True)
class CaptionResult:
    """An image's caption.

    problem  why there is no caption: the image is reported, skipped and counted
    scored   (tag, score) pairs of a tagger, for a preview
    counted  tags that the outcome counts over all images
    means_empty   write an empty caption rather than none
    separator   between its parts; "" is the job's separator
    join     combines it with the existing caption instead of the job's settings; the result is written unchanged
    """

    text: str
    problem: Problem | None = None
    scored: Scores = ()
    counted: tuple[str, ...] = ()
    means_empty: bool = False
    separator: str = ""
    join: Join | None = None

    def joined(self, existing: str, settings: CaptioningSettings) -> str:
        """The caption to write. existing: the caption of the file, "" for none."""
        return (self.join or self._combined)(existing, settings)

    def _combined(self, existing: str, settings: CaptioningSettings) -> str:
        return combined(existing, self.text, settings, self.separator)

    def caption_bytes(self, caption: str) -> bytes:
        """The bytes of the caption file for a joined caption."""
        return caption_bytes(caption) if self.join is None else f"{caption}\n".encode()

    @classmethod
    def of(cls, caption: str | CaptionResult) -> CaptionResult:
        return cls(caption) if isinstance(caption, str) else caption


Described = CaptionResult  # its earlier name, for packages


def skipped(path: Path, what: str, fix: str, code: str) -> CaptionResult:
    """The result for an image without a caption, with the reason."""
    return CaptionResult("", Problem(what, printable(path), fix, "advice", code=code))


def from_text(path: Path, text: str, nothing: CaptionResult) -> CaptionResult:
    """The caption from untrusted text, or the problem with it. nothing: the result for blank text."""
    if len(text) > LONGEST:
        what = f"The text for {printable(path.name)} has {len(text):,} characters, more than {LONGEST:,}"
        return skipped(path, what, "write its caption by hand", "source.too-long")
    text = " ".join(_CONTROL.sub(" ", text).split())
    if not text.strip(" ,"):
        return nothing
    if HALF_PAIR.search(text):
        what = f"The name of {printable(path.name)} is not valid Unicode"
        return skipped(path, what, "rename the file or its folder", "source.not-unicode")
    return CaptionResult(text)
