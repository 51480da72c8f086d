"""What *Keep* does to checkpoint files: it writes metadata into the kept one and can move the others to the trash."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from core.dataset.doctor import trash
from core.engine.in_use import require_unused
from core.engine.queue import QueueEntry
from core.formats.tensors.header import read_header, sniff
from core.record.cancel import CancelToken
from core.record.kept import read_kept
from core.record.problems import ProblemsError
from core.record.run_folder import RunFolder
from core.record.workspace import Workspace
from core.tools.models import header_edit
from core.tools.models.edit_metadata import thumbnail_url

NAME, CHOICE, THUMBNAIL = header_edit.KEPT
REASON = "Checkpoints that were not kept"


def mark_file(
    file: Path, name: str, choice: str, sample: Path | None, workspace: Workspace, cancel: CancelToken
) -> bool:
    """Write name, reason of the choice and a thumbnail into a checkpoint's metadata; tensors and modification time stay.

    name      under which it is kept
    choice    why it was chosen
    sample    image for the thumbnail, unless the file has a thumbnail
    returns   False for formats other than safetensors, which have no metadata
    Raises ProblemsError and OSError.
    """
    if file.is_dir() or sniff(file) != "safetensors":
        return False
    before = dict(read_header(file)[1])
    after = before | {NAME: name, CHOICE: choice}
    if sample is not None and THUMBNAIL not in before:
        after[THUMBNAIL] = thumbnail_url(sample)
    if after != before:
        stat = file.stat()
        header_edit.replace_header(file, header_edit.with_metadata(file, after), workspace, cancel)
        os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    return True


def unmark_file(file: Path, workspace: Workspace, cancel: CancelToken) -> None:
    """Undo `mark_file`: byte for byte if the metadata has not changed since, else name, reason and thumbnail are removed."""
    if file.is_dir() or sniff(file) != "safetensors" or NAME not in read_header(file)[1]:
        return
    stat = file.stat()
    if header_edit.newest_change(file, workspace, kept=True):
        header_edit.undo_change(file, workspace, cancel, kept=True)
    if NAME in (marked := read_header(file)[1]):  # no change is stored, or it was kept under another name before
        remaining = {key: value for key, value in marked.items() if key not in (NAME, CHOICE)}
        header_edit.write_copy(file, header_edit.with_metadata(file, remaining), file, cancel)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def put_away_others(run: RunFolder, files: Sequence[Path], workspace: Workspace, jobs: Iterable[QueueEntry]) -> str:
    """Move the run's checkpoints that are not kept to the trash next to them; return the token for `trash.put_back`.

    files   all checkpoints
    jobs    the queue
    Raises ProblemsError if none is kept or all are, and while the run trains or a job reads its files.
    """
    kept = {run.path / file for file in read_kept(run.path)}
    if not kept:
        raise ProblemsError.one("No checkpoint is kept", run.name, "keep one first", "kept.none")
    if run.held:
        raise ProblemsError.one("The run is still training", run.name, "wait until it has ended", "kept.running")
    require_unused(run.name, jobs, workspace)
    others = [file for file in files if file not in kept and run.checkpoints in file.parents]
    if not others:
        raise ProblemsError.one("Every checkpoint is kept", run.name, "undo one of them", "kept.all")
    return trash.put_away(others, run.checkpoints, REASON)
