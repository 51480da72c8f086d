"""webui.py export: write a preset for sd-scripts or kohya_ss, and list what that program cannot express."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from core.cli.main import DONE
from core.cli.options import COMMAND_OPTIONS, preset_path, saved_path, split_options, write_result
from core.families.locate import base_model_family
from core.imports.dataset_export import dataset_text, without_passed
from core.imports.projects.export import export_project, with_prediction
from core.imports.projects.kohya_export import export_preset
from core.record.problems import Problem, raise_any
from core.record.units import listed
from core.settings.check import shorten
from core.settings.job import TrainJob
from core.settings.presets.files import apply, of_task, read

Lost = dict[str, tuple[Any, Any]]
PROGRAMS = ("sd-scripts", "kohya_ss")


def run(argv: list[str]) -> int:
    """Run `webui.py export` with these arguments and return the exit code. Raises ProblemsError."""
    options = split_options(argv, COMMAND_OPTIONS["export"], settings=False)
    problems = list(options.problems)
    if options.preset is None and not problems:
        fix = "write the path or the name of a preset"
        problems.append(Problem("There is nothing to export", "command line", fix, code="cli.missing-value"))
    program = str(options.values.get("to", PROGRAMS[0]))
    if program not in PROGRAMS:
        fix = f"use {' or '.join(PROGRAMS)}"
        problems.append(Problem(f"There is no export for '{program}'", "--to", fix, code="cli.unknown-program"))
    raise_any(problems)
    source = preset_path(str(options.preset), options.workspace())
    preset = of_task(read(source), "train", fix="export a training")
    job: TrainJob = apply(preset)  # type: ignore[assignment]
    if job.model.family == "auto" and (family := preset.family or base_model_family(job.model, options.workspace())):
        job = job.with_settings(model={"family": family})
    recipe = preset.kind == "recipe" and "model.base_model" not in preset.stated()
    if recipe:
        job = job.with_settings(model={"base_model": ""})
    job, open_prediction = with_prediction(job, options.workspace())
    path = saved_path(options, source) if "save" in options.values else None
    folders = f"{path.stem if path else job.saving.output_name}_dataset.toml" if job.dataset.all_sources() else ""
    if folders and path is not None:
        folders = path.with_name(folders).absolute().as_posix()
    content, _, problems = dataset_text(job, "toml", folders) if folders else ("", {}, [])
    text, file, lost, use, passed = _exported(job, program, folders)
    if program != "kohya_ss" or path is None:
        print(text)
    lacks = {"model": "pretrained_model_name_or_path", "folders": "dataset_config"} if recipe else {}
    if job.method.traits.new_words and "token_string" not in passed:
        lacks |= {"token": "token_string"}
    if lacks:
        named, added = listed([f"no {each}" for each in lacks]), listed([f"--{name}" for name in lacks.values()])
        print(f"\nThis preset names {named}: add {added}")
    if lost:
        print(f"\nNot the same in {program}:")
    for setting, (ours, reread) in lost.items():
        print(f"  {setting} {shorten(ours)}: {shorten(reread)}")
    if path is not None:
        write_result(path, file, "file")
        print(f"\nSaved as {path}, {use}")
    if folders and path is not None:
        write_result(Path(folders), content, "file")
        print(f"Folders saved as {folders}, for --dataset_config")
    elif folders:
        print(f"\n{folders}, which --save writes too:\n\n{content}")
    for problem in [*open_prediction, *without_passed(problems, passed)]:
        print(f"  {problem.level}: {problem}")
    return DONE


def _exported(job: TrainJob, program: str, dataset: str) -> tuple[str, str, Lost, str, Mapping[str, Any]]:
    """Convert the settings for `program`, one of PROGRAMS.

    dataset   name of the dataset config with the folders; "" without one
    returns   (text to print, content of the file, lost settings as in `Exported.lost`, text on what the file is for, sd-scripts'
              options in it)
    """
    if program == "kohya_ss":
        preset = export_preset(job, dataset)
        return preset.text, preset.text, preset.lost, f"to open on the {preset.title} tab", preset.options
    project = export_project(job).with_dataset_config(dataset)
    return project.command, project.toml, project.lost, "for --config_file", project.options
