"""Options of the commands (--device, --check ...), and parsing a command line into a checked job."""

import difflib
import json
import os
from collections import deque
from collections.abc import Container, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Any

from core import tasks
from core.record import atomic, machine
from core.record.allowed import allow
from core.record.bounded_json import read_json_object
from core.record.image_formats import IMAGE_EXTENSIONS
from core.record.problems import Problem, ProblemsError, collected, errors, write_errors
from core.record.processes import PERSON
from core.record.workspace import PROJECT, Workspace, open_home, pasted_path, resolve_path
from core.settings.base import Declared, Settings, declared, item_of
from core.settings.check import build
from core.settings.elsewhere import ELSEWHERE
from core.settings.flags import merge, read_flags
from core.settings.named import CONTROL_IMAGE
from core.settings.presets.files import Preset, PresetStore, apply, read, to_values
from core.settings.values import value_typed

# name -> (placeholder of its value, or "" for a switch; help)
COMMON = {
    "outputs": ("DIR", "where runs, images and caches go (default: outputs)"),
    "models": ("DIR", "the models folder (default: models)"),
    "presets": (
        "DIR",
        "the folder of your presets (default: presets); those that come with the program stay available",
    ),
    "device": ("NAME", "cpu, cuda, cuda:1 or mps (default: the fastest available)"),
    "allow-module": (
        "NAME",
        "import this Python module, and allow its optimizers, schedulers and dataset classes; repeatable",
    ),
}
PAGE = {
    **COMMON,
    "port": ("NUMBER", "the page's port (default: 7860; the next free one when taken)"),
    "listen": ("", "accept connections from other machines; needs a password"),
    "share": ("", "open a public share link; needs a password"),
    "host": (
        "NAME",
        "another host name for the page (a proxy, a name on the network): name or name:port; repeatable",
    ),
    "auth": ("USER:PASSWORD", "the login for --listen and --share; without it one is generated and printed"),
    "auth-file": (
        "FILE",
        "the same from a file, so that it is not in the list of processes; or use the environment variable ATELIER_AUTH. "
        "Of several lines, the first is the owner's, and everybody else has a form, presets and runs of their own",
    ),
    "allow": (
        "DIR",
        "a further folder whose files a shared page may read and change, such as one of images; repeatable",
    ),
    "lend-keys": (
        "",
        "let jobs of a shared page use this machine's keys: hub uploads, gated models, wandb",
    ),
    "no-browser": ("", "do not open a browser"),
    "resume": (
        "",
        "put trainings that ended with the program back at the head of the queue and resume it, for a supervised server",
    ),
}
JOB = {
    **COMMON,
    "check": ("", "report what would be done and all problems, and stop"),
    "queue": ("", "add the job to the queue of the page that uses this outputs folder"),
    "json": (
        "",
        "with --queue: print the job's id, its run if it resumes one, and whether the queue is paused, as JSON",
    ),
}
DATASET = {"dataset-config": ("FILE", "train on the folders of an sd-scripts dataset config (.toml or .json)")}
# Commands with options of their own; every other task has those of JOB
COMMAND_OPTIONS = {
    "train": {
        **JOB,
        **DATASET,
        "continue": ("RUN", "resume an interrupted or stopped run; its length may be changed"),
        "probe": ("", "train two batches, forecast memory and time, and stop"),
        "prove": (
            "STEPS",
            "train STEPS steps in one run, then in two with a resume, compare both bit for bit, and stop",
        ),
    },
    "prepare": {
        **JOB,
        **DATASET,
        "check": ("", "list every image with its bucket, captions and problems, and stop"),
        "debug-dataset": (
            "EPOCHS",
            "list the batches of the first EPOCHS epochs as they will be trained, and stop",
        ),
    },
    "generate": {
        **JOB,
        "prompt": ("TEXT", "short for --generate.prompt"),
        "from-file": ("FILE", "short for --prompts.from_file"),
        "interactive": (
            "",
            "ask for prompts one after another, with the model kept in memory; Ctrl-D or Ctrl-C ends it",
        ),
        "lora": ("FILE[:STRENGTH]", "use this LoRA instead of the preset's; repeatable"),
        "embedding": ("[WORD=]FILE", "use this embedding instead of the preset's; repeatable"),
    },
    "runs": {
        **{name: COMMON[name] for name in ("outputs", "models", "presets")},
        "json": ("", "print all as JSON"),
    },
    "presets": {name: COMMON[name] for name in ("outputs", "presets")},
    "import": {
        **COMMON,
        "save": ("FILE", "write the preset to this .json file"),
        "choose": ("NAME", "which command, script or kohya_ss tab to read it as, where there are several"),
        "as-sd-scripts": ("", "compute as sd-scripts 0.10 does (model.compatibility)"),
        "train": ("", "train with it at once; --group.name VALUE replaces a setting"),
    },
    "export": {
        **{name: COMMON[name] for name in ("outputs", "models", "presets")},
        "to": ("PROGRAM", "sd-scripts (default) or kohya_ss"),
        "save": (
            "FILE",
            "write a .toml file for --config_file of sd-scripts, or a preset of kohya_ss (.json), and the folders as FILE_dataset.toml",
        ),
    },
    "check": {
        **COMMON,
        "json": ("FILE", "write the report to a file, for a bug report"),
    },
    "bench": {
        **COMMON,
        "quick": ("", "fewer repeats"),
        "only": (
            "NAME",
            "one part: train, page, caching, controls, datasets, captions, lists, formats, tools, baseline or options:sdxl_lora",
        ),
        "json": ("FILE", "write the results to a file"),
    },
}

