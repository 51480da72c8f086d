"""Shared by all merges: the list of ratios, and the metadata on the merged files."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from core.formats.hashes import legacy_hash
from core.record.problems import Problem
from core.record.units import count
from core.settings.blocks import numbers


def ratios_of(text: str, files: int, noun: str, where: str, problems: list[Problem]) -> list[float] | None:
    """The comma-separated ratios, one per file; None for an empty setting. Problems are added to `problems`.

    noun   of one file: "LoRA", "model"      where   the setting
    """
    if not text.strip():
        return None
    try:
        ratios = numbers(text)
    except ValueError:
        what, fix = f"'{text[:40]}' is not a list of numbers", "write for example 0.7, 0.3"
        problems.append(Problem(what, where, fix, code="merge.bad-ratios"))
        return None
    if len(ratios) != files:
        what = f"{count(len(ratios), 'ratio')} given for {count(files, noun)}"
        problems.append(Problem(what, where, f"give one number per {noun}", code="merge.bad-ratios"))
        return None
    return ratios


def merge_record(inputs: Iterable[tuple[Path, str]], recipe: Mapping[str, Any]) -> dict[str, str]:
    """Metadata of a merged file: modelspec's, and recipe and inputs as A1111 writes them.

    inputs   (file or folder, its hash) in order; folders have no hash
    """
    files = list(inputs)
    models = {
        sha256: {"name": path.name, "legacy_hash": legacy_hash(path)} for path, sha256 in files if not path.is_dir()
    }
    return {
        "modelspec.merged_from": ", ".join(_title(path) for path, _ in files),
        "sd_merge_recipe": json.dumps({"type": "atelier", **recipe}),
        "sd_merge_models": json.dumps(models),
    }


def _title(path: Path) -> str:
    return path.name if path.is_dir() else path.stem
