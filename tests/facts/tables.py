"""Tables, limits and defaults: what the modules of core declare by name."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import BaseModel

from core.record.workspace import PROJECT
from tests.facts.samples import figures
from tests.facts.store import Facts, digest, plain, producer

KEPT = 160  # letters of a value that is recorded as it is
OF_THE_MACHINE = ("LOADED", "PROJECT", "WORKER", "NO_LOCKS", "PLACES", "ROOT", "_HERE")  # what is installed, and where


def modules() -> Iterator[ModuleType]:
    for path in sorted((PROJECT / "core").rglob("*.py")):
        yield import_module(".".join(path.relative_to(PROJECT).with_suffix("").parts).removesuffix(".__init__"))


def is_table(value: Any) -> bool:
    """Whether a value is data: numbers, texts, patterns and what is made of them."""
    return isinstance(value, (str, int, float, bytes, tuple, list, set, Mapping, frozenset, re.Pattern, Enum)) or (
        is_dataclass(value) and not isinstance(value, type)
    )


def shown(value: Any) -> Any:
    """The value, or the digits that tell it apart with its length."""
    value = plain(_in_short(value))
    return value if len(str(value)) <= KEPT else [len(value), digest(value)]


def _in_short(value: Any) -> Any:
    """Patterns with their flags; of sentences only the numbers and names, since wording may change."""
    if isinstance(value, str) and value.count(" ") >= 4:
        return figures(value)
    if isinstance(value, re.Pattern):
        return [str(value.pattern), value.flags]
    if isinstance(value, Mapping):
        return {key: _in_short(each) for key, each in value.items()}
    return [_in_short(each) for each in value] if isinstance(value, (tuple, list)) else value


def constants(module: ModuleType) -> list[str]:
    """The names in capitals that a module sets to more than an empty registry."""
    found: list[str] = []
    for node in ast.parse(Path(module.__file__ or "").read_text("utf-8")).body:
        value = getattr(node, "value", None)
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        names = [each.id for target in targets for each in ast.walk(target) if isinstance(each, ast.Name)]
        empty = (
            isinstance(value, (ast.Dict, ast.List, ast.Call))
            and not [*ast.iter_child_nodes(value)][isinstance(value, ast.Call) :]
        )
        found += [name for name in names if name.lstrip("_").isupper() and not empty and name not in OF_THE_MACHINE]
    return found


def own_functions(module: ModuleType) -> Iterator[tuple[str, Any]]:
    for name, value in vars(module).items():
        if getattr(value, "__module__", "") != module.__name__:
            continue
        for inner, each in vars(value).items() if inspect.isclass(value) else [("", value)]:
            if getattr(each, "hooked", False) and inspect.unwrap(each).__qualname__ != f"{name}.{inner}":
                continue  # torch wraps the inherited `step` of an optimizer's class when the first one is made
            each = getattr(each, "__func__", getattr(each, "__wrapped__", each))
            if inspect.isfunction(each) and each.__module__ == module.__name__:
                yield f"{name}.{inner}".rstrip("."), each


@producer
def declared() -> Facts:
    """The constants of each module."""
    for module in modules():
        values = {name: vars(module)[name] for name in constants(module) if name in vars(module)}
        tables = {name: shown(value) for name, value in values.items() if is_table(value)}
        tables = {name: value for name, value in tables.items() if str(PROJECT) not in str(value)}
        if tables:
            yield module.__name__.removeprefix("core."), tables


@producer
def defaults() -> Facts:
    """The defaults of each module's functions and data classes."""
    for module in modules():
        found = {}
        for name, function in own_functions(module):
            try:
                parameters = inspect.signature(function).parameters.values()
            except (TypeError, ValueError):
                continue
            own = {
                each.name: shown(each.default)
                for each in parameters
                if each.default is not each.empty and (each.default is None or is_table(each.default))
            }
            own.pop("worker", None)  # how this Python is started
            if own and str(PROJECT) not in str(own):
                found[name] = own
        if found:
            yield module.__name__.removeprefix("core."), found


@producer
def classes() -> Facts:
    """The fields of each module's data classes, whether they are frozen, and numbers that its classes have."""
    for module in modules():
        found: dict[str, Any] = {}
        for name, value in vars(module).items():
            if not inspect.isclass(value) or value.__module__ != module.__name__ or issubclass(value, BaseModel):
                continue
            numbers = {key: each for key, each in vars(value).items() if not key.startswith("__") and is_number(each)}
            if is_dataclass(value):
                found[name] = [value.__dataclass_params__.frozen, [each.name for each in fields(value)], numbers]
            elif numbers:
                found[name] = numbers
        if found:
            yield module.__name__.removeprefix("core."), found


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) or (isinstance(value, tuple) and bool(value) and all(map(is_number, value)))
