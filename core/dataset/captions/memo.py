"""Captions of many images, cached until a caption file changes, so that reopening a folder reads no caption files."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from core.dataset.captions.files import Caption, is_unreadable, read_caption
from core.dataset.sources.image_info import ImageInfo
from core.dataset.sources.memo import Memo
from core.record.problems import Problem
from core.settings.dataset.captions import CaptionSettings

_KIND = "caption 5"  # kind of entry in the memo; raised when `read_caption` returns something else for the same files
# Settings that `read_caption` depends on. The others act later in the caption pipeline.
READ_SETTINGS = (
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
    """An image with the state of its caption files, in the form of the memo's FileFacts.

    bytes      total size of the caption files
    mtime_ns   a hash in place of a time, see `_state`
    """

    path: Path
    bytes: int
    mtime_ns: int


def captions_of(
    images: Sequence[ImageInfo],
    settings_by_concept: Mapping[int, CaptionSettings] | Sequence[CaptionSettings],
    memo: Memo | Path | str | None = None,
    check: Callable[[], None] | None = None,
) -> dict[tuple[str, str], Caption]:
    """Return {image key: caption, see `read_caption`}. Reads only images whose caption files changed.

    settings_by_concept   concept number -> its caption settings
    memo    where captions are cached; None caches nothing
    check   called now and then; may raise to cancel
    """
    memo = memo if isinstance(memo, Memo) else Memo(memo)
    groups: dict[int, list[ImageInfo]] = {}
    for image in images:
        groups.setdefault(image.concept, []).append(image)
    captions: dict[tuple[str, str], Caption] = {}
    for number, group in groups.items():
        for start in range(0, len(group), _CHUNK):
            if check:
                check()
            captions.update(_captions_of_chunk(group[start : start + _CHUNK], settings_by_concept[number], memo))
    return captions


def _captions_of_chunk(
    group: Sequence[ImageInfo], settings: CaptionSettings, memo: Memo
) -> dict[tuple[str, str], Caption]:
    """Return {image key: caption} for images of one concept. Images without caption files, and with unreadable ones, are not cached."""
    cacheable = (each for each in group if each.metadata_caption is None and each.sidecar_states)
    readable = (each for each in cacheable if (-1, -1) not in each.sidecar_states)
    states = {image.key: _state(image, settings) for image in readable}
    cached = memo.known(_KIND, list(states.values()))
    captions: dict[tuple[str, str], Caption] = {}
    new: dict[Path, str] = {}
    for image in group:
        text = cached.get(image.path) if image.key in states else None
        caption = _parsed(text, image) if text else None
        if caption is None:
            caption = read_caption(image, settings)
            if image.key in states and not is_unreadable(caption):
                new[image.path] = _to_json(caption)
        captions[image.key] = caption
    memo.remember(_KIND, new, [state for state in states.values() if state.path in new])
    return captions


def _state(image: ImageInfo, settings: CaptionSettings) -> _State:
    """Return the state of an image's caption files, with a hash of everything that its caption depends on.

    That is the files' names, sizes and times, the folder's default caption and the settings. The hash is not part of the memo's
    key, so the memo has one caption for each image, the latest.
    """
    values = [getattr(settings, name) for name in READ_SETTINGS]
    text = json.dumps([_NAMES, image.sidecars, image.sidecar_states, image.class_tokens, values])
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    number = int.from_bytes(digest, "big") >> 1  # 63 bits fit the memo's column
    return _State(image.path, sum(size for size, _ in image.sidecar_states), number)


def _to_json(caption: Caption) -> str:
    """Return the caption as JSON, with only the file name of its path, since it is next to the image."""
    values = {name: getattr(caption, name) for name in _NAMES}
    values["path"] = caption.path.name
    values["problem"] = asdict(caption.problem) if caption.problem else None
    return json.dumps([values[name] for name in _NAMES])


def _parsed(text: str, image: ImageInfo) -> Caption | None:
    """Return the caption from its cached JSON, or None if another version wrote it."""
    try:
        values = dict(zip(_NAMES, json.loads(text), strict=True))
        values["path"] = image.path.parent / values["path"]
        values["problem"] = Problem(**values["problem"]) if values["problem"] else None
        return Caption(**values)
    except (ValueError, TypeError):  # written by another version
        return None
