"""The tool that names images and their sidecar files by numbers, as copies or in place; in place with a record for undo."""

import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from core.dataset.doctor.trash import companions, move_all, new_trash_folder, path_in, records, refuse_taken, tidy
from core.dataset.sources.files import TRASH_FOLDER, is_image, is_label, name_key, printable, split_label
from core.record import atomic
from core.record.bounded_json import read_json_object
from core.record.context import JobContext, Outcome
from core.record.problems import ProblemsError, write_errors
from core.record.stamps import stamp_of
from core.settings.tools.images import NumberSettings
from core.tools.images.folders import Copy, FolderPlan, Skip, make_copies, natural_order, required_images

RECORD = "renamed.json"
UNWRITTEN, UNCHANGED = "The record for undoing the numbering cannot be written", "nothing was renamed"
# Prefixes of intermediate names, one for the undo, so that undoing an interrupted numbering finds no name taken.
_NUMBERING, _UNDOING = ".numbering-", ".numbering-back-"


def do(settings: NumberSettings, plan: FolderPlan, context: JobContext) -> Outcome:
    """Copy the images to numbered names, or with `number_in_place` rename them and write a record for the undo. Raises ProblemsError
    without images, and if a name is taken."""
    images, others = required_images(plan.folder, settings.recursive)
    unlabeled = [path for path in images if not split_label(path.stem)[1]]
    if settings.number_in_place:
        record, count = rename_in_place(unlabeled, settings, plan.folder)
        line = f"{count} files renamed; 'Undo numbering' reverts it" if record else "All files already have these names"
        facts = {"output": str(plan.folder), "renamed": count, "others": others, "undo": record}
        return Outcome(lines=[line], facts=facts)
    stems = {(path.parent, path.stem): stem for path, stem in numbered_stems(unlabeled, settings).items()}
    return make_copies(settings, plan, context, lambda path: ([_numbered_copy(path, stems)], []))


def _numbered_copy(path: Path, stems: dict[tuple[Path, str], str]) -> Copy:
    """Return a byte-for-byte copy named by its number. A mask gets the number of its image. Raises Skip.
    stems: {(folder, stem): new stem} of the images"""
    base, label = split_label(path.stem)
    stem = stems.get((path.parent, base if label else path.stem))
    if stem is None:
        raise Skip("is a mask or control image without its image")
    if not os.access(path, os.R_OK):
        raise Skip("cannot be read, or is a broken link")
    return Copy(stem, path, path.suffix[1:])


def numbered_stems(images: Sequence[Path], settings: NumberSettings) -> dict[Path, str]:
    """Return {image: its new stem}. Numbers restart in each folder; a.png and a.jpg share a caption file and so a number."""
    folders: dict[Path, dict[str, list[Path]]] = defaultdict(lambda: defaultdict(list))
    for path in images:
        folders[path.parent][path.stem].append(path)
    stems = {}
    for members in folders.values():
        for number, stem in enumerate(
            sorted(members, key=lambda stem: (natural_order(stem), stem)), settings.number_start
        ):
            for path in members[stem]:
                stems[path] = f"{settings.number_prefix}{number:0{settings.number_digits}d}"
    return stems


def rename_in_place(images: Sequence[Path], settings: NumberSettings, folder: Path) -> tuple[str | None, int]:
    """Rename the files in place, all or none, without overwriting. Raises ProblemsError if a name is taken.

    Returns (path of the record for `rename_back`, number of renamed files); (None, 0) if all files have these names.
    """
    stems = numbered_stems(images, settings)
    pairs = [(path, path.with_name(stem + path.suffix)) for path, stem in stems.items()]
    pairs += [(each, each.with_name(stem + ending)) for each, stem, ending in renamed_companions(stems)]
    pairs = [(old, new) for old, new in dict(pairs).items() if old != new]
    if not pairs:
        return None, 0
    fix = "choose another prefix, or move these files; nothing was renamed"
    refuse_taken(pairs, "A file with this name exists already", fix, "tools.name-taken")
    record = _write_record(folder, pairs)
    _rename([(number, old, new) for number, (old, new) in enumerate(pairs)], folder, _NUMBERING, record)
    return str(record), len(pairs)


def renamed_companions(stems: Mapping[Path, str]) -> Iterator[tuple[Path, str, str]]:
    """Yield (file, new stem, its name after the old stem) of the images' captions, masks and caches. The longest stem wins.
    stems: {image: new stem}"""
    owners = {(path.parent, name_key(path.stem)): stem for path, stem in stems.items()}
    for each in companions(list(stems)):
        for length in range(len(each.stem), 0, -1):
            stem = owners.get((each.parent, name_key(each.name[:length])))
            if stem is not None:
                yield each, stem, each.name[length:]
                break


