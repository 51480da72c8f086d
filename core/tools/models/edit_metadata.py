"""The metadata of a safetensors file shown, changed, or stripped before sharing."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path

from core.formats.tensors.header import read_header
from core.record.context import JobContext, Outcome
from core.record.problems import Problem, ProblemsError, raise_if_errors
from core.record.units import count
from core.record.workspace import Workspace, display_path, resolve_path
from core.settings.tools.file_metadata import TEXTS, EditMetadataSettings, StripMetadataSettings
from core.tools.models import header_edit
from core.tools.files import file_of
from core.tools.models.inspect import readable
from core.tools.written import output_file, output_problems

THUMBNAIL_SIDE = 512
MOST_LETTERS = 400  # of one value in a list of results
# What sd-scripts keeps with no_metadata: programs need it to load the file.
MINIMUM = {
    *("ss_v2", "ss_base_model_version", "ss_network_module", "ss_network_dim", "ss_network_alpha", "ss_network_args"),
    *("sshs_model_hash", "sshs_legacy_hash", "modelspec.architecture", "modelspec.sai_model_spec", "format"),
    *("modelspec.prediction_type", "lora_adapter_metadata", "atelier_sizes"),
}
# Names of what tells of images, captions, prompts and machines.
TRAINING_DATA = (
    *(
        "*dataset*",
        "*tag_frequency*",
        "*prompt*",
        "*caption_prefix*",
        "*caption_suffix*",
        "*bucket_info*",
        "*_dir",
        "*_dirs",
        "*path*",
    ),
    *("ss_num_train_images", "ss_num_reg_images", "ss_num_validation_images", "ss_session_id", "ss_training_comment"),
    *("*wandb*", "*hostname*", "*user*", "*workflow*", "sd_merge_models", "*cache_info*", "*data_hash*"),
)
# What follows within a path: spaces and brackets too where another folder comes after them.
ENDING = r"(?:[^\s\"'<>|*?,;()\[\]{}]|[ ,;()\[\]](?=[^\"'<>|*?\n]{0,200}[\\/]))+"
PRIVATE = re.compile(
    rf"(?:(?<![A-Za-z])[A-Za-z]:[\\/]{{1,4}}|\\\\{{1,2}}|(?<![\w:./])~?/(?:home|Users|root|mnt|media|content|workspace|data|tmp|var|opt|srv|Volumes|kaggle|private|runpod-volume)/){ENDING}"
)


# -- shown and changed


def check_edit_metadata(asked: EditMetadataSettings, workspace: Workspace) -> str:
    path = _file(asked.file, workspace, "edit_metadata.file")
    if not asked.changes:
        return f"show the metadata of {display_path(path)}"
    if asked.undo:
        header_edit.check_can_restore(path, workspace, "edit_metadata.undo")
        return f"restore the metadata of {display_path(path)}"
    header = _edited(path, asked)
    target = path if asked.in_place else output_file(asked.output, path, "_edited")
    size = path.stat().st_size + len(header)
    raise_if_errors(_room(path, target, size, "edit_metadata.output", itself=asked.in_place))
    return f"write {display_path(target)} with other metadata"


def _room(path: Path, target: Path, size: int, where: str, itself: bool = False) -> list[Problem]:
    """The file itself is replaced by a copy, which needs the same space for a moment."""
    if itself:
        beside = output_problems(path.with_name(f"{path.stem}.atelier-new"), [path], size, where)
        return [problem for problem in beside if problem.code == "tools.no-room"]
    return output_problems(target, [path], size, where)


def edit_metadata(asked: EditMetadataSettings, context: JobContext) -> Outcome:
    """Show the metadata, or write them changed: to a copy, or into the file, whose old header is kept."""
    check_edit_metadata(asked, context.workspace)
    path = _file(asked.file, context.workspace, "edit_metadata.file")
    if not asked.changes:
        return shown(path)
    target = path if asked.undo or asked.in_place else output_file(asked.output, path, "_edited")
    context.stage(f"writing {target.name}")
    if asked.undo:
        header_edit.restore_header(path, context.workspace, context.cancel)
    elif asked.in_place:
        header_edit.replace_header(path, _edited(path, asked), context.workspace, context.cancel)
    else:
        header_edit.write_copy(path, _edited(path, asked), target, context.cancel)
    before, after = read_header(path)[1], read_header(target)[1]
    done = {True: "Restored", False: "Saved"}[asked.undo]
    lines = [f"{done}: {display_path(target)}"] if target == path else [*_differences(before, after)]
    if target != path:
        lines.append(f"Saved: {display_path(target)}")
    elif not asked.undo:
        lines.append("The old metadata is kept: Undo restores it")
    return Outcome(lines=lines, facts={"file": str(target), "metadata": readable(after)})


def _differences(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    lines = [f"removed: {name}" for name in sorted(before.keys() - after.keys())]
    for name in sorted(name for name, value in after.items() if before.get(name) != value):
        lines.append(f"{'changed' if name in before else 'added'}: {name}: {_short(after[name])}")
    return lines


def shown(path: Path) -> Outcome:
    """All metadata sorted by name, JSON within them opened."""
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
    return text if len(text) <= MOST_LETTERS else f"{text[:MOST_LETTERS]} ... ({len(text):,} characters)"


def _edited(path: Path, asked: EditMetadataSettings) -> bytes:
    """The new header. Raises ProblemsError with everything that is wrong."""
    metadata, problems = dict(read_header(path)[1]), list[Problem]()
    for pattern in asked.remove_keys:
        names = [name for name in metadata if fnmatchcase(name, pattern)]
        if not names:
            what, fix = f"No key is named '{pattern}'", "run it without changes to see all keys"
            problems.append(Problem(what, "edit_metadata.remove_keys", fix, code="tools.no-such-key"))
        metadata = {name: value for name, value in metadata.items() if name not in names}
    for line in asked.set_keys:
        name, equals, value = line.partition("=")
        if not equals or not name.strip() or name.strip() == "__metadata__":
            what, fix = f"'{line[:60]}' is not in the form key=value", "write for example ss_output_name=fox"
            problems.append(Problem(what, "edit_metadata.set_keys", fix, code="tools.bad-key-line"))
        metadata[name.strip()] = value.strip()
    for name in TEXTS:
        text = getattr(asked, f"metadata_{name}")
        if text is not None:
            metadata[f"modelspec.{name}"] = text
    if asked.thumbnail:
        try:
            metadata["modelspec.thumbnail"] = thumbnail_url(resolve_path(asked.thumbnail))
        except ProblemsError as error:
            problems += [replace(problem, where="edit_metadata.thumbnail") for problem in error.problems]
    raise_if_errors(problems)
    return header_edit.with_metadata(path, metadata)


def thumbnail_url(path: Path) -> str:
    """The image as a data URL, as modelspec.thumbnail has it: a JPEG of at most 512 px."""
    from core.dataset.images.opening import BrokenImage, open_rgb

    if not path.is_file():
        what, fix = f"There is no image {display_path(path)}", "choose an image file"
        raise ProblemsError.one(what, "thumbnail", fix, "tools.no-thumbnail")
    try:
        image = open_rgb(path)
    except (BrokenImage, OSError) as error:
        what, fix = f"The image {display_path(path)} cannot be read: {error}", "choose another image file"
        raise ProblemsError.one(what, "thumbnail", fix, "tools.no-thumbnail") from None
    image.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    held = io.BytesIO()
    image.save(held, "JPEG", quality=90)
    return "data:image/jpeg;base64," + base64.b64encode(held.getvalue()).decode("ascii")


def _file(name: str | None, workspace: Workspace, where: str) -> Path:
    path = file_of(name, workspace, where)
    header_edit.check_is_safetensors(path, where)
    return path


# -- stripped before sharing


def check_strip_metadata(asked: StripMetadataSettings, workspace: Workspace) -> str:
    path = _file(asked.file, workspace, "strip_metadata.file")
    target = output_file(asked.output, path, "_shared")
    raise_if_errors(output_problems(target, [path], path.stat().st_size, "strip_metadata.output"))
    kept, _ = stripped(read_header(path)[1], asked.remove)
    return f"write {display_path(target)} with {count(len(kept), 'metadata key')}"


def strip_metadata(asked: StripMetadataSettings, context: JobContext) -> Outcome:
    check_strip_metadata(asked, context.workspace)
    path = _file(asked.file, context.workspace, "strip_metadata.file")
    target = output_file(asked.output, path, "_shared")
    metadata = read_header(path)[1]
    kept, shortened = stripped(metadata, asked.remove)
    context.stage(f"writing {target.name}")
    header_edit.write_copy(path, header_edit.with_metadata(path, kept), target, context.cancel)
    private = {name: paths for name, value in metadata.items() if (paths := private_paths(value))}
    removed = sorted(metadata.keys() - kept.keys())
    lines = [f"private path in {name}: {', '.join(paths[:3])}" for name, paths in sorted(private.items())]
    lines += [f"removed: {name}" for name in removed]
    lines += [f"path shortened to its last name: {name}" for name in shortened]
    lines.append(f"Saved: {display_path(target)} with {count(len(kept), 'metadata key')}")
    facts = {"file": str(target), "removed": removed, "shortened": shortened, "private_paths": private}
    return Outcome(lines=lines, facts=facts)


def stripped(metadata: Mapping[str, str], remove: str) -> tuple[dict[str, str], list[str]]:
    """(what stays, the keys whose paths were shortened to their last names). remove: as in StripMetadataSettings."""
    if remove == "all":
        return {"format": "pt"}, []  # without which transformers refuses a file
    if remove == "minimum":
        kept = {name: value for name, value in metadata.items() if name in MINIMUM}
    else:
        kept = {name: value for name, value in metadata.items() if not _of_training(name)}
    shortened = sorted(name for name, value in kept.items() if private_paths(value))
    return kept | {name: PRIVATE.sub(_last_name, kept[name]) for name in shortened}, shortened


def _of_training(name: str) -> bool:
    """modelspec's own texts are written to be read by others."""
    return not name.startswith("modelspec.") and any(fnmatchcase(name.lower(), pattern) for pattern in TRAINING_DATA)


def private_paths(text: str) -> list[str]:
    """The paths of folders on somebody's machine that a value holds."""
    return list(dict.fromkeys(found[0] for found in PRIVATE.finditer(text)))


def _last_name(found: re.Match[str]) -> str:
    return re.split(r"[\\/]+", found[0].rstrip("\\/"))[-1]
