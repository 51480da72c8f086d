"""Captions of many images, remembered as long as no caption file beside them changed: a folder reopens without reading them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from core.dataset.caption_files import Caption, read_caption
from core.dataset.image_info import ImageInfo
from core.dataset.memo import Memo
from core.record.problems import Problem
from core.settings.captions import CaptionSettings

_KIND = (
    "caption 1"  # of fact in the memo; the number changes when `read_caption` makes something else of the same files
)
# What `read_caption` looks at besides the files. The rest acts later, when a caption is drawn.
READ_BY = (
    "caption_extension",
    "sidecars",
    "sentence_share",
    "caption_lines",
    "caption_separator",
    "enable_wildcard",
    "compatibility",
)
_NAMES = tuple(field.name for field in fields(Caption))
_CHUNK = 1000


@dataclass(frozen=True, slots=True)
class _State:
    """An image with the state of all that its caption comes from, in the form that the memo compares."""

    path: Path
    bytes: int
    mtime_ns: int


def captions_of(
    images: Sequence[ImageInfo],
    settings_by_concept: Mapping[int, CaptionSettings] | Sequence[CaptionSettings],
    memo: Memo | Path | str | None = None,
    check: Callable[[], None] | None = None,
) -> dict[tuple[str, str], Caption]:
    """{image key: what `read_caption` gives}. Only images whose caption files changed since are read.

    settings_by_concept   number of the concept -> its caption settings
    check   called now and then; what it raises (a cancel) ends the work
    """
    memo = memo if isinstance(memo, Memo) else Memo(memo)
    groups: dict[int, list[ImageInfo]] = {}
    for image in images:
        groups.setdefault(image.concept, []).append(image)
    found: dict[tuple[str, str], Caption] = {}
    for number, group in groups.items():
        for start in range(0, len(group), _CHUNK):
            if check:
                check()
            found.update(_some(group[start : start + _CHUNK], settings_by_concept[number], memo))
    return found


def _some(group: Sequence[ImageInfo], settings: CaptionSettings, memo: Memo) -> dict[tuple[str, str], Caption]:
    """All of one concept. An image without caption files is not remembered: there is nothing to read again."""
    states = {image.key: _state(image, settings) for image in group if _rememberable(image)}
    known = memo.known(_KIND, list(states.values()))
    found: dict[tuple[str, str], Caption] = {}
    new: dict[Path, str] = {}
    for image in group:
        text = known.get(image.path) if image.key in states else None
        caption = _parsed(text, image) if text else None
        if caption is None:
            caption = read_caption(image, settings)
            if image.key in states:
                new[image.path] = _written(caption)
        found[image.key] = caption
    memo.remember(_KIND, new, [state for state in states.values() if state.path in new])
    return found


def _rememberable(image: ImageInfo) -> bool:
    return image.given is None and bool(image.sidecar_states) and (-1, -1) not in image.sidecar_states


def _state(image: ImageInfo, settings: CaptionSettings) -> _State:
    """Names, sizes and times of the caption files, the folder's words, which stand in where a file is no use, and the
    settings. They are no part of the kind, so the memo holds one caption for each image, the last."""
    looked_at = [getattr(settings, name) for name in READ_BY]
    mark = _digest([_NAMES, image.sidecars, image.sidecar_states, image.words, looked_at])
    return _State(image.path, sum(size for size, _ in image.sidecar_states), mark)


def _digest(value: Any) -> int:
    """63 bits, which fit the memo's column."""
    text = json.dumps(value)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def _written(caption: Caption) -> str:
    """JSON of all its parts; the path by its name, since it lies beside the image."""
    values = {name: getattr(caption, name) for name in _NAMES}
    values["path"] = caption.path.name
    values["problem"] = asdict(caption.problem) if caption.problem else None
    return json.dumps([values[name] for name in _NAMES])


def _parsed(text: str, image: ImageInfo) -> Caption | None:
    try:
        values = dict(zip(_NAMES, json.loads(text), strict=True))
        values["path"] = image.path.parent / values["path"]
        values["problem"] = Problem(**values["problem"]) if values["problem"] else None
        return Caption(**values)
    except (ValueError, TypeError):  # written by another version
        return None