def rename_back(folder: Path) -> tuple[int, int]:
    """Undo the last numbering of a folder, also in the names of captions, masks and caches that its images have got since.

    Returns (number of renamed files, number of numbered files that are no longer there). Raises ProblemsError if there is no
    numbering, or if an original name is taken.
    """
    for record in reversed(records(folder, RECORD)):
        try:
            content = read_json_object(record)
            pairs = [(path_in(folder, new), path_in(folder, old)) for old, new in content["files"]]
            current = list(enumerate(_current_paths(pairs, content["first"])))
            moves = [(number, path, old) for number, (path, old) in current if os.path.lexists(path) and path != old]
            added = _added_since(moves)
        except (ProblemsError, OSError, ValueError, LookupError, TypeError):
            continue
        moves += [(number, path, old) for number, (path, old) in enumerate(added, len(current))]
        fix = "rename or move that file, then try again; nothing was renamed"
        pairs = [(path, old) for _, path, old in moves]
        refuse_taken(pairs, "Another file has the original name", fix, "tools.earlier-name-taken")
        if added:  # first recorded, so that an undo that is cut off can be run again
            names = [[each.relative_to(folder).as_posix() for each in (old, path)] for path, old in added]
            _save_record(record, content | {"files": content["files"] + names})
        _rename(moves, folder, _UNDOING)
        tidy(record.parent)
        return len(moves), sum(not os.path.lexists(old) for _, (_, old) in current)
    fix = "choose a folder whose files were renamed in place"
    raise ProblemsError.one("There is no numbering to undo", printable(folder), fix, "tools.no-numbering")


def _added_since(moves: Sequence[tuple[int, Path, Path]]) -> list[tuple[Path, Path]]:
    """Return (path, path with the original stem) of files that belong to numbered images and were not there when these were numbered.
    moves: (number, path, original path) of each numbered file"""
    files = {path for _, path, _ in moves}
    stems = {path: old.stem for _, path, old in moves if is_image(path, path.name) and not is_label(path.name)}
    added = [(each, each.with_name(stem + ending)) for each, stem, ending in renamed_companions(stems)]
    return [(path, old) for path, old in added if path not in files]


def _current_paths(pairs: Sequence[tuple[Path, Path]], first_stamp: Sequence[int]) -> Iterator[tuple[Path, Path]]:
    """Yield (current path, original path) for each (new path, original path), also after an interrupted numbering.

    All files are first renamed to intermediate names, in order, then all to their new names. So while the first has its
    intermediate name, each of the others has its intermediate or original name; once the first has its new name, each of the others
    has its new or intermediate name. The undo works in the same way.

    first_stamp   `_stamp` of the first file before the numbering
    """
    numbering = [_stage(new, number, _NUMBERING) for number, (new, _) in enumerate(pairs)]
    undoing = [_stage(old, number, _UNDOING) for number, (_, old) in enumerate(pairs)]
    # The first file has its intermediate or old name, so none has its new name yet.
    before_new_names = os.path.lexists(numbering[0]) or _stamp(pairs[0][1]) == list(first_stamp)
    # An undo was interrupted after it gave the first file its old name.
    undo_interrupted = not os.path.lexists(undoing[0]) and any(map(os.path.lexists, undoing))
    for stage, undone, (new, old) in zip(numbering, undoing, pairs, strict=True):
        candidates = [undone] if undo_interrupted else [undone, stage] if before_new_names else [undone, stage, new]
        yield next(filter(os.path.lexists, candidates), old), old


def _stamp(path: Path) -> list[int]:
    """Return the stamp of a file as a list for JSON; [] if it does not exist."""
    try:
        return list(stamp_of(os.lstat(path)))
    except OSError:
        return []


def _write_record(folder: Path, pairs: Sequence[tuple[Path, Path]]) -> Path:
    """Write the record for undo, before the first file is renamed, and return its path. Raises ProblemsError if it cannot be written.
    pairs: (current path, new path) of each file"""
    names = [[old.relative_to(folder).as_posix(), new.relative_to(folder).as_posix()] for old, new in pairs]
    with write_errors(UNWRITTEN, printable(folder / TRASH_FOLDER), UNCHANGED):
        record = new_trash_folder(folder, "-numbers") / RECORD
    _save_record(record, {"v": 1, "files": names, "first": _stamp(pairs[0][0])})
    return record


def _save_record(record: Path, content: Mapping[str, Any]) -> None:
    """Write `content` to a record. Raises ProblemsError if it cannot be written."""
    with write_errors(UNWRITTEN, printable(record.parent), UNCHANGED):
        atomic.write_json(record, content)


def _stage(new: Path, number: int, prefix: str) -> Path:
    """Return the intermediate path of the file that is to become `new`. `prefix`: _NUMBERING or _UNDOING."""
    return new.with_name(f"{prefix}{number:06d}{new.suffix}")


def _rename(moves: Sequence[tuple[int, Path, Path]], folder: Path, prefix: str, record: Path | None = None) -> None:
    """Rename (number, from, to) by way of unused intermediate names, since a new name may be another file's old name.

    After an error all renames are reverted, and the undo `record` is removed unless a file could not be renamed back. Raises
    ProblemsError.
    """
    stages = [(source, _stage(target, number, prefix)) for number, source, target in moves]
    steps = [(source, stage) for source, stage in stages if source != stage]
    steps += [(stage, target) for (_, stage), (_, _, target) in zip(stages, moves, strict=True)]
    try:
        move_all(steps)
    except OSError as error:
        reverted = all(
            os.path.lexists(source) and (source == stage or not os.path.lexists(stage)) for source, stage in stages
        )
        if record is not None and reverted:
            atomic.remove_folder(record.parent)
        names = "all files keep their names" if reverted else "some files have other names now"
        what = f"A file could not be renamed ({error.strerror or error}); {names}"
        fix = f"close programs that use it, and {'try again' if reverted else 'run Undo numbering'}"
        where = printable(error.filename or folder)
        raise ProblemsError.one(what, where, fix, "tools.rename-failed") from error
