"""Subcommands and exit codes: 0 done, 1 failed, 2 bad input, 130 interrupted (resumable)."""

from __future__ import annotations

import os
import sys
from importlib import import_module

from core import tasks
from core.cli.former import FORMER, chosen, renewed
from core.cli.options import OWN, PAGE, commands, options_help
from core.record.allowed import take_limits
from core.record.heap import one_heap
from core.record.problems import ProblemsError, errors
from core.settings.flags import help_text

DONE, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130

OTHERS = {
    "presets": "list the presets, or say what one of them sets and why",
    "check": "report what works on this machine, how well, and how to fix the rest (at most 3 minutes)",
    "bench": "measure this machine",
}


def main(words: list[str]) -> int:
    """Run what the words ask for and return the exit code."""
    # Names of folders may be in any script; a console in another code page must not end the program.
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    one_heap()
    take_limits()
    first = words[0] if words else ""
    helps = "--help" in words or "-h" in words
    if first in FORMER and helps and not chosen(words):
        _print_help(former_help(first))
        return DONE
    try:
        name, *rest = renewed(words) if first in FORMER else words if first in commands() else ["page", *words]
        if rest and rest[0] in _tools(name):
            name, *rest = rest
        if helps:
            _print_help(page_help() if name == "page" else subcommand_help(name))
            return DONE
        if name in ("page", *OWN):
            return import_module(f"core.cli.{name}").run(rest)
        return import_module("core.cli.task").run(name, rest)
    except ProblemsError as error:
        print_problems(error)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return INTERRUPTED


def _tools(command: str) -> dict[str, str]:
    """What each tool of a command is about, by its name."""
    return {name: task.about for name, task in tasks.tasks().items() if task.under == command}


def _listed(about: dict[str, str]) -> str:
    width = max(map(len, about)) + 2
    return "\n".join(f"  {name.ljust(width)}{text}" for name, text in about.items())


def _print_help(text: str) -> None:
    """Its reader may leave early: `--help | head`. What Python would still write at its end then goes nowhere."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def print_problems(error: ProblemsError) -> None:
    wrong = errors(error.problems)
    print("1 problem:" if len(wrong) == 1 else f"{len(wrong)} problems:", file=sys.stderr)
    for problem in wrong:
        print(problem, file=sys.stderr)
    for problem in error.problems:
        if problem not in wrong:  # it stops nothing
            print(f"advice: {problem}", file=sys.stderr)


def page_help() -> str:
    about = {name: task.about for name, task in tasks.tasks().items() if name in commands()} | OTHERS
    return f"""Atelier: from a folder of images to a trained LoRA and images made with it.

python webui.py [options]                      the page, at localhost:7860
python webui.py COMMAND [PRESET] [options]     a job without the page; COMMAND --help says more

Options:
{options_help(PAGE)}

Commands:
{_listed(about)}

Exit codes: 0 done, 1 failed, 2 bad input, 130 interrupted (a training can be resumed).

Settings of a training, as --group.name VALUE (null is off):

{help_text(tasks.named("train").job)}"""


def subcommand_help(name: str) -> str:
    options = f"Options:\n{options_help(commands()[name])}\n"
    if name not in tasks.tasks():
        preset = "[PRESET] " if name == "presets" else ""
        return f"python webui.py {name} {preset}[options]\n{OTHERS[name]}\n\n{options}"
    task = tasks.named(name)
    settings = f"Settings, as --group.name VALUE (null is off):\n\n{help_text(task.job)}"
    tools = f"Tools, as webui.py {name} TOOL or webui.py TOOL:\n{_listed(_tools(name))}\n\n" if _tools(name) else ""
    return f"python webui.py {name} [PRESET] [options]\n{task.about}\n\n{tools}{options}\n{settings}"


def former_help(command: str) -> str:
    """The tools that a former command offers, each with its settings."""
    tools = "\n\n".join(subcommand_help(name) for name in FORMER[command][2])
    return f"python webui.py {command} TOOL [PRESET] [options]\nthe same as webui.py TOOL, for these tools\n\n{tools}"