# The options that decide what a command does with its job, and the only pairs of them that go together
MODES = ("check", "debug-dataset", "probe", "prove", "interactive", "continue", "queue", "json", "device")
TOGETHER = {
    *[("check", other) for other in ("debug-dataset", "continue")],
    *[("probe", other) for other in ("continue", "queue", "json")],
    *[("continue", other) for other in ("queue", "json")],
    ("queue", "json"),
    *[(each, "device") for each in ("check", "debug-dataset", "probe", "prove", "interactive", "continue")],
}


def commands() -> dict[str, dict[str, tuple[str, str]]]:
    """Return {command: {option: (placeholder of its value or "" for a switch, help)}}."""
    modules = {name: JOB for name in tasks.tasks() if name != "probe"}  # which is train --probe
    return modules | COMMAND_OPTIONS


def _elsewhere() -> dict[str, str]:
    """Return {option that is no setting: fix}: of sd-scripts, of the commands and of the page."""
    users = {name: command for command, known in reversed(COMMAND_OPTIONS.items()) for name in known}
    others = {name: f"use it with webui.py {command}, whose option it is" for name, command in users.items()}
    return dict.fromkeys(PAGE, "start the page with it: webui.py without a command") | others | ELSEWHERE


HEADER_MARKS = {"schema_version", "kind", "task"}  # of a preset
REPEATED = {"lora", "embedding", "allow-module", "allow", "host"}


@dataclass
class Options:
    """A parsed command line. values: {option: value, True for a switch, list for a repeatable one}; settings: the words `--group.name` and
    their values, not parsed yet."""

    values: dict[str, Any] = field(default_factory=dict)
    preset: str | None = None
    argument: str | None = None  # the positional argument that is not a preset; the last of several
    argument_setting: str = ""  # the entry of `settings` with the value of the positional arguments
    settings: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    advice: list[Problem] = field(default_factory=list)  # from imported files; not errors
    preset_read: Preset | None = None

    @property
    def preset_name(self) -> str:
        """Name of the preset without folder and extension; "" without one."""
        return Path(self.preset).stem if self.preset else ""

    def workspace(self) -> Workspace:
        """Return the workspace with the folders of --outputs, --models and --presets; of the person for whom a page launched this
        process, if one did."""
        space = Workspace.of(self.values.get("outputs"), self.values.get("models"), self.values.get("presets"))
        return replace(space, person=os.environ.get(PERSON, ""))

    def device(self) -> str:
        """Return the device of --device, else the fastest available (loads torch). Raises ProblemsError for an unavailable one."""
        if "device" in self.values:
            machine.check_device(self.values["device"])
        return self.values.get("device") or machine.default_device()


def split_options(
    argv: list[str], known: dict[str, tuple[str, str]], job: bool = True, task: str = "", settings: bool = True
) -> Options:
    """Parse a command line into options, `--group.name` settings, a preset and the task's positional argument; errors are collected in
    `problems` of the result.

    known     {option: (placeholder, help)} of the command
    job       whether the command runs a job, and so takes settings and a preset
    task      whose positional argument the command takes; "" for none
    settings  whether a command with a preset takes settings too
    """
    options, positional, remaining = Options(), list[tuple[str, str]](), deque(argv)
    before = ""  # the setting before the current word
    while remaining:
        word = remaining.popleft()
        name = word[2:].partition("=")[0] if word.startswith("--") else ""
        name = name if name in known else name.replace("_", "-")  # sd-scripts writes --dataset_config
        if name in known:
            before = ""
            _take_option(name, known[name][0], word, remaining, options)
        elif word.startswith("--"):
            before = word.partition("=")[0]
            _take_setting(word, remaining, options)
        else:
            positional.append((word, before))
    _assign_positional(positional, options, job, task)
    if "queue" in known:
        options.problems += mode_problems(options.values)
    if not (job and settings):
        options.problems += [unknown_word_problem(word) for word in options.settings]
    for name in options.values.get("allow-module", ()):  # here, so that it applies to the page and to every job
        collected(options.problems, allow, name)
    return options


