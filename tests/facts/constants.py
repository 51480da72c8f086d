"""Limits, weights and tables that modules name, and what their functions do where a caller says nothing."""

from __future__ import annotations

import ast
import inspect
import json
import pkgutil
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, fields, is_dataclass
from importlib import import_module
from itertools import islice
from pathlib import Path, PurePath
from types import ModuleType
from typing import Any

from pydantic import BaseModel

import core
from tests.facts.store import Facts, digest, plain, producer

LONG = 240
OF_THE_MACHINE = {
    *("core.record.processes", "core.record.priority", "core.record.machine", "core.machine_check.run"),
    *("core.setup.browser", "core.setup.facts"),
}


def modules_of_core() -> Iterator[ModuleType]:
    """The modules of core whose names stand for the same on every machine."""
    for each in pkgutil.walk_packages(core.__path__, "core."):
        if each.name not in OF_THE_MACHINE:
            yield import_module(each.name)


def assigned(module: ModuleType) -> Iterator[tuple[str, ast.expr]]:
    """(name, expression) of what a module names at its top."""
    for node in ast.parse(Path(inspect.getfile(module)).read_text("utf-8")).body:
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        for target in targets:
            for each in target.elts if isinstance(target, ast.Tuple) else [target]:
                if isinstance(each, ast.Name) and (value := getattr(node, "value", None)) is not None:
                    yield each.id, value


def is_data(value: Any, depth: int = 0) -> bool:
    """Whether a value is made of numbers, texts and classes alone, the same on every machine."""
    if depth > 6 or isinstance(value, PurePath):
        return False
    if value is None or isinstance(value, bool | int | float | str | bytes | type) or callable(value):
        return True
    if isinstance(value, Mapping):
        return all(is_data(each, depth + 1) for pair in value.items() for each in pair)
    if isinstance(value, tuple | list | set | frozenset):
        return all(is_data(each, depth + 1) for each in value)
    if is_dataclass(value):
        return all(is_data(getattr(value, each.name), depth + 1) for each in fields(value))
    return False


def short(data: Any) -> Any:
    """Plain data without sentences, whose wording may change."""
    made = _without_sentences(plain(data))
    return made if len(json.dumps(made)) <= LONG else [len(made), digest(made)]


def _without_sentences(data: Any) -> Any:
    if isinstance(data, dict):
        return {key: _without_sentences(each) for key, each in data.items()}
    if isinstance(data, list):
        return [_without_sentences(each) for each in data]
    return "..." if isinstance(data, str) and data.count(" ") > 1 else data


def constants_of(module: ModuleType) -> dict[str, Any]:
    """Numbers and tables; of a table only the rows of the module itself, since others may register more."""
    found = {}
    for name, expression in assigned(module):
        value = getattr(module, name)
        if isinstance(value, dict):
            value = dict(islice(value.items(), len(expression.keys))) if isinstance(expression, ast.Dict) else {}
        elif isinstance(value, list):
            value = value[: len(expression.elts)] if isinstance(expression, ast.List) else []
        elif isinstance(value, set) or (isinstance(value, str) and not isinstance(expression, ast.Constant)):
            continue
        numbers = (
            isinstance(value, int | float | tuple | frozenset)
            or is_dataclass(value)
            or (isinstance(value, dict | list) and value)
        )
        if numbers and not isinstance(value, type) and is_data(value):
            found[name] = short(value)
    return found


def defaults_of(module: ModuleType) -> dict[str, Any]:
    """Numbers and switches that a function or a class is given if a caller gives none."""
    found: dict[str, Any] = {}
    for name, value in vars(module).items():
        if getattr(value, "__module__", "") != module.__name__:
            continue
        inside = vars(value).items() if inspect.isclass(value) else [("", value)]
        for inner, each in inside:
            each = getattr(each, "__func__", getattr(each, "__wrapped__", each))
            if inspect.isfunction(each) and not (inner == "__init__" and is_dataclass(value)):
                found |= _numbers(f"{name}.{inner}".rstrip("."), inspect.signature(each).parameters.items())
        if inspect.isclass(value) and is_dataclass(value):
            found[name] = [
                "frozen" if value.__dataclass_params__.frozen else "",
                *(each.name for each in fields(value)),
            ]
            rows = {each.name: each.default for each in fields(value) if each.default is not MISSING}
            found |= {f"{name}.{key}": short(default) for key, default in rows.items() if _is_number(default)}
        elif inspect.isclass(value) and not issubclass(value, BaseModel):
            attributes = {
                key: each for key, each in vars(value).items() if not key.startswith("__") and _is_number(each)
            }
            found |= {f"{name}.{key}": each for key, each in attributes.items()}
    return found


def _numbers(name: str, parameters: Any) -> dict[str, Any]:
    return {f"{name} {key}": short(each.default) for key, each in parameters if _is_number(each.default)}


def _is_number(value: Any) -> bool:
    return isinstance(value, bool | int | float) or (
        isinstance(value, tuple) and bool(value) and all(isinstance(each, bool | int | float) for each in value)
    )


@producer
def constants() -> Facts:
    """What modules name."""
    for module in modules_of_core():
        if found := constants_of(module):
            yield module.__name__, found


@producer
def defaults() -> Facts:
    """What is left out of calls."""
    for module in modules_of_core():
        if found := defaults_of(module):
            yield module.__name__, found
