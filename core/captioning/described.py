"""What a captioner yields for an image where the caption alone does not say it."""

from __future__ import annotations

from dataclasses import dataclass

from core.record.problems import Problem


@dataclass(frozen=True, slots=True)
class Described:
    """An image's caption.

    problem  why there is none: the image is named, skipped and counted
    shown    what a preview adds to the caption
    counted  what the outcome counts over all images: the tags
    means_empty   an empty caption is to be written
    """

    text: str
    problem: Problem | None = None
    shown: str = ""
    counted: tuple[str, ...] = ()
    means_empty: bool = False

    @classmethod
    def of(cls, given: str | Described) -> Described:
        return cls(given) if isinstance(given, str) else given
