"""Captions of many pictures, remembered as long as no caption file beside them changed: a folder reopens without reading them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from core.dataset.caption_files import Caption, read_caption
from core.dataset.memo import Memo
from core.dataset.picture import Picture
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
    """A picture with the state of all that its caption comes from, in the form that the memo compares."""

    path: Path
    bytes: int
    mtime_ns: int


def captions_of(
    pictures: Sequence[Picture],
    settings_by_concept: Mapping[int, CaptionSettings] | Sequence[CaptionSettings],
    memo: Memo | Path | str | None = None,
    check: Callable[[], None] | None = None,
) -> dict[tuple[str, str], Caption]:
    """{picture key: what `read_caption` gives}. Only pictures whose caption files changed since are read.

    settings_by_concept   number of the concept -> its caption settings
    check   called now and then; what it raises (a cancel) ends the work
    """
    memo = memo if isinstance(memo, Memo) else Memo(memo)
    groups: dict[int, list[Picture]] = {}
    for picture in pictures:
        groups.setdefault(picture.concept, []).append(picture)
    found: dict[tuple[str, str], Caption] = {}
    for number, group in groups.items():
        for start in range(0, len(group), _CHUNK):
            if check:
                check()
            found.update(_some(group[start : start + _CHUNK], settings_by_concept[number], memo))
    return found


def _some(group: Sequence[Picture], settings: CaptionSettings, memo: Memo) -> dict[tuple[str, str], Caption]:
    """All of one concept. A picture without caption files is not remembered: there is nothing to read again."""
    states = {picture.key: _state(picture, settings) for picture in group if _rememberable(picture)}
    known = memo.known(_KIND, list(states.values()))
    found: dict[tuple[str, str], Caption] = {}
    new: dict[Path, str] = {}
    for picture in group:
        text = known.get(picture.path) if picture.key in states else None
        caption = _parsed(text, picture) if text else None
        if caption is None:
            caption = read_caption(picture, settings)
            if picture.key in states:
                new[picture.path] = _written(caption)
        found[picture.key] = caption
    memo.remember(_KIND, new, [state for state in states.values() if state.path in new])
    return found


def _rememberable(picture: Picture) -> bool:
    return picture.given is None and bool(picture.sidecar_states) and (-1, -1) not in picture.sidecar_states


def _state(picture: Picture, settings: CaptionSettings) -> _State:
    """Names, sizes and times of the caption files, the folder's words, which stand in where a file is no use, and the
    settings. They are no part of the kind, so the memo holds one caption for each picture, the last."""
    looked_at = [getattr(settings, name) for name in READ_BY]
    mark = _digest([_NAMES, picture.sidecars, picture.sidecar_states, picture.words, looked_at])
    return _State(picture.path, sum(size for size, _ in picture.sidecar_states), mark)


def _digest(value: Any) -> int:
    """63 bits, which fit the memo's column."""
    text = json.dumps(value)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def _written(caption: Caption) -> str:
    """JSON of all its parts; the path by its name, since it lies beside the picture."""
    values = {name: getattr(caption, name) for name in _NAMES}
    values["path"] = caption.path.name
    values["problem"] = asdict(caption.problem) if caption.problem else None
    return json.dumps([values[name] for name in _NAMES])


def _parsed(text: str, picture: Picture) -> Caption | None:
    try:
        values = dict(zip(_NAMES, json.loads(text), strict=True))
        values["path"] = picture.path.parent / values["path"]
        values["problem"] = Problem(**values["problem"]) if values["problem"] else None
        return Caption(**values)
    except (ValueError, TypeError):  # written by another version
        return None
