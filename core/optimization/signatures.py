"""Arguments of a constructor, read from its signature."""

import inspect
import types
import typing
from typing import Any

from core.settings.optimization.optimizers import Argument


def arguments_of(constructor: Any, skip: tuple[str, ...] = ("params", "lr")) -> list[Argument]:
    """Return the arguments of a class's constructor with type and default, except those in `skip` and those that a job cannot set, such as
    functions."""
    try:
        hints = typing.get_type_hints(constructor.__init__)
    except Exception:  # an annotation that cannot be evaluated: use the defaults
        hints = {}
    arguments = []
    for name, parameter in list(inspect.signature(constructor.__init__).parameters.items())[1:]:
        variable = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        if variable or name in skip or name in ("named_parameters", "model"):
            continue
        argument = _argument(name, parameter, hints.get(name))
        if argument is not None:
            arguments.append(argument)
    return arguments


def _argument(name: str, parameter: inspect.Parameter, hint: Any) -> Argument | None:
    """Return a parameter as an Argument; None if a job cannot set it, such as a function. hint: its evaluated annotation, or None"""
    required = parameter.default is inspect.Parameter.empty
    default = None if required else parameter.default
    members = _members(hint)
    optional = (default is None and not required) or type(None) in members
    choices = tuple(
        value for member in members if typing.get_origin(member) is typing.Literal for value in typing.get_args(member)
    )
    if callable(default) or any(typing.get_origin(member) is typing.Callable for member in members):
        return None
    kind = "choice" if choices and all(isinstance(choice, str) for choice in choices) else _kind(default, members)
    if default == float("inf"):
        default = None  # JSON has no infinity; omitting the argument means it
    elif kind == "numbers" and default is not None:
        default = list(default)
    elif kind == "any" and not isinstance(default, (int, float, str, type(None))):
        return None
    return Argument(name, kind, default, optional, required, choices if kind == "choice" else ())


def _members(hint: Any) -> tuple[Any, ...]:
    """Return the types of an annotation, unions flattened; () for None."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return tuple(inner for member in typing.get_args(hint) for inner in _members(member))
    return (hint,) if hint is not None else ()


def _kind(default: Any, members: tuple[Any, ...]) -> str:
    """Return the kind of an argument, "bool", "int", "number", "numbers", "text" or "any": by its default or, for None, its annotation.
    members: types of the annotation, unions flattened"""
    types = {typing.get_origin(member) or member for member in members}
    if isinstance(default, bool) or (default is None and bool in types):
        return "bool"
    if default is None and types & {tuple, list} and types & {float, int}:
        return "any"  # one number for all groups, or one each
    if isinstance(default, (tuple, list)) or (default is None and types & {tuple, list}):
        return "numbers"
    if isinstance(default, float) or float in types:
        return "number"
    if isinstance(default, int) or int in types:
        # `weight_decay: int = 0` is a library's oversight: 0.01 must be accepted
        return "int" if int in types or (not members and default not in (0, 1)) else "number"
    if isinstance(default, str) or str in types:
        return "text"
    return "any"