def mode_problems(values: Container[str]) -> Iterator[Problem]:
    """Yield problems of options of MODES that cannot be combined. values: names of the typed options."""
    for one, other in combinations([name for name in MODES if name in values], 2):
        if (one, other) not in TOGETHER:
            what = f"--{one} and --{other} do not go together"
            yield Problem(what, "command line", "leave one of them out", code="cli.apart")
    if "json" in values and "queue" not in values:
        what = "--json has an effect only with --queue"
        yield Problem(what, "command line", "add --queue", code="cli.json-alone")


def _take_option(name: str, placeholder: str, word: str, remaining: deque[str], options: Options) -> None:
    """Store the option in `word`, "--name" or "--name=value", with its value from `remaining` if it takes one and has none after "=".

    placeholder   of the value; "" for a switch
    remaining     the words after it
    """
    _, equals, text = word.partition("=")
    if not placeholder:
        options.values[name] = True
        if equals:
            what, fix = f"--{name} takes no value", f"write --{name}, or leave it out"
            options.problems.append(Problem(what, "command line", fix, code="cli.unwanted-value"))
        return
    if not equals:
        if not remaining or remaining[0].startswith("--"):
            what, fix = f"--{name} has no value", f"write --{name} {placeholder}"
            options.problems.append(Problem(what, "command line", fix, code="cli.missing-value"))
            return
        text = remaining.popleft()
    if name in REPEATED:
        options.values.setdefault(name, []).append(text)
    else:
        options.values[name] = text


def _take_setting(word: str, remaining: deque[str], options: Options) -> None:
    """Store the setting `word` and its value from `remaining`: none for --name=value, all words up to the next option for --network_args,
    else one."""
    options.settings.append(word)
    # sd-scripts' --network_args takes several values; it is read only to report its replacement
    most = len(remaining) if word == "--network_args" else 0 if "=" in word else 1
    while most and remaining and not remaining[0].startswith("--"):
        options.settings.append(remaining.popleft())
        most -= 1


def _assign_positional(positional: list[tuple[str, str]], options: Options, preset_allowed: bool, task: str) -> None:
    """Store each positional argument as the preset or as the task's argument; others become problems.
    positional: (word, setting before it on the command line; "" for none)"""
    entry = argument_of(task) if task else None
    for word, before in positional:
        preset = preset_allowed and (entry is None or is_preset(word, entry, options.workspace()))
        if preset and options.preset is None:
            options.preset = word
        elif not preset and entry is not None and (options.argument is None or entry.kind == "list"):
            for each in _items(word, entry):
                _store_argument(each, entry, options)
        else:
            options.problems.append(unknown_word_problem(word, before if task and _is_list(task, before) else ""))


def _items(word: str, entry: Declared) -> list[str]:
    """Return the items of a positional argument. For a list setting, JSON or text with commas is split; an existing path is one item."""
    here = entry.kind != "list" or any(os.path.exists(path) for path in (open_home(word), resolve_path(word)))
    items = [word] if here else value_typed(entry, word)
    return items if isinstance(items, list) and items and all(isinstance(each, str) for each in items) else [word]


def _is_list(task: str, setting: str) -> bool:
    """Whether `setting`, written as an option, is a list among the task's settings."""
    return any(f"--{entry.path}" == setting and entry.kind == "list" for entry in declared(tasks.named(task).job))


# ---- the positional argument of a task: a folder, a file, a prompt

# Values of a preset that a positional argument replaces: the typed folder is then the only one.
REPLACED: dict[str, dict[str, Any]] = {"dataset.folder": {"sources": [], "reg_data_dir": None, "dataset_class": None}}


def argument_of(task: str) -> Declared | None:
    """Return the setting that the task's positional argument sets (`Task.takes`); None for tasks without one."""
    model, path = tasks.named(task).job, tasks.named(task).argument
    return next((entry for entry in declared(model) if entry.path == path), None)


