"""webui.py import: convert another program's training settings to a preset or training, and report what became of each key."""

import sys
from dataclasses import replace
from pathlib import Path

from core.cli.main import BAD_INPUT, DONE
from core.cli.options import (
    COMMAND_OPTIONS,
    Options,
    job_from,
    saved_path,
    split_options,
    unknown_word_problem,
    write_result,
)
from core.dataset.captions.encodings import decode_text
from core.imports.projects.importers import adapted_to_machine, import_project
from core.imports.projects.report import MAX_BYTES, Import
from core.record.problems import Problem, errors, raise_any
from core.record.processes import check_launch
from core.record.workspace import open_home
from core.settings.job import TrainJob
from core.settings.presets.files import dump, to_values

HERE = "-"  # standard input


def run(argv: list[str]) -> int:
    """Run `webui.py import` with these arguments and return the exit code. Raises ProblemsError."""
    options = split_options(argv, COMMAND_OPTIONS["import"])
    trains = "train" in options.values
    problems = [*options.problems, *(unknown_word_problem(word) for word in options.settings if not trains)]
    if options.preset is None and not problems:
        fix = "write the path of a file, or - to read standard input"
        problems.append(Problem("There is nothing to import", "command line", fix, code="cli.missing-value"))
    raise_any(problems)
    imported = adapted_to_machine(_read(str(options.preset), str(options.values.get("choose", ""))))
    print("\n".join(imported.lines()), flush=True)
    for problem in imported.problems:
        print(f"{problem.level}: {problem}", file=sys.stderr)
    failed = bool(errors(imported.problems))
    job = imported.compatible if "as-sd-scripts" in options.values else imported.job
    if "save" in options.values:
        path = saved_path(options, open_home(str(options.preset)))
        write_result(path, dump(job, title=job.saving.output_name, description=imported.description), "preset")
        print(f"\nSaved as {path}{', without what has errors' if failed else ''}")
    if failed:
        return BAD_INPUT
    return _train(job, replace(options, preset=None)) if trains else DONE


def _train(job: TrainJob, options: Options) -> int:
    """Train with the imported settings, overridden by the command line's. Return the exit code."""
    from core.cli.train import train_job

    check_launch()
    return train_job(job_from("train", options, to_values(job)), options)


def _read(name: str, choice: str) -> Import:
    """Import the file `name`, or standard input for HERE. Raises ProblemsError.
    choice: value of --choose, one of `Import.choices`; "" without it"""
    if name != HERE:
        return import_project(open_home(name), choice=choice)
    text = decode_text(sys.stdin.buffer.read(MAX_BYTES + 1)).text
    return import_project(text, folder=Path.cwd(), choice=choice)
