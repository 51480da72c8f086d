"""Catalog of the optimizers that a job can use, with their arguments, read from optimizers.json without torch.

The file is written by `python -m workshop.optimizer_catalog` from the installed packages. A name that is not in it is
imported only if the machine's owner allowed its module (core/record/allowed.py): a preset cannot run code by naming it.
"""

import ast
import difflib
import json
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any

from pydantic import BeforeValidator, JsonValue

from core.record.allowed import allowed_modules
from core.record.problems import Problem

FILE = Path(__file__).with_name("optimizers.json")
OWN = "Atelier"  # in place of a package, of optimizers that are written here

# Names (any case), most of them sd-scripts': the class, and the arguments that its name stands for.
SHORT: dict[str, tuple[str, dict[str, Any]]] = {
    "AdamW": ("torch.optim.AdamW", {}),
    "AdamW8bit": ("bitsandbytes.optim.AdamW8bit", {}),
    "PagedAdamW": ("bitsandbytes.optim.PagedAdamW", {}),
    "PagedAdamW8bit": ("bitsandbytes.optim.PagedAdamW8bit", {}),
    "PagedAdamW32bit": ("bitsandbytes.optim.PagedAdamW32bit", {}),
    "Lion": ("lion_pytorch.Lion", {}),
    "Lion8bit": ("bitsandbytes.optim.Lion8bit", {}),
    "PagedLion8bit": ("bitsandbytes.optim.PagedLion8bit", {}),
    "Muon": ("pytorch_optimizer.Muon", {}),  # torch's own takes matrices only
    "CAME": ("pytorch_optimizer.CAME", {}),
    "SOAP": ("pytorch_optimizer.SOAP", {}),
    "Automagic": ("core.optimization.automagic.Automagic", {}),
    "Automagic3": ("core.optimization.automagic.Automagic3", {}),
    "SGDNesterov": ("torch.optim.SGD", {"nesterov": True, "momentum": 0.9}),
    "SGDNesterov8bit": ("bitsandbytes.optim.SGD8bit", {"nesterov": True, "momentum": 0.9}),
    "DAdaptation": ("dadaptation.experimental.DAdaptAdamPreprint", {}),
    "DAdaptAdamPreprint": ("dadaptation.experimental.DAdaptAdamPreprint", {}),
    "DAdaptAdaGrad": ("dadaptation.DAdaptAdaGrad", {}),
    "DAdaptAdam": ("dadaptation.DAdaptAdam", {}),
    "DAdaptAdan": ("dadaptation.DAdaptAdan", {}),
    "DAdaptAdanIP": ("dadaptation.experimental.DAdaptAdanIP", {}),
    "DAdaptLion": ("dadaptation.DAdaptLion", {}),
    "DAdaptSGD": ("dadaptation.DAdaptSGD", {}),
    "Prodigy": ("prodigyopt.Prodigy", {}),
    "AdaFactor": ("transformers.optimization.Adafactor", {}),
    "AdamWScheduleFree": ("schedulefree.AdamWScheduleFree", {}),
    "RAdamScheduleFree": ("schedulefree.RAdamScheduleFree", {}),
    "SGDScheduleFree": ("schedulefree.SGDScheduleFree", {}),
}
# Those that most people choose among, listed first.
USUAL = (
    "AdamW",
    "AdamW8bit",
    "PagedAdamW8bit",
    "AdaFactor",
    "Lion",
    "Lion8bit",
    "Prodigy",
    "prodigyplus.prodigy_plus_schedulefree.ProdigyPlusScheduleFree",
    "DAdaptAdam",
    "AdamWScheduleFree",
    "CAME",
    "Automagic",
)
COMMON = ("betas", "eps", "weight_decay")  # arguments that are settings of their own
BY_WEIGHT = ("torch", "transformers", "bitsandbytes", "lion-pytorch")  # packages whose state is kept per weight
ADAFACTOR = "transformers.optimization.Adafactor"
AUTOMAGIC = ("core.optimization.automagic.Automagic", "core.optimization.automagic.Automagic3")


