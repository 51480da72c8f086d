"""sd-scripts' metadata_cache.json: compared with the folder if it exists, else written.

sd-scripts reads the list instead of the folder, so new images and edited captions go unnoticed there (reference:
section 5.4). Here the list is used too, and every difference is reported.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from core.dataset.captions.files import lines_of, read_caption
from core.dataset.sources.files import printable
from core.dataset.sources.image_info import ImageInfo, about
from core.dataset.sources.metadata import Entry
from core.dataset.sources.walk import File
from core.record import atomic
from core.record.problems import Problem
from core.settings.dataset.captions import CaptionSettings


def compare_with_disk(
    images: Sequence[ImageInfo],
    files: Sequence[File],
    entries: dict[Path, Entry],
    settings: CaptionSettings,
    path: Path,
) -> list[Problem]:
    """Return advice about captions that were edited after metadata_cache.json was written.

    files     the images' files, with their caption files
    entries   image path -> its entry in the list
    path      of metadata_cache.json
    """
    with_captions = {file.path: file for file in files if file.sidecars}
    edited = []
    for image in images:
        file = with_captions.get(image.path)
        if file is None:
            continue
        on_disk = read_caption(
            replace(image, metadata_caption=None, sidecars=file.sidecars, sidecar_states=file.sidecar_states), settings
        )
        if on_disk.source == "file" and not _is_listed(on_disk.text, entries[image.path].caption or ""):
            edited.append(image)
    what = f"{len(edited)} of {len(images)} caption files differ from {path.name}, which is used: {{names}}"
    fix = f"delete {path.name} to read the caption files, or turn off reading it"
    return about(edited, what, fix, "dataset.stale-caption-cache", where=printable(path))


def _is_listed(text: str, listed: str) -> bool:
    """Return whether `listed` is the caption in the list for a caption file with `text`.

    The list has the first line, or with wildcards all non-blank lines.
    """
    lines = lines_of(text)
    return listed.strip() in ("\n".join(lines), lines[0] if lines else "")


def write_list(path: Path, images: Sequence[ImageInfo], settings: CaptionSettings) -> list[Problem]:
    """Write metadata_cache.json for a folder without one, in sd-scripts' format; return advice if that fails, else []."""
    if not images:
        return []
    content = {}
    for image in images:
        caption = read_caption(image, settings).text
        if not settings.enable_wildcard:
            caption = next(iter(lines_of(caption)), "")
        content[str(image.path)] = {"caption": caption, "resolution": [image.width, image.height]}
    try:
        atomic.write_json(path, content)
    except OSError as error:
        what = f"{path.name} could not be written ({error.strerror}); the folder itself was read"
        fix = "allow writing there, or turn off reading metadata_cache.json"
        return [Problem(what, printable(path), fix, "advice", code="dataset.caption-cache-unwritten")]
    return []
