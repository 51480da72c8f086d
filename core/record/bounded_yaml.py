"""Reads YAML from user files within limits (as bounded_json.py does for JSON): plain values only, aliases and tags are refused."""

import re
from typing import TYPE_CHECKING, Any

import yaml
from yaml.constructor import ConstructorError

from core.record.bounded_json import MAX_DEPTH, MAX_DIGITS, reason_of
from core.record.problems import ProblemsError

MAX_VALUES = 20_000
LONG_NUMBER = re.compile(rf"[-+]?[0-9][0-9a-fx_:]{{{MAX_DIGITS},}}", re.IGNORECASE)
LEFT_OUT = {f"tag:yaml.org,2002:{kind}" for kind in ("timestamp", "merge", "value")}  # stay texts

if TYPE_CHECKING:
    from yaml import SafeLoader as Base
else:
    Base = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast, where PyYAML has it


class _Loader(Base):
    """Loads plain values with text keys. repeated: duplicate keys as "lr (line 12)"; the last value of a key counts."""

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in each if tag not in LEFT_OUT]
        for first, each in Base.yaml_implicit_resolvers.items()
    }

    def __init__(self, text: str):
        super().__init__(text)
        self.repeated: list[str] = []

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[str, Any]:
        """Return a mapping as dict and note duplicate keys. Raises ConstructorError for a key that is a list or mapping."""
        values: dict[str, Any] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise ConstructorError(None, None, "a key is not a text", key.start_mark)
            if key.value in values:
                self.repeated.append(f"{key.value} (line {key.start_mark.line + 1})")
            values[key.value] = self.construct_object(value, deep=True)
        return values


def parse_yaml(text: str, where: str, fix: str) -> tuple[Any, list[str]]:
    """Parse YAML text; return (content, duplicate keys as "lr (line 12)"). Raises ProblemsError with this `where` and `fix` for invalid or
    too large content."""
    try:
        return bounded_yaml(text.removeprefix("\ufeff"))
    except (ValueError, RecursionError) as error:
        what = f"This is not valid YAML: {reason_of(error)}"
        raise ProblemsError.one(what, where, fix, code="file.not-yaml") from None


def bounded_yaml(text: str) -> tuple[Any, list[str]]:
    """`parse_yaml` that raises ValueError or RecursionError instead of ProblemsError."""
    try:
        _check_structure(text)
        loader = _Loader(text)
        return loader.get_single_data(), loader.repeated
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        position = f" in line {mark.line + 1}" if mark else ""
        raise ValueError(
            f"{getattr(error, 'problem', None) or 'it has a character that is not allowed'}{position}"
        ) from None


def _check_structure(text: str) -> None:
    """Raise ValueError for aliases, tags, long numbers, deep nesting or too many values in YAML text, before any value is created."""
    depth = values = 0
    for event in yaml.parse(text, Loader=Base):
        line = event.start_mark.line + 1
        if isinstance(event, yaml.AliasEvent):
            raise ValueError(f"it has an alias in line {line}; write the value instead of *{event.anchor[:40]}")
        if getattr(event, "tag", None):
            raise ValueError(f"it has a tag in line {line}; remove {event.tag[:60]}")
        if isinstance(event, yaml.ScalarEvent) and event.implicit[0] and LONG_NUMBER.fullmatch(event.value):
            raise ValueError(f"a number in line {line} has {len(event.value):,} digits")
        values += isinstance(event, yaml.NodeEvent)
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise ValueError(f"it is nested deeper than {MAX_DEPTH} levels")
        if values > MAX_VALUES:
            raise ValueError(f"it contains more than {MAX_VALUES:,} values")