@dataclass(frozen=True)
class Argument:
    """An argument of an optimizer or scheduler.

    kind      "bool", "int", "number", "numbers", "text", "choice" or "any"
    optional  whether None is accepted
    required  whether there is no default
    """

    name: str
    kind: str = "any"
    default: Any = None
    optional: bool = False
    required: bool = False
    choices: tuple[Any, ...] = ()

    @property
    def accepted(self) -> str:
        """Accepted values as text: "a number", "numbers, such as (0.9, 0.999)"."""
        values = {
            "bool": "true or false",
            "int": "a whole number",
            "number": "a number",
            "numbers": f"numbers, such as {_plain(self.default)}" if self.default else "numbers, such as 500,1000",
            "text": "text",
            "choice": "one of " + ", ".join(str(choice) for choice in self.choices),
            "any": "a value",
        }[self.kind]
        return values + (", or null" if self.optional else "")

    def accepts(self, value: Any) -> bool:
        """Return whether `value` has the argument's type; numbers must be finite."""
        if value is None:
            return self.optional or self.kind == "any"
        return {
            "bool": isinstance(value, bool),
            "int": isinstance(value, int) and not isinstance(value, bool),
            "number": _is_number(value),
            "numbers": isinstance(value, (list, tuple))
            and all(item is None or _is_number(item) for item in value)
            and (not self.default or not isinstance(self.default, list) or len(value) == len(self.default)),
            "text": isinstance(value, str),
            "choice": value in self.choices,
            "any": not isinstance(value, float) or _is_number(value),
        }[self.kind]


def _is_number(value: Any) -> bool:
    """Return whether `value` is a finite number and not a boolean."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


@dataclass(frozen=True)
class Entry:
    """An optimizer in the catalog.

    name        in jobs: sd-scripts' name, the class name for torch's, or a dotted path
    path        package.module.Class to import
    definition  path of the class definition, as sd-scripts records it
    aliases     other paths of the same class
    reason      why the optimizer cannot be used here, "" if it can
    only_on     supported devices ("cuda"), () for all
    implied     arguments that follow from the name, or without which the optimizer does not work here
    traits      "adapts" (finds its learning rate), "one_rate" (needs one rate for all parts), "averages" (averages weights),
                "draws" (uses random numbers), "eight_bit" (8-bit state)
    """

    name: str
    path: str
    package: str
    arguments: Mapping[str, Argument] = field(default_factory=dict)
    reason: str = ""
    traits: frozenset[str] = frozenset()
    only_on: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    implied: Mapping[str, Any] = field(default_factory=dict)
    definition: str = ""

    @property
    def offered(self) -> bool:
        """Whether jobs can use the optimizer."""
        return not self.reason

    @property
    def by_weight(self) -> bool:
        """Whether all optimizer state is kept per weight, so that weights can be updated in groups."""
        return self.package in BY_WEIGHT or self.path == AUTOMAGIC[0]

    def unusable(self, device: str | None) -> str:
        """Return the reason why the optimizer cannot be used on this machine; "" if it can.
        device: "cpu", "cuda:0", "mps"; None if not known yet"""
        if self.reason:
            return self.reason
        if find_spec(self.path.partition(".")[0]) is None:
            return f"it needs the package {self.package}, which is not installed"
        if device is not None and self.only_on and device.partition(":")[0] not in self.only_on:
            return f"it runs only on {' or '.join(self.only_on)}"
        return ""


@cache
def data() -> dict[str, Any]:
    """Return the content of optimizers.json: "packages" {name: version}, "optimizers" and "schedules", lists of classes with arguments."""
    content: dict[str, Any] = json.loads(FILE.read_text("utf-8"))
    return content


@cache
def catalog() -> dict[str, Entry]:
    """Return {name: entry} of all optimizers: sd-scripts' names first, others sorted by name. Includes those not offered."""
    by_path = {item["path"]: entry_from(item) for item in data()["optimizers"]}
    entries: dict[str, Entry] = {}
    for name, (path, implied) in SHORT.items():
        base = by_path[path]
        entries[name] = Entry(**{**vars(base), "name": name, "implied": {**base.implied, **implied}})
    plain = {path for path, implied in SHORT.values() if not implied}
    others = sorted(
        (entry for entry in by_path.values() if entry.path not in plain), key=lambda entry: entry.name.lower()
    )
    used_names = {name.lower() for name in entries}
    for entry in others:  # torch's Adafactor is not sd-scripts' AdaFactor, which any case of the name means
        if entry.name.lower() in used_names:
            entry = Entry(**{**vars(entry), "name": entry.path})
        used_names.add(entry.name.lower())
        entries[entry.name] = entry
    return entries


