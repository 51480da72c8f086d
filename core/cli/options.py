"""Free-standing options, and the way from typed words to a checked job."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from core import tasks
from core.record import machine
from core.record.allowed import allow
from core.record.problems import Problem, ProblemsError, errors
from core.record.workspace import Workspace, open_home
from core.settings.base import Settings
from core.settings.check import build
from core.settings.flags import merge, read_flags
from core.settings.presets import apply, read, to_values

# name -> (placeholder of its value, or "" for a switch; help)
COMMON = {
    "outputs": ("DIR", "where runs, images and caches go (default: outputs)"),
    "models": ("DIR", "where models lie (default: models)"),
    "presets": ("DIR", "where presets lie (default: presets)"),
    "device": ("NAME", "cpu, cuda, cuda:1 or mps (default: the best there is)"),
    "allow-module": (
        "NAME",
        "let optimizers, schedules and dataset classes of this Python module run; may be repeated",
    ),
}
PAGE = {
    **COMMON,
    "port": ("NUMBER", "the page's port (default: 7860; the next free one when taken)"),
    "listen": ("", "let other machines of the network in; needs a password"),
    "share": ("", "open a public share link; needs a password"),
    "host": (
        "NAME",
        "a further name that the page is opened under (a proxy, a name of the network): name or name:port; may be repeated",
    ),
    "auth": ("USER:PASSWORD", "the password for --listen and --share; without it one is made and printed"),
    "auth-file": (
        "FILE",
        "the same from a file, which the list of processes does not show; so does the environment variable ATELIER_AUTH",
    ),
    "lend-keys": (
        "",
        "let jobs of a shared page use the keys of this machine: uploads to the hub, gated models, wandb",
    ),
    "no-browser": ("", "do not open a browser"),
}
JOB = {
    **COMMON,
    "check": ("", "say what would be done and what is wrong, and stop"),
    "queue": ("", "hand the job to the page that is running on this output folder"),
}
DATASET = {"dataset-config": ("FILE", "train on the folders of a dataset file of sd-scripts (.toml or .json)")}
OWN = {
    "train": {
        **JOB,
        **DATASET,
        "continue": ("RUN", "resume an interrupted or stopped run; its length may be changed"),
        "probe": ("", "try two batches, show what memory and time the training will take, and stop"),
        "prove": ("STEPS", "train so many steps in one go and in two, compare both to the bit, and stop"),
    },
    "prepare": {
        **JOB,
        **DATASET,
        "check": ("", "list every image with its place and captions and what is wrong, and stop"),
        "debug-dataset": ("EPOCHS", "list the batches of so many epochs as a training would see them, and stop"),
    },
    "generate": {
        **JOB,
        "prompt": ("TEXT", "short for --generate.prompt"),
        "lora": ("FILE[:STRENGTH]", "generate with this LoRA, and none of the preset's; may be repeated"),
        "embedding": ("[WORD=]FILE", "generate with this embedding, and none of the preset's; may be repeated"),
    },
    "presets": {name: COMMON[name] for name in ("outputs", "presets")},
    "check": {
        **COMMON,
        "json": ("FILE", "write what was found, for a bug report"),
    },
    "bench": {
        **COMMON,
        "quick": ("", "fewer repeats"),
        "only": ("NAME", "one part of the benchmark: train, page, caching, datasets, captions or baseline"),
        "json": ("FILE", "write the numbers"),
    },
}  # commands with options of their own; every other task has those of JOB


def commands() -> dict[str, dict[str, tuple[str, str]]]:
    """The options of every command, by its name."""
    found = {name: JOB for name in tasks.tasks() if name != "probe"}  # which is train --probe
    return found | OWN


REPEATED = {"lora", "embedding", "allow-module", "host"}


@dataclass
class Options:
    """Options by name, the preset, and the words that are settings."""

    values: dict[str, Any] = field(default_factory=dict)
    preset: str | None = None
    settings: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    advice: list[Problem] = field(default_factory=list)  # from files that were taken over; nothing that blocks

    @property
    def preset_name(self) -> str:
        """Its name without folder and ending, "" without a preset."""
        return Path(self.preset).stem if self.preset else ""

    def workspace(self) -> Workspace:
        return Workspace.of(self.values.get("outputs"), self.values.get("models"), self.values.get("presets"))

    def device(self) -> str:
        """As asked for, else the best there is (loads torch). ProblemsError for one that is not there."""
        if "device" in self.values:
            machine.check_device(self.values["device"])
        return self.values.get("device") or machine.default_device()


def split_options(words: list[str], known: dict[str, tuple[str, str]], preset_allowed: bool = True) -> Options:
    """Sort words into free-standing options, one preset, and `--group.name` settings. Problems are collected."""
    options = Options()
    index = 0
    while index < len(words):
        word, index = words[index], index + 1
        name, equals, text = word[2:].partition("=") if word.startswith("--") else ("", "", "")
        name = name if name in known else name.replace("_", "-")  # sd-scripts writes --dataset_config
        if name in known:
            if not known[name][0]:
                options.values[name] = True
                if equals:
                    fix = f"write --{name}, or leave it out"
                    what, code = f"--{name} takes no value", "cli.unwanted-value"
                    options.problems.append(Problem(what, "command line", fix, code=code))
                continue
            if not equals:
                if index >= len(words) or words[index].startswith("--"):
                    what, code = f"--{name} has no value", "cli.missing-value"
                    fix = f"write --{name} {known[name][0]}"
                    options.problems.append(Problem(what, "command line", fix, code=code))
                    continue
                text, index = words[index], index + 1
            if name in REPEATED:
                options.values.setdefault(name, []).append(text)
            else:
                options.values[name] = text
        elif word.startswith("--"):
            options.settings.append(word)
            if not equals and index < len(words) and not words[index].startswith("--"):
                options.settings.append(words[index])
                index += 1
        elif preset_allowed and options.preset is None:
            options.preset = word
        else:
            options.problems.append(not_understood(word))
    for name in options.values.get("allow-module", ()):  # here, so that it holds for the page and for every job alike
        try:
            allow(name)
        except ProblemsError as error:
            options.problems += error.problems
    return options


def not_understood(word: str) -> Problem:
    """A word of the command line that is nothing."""
    return Problem(f"'{word}' is not understood", "command line", "see --help", code="cli.unknown-word")


def job_from(task: str, options: Options) -> Settings:
    """Defaults below the preset below the flags. Raises ProblemsError with everything that is wrong anywhere."""
    model = tasks.named(task).job
    problems = list(options.problems)
    below: dict[str, Any] = {}
    if options.preset is not None:
        try:
            preset = read(preset_path(options.preset, options.workspace()))
            if not _fits(preset.task, task):
                what, fix = f"The preset is for '{preset.task}', not for '{task}'", f"use webui.py {preset.task}"
                problems.append(Problem(what, options.preset, fix, code="cli.preset-of-another-task"))
            else:
                options.advice += preset.notes
                below = {
                    name: values for name, values in to_values(apply(preset)).items() if name in model.model_fields
                }
        except ProblemsError as error:
            problems += error.problems
    if "dataset-config" in options.values:
        below = merge(below, _dataset_config(options, problems))
    above, wrong = read_flags(model, options.settings)
    problems += wrong
    try:
        job = build(model, merge(below, above), "command line")
    except ProblemsError as error:
        problems += error.problems
    if problems:
        raise ProblemsError(problems)
    return job


def _dataset_config(options: Options, problems: list[Problem]) -> dict[str, Any]:
    """The folders of a dataset file of sd-scripts, in place of the preset's. Its advice is kept for the command to say."""
    from core.imports.dataset_config import read_dataset_config

    found = read_dataset_config(options.values["dataset-config"])
    problems += errors(found.problems)
    options.advice += [problem for problem in found.problems if problem.level != "error"]
    options.advice += [
        Problem(note, options.values["dataset-config"], level="advice", code="import.note") for note in found.notes
    ]
    return found.values


def _fits(preset_task: str, task: str) -> bool:
    """A preset of one task with the dataset serves every other one."""
    on_dataset = all("dataset" in tasks.named(name).job.model_fields for name in (preset_task, task))
    return preset_task == task or on_dataset


def preset_path(text: str, workspace: Workspace) -> Path:
    """A preset by path, or by its name in the presets folder."""
    path = open_home(text)
    if path.is_file() or path.suffix == ".json":
        return path
    return workspace.presets / f"{text}.json"


def options_help(known: dict[str, tuple[str, str]]) -> str:
    lines = []
    for name, (value, text) in known.items():
        lines.append(f"  --{name} {value}".rstrip().ljust(30) + f"  {text}")
    return "\n".join(lines)
