"""Subcommands and exit codes: 0 done, 1 failed, 2 bad input, 130 interrupted (resumable)."""

import os
import sys
from importlib import import_module

from core import __version__, extensions, tasks
from core.cli.former import FORMER, to_current_command, tool_named_in, with_current_tool
from core.cli.options import COMMAND_OPTIONS, PAGE, argument_of, commands, options_help
from core.record.allowed import take_limits
from core.record.heap import single_arena
from core.record.problems import ProblemsError, errors
from core.settings.flags import help_of, help_text
from core.settings.job import TrainJob

DONE, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130

OTHERS = {
    "runs": "list the queue and the runs, with the best checkpoint of each; reads only, also while a page is open",
    "presets": "list the presets, or describe what one of them sets and why",
    "import": "open the training settings of another program, and report what became of each",
    "export": "write a preset for sd-scripts or kohya_ss, and list what that program cannot express",
    "check": "report what works on this machine, how well, and how to fix the rest (at most 3 minutes)",
    "bench": "benchmark this machine",
}

MODULES = {"import": "imports"}  # command -> its module, where that has another name


def main(argv: list[str]) -> int:
    """Run a command line, without the program's name, and return the exit code."""
    # Names of folders may be in any script; a console in another code page must not end the program. Files and pipes get UTF-8,
    # as from launch.bat: in Windows' code page, JSON, TOML and paths would lose letters.
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding=None if stream.isatty() else "utf-8", errors="replace")
    single_arena()
    take_limits()
    if argv == ["--version"]:
        print(f"Atelier {__version__}")
        return DONE
    argv = with_current_tool(argv)
    command = argv[0] if argv else ""
    asks_help = "--help" in argv or "-h" in argv
    if command in FORMER and asks_help and not tool_named_in(argv):
        print_long(former_help(command))
        return DONE
    try:
        extensions.import_allowed(argv)
        if command in FORMER:
            name, *arguments = with_current_tool(to_current_command(argv))
        else:
            name, *arguments = argv if command in commands() else ["page", *argv]
        if arguments and arguments[0] in _tools(name):
            name, *arguments = arguments
        if asks_help:
            print_long(page_help() if name == "page" else subcommand_help(name, every="all" in arguments))
            return DONE
        if name in ("page", *COMMAND_OPTIONS):
            return import_module(f"core.cli.{MODULES.get(name, name)}").run(arguments)
        return import_module("core.cli.task").run(name, arguments)
    except ProblemsError as error:
        print_problems(error)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return INTERRUPTED


def _tools(command: str) -> dict[str, str]:
    """Return {name: one-line description} of the tools of a command."""
    return {name: task.about for name, task in tasks.tasks().items() if task.under == command}


def _aligned(about: dict[str, str]) -> str:
    """Return {name: description} as lines in two columns."""
    width = max(map(len, about)) + 2
    return "\n".join(f"  {name.ljust(width)}{text}" for name, text in about.items())


def print_long(text: str) -> None:
    """Print a long text; a pipe that is closed early (`--help | head`) is not an error."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def print_problems(error: ProblemsError) -> None:
    """Print the problems of `error` to stderr, errors before advice."""
    wrong = errors(error.problems)
    print("1 problem:" if len(wrong) == 1 else f"{len(wrong)} problems:", file=sys.stderr)
    for problem in wrong:
        print(problem, file=sys.stderr)
    for problem in error.problems:
        if problem not in wrong:
            print(f"advice: {problem}", file=sys.stderr)


def page_help() -> str:
    """Return the --help text of the page and the list of commands."""
    about = {name: task.about for name, task in tasks.tasks().items() if name in commands()} | OTHERS
    return f"""Atelier: train LoRAs and other Stable Diffusion models on your images, and generate images.

python webui.py [options]                      the page, at localhost:7860
python webui.py COMMAND [PRESET] [options]     a job without the page; COMMAND --help lists its settings,
                                               COMMAND --help all those of its dataset, model and so on too
python webui.py --version                      the version of Atelier

Options:
{options_help(PAGE)}

Commands:
{_aligned(about)}

Exit codes: 0 done, 1 failed, 2 bad input, 130 interrupted (a training can be resumed)."""


def subcommand_help(name: str, every: bool = False) -> str:
    """Return the --help text of a command. every: with the settings that other commands have too, such as the dataset's."""
    options = f"Options:\n{options_help(commands()[name])}\n"
    if name not in tasks.tasks():
        preset = {"presets": "[PRESET] ", "import": "FILE|- ", "export": "PRESET "}.get(name, "")
        return f"python webui.py {name} {preset}[options]\n{OTHERS[name]}\n\n{options}"
    task = tasks.named(name)
    groups = list(task.job.model_fields) if every else task_groups(task)
    settings = f"Settings, as --group.name VALUE (null is off):\n\n{help_text(task.job, groups)}"
    others = [task.job.model_fields[group].title for group in task.job.model_fields if group not in groups]
    more_settings = f"\nSettings of {', '.join(filter(None, others))}: {name} --help all" if others else ""
    entry = argument_of(name)
    word = entry.name.upper() if entry else ""
    argument_help = "\n".join(help_of(entry, f"{word}, or --{entry.path} VALUE")) + "\n\n" if entry else ""
    tools = f"Tools, as webui.py {name} TOOL or webui.py TOOL:\n{_aligned(_tools(name))}\n\n" if _tools(name) else ""
    usage = f"python webui.py {name} {f'[{word}] ' if word else ''}[PRESET] [options]"
    return f"{usage}\n{task.about}\n\n{argument_help}{tools}{settings}\n\n{options}{more_settings}"


def task_groups(task: tasks.Task) -> list[str]:
    """Return the names of a task's groups of settings that a training does not have, the one named like the task first; all groups if there
    are none."""
    groups = [name for name in task.job.model_fields if name not in TrainJob.model_fields]
    return sorted(groups, key=lambda name: name != task.name) or list(task.job.model_fields)


def former_help(command: str) -> str:
    """Return the --help text of the former command `tool` or `images`: the help of each of its tools."""
    tools = "\n\n".join(subcommand_help(name) for name in FORMER[command][2] if name in tasks.tasks())
    return f"python webui.py {command} TOOL [PRESET] [options]\nthe same as webui.py TOOL, for these tools\n\n{tools}"