def arguments_in(item: Mapping[str, Any]) -> dict[str, Argument]:
    """Return {name: argument} of an optimizer or scheduler, an item of optimizers.json."""
    return {each["name"]: Argument(**{**each, "choices": tuple(each.get("choices", ()))}) for each in item["arguments"]}


def entry_from(item: Mapping[str, Any]) -> Entry:
    """Return the catalog entry for an optimizer, an item of optimizers.json."""
    path = item["path"]
    bare = path.removeprefix("torch.optim.")
    return Entry(
        name=bare if "." not in bare else path,
        path=path,
        package=item["package"],
        arguments=arguments_in(item),
        reason=item.get("reason", ""),
        traits=frozenset(item.get("traits", ())),
        only_on=tuple(item.get("only_on", ())),
        aliases=tuple(item.get("aliases", ())),
        implied=item.get("implied", {}),
        definition=item.get("definition", ""),
    )


@cache
def _lookup() -> dict[str, Entry]:
    """Return {lower-case text: entry} for names, paths and aliases. A path stands for the class with its own defaults, not for a name that
    implies arguments."""
    table = {entry.name.lower(): entry for entry in catalog().values()}
    for entry in catalog().values():
        for path in (entry.path, *entry.aliases) if not SHORT.get(entry.name, ("", {}))[1] else ():
            table.setdefault(path.lower(), entry)
    return table


def find(name: str) -> Entry | None:
    """Return the catalog entry for `optimizer_type`, a name or path in any case; None if unknown. "" is AdamW."""
    return _lookup().get(name.strip().lower() or "adamw")


def nearest(name: str) -> str:
    """Return the offered optimizer with the most similar class name; "" if none is similar."""
    last = name.rsplit(".", 1)[-1].lower()
    offered = {each.name: each.name.rsplit(".", 1)[-1].lower() for each in catalog().values() if each.offered}
    same = [full for full, bare in offered.items() if bare == last]
    if same:
        return same[0]
    near = difflib.get_close_matches(last, list(offered.values()), n=1, cutoff=0.6)
    return next((full for full, bare in offered.items() if near and bare == near[0]), "")


def type_problem(name: str) -> Problem | None:
    """Return the problem of an optimizer that is unknown, not offered or not allowed; None for a valid one."""
    entry, where = find(name), "optimizer.optimizer_type"
    if entry is not None:
        if entry.offered:
            return None
        what = f"{entry.name} cannot be used here: {entry.reason}"
        return Problem(what, where, "choose another, such as AdamW", code="optimizer.not-offered")
    return module_problem(name, "optimizer", where, nearest(name))


def module_problem(name: str, thing: str, where: str, near: str) -> Problem | None:
    """Return the problem of a name that is not in the catalog; None if the machine's owner allowed its module.

    thing  what the name stands for in messages: "optimizer", "scheduler"
    where  the setting
    near   a similar name to suggest, or ""
    """
    top = name.strip().partition(".")[0]
    if "." in name.strip() and top in allowed_modules():
        return None
    suggestion = f"did you mean '{near}'?" if near else "choose one from the list"
    if "." not in name:
        return Problem(f"There is no {thing} '{name}'", where, suggestion, code=f"{thing}.unknown")
    allow = f"to run code of '{top}', start with --allow-module {top} or write {top} into allowed_modules.txt"
    fix = f"{suggestion} Or, {allow}" if near else allow
    return Problem(f"'{name}' is not in the list of {thing}s", where, fix, code=f"{thing}.not-listed")


