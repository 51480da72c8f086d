"""TOML and JSON text of a dataset config. The TOML is read back with sd-scripts' parser before it is used."""

from __future__ import annotations

import json
import re
from typing import Any

import toml

_BARE = re.compile(r"[A-Za-z0-9_-]+")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_SHORT = {"\b": "\\b", "\t": "\\t", "\n": "\\n", "\f": "\\f", "\r": "\\r"}


def dataset_toml(config: dict[str, Any]) -> str:
    """[general], [[datasets]] and [[datasets.subsets]] as text."""
    lines = ["# Dataset config of sd-scripts, for --dataset_config"]
    if config.get("general"):
        lines += ["", "[general]", *_table(config["general"], "general", "")]
    for dataset in config["datasets"]:
        own = {name: value for name, value in dataset.items() if name != "subsets"}
        lines += ["", "[[datasets]]", *_table(own, "datasets", "")]
        for subset in dataset["subsets"]:
            lines += ["", "  [[datasets.subsets]]", *_table(subset, "datasets.subsets", "  ")]
    return "\n".join(lines) + "\n"


def survives(value: Any) -> bool:
    """Whether a value survives sd-scripts' TOML parser (no null, no mixed lists, ...)."""
    config = {"datasets": [{"subsets": [{"x": value, "image_dir": "a"}, {"image_dir": "b"}]}]}
    return reads_as(dataset_toml(config), config)


def reads_as(text: str, content: dict[str, Any]) -> bool:
    """Whether sd-scripts' parser reads this content from the text, which a file in UTF-8 can hold."""
    try:
        text.encode("utf-8")
        return toml.loads(text) == content
    except Exception:  # the package raises IndexError and the like
        return False


def _table(values: dict[str, Any], path: str, indent: str) -> list[str]:
    """Plain values first: anything after a sub-table's header would belong to it."""
    lines = [f"{indent}{_key(name)} = {_value(value)}" for name, value in values.items() if not isinstance(value, dict)]
    for name, value in values.items():
        if isinstance(value, dict):
            below = f"{path}.{_key(name)}"
            lines += ["", f"{indent}[{below}]", *_table(value, below, indent)]
    return lines


def _key(name: str) -> str:
    return name if _BARE.fullmatch(name) else _basic(name)


def _value(value: Any) -> str:
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, list):
        return "[" + ", ".join(_value(each) for each in value) + "]"
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{_key(name)} = {_value(each)}" for name, each in value.items()) + " }"
    if isinstance(value, float):
        return repr(value) if "." in repr(value) else repr(value).replace("e", ".0e")
    return json.dumps(value)


def _text(text: str) -> str:
    """In single quotes, which keep backslashes; else the simplest form that sd-scripts' parser reads back."""
    literal = [f"'{text}'"] if "'" not in text and not _CONTROL.search(text) and re.search(r'[\\/"]', text) else []
    coded = "".join(f"\\u{ord(each):04x}" if ord(each) < 128 and not each.isalnum() else each for each in text)
    forms = [*literal, _basic(text), f'"{coded}"']
    return next((form for form in forms if reads_as(f"a = {form}\nb = 1\n", {"a": text, "b": 1})), forms[-1])


def _basic(text: str) -> str:
    text = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + _CONTROL.sub(lambda match: _SHORT.get(match[0], f"\\u{ord(match[0]):04x}"), text) + '"'


def dataset_json(config: dict[str, Any]) -> str:
    return json.dumps(config, indent=2, ensure_ascii=True, allow_nan=False) + "\n"
