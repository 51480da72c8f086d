"""What is known of the settings of one image file."""

from __future__ import annotations

from dataclasses import dataclass, field

from core.record.problems import Problem
from core.settings.job import GenerateJob


@dataclass(frozen=True)
class Hashes:
    """SHA-256 as hex text; for LoRAs, by their names in the settings, the one A1111 shows (tensors only); for
    embeddings, by their tokens, and for refiners, by their names in the settings, of the whole file."""

    model: str = ""
    loras: dict[str, str] = field(default_factory=dict)
    embeddings: dict[str, str] = field(default_factory=dict)
    refiners: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ImageRecord:
    """The settings found in an image.

    job       settings that generate it again; None if there are none that can be used
    source    "atelier", "a1111", "comfyui" ...; "" if there is no job
    reason    why there is no job, in one sentence
    notes     what could not be used as it is
    """

    job: GenerateJob | None = None
    source: str = ""
    reason: str = ""
    notes: list[Problem] = field(default_factory=list)
    hashes: Hashes = field(default_factory=Hashes)