def adapts(name: str) -> bool:
    """Return whether the optimizer finds the learning rate, so that the set rate is a factor near 1 (D-Adaptation, Prodigy)."""
    entry = find(name)
    return entry is not None and "adapts" in entry.traits


def averages(name: str) -> bool:
    """Return whether the optimizer is schedule-free: it averages weights instead of using a learning rate scheduler."""
    entry = find(name)
    return entry is not None and "averages" in entry.traits and "schedule" in entry.path.lower()


# -- arguments


def parse_arguments(items: Iterable[str]) -> dict[str, Any]:
    """Parse sd-scripts' arguments, strings name=value, into {name: value}: 0.01, True, None, 0.9,0.999 (a list), 'text' or text.

    Raises ValueError, with a message for the user, for an item without a name or "=".
    """
    values: dict[str, Any] = {}
    for item in items:
        name, sign, text = item.partition("=")
        if not sign or not name.strip():
            raise ValueError(f"'{item}' is not in the form name=value")
        values[name.strip()] = literal(text.strip())
    return values


def literal(text: str) -> Any:
    """Parse a Python literal, or true, false and null, into JSON types; other text is returned unchanged."""
    constants = {"true": True, "false": False, "null": None, "none": None}
    if text.lower() in constants:
        return constants[text.lower()]
    try:
        return _json_value(ast.literal_eval(text))
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text


def arguments_from(value: Any) -> Any:
    """Return {name: value} for sd-scripts' list of "name=value" strings; other values unchanged. Raises ValueError."""
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return parse_arguments(value)
    return value


Arguments = Annotated[dict[str, JsonValue], BeforeValidator(arguments_from)]


def _json_value(value: Any) -> Any:
    """Convert a parsed Python literal to JSON types: tuples become lists, unknown types text."""
    if isinstance(value, (list, tuple)):
        return [_json_value(item) for item in value]
    return value if isinstance(value, (bool, int, float, str, dict, type(None))) else str(value)


def _plain(value: Any) -> str:
    """Return a value as short text for messages: tuples in parentheses, floats without trailing zeros."""
    if isinstance(value, (list, tuple)):
        return "(" + ", ".join(_plain(item) for item in value) + ")"
    return f"{value:g}" if isinstance(value, float) else str(value)


def argument_problems(
    arguments: Mapping[str, Any],
    known: Mapping[str, Argument],
    owner: str,
    where: str,
    setting_of: Mapping[str, str] = MappingProxyType({}),
) -> list[Problem]:
    """Return the problems of optimizer or scheduler arguments: unknown names, wrong types, missing required ones.

    arguments   {name: value} to check
    known       {name: argument} that exist
    owner       name of the optimizer or scheduler, for messages
    where       path of the setting that contains the arguments
    setting_of  {name: path} of arguments that have a setting of their own
    """
    problems = []
    for name, value in arguments.items():
        argument = known.get(name)
        if argument is None:
            similar = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            known_names = ", ".join(known) or "none"
            fix = f"did you mean '{similar[0]}'? It takes: {known_names}" if similar else f"it takes: {known_names}"
            what = f"{owner} has no argument '{name}'"
            problems.append(Problem(what, setting_of.get(name, where), fix, code="arguments.unknown"))
        elif not argument.accepts(value):
            what = f"The argument {name} of {owner} is {json.dumps(value, default=str)[:60]}"
            location = setting_of.get(name, f"{where}, {name}")
            problems.append(Problem(what, location, f"use {argument.accepted}", code="arguments.bad-value"))
    for name in (name for name, argument in known.items() if argument.required and name not in arguments):
        what = f"{owner} needs the argument '{name}'"
        problems.append(Problem(what, where, f"add it: {known[name].accepted}", code="arguments.missing"))
    return problems
