"""The output file of a tool, and the checks of it, before the work and again when it starts."""

import os
import re
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from pathlib import Path

from core.record.context import JobContext
from core.record.file_titles import WEIGHTS
from core.record.machine import free_disk
from core.record.problems import Problem
from core.record.regular import impossible_path
from core.record.run_about import others_run_problem
from core.record.units import size_text
from core.record.workspace import display_path, real_path, resolve_path

SAFETENSORS = (".safetensors",)
PRECISION_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}  # of a number
MOST_NAMES = 1000
FILE_ENDINGS = (*WEIGHTS, ".txt", ".htm", ".html", ".json", ".md", ".pdf")


def output_file(
    output: str | None,
    first_input: Path,
    ending: str,
    suffixes: Sequence[str] = SAFETENSORS,
    files_of: Callable[[Path], Iterable[Path]] = lambda file: (file,),
) -> Path:
    """Return the file to write: `output`; if that is a folder, a file in it; if empty, a file next to the first input.

    first_input   gives the name, with `ending` appended ("fox_rank8"), and a number ("fox_rank8_2") if that exists
    suffixes      of output files; an `output` without one is a folder. Empty: the output is itself a folder
    files_of      (output) -> all files it consists of
    """
    folder = first_input.parent
    if output:
        folder = resolve_path(output)
        if not suffixes or (folder.suffix.lower() in suffixes and not os.path.isdir(folder)):
            return folder
    stem, suffix = first_input.name if first_input.is_dir() else first_input.stem, suffixes[0] if suffixes else ""
    first = folder / f"{stem}{ending}{suffix}"
    numbered = (folder / f"{stem}{ending}_{number}{suffix}" for number in range(2, MOST_NAMES)) if ending else ()
    return next((each for each in chain([first], numbered) if not any(map(os.path.lexists, files_of(each)))), first)


def output_problems(target: Path, inputs: Sequence[Path], size: int, where: str) -> list[Problem]:
    """Return problems of writing `target`, a new file or folder of about `size` bytes, from `inputs`. `where`: the setting."""
    if (problem := impossible_path(target, where) or others_run_problem(target, where)) is not None:
        return [problem]
    if any(_is_same_file(target, each) for each in inputs):
        what, fix = "The output is one of the inputs", "choose another name; an input is never written over"
        return [Problem(what, where, fix, code="tools.output-is-input")]
    if (foreign := _windows_part(target)) is not None:
        what, fix = (
            f"'{foreign}' is part of an address or of a Windows path, which has no meaning here",
            "write the path with / and without a drive",
        )
        return [Problem(what, where, fix, code="tools.windows-path")]
    outer = next((each for each in inputs if each.is_dir() and real_path(each) in real_path(target).parents), None)
    if outer is not None:
        what = f"The output would be inside {display_path(outer)}, which is one of the inputs"
        return [Problem(what, where, "choose another folder; an input is never changed", code="tools.output-in-input")]
    folder = target.parent
    if target.suffix and folder.suffix.lower() in FILE_ENDINGS and not folder.is_dir():
        what, fix = (
            f"The output is named as a {folder.suffix} file",
            f"end its name with {target.suffix}, or name a folder",
        )
        return [Problem(what, where, fix, code="tools.output-format")]
    if os.path.lexists(target):
        what = f"{display_path(target)} exists already"
        return [Problem(what, where, "choose another name, or move that file away", code="tools.output-exists")]
    free = free_disk(target.parent)
    if size > free:
        what = f"Writing the result takes {size_text(size)}; {size_text(free)} are free on the disk of {display_path(target.parent)}"
        return [Problem(what, where, "free some space, or choose a folder on another disk", code="tools.no-room")]
    return []


def _is_same_file(first: Path, second: Path) -> bool:
    """Return whether both paths are the same file, by any name or link."""
    return os.path.realpath(first) == os.path.realpath(second) or (
        first.exists() and second.exists() and os.path.samefile(first, second)
    )


def _windows_part(target: Path) -> str | None:
    r"""Return the first part of a path that is an address (smb:) or for Windows only; None if there is none, and on Windows.

    On other systems C:\models\fox.safetensors would be one odd file name.
    """
    if os.name == "nt":
        return None
    return next((part for part in target.parts if "\\" in part or re.fullmatch(r"[A-Za-z][\w+.-]*:", part)), None)


def progress(context: JobContext, target: Path, size: int) -> Callable[[int], None]:
    """Return a function to call with the bytes of each written tensor; it reports progress of about `size` bytes in all."""
    done = 0

    def report(size_written: int) -> None:
        """Report that `size_written` more bytes were written."""
        nonlocal done
        done = min(done + size_written, size)
        context.stage(f"writing {target.name}", done, size, of_bytes=True)

    return report
