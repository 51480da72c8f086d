"""webui.py export: a preset as a command line or config file of sd-scripts, and what that program cannot express."""

from __future__ import annotations

from core.cli.main import DONE
from core.cli.options import OWN, not_understood, preset_path, saved_path, split_options
from core.imports.projects.export import export_project
from core.record import atomic
from core.record.problems import Problem, ProblemsError, unwritten
from core.settings.check import shorten
from core.settings.presets.files import apply, of_task, read


def run(words: list[str]) -> int:
    options = split_options(words, OWN["export"])
    problems = [*options.problems, *(not_understood(word) for word in options.settings)]
    if options.preset is None and not problems:
        fix = "write the path or the name of a preset"
        problems.append(Problem("There is nothing to export", "command line", fix, code="cli.missing-value"))
    if problems:
        raise ProblemsError(problems)
    source = preset_path(str(options.preset), options.workspace())
    preset = of_task(read(source), "train", fix="export a training")
    found = export_project(apply(preset))  # type: ignore[arg-type]
    print(found.command)
    if found.lost:
        print("\nNot the same in sd-scripts:")
    for setting, (ours, there) in found.lost.items():
        print(f"  {setting} {shorten(ours)}: {shorten(there)}")
    if "save" in options.values:
        path = saved_path(options, source)
        try:
            atomic.write_text(path, found.toml)
        except OSError as error:
            raise unwritten(error, "The file cannot be written", str(path)) from None
        print(f"\nSaved as {path}, for --config_file")
    return DONE
