"""Shows or changes the metadata of a safetensors file."""

import json
from collections.abc import Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path

from core.dataset.images.opening import BrokenImage, open_rgb
from core.dataset.images.thumbnails import jpeg_url
from core.formats.tensors.header import read_header
from core.record.context import JobContext, Outcome
from core.record.problems import Problem, ProblemsError, raise_if_errors
from core.record.workspace import Workspace, display_path, resolve_path
from core.settings.tools.file_metadata import TEXTS, EditMetadataSettings
from core.tools.models import header_edit
from core.tools.models.inspect import readable
from core.tools.output import output_file, output_problems
from core.tools.plans import FilePlan

THUMBNAIL_SIDE = 512
MOST_LETTERS = 400  # of one value in a list of results


def plan(settings: EditMetadataSettings, workspace: Workspace) -> FilePlan:
    """Check the file, the new metadata and the disk space, and return the plan. Raises ProblemsError with all problems."""
    path = header_edit.safetensors_file(settings.file, workspace, "edit_metadata.file")
    if not settings.changes:
        return FilePlan(f"show the metadata of {display_path(path)}", path)
    if settings.undo:
        header_edit.check_can_undo(path, workspace, "edit_metadata.undo")
        return FilePlan(f"restore the metadata of {display_path(path)}", path, path)
    header = _new_header(path, settings)
    target = path if settings.in_place else output_file(settings.output, path, "_edited")
    # The file itself is written by a copy, which needs room next to it.
    written = path.with_name(f"{path.stem}.atelier-new") if settings.in_place else target
    problems = output_problems(written, [path], path.stat().st_size + len(header), "edit_metadata.output")
    if settings.in_place:
        problems = [problem for problem in problems if problem.code in ("tools.no-room", "runs.not-yours")]
    raise_if_errors(problems)
    return FilePlan(f"write {display_path(target)} with other metadata", path, target)


def do(settings: EditMetadataSettings, plan: FilePlan, context: JobContext) -> Outcome:
    """List the metadata if no change is set; else write them to a copy, or with `in_place` into the file, whose old header is stored, or
    with `undo` restore that header."""
    path, target = plan.path, plan.target
    if not settings.changes:
        return metadata_outcome(path)
    context.stage(f"writing {target.name}")
    left = list[str]()
    if settings.undo:
        left = header_edit.undo_change(path, context.workspace, context.cancel)
    elif settings.in_place:
        header_edit.replace_header(path, _new_header(path, settings), context.workspace, context.cancel)
    else:
        header_edit.write_copy(path, _new_header(path, settings), target, context.cancel)
    before, after = read_header(path)[1], read_header(target)[1]
    done = "Restored" if settings.undo else "Saved"
    lines = [f"{done}: {display_path(target)}"] if target == path else [*_differences(before, after)]
    lines += [f"not restored, changed since: {name}" for name in left]
    if target != path:
        lines.append(f"Saved: {display_path(target)}")
    elif not settings.undo:
        lines.append("The old metadata is kept: Undo restores it")
    return Outcome(lines=lines, facts={"file": str(target), "metadata": readable(after)})


def _differences(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    """Return a line for each removed, changed and added key."""
    lines = [f"removed: {name}" for name in sorted(before.keys() - after.keys())]
    for name in sorted(name for name, value in after.items() if before.get(name) != value):
        lines.append(f"{'changed' if name in before else 'added'}: {name}: {_short(after[name])}")
    return lines


def metadata_outcome(path: Path) -> Outcome:
    """Return the outcome that lists all metadata, sorted by name, with JSON values parsed."""
    metadata = readable(read_header(path)[1])
    lines = []
    for name, value in metadata.items():
        if isinstance(value, str):
            lines.append(f"{name}: {_short(value)}")
        else:
            lines.append(f"{name}:")
            lines += [f"  {line}" for line in json.dumps(value, ensure_ascii=False, indent=2).splitlines()]
    return Outcome(lines=lines or ["metadata: none"], facts={"metadata": metadata})


def _short(text: str) -> str:
    """Return the text cut to MOST_LETTERS characters, with its length."""
    return text if len(text) <= MOST_LETTERS else f"{text[:MOST_LETTERS]} ... ({len(text):,} characters)"


def _new_header(path: Path, settings: EditMetadataSettings) -> bytes:
    """Return the file's header with changed metadata. Raises ProblemsError with all problems."""
    metadata, problems = dict(read_header(path)[1]), list[Problem]()
    for pattern in settings.remove_keys:
        names = [name for name in metadata if fnmatchcase(name, pattern)]
        if not names:
            what, fix = f"No key is named '{pattern}'", "run it without changes to see all keys"
            problems.append(Problem(what, "edit_metadata.remove_keys", fix, code="tools.no-such-key"))
        metadata = {name: value for name, value in metadata.items() if name not in names}
    for line in settings.set_keys:
        name, equals, value = line.partition("=")
        if not equals or not name.strip() or name.strip() == "__metadata__":
            what, fix = f"'{line[:60]}' is not in the form key=value", "write for example ss_output_name=fox"
            problems.append(Problem(what, "edit_metadata.set_keys", fix, code="tools.bad-key-line"))
        metadata[name.strip()] = value.strip()
    for name in TEXTS:
        text = getattr(settings, f"metadata_{name}")
        if text is not None:
            metadata[f"modelspec.{name}"] = text
    if settings.thumbnail:
        try:
            metadata["modelspec.thumbnail"] = thumbnail_url(resolve_path(settings.thumbnail))
        except ProblemsError as error:
            problems += [replace(problem, where="edit_metadata.thumbnail") for problem in error.problems]
    raise_if_errors(problems)
    return header_edit.with_metadata(path, metadata)


def thumbnail_url(path: Path) -> str:
    """Return an image as data URL for modelspec.thumbnail: a JPEG of at most THUMBNAIL_SIDE pixels a side. Raises ProblemsError for a
    missing or unreadable image."""
    if not path.is_file():
        what, fix = f"There is no image {display_path(path)}", "choose an image file"
        raise ProblemsError.one(what, "thumbnail", fix, "tools.no-thumbnail")
    try:
        image = open_rgb(path)
    except (BrokenImage, OSError) as error:
        what, fix = f"The image {display_path(path)} cannot be read: {error}", "choose another image file"
        raise ProblemsError.one(what, "thumbnail", fix, "tools.no-thumbnail") from None
    return jpeg_url(image, THUMBNAIL_SIDE)
