"""The words that a prompt needs for a LoRA, from its metadata and its run's settings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from core.record.bounded_json import parse_json, read_json_object
from core.record.problems import ProblemsError

MOST_WORDS, MOST_TAGS, LONGEST = 12, 8, 80


def trigger_words(path: Path, metadata: Mapping[str, str]) -> tuple[str, ...]:
    """Trigger words and frequent tags of a LoRA file, most relevant first."""
    words = dict.fromkeys([*_stated(metadata), *_of_run(path), *_frequent(metadata)])
    return tuple(word for word in words if 0 < len(word) <= LONGEST)[:MOST_WORDS]


def _stated(metadata: Mapping[str, str]) -> Iterator[str]:
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


def _frequent(metadata: Mapping[str, str]) -> list[str]:
    """The most frequent tags of the captions it was trained with (ss_tag_frequency), of all folders together."""
    counts: Counter[str] = Counter()
    with suppress(ProblemsError):
        folders = parse_json(metadata.get("ss_tag_frequency") or "{}", "ss_tag_frequency")
        for tags in folders.values() if isinstance(folders, dict) else ():
            for tag, times in tags.items() if isinstance(tags, dict) else ():
                counts[tag.strip()] += times if isinstance(times, int) else 0
    return [tag for tag, _ in counts.most_common(MOST_TAGS)]
