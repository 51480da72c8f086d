"""The settings found in an image file."""

from __future__ import annotations

from dataclasses import dataclass, field

from core.record.problems import Problem
from core.settings.job import GenerateJob


@dataclass(frozen=True)
class Hashes:
    """SHA-256 in hex. model: of the whole file; loras: {name in the settings: hash of the tensors only, as A1111 shows it};
    embeddings: {token: whole file}; refiners: {name in the settings: whole file}; controls: {name in the settings: A1111's
    first hash, 8 digits, as its extension shows it}."""

    model: str = ""
    loras: dict[str, str] = field(default_factory=dict)
    embeddings: dict[str, str] = field(default_factory=dict)
    refiners: dict[str, str] = field(default_factory=dict)
    controls: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ImageRecord:
    """The settings found in an image.

    job       settings that generate it again; None if there are none
    source    "atelier", "a1111", "comfyui" ...; "" if there is no job
    reason    why there is no job, in one sentence
    notes     advice about what differs or was ignored
    """

    job: GenerateJob | None = None
    source: str = ""
    reason: str = ""
    notes: list[Problem] = field(default_factory=list)
    hashes: Hashes = field(default_factory=Hashes)