def is_preset(word: str, entry: Declared, workspace: Workspace) -> bool:
    """Whether a positional argument names a preset rather than a value of the setting `entry`.

    A preset takes precedence over a folder of the same name. A JSON file without a preset's header is a value if the setting is a
    JSON file; any other file but an image is one unless the setting is a file.
    """
    path = preset_path(word, workspace)
    if path.suffix != ".json" and ("folder" not in entry.name or path.suffix.lower() in IMAGE_EXTENSIONS):
        return False
    reads_json, exists = "json" in entry.name, os.path.isfile(path)
    if exists and reads_json:
        with suppress(ProblemsError):
            return not HEADER_MARKS.isdisjoint(read_json_object(path))
    is_missing_json = path.suffix == ".json" and open_home(word) == path and not reads_json
    return exists or is_missing_json


def _store_argument(word: str, entry: Declared, options: Options) -> None:
    """Store a positional argument as the value of setting `entry`, or as the next item of a list. A relative path is relative to the
    working directory if it exists there."""
    word = pasted_path(word) if entry.names else word
    before = options.argument_setting
    if before:
        options.settings.remove(before)
    options.argument = word
    repeated = [each for each in options.settings if each.partition("=")[0] == f"--{entry.path}"]
    # generate's --prompt, but not --models: a folder, also where a tool takes models
    is_task_option = entry.name not in COMMON
    repeated += [f"--{entry.name}"] if is_task_option and entry.name in options.values else []
    if repeated:
        what, fix = f"'{word}' and {repeated[0]} are both given", "leave one of them out"
        options.problems.append(Problem(what, "command line", fix, code="cli.given-twice"))
    if entry.names == "path" and not os.path.exists(open_home(word)) and not os.path.exists(resolve_path(word)):
        kind = "folder" if "folder" in entry.name else "file"
        names = PresetStore(options.workspace().presets, shipped=PROJECT / "presets").names()
        near = difflib.get_close_matches(word, names, n=3)
        fix = "check the spelling of the path"
        fix += f", or use the preset {' or '.join(near)}" if near else ""
        what = f"There is neither a {kind} nor a preset '{word}'"
        options.problems.append(Problem(what, "command line", fix, code="cli.no-such-argument"))
    elif entry.names and os.path.exists(open_home(word)) and _outside_project():
        word = os.path.abspath(open_home(word))
    if entry.kind == "list":
        word = json.dumps([*json.loads(before.partition("=")[2] or "[]"), word])
    options.argument_setting = f"--{entry.path}={word}"
    options.settings.append(options.argument_setting)


def unknown_word_problem(word: str, after: str = "") -> Problem:
    """Return the problem of an unexpected word. after: the setting before the word if that is a list, else ""."""
    fix = f"write several values of {after} with commas between them" if after else "see --help"
    return Problem(f"'{word}' is not a valid argument", "command line", fix, code="cli.unknown-word")


def job_from(task: str, options: Options, defaults: dict[str, Any] | None = None) -> Settings:
    """Return the job of a command line: `defaults`, overridden by the preset's values, overridden by the typed ones. Raises ProblemsError
    with all problems."""
    model = tasks.named(task).job
    problems = list(options.problems)
    values = defaults or {}
    if options.preset is not None:
        values = collected(problems, _preset_values, task, options) or {}
    if options.argument is not None:
        path = tasks.named(task).argument
        values = merge(values, {path.partition(".")[0]: REPLACED.get(path, {})})
    if "dataset-config" in options.values:
        values = merge(values, _dataset_config(options, problems))
    typed, wrong = read_flags(model, options.settings, values.get("method", {}).get("kind", ""), _elsewhere())
    problems += wrong
    job = collected(problems, build, model, merge(values, _from_working_directory(model, typed)), "command line")
    if job is None or problems:
        raise ProblemsError(problems)
    return job


def _preset_values(task: str, options: Options) -> dict[str, Any]:
    """Return the preset's values in the groups that the task has. Raises ProblemsError."""
    preset = read(preset_path(str(options.preset), options.workspace()))
    if not _can_use_preset(preset.task, task):
        what, fix = f"The preset is for '{preset.task}', not for '{task}'", f"use webui.py {preset.task}"
        raise ProblemsError.one(what, str(options.preset), fix, "cli.preset-of-another-task")
    options.advice += preset.notes
    options.preset_read = preset
    known = tasks.named(task).job.model_fields
    return {name: values for name, values in to_values(apply(preset)).items() if name in known}


