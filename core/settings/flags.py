"""Parse `--group.name value` on the command line by the declarations of settings, collecting all problems; and write --help."""

import difflib
import json
import textwrap
from collections import deque
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from core.record.problems import MOST, Problem
from core.settings.base import Declared, Settings, declared, item_of, item_settings, settings_called
from core.settings.elsewhere import ELSEWHERE
from core.settings.presets.networks import network_problem
from core.settings.values import value_typed

HELP_WIDTH = 110
SHORT = {"generate.loras": "--lora FILE:STRENGTH"}  # options of commands that are quicker to write
NETWORK = ("network_module", "network_args")
# sd-scripts' switches that stand for a choice
SWITCHES = {
    "use_8bit_adam": ("optimizer.optimizer_type", "AdamW8bit"),
    "use_lion_optimizer": ("optimizer.optimizer_type", "Lion"),
}


def read_flags(
    model: type[Settings], argv: list[str], method: str = "", elsewhere: Mapping[str, str] = ELSEWHERE
) -> tuple[dict[str, Any], list[Problem]]:
    """Parse command-line arguments into ({group: {name: value}}, problems).

    Arguments are `--group.name value`, `--group.name=value` and, for booleans, `--group.name` and `--no-group.name`. `null` is None;
    lists and pairs are JSON, or separated by commas.

    model      the job model that declares the settings
    method     the training method unless `argv` sets one; its settings are suggested first for names without a group
    elsewhere  {option that is no setting: fix}
    """
    known = {entry.path: entry for entry in declared(model)}
    parts = [part for word in argv for part in word.split("=", 1)]
    method = dict(pairwise(parts)).get("--method.kind", method)
    values: dict[str, Any] = {}
    network_options: dict[str, list[str]] = {}  # sd-scripts' options that several settings stand for
    argv, problems = _with_switches_replaced(argv, known)
    remaining = deque(argv)
    while remaining:
        word = remaining.popleft()
        if not word.startswith("--"):
            fix = "write settings as --group.name value"
            problems.append(Problem(f"'{word}' is not an option", "command line", fix, code="flags.stray-word"))
            continue
        path, equals, text = word[2:].partition("=")
        negated = path.startswith("no-") and path[3:] in known
        entry = known.get(path.removeprefix("no-") if negated else path)
        following = remaining[0] if remaining and not remaining[0].startswith("--") else None
        if path in NETWORK and "network.kind" in known:
            network_options[path] = [text] if text else []
            while remaining and not remaining[0].startswith("--"):
                network_options[path].append(remaining.popleft())
        elif entry is None:
            problems.append(_unknown(path, known, method, elsewhere, nearest=len(problems) < MOST))
            if following is not None and not equals:
                remaining.popleft()
        elif negated:
            values.setdefault(entry.group, {})[entry.name] = False
        elif entry.kind == "bool" and not equals and (following or "").lower() not in ("true", "false"):
            values.setdefault(entry.group, {})[entry.name] = True
        elif following is None and not equals:
            fix = f"write --{path} VALUE"
            problems.append(Problem(f"--{path} has no value", "command line", fix, code="flags.no-value"))
        else:
            value = value_typed(entry, text if equals else remaining.popleft())
            if (problem := _item_problem(entry, value)) is not None:
                problems.append(problem)
            else:
                values.setdefault(entry.group, {})[entry.name] = value
    if network_options:
        module = "".join(network_options.get("network_module", [])) or None
        problems.append(network_problem(module, network_options.get("network_args", []), known))
    return values, problems


def _with_switches_replaced(argv: list[str], known: Mapping[str, Declared]) -> tuple[list[str], list[Problem]]:
    """Replace sd-scripts' switches, such as --use_8bit_adam, by settings with values; returns (arguments, problems)."""
    arguments: list[str] = []
    problems: list[Problem] = []
    for word in argv:
        path, value = SWITCHES.get(word.removeprefix("--").removesuffix("=true"), ("", ""))
        if path not in known or not word.startswith("--"):
            arguments.append(word)
        elif any(each.partition("=")[0] == f"--{path}" for each in (*argv, *arguments)):
            what, fix = f"{word} and another optimizer are both given", "leave one of them out"
            problems.append(Problem(what, "command line", fix, code="cli.given-twice"))
        else:
            arguments.append(f"--{path}={value}")
    return arguments, problems


def _item_problem(entry: Declared, value: Any) -> Problem | None:
    """Return the problem of plain values in a list setting whose items must be objects; None for a valid value."""
    item = item_of(entry)
    if item is None or not isinstance(value, list) or all(isinstance(each, dict) for each in value):
        return None
    first = next(name for name, info in item.model_fields.items() if info.is_required())
    plain = next((each for each in value if isinstance(each, str)), "...")
    short = f"{SHORT[entry.path]}, or " if entry.path in SHORT else ""
    fix = f"write {short}--{entry.path} '{json.dumps([{first: plain}], ensure_ascii=False)}'"
    what = f"--{entry.path} takes a list of objects, not {plain[:60]}"
    return Problem(what, "command line", fix, code="flags.no-objects")


def _unknown(
    path: str, known: dict[str, Declared], method: str, elsewhere: Mapping[str, str], nearest: bool
) -> Problem:
    """Return the problem of an unknown setting, with a suggestion as its fix.

    method     the training method whose settings are suggested first
    elsewhere  {option that is no setting: fix}
    nearest    also suggest by spelling, which takes a millisecond
    """
    name = path.rsplit(".", 1)[-1]
    suggestions = settings_called(name, known, method)
    if not suggestions and name in elsewhere:
        return Problem(f"There is no setting --{path}", "command line", elsewhere[name], code="settings.unknown-name")
    suggestions = suggestions or (difflib.get_close_matches(path[:200], known, n=1, cutoff=0.6) if nearest else [])
    fix = f"did you mean --{suggestions[0]}?" if suggestions else "see --help for all settings"
    return Problem(f"There is no setting --{path}", "command line", fix, code="settings.unknown-name")


def merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Merge two {group: {name: value}}; values in `above` replace those in `below`."""
    merged = dict(below)
    for group, fields in above.items():
        merged[group] = {**merged.get(group, {}), **fields} if isinstance(fields, dict) else fields
    return merged


def help_text(model: type[Settings], groups: Sequence[str] = ()) -> str:
    """Return the --help text of a job's settings: default, range and help of each, by group. `groups` limits and orders them."""
    lines: list[str] = []
    for group in groups or model.model_fields:
        lines += ["", f"{model.model_fields[group].title or group}:"]
        for entry in declared(model):
            if entry.group == group:
                lines += help_of(entry, f"--{entry.path}")
                lines += [line for item in item_settings(entry) for line in help_of(item, f"  {item.path}")]
    return "\n".join(lines).lstrip("\n")


def help_of(entry: Declared, name: str) -> list[str]:
    """Return the --help lines of a setting; `name` is the option as the user types it."""
    usual = (entry.hint or "none") if entry.default is None else json.dumps(entry.default, default=str)
    default = "required" if entry.info.is_required() else f"default: {usual}"
    facts = "; ".join(part for part in (default, entry.range_text, entry.unit) if part)
    lines = textwrap.wrap(f"{entry.title}. {entry.help}", HELP_WIDTH - 8)
    return [f"  {name}  [{facts}]", *(f"        {line}" for line in lines)]
