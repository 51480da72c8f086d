"""Translates command lines of earlier versions: commands `tool` and `images`, which took the tool's name as a setting (`images
--images.action crop`), and tools that were replaced by others."""

from itertools import pairwise

from core import tasks
from core.cli.options import JOB, preset_path, split_options
from core.record.problems import ProblemsError
from core.settings.presets.files import read
from core.settings.presets.migrations import FORMER_TOOLS as FORMER
from core.settings.presets.migrations import REPLACED_TOOLS, tool_reads


def tool_named_in(argv: list[str]) -> str:
    """Return the tool that a command line of `tool` or `images` names; "" for none. argv: begins with the command."""
    command, arguments = argv[0], argv[1:]
    chooser = FORMER[command][0]
    if arguments and arguments[0] in tasks.tasks():
        return arguments[0]
    flag = f"--{command}.{chooser}"
    values = [word.partition("=")[2] for word in arguments if word.startswith(f"{flag}=")]
    values += [after for word, after in pairwise(arguments) if word == flag]
    return values[-1] if values else ""


def with_current_tool(argv: list[str]) -> list[str]:
    """Return the command line with a replaced tool and its settings under their current names; others are unchanged."""
    if not argv or argv[0] not in REPLACED_TOOLS:
        return argv
    name, settings = REPLACED_TOOLS[argv[0]]
    arguments = [word.replace(f"--{argv[0]}.", f"--{name}.", 1) for word in argv[1:]]
    return [name, *(part for key, value in settings.items() for part in (f"--{name}.{key}", str(value))), *arguments]


def to_current_command(argv: list[str]) -> list[str]:
    """Return a command line of `tool` or `images` in the current form, without settings of other tools, which had no effect. Raises
    ProblemsError for an unknown tool."""
    command, arguments = argv[0], argv[1:]
    chooser, usual, tools = FORMER[command]
    if arguments and arguments[0] in tasks.tasks():
        arguments = arguments[1:]
    name = tool_named_in(argv) or _tool_of_preset(arguments, tools) or usual
    if name not in tools and name not in tasks.tasks():
        fix = f"use one of {', '.join(tools)}"
        raise ProblemsError.one(f"There is no tool '{name}'", f"{command}.{chooser}", fix, "cli.unknown-tool")
    current, skipping = [name], False  # skipping: the next word is the value of a setting that is left out
    for word in arguments:
        if skipping and not word.startswith("--"):
            skipping = False
            continue
        setting = word.removeprefix("--").removeprefix("no-").partition("=")[0]
        group, _, key = setting.partition(".")
        of_command = word.startswith("--") and group == command
        is_dropped = of_command and not tool_reads(command, name, key)
        skipping = is_dropped and "=" not in word
        if not is_dropped:
            current.append(word.replace(f"{command}.", f"{name}.", 1) if of_command else word)
    return current


def _tool_of_preset(argv: list[str], tools: dict[str, set[str]]) -> str:
    """Return the tool of the preset in a command line; "" if it has no preset of one of `tools`, or an unreadable one."""
    options = split_options(argv, JOB)
    if options.preset is None:
        return ""
    try:
        task = read(preset_path(options.preset, options.workspace())).task
    except ProblemsError:
        return ""
    return task if task in tools else ""