def _from_working_directory(model: type[Settings], typed: dict[str, Any]) -> dict[str, Any]:
    """Return typed settings with absolute paths where a relative path is meant relative to the working directory: a file that exists there,
    or a file to write, which exists nowhere. Other paths are relative to the project folder, as in presets."""
    if not _outside_project():
        return typed
    for entry in declared(model):
        group, _, name = entry.path.partition(".")
        if name in typed.get(group, {}):
            typed[group][name] = _absolute_paths(entry, typed[group][name])
    return typed


def _absolute_paths(entry: Declared, value: Any) -> Any:
    """Apply `_from_working_directory` to the value of one setting, including lists and their items."""
    if isinstance(value, list):
        return [_absolute_paths(entry, each) for each in value]
    if isinstance(value, dict) and (item := item_of(entry)):
        known = {name: Declared(f"{entry.path}[].{name}", "", name, info) for name, info in item.model_fields.items()}
        return {name: _absolute_paths(known[name], each) if name in known else each for name, each in value.items()}
    if not isinstance(value, str):
        return value
    if entry.names == "word=path" and "=" in value and not os.path.exists(open_home(value)):
        word, _, path = value.partition("=")
        return f"{word}={_absolute(path, entry)}"
    if entry.name in ("prompt", "sample_prompts"):
        return CONTROL_IMAGE.sub(lambda image: image[0].replace(image[1], _absolute(image[1], entry)), value)
    return _absolute(value, entry) if entry.names in ("path", "path or name", "word=path", "state") else value


def _outside_project() -> bool:
    """Whether the working directory is another one than the project folder. False if it was deleted."""
    try:
        return Path.cwd() != PROJECT
    except FileNotFoundError:
        return False


def _absolute(text: str, entry: Declared) -> str:
    """Return a path as absolute if it is meant relative to the working directory (`_from_working_directory`), else unchanged."""
    text = pasted_path(text)
    path = open_home(text)
    is_new_file = entry.names == "path" and not os.path.exists(resolve_path(text))
    return os.path.abspath(path) if text and (os.path.exists(path) or is_new_file) else text


def _dataset_config(options: Options, problems: list[Problem]) -> dict[str, Any]:
    """Return the values of the file of --dataset-config, which replace the preset's folders.

    Its errors are added to `problems`, its other problems and notes to `options.advice`.
    """
    from core.imports.dataset_config import read_dataset_config

    config = read_dataset_config(options.values["dataset-config"])
    problems += errors(config.problems)
    options.advice += [problem for problem in config.problems if problem.level != "error"]
    options.advice += [
        Problem(note, options.values["dataset-config"], level="advice", code="import.note") for note in config.notes
    ]
    # sd-scripts trains on all that the file does not hold out
    defaults = {"validation": {"best_checkpoint": "training"}}
    return merge(defaults, config.values)


def _can_use_preset(preset_task: str, task: str) -> bool:
    """Whether a task can use a preset of task `preset_task`: they are the same, or both have dataset settings."""
    both_have_dataset = all("dataset" in tasks.named(name).job.model_fields for name in (preset_task, task))
    return preset_task == task or both_have_dataset


def preset_path(text: str, workspace: Workspace) -> Path:
    """Return the path of a preset's file. text: a path, or the name of a preset in the presets folder or of a shipped one."""
    path = open_home(text)
    if os.path.isfile(path) or path.suffix == ".json":  # a name may be too long for the system
        return path
    files = [folder / f"{text}.json" for folder in (workspace.presets, PROJECT / "presets")]
    return next((file for file in files if os.path.isfile(file)), files[0])


def saved_path(options: Options, source: Path) -> Path:
    """Return the path of --save. Raises ProblemsError if that is `source`, the file that is read, which would be lost."""
    text = str(options.values["save"])
    path = open_home(text)
    if path.exists() and source.exists() and path.samefile(source):
        raise ProblemsError.one(
            "--save names the file that is read", text, "choose another name", "cli.save-over-source"
        )
    return path


def write_result(path: str | Path, content: Any, title: str) -> None:
    """Write text, or another value as JSON, to a file. Raises ProblemsError if that fails. title: what the file is, for the message."""
    with write_errors(f"The {title} cannot be written", str(path)):
        if isinstance(content, str):
            atomic.write_text(path, content)
        else:
            atomic.write_json(path, content)


def options_help(known: dict[str, tuple[str, str]]) -> str:
    """Return help on options, a line for each. known: {option: (placeholder, help)}."""
    lines = []
    for name, (value, text) in known.items():
        lines.append(f"  --{name} {value}".rstrip().ljust(30) + f"  {text}")
    return "\n".join(lines)
