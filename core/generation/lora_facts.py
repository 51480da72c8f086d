"""Facts of a LoRA file for the page: family, trigger words, preview image. Without torch."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from core.formats.detect import identify
from core.formats.tensors.header import read_header, sniff
from core.record.bounded_json import parse_json, read_json_object
from core.record.problems import ProblemsError
from core.record.workspace import Workspace

MOST_WORDS, MOST_TAGS, LONGEST = 12, 8, 80
BESIDE = tuple(f"{mark}{suffix}" for mark in ("", ".preview") for suffix in (".png", ".jpg", ".jpeg", ".webp"))


@dataclass(frozen=True)
class LoraFacts:
    """words: trigger words and frequent tags, most relevant first. problem: why the file cannot be read"""

    family: str | None = None
    words: tuple[str, ...] = ()
    problem: str = ""


def facts_of(path: Path) -> LoraFacts:
    """The facts of a file, from its header and its run's settings if it is from one; cached until it changes."""
    try:
        state = path.stat()
        return _facts(str(path), state.st_size, state.st_mtime_ns)
    except OSError:
        return LoraFacts(problem="it no longer exists")


@lru_cache(maxsize=4096)
def _facts(path: str, size: int, changed: int) -> LoraFacts:
    try:
        found = identify(path)
        metadata = read_header(path)[1] if sniff(path) == "safetensors" else {}
    except ProblemsError as error:
        return LoraFacts(problem=error.problems[0].what)
    words = dict.fromkeys([*_stated(metadata), *_of_run(Path(path)), *_frequent(metadata)])
    return LoraFacts(found.family, tuple(word for word in words if 0 < len(word) <= LONGEST)[:MOST_WORDS])


def _stated(metadata: dict[str, str]) -> Iterator[str]:
    """Trigger phrases and usage hint in the metadata (modelspec)."""
    for name in ("modelspec.trigger_phrase", "modelspec.usage_hint"):
        yield from (word.strip() for word in metadata.get(name, "")[:2000].split(","))


def _of_run(path: Path) -> Iterator[str]:
    """The trigger word of the run whose checkpoint it is."""
    if path.parent.name == "checkpoints":
        with suppress(ProblemsError, OSError):
            captions = read_json_object(path.parent.parent / "job.json").get("captions")
            if isinstance(captions, dict) and isinstance(captions.get("trigger_word"), str):
                yield captions["trigger_word"].strip()


def _frequent(metadata: dict[str, str]) -> list[str]:
    """The most frequent tags of the captions it was trained with (ss_tag_frequency), of all folders together."""
    counts: Counter[str] = Counter()
    with suppress(ProblemsError):
        folders = parse_json(metadata.get("ss_tag_frequency") or "{}", "ss_tag_frequency")
        for tags in folders.values() if isinstance(folders, dict) else ():
            for tag, times in tags.items() if isinstance(tags, dict) else ():
                counts[tag.strip()] += times if isinstance(times, int) else 0
    return [tag for tag, _ in counts.most_common(MOST_TAGS)]


def preview_of(path: Path, workspace: Workspace) -> Path | None:
    """The preview image next to the file, as in A1111 and ComfyUI (name.png, name.preview.png ...), else the first prompt's newest
    sample of its run."""
    stem = path.name.removesuffix(path.suffix)
    beside = next((file for end in BESIDE if (file := path.with_name(stem + end)).is_file()), None)
    if beside is not None or path.parent.name != "checkpoints" or not path.is_relative_to(workspace.runs):
        return beside
    try:
        samples = sorted(
            entry.name for entry in os.scandir(path.parent.parent / "samples") if entry.name.endswith(".png")
        )
    except OSError:
        return None
    newest = samples[-1].rpartition("_")[0] if samples else ""
    first = next((name for name in samples if name.startswith(f"{newest}_")), None)
    return path.parent.parent / "samples" / first if first else None
