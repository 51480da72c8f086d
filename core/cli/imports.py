"""webui.py import: another program's training settings as a preset, with a report of what became of each key."""

from __future__ import annotations

import sys
from pathlib import Path

from core.cli.main import DONE
from core.cli.options import OWN, not_understood, saved_path, split_options
from core.dataset.captions.encodings import decode_text
from core.imports.projects.importers import import_project
from core.imports.projects.report import MAX_BYTES, Import
from core.record import atomic
from core.record.problems import Problem, ProblemsError, unwritten
from core.record.workspace import open_home
from core.settings.presets.files import dump

HERE = "-"  # standard input


def run(words: list[str]) -> int:
    options = split_options(words, OWN["import"])
    problems = [*options.problems, *(not_understood(word) for word in options.settings)]
    if options.preset is None and not problems:
        fix = "write the path of a file, or - to read standard input"
        problems.append(Problem("There is nothing to import", "command line", fix, code="cli.missing-value"))
    if problems:
        raise ProblemsError(problems)
    found = _read(str(options.preset), str(options.values.get("choose", "")))
    print("\n".join(found.lines()))
    for problem in found.problems:
        print(f"{problem.level}: {problem}", file=sys.stderr)
    if "save" in options.values:
        _save(saved_path(options, open_home(str(options.preset))), found, "as-sd-scripts" in options.values)
    return DONE


def _read(name: str, choice: str) -> Import:
    if name != HERE:
        return import_project(open_home(name), choice=choice)
    text = decode_text(sys.stdin.buffer.read(MAX_BYTES + 1)).text
    return import_project(text, folder=Path.cwd(), choice=choice)


def _save(path: Path, found: Import, compatible: bool) -> None:
    job = found.compatible if compatible else found.job
    try:
        atomic.write_json(path, dump(job, title=found.job.saving.output_name, description=found.description))
    except OSError as error:
        raise unwritten(error, "The preset cannot be written", str(path)) from None
    print(f"\nSaved as {path}")
