"""Subcommands and exit codes: 0 done, 1 failed, 2 bad input, 130 interrupted (resumable)."""

from __future__ import annotations

import os
import sys
from importlib import import_module

from core.cli.options import PAGE, SUBCOMMAND, options_help
from core.record.allowed import take_limits
from core.record.heap import one_heap
from core.record.problems import ProblemsError, errors
from core.settings.flags import help_text
from core.settings.job import JOBS

DONE, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130

ABOUT = {
    "train": "train a LoRA, a whole model or a new word",
    "prepare": "check a dataset and fill the caches that a training will use",
    "caption": "report on captions, and write missing ones",
    "generate": "draw images",
    "class_images": "make regularization images of a class with the base model",
    "tool": "inspect a file, export a LoRA for diffusers, download a model",
    "images": "resize, crop, convert or number images, crop faces, draw edges",
    "presets": "list the presets, or say what one of them sets and why",
    "check": "say what works on this machine, how well, and what to do about the rest (at most 3 minutes)",
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
    name = words[0] if words and words[0] in SUBCOMMAND else "page"
    rest = words if name == "page" else words[1:]
    if "--help" in rest or "-h" in rest:
        _print_help(page_help() if name == "page" else subcommand_help(name))
        return DONE
    try:
        return import_module(f"core.cli.{name}").run(rest)
    except ProblemsError as error:
        print_problems(error)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return INTERRUPTED


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
    names = "\n".join(f"  {name.ljust(16)}{text}" for name, text in ABOUT.items())
    return f"""Atelier: from a folder of images to a trained LoRA and images made with it.

python webui.py [options]                      the page, at localhost:7860
python webui.py COMMAND [PRESET] [options]     a job without the page; COMMAND --help says more

Options:
{options_help(PAGE)}

Commands:
{names}

Exit codes: 0 done, 1 failed, 2 bad input, 130 interrupted (a training can be continued).

Settings of a training, as --group.name VALUE (null is off):

{help_text(JOBS["train"])}"""


def subcommand_help(name: str) -> str:
    settings = f"\nSettings, as --group.name VALUE (null is off):\n\n{help_text(JOBS[name])}" if name in JOBS else ""
    preset = "[PRESET] " if name in JOBS or name == "presets" else ""
    return f"python webui.py {name} {preset}[options]\n{ABOUT[name]}\n\nOptions:\n{options_help(SUBCOMMAND[name])}\n{settings}"
