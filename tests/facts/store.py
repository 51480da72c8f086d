"""Producers, their results as plain data, and how two records are compared."""

from __future__ import annotations

import hashlib
import json
import lzma
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from enum import Enum
from importlib import import_module
from pathlib import Path, PurePath
from typing import Any

from core.record.problems import Problem, ProblemsError

HERE = Path(__file__).parent
RECORDED = HERE / "recorded"
PROJECT = HERE.parents[1].as_posix()
LONGEST_TEXT = 200
TENSOR = "tensor "
NEAR, TENSORS_NEAR = 1e-5, 1e-4  # floats are recorded with 6 digits; sums of tensors depend on the processor's order

Facts = Iterator[tuple[str, Any]]
_producers: dict[str, dict[str, Callable[[], Facts]]] = {}
_folders: list[str] = []


def producer(function: Callable[[], Facts]) -> Callable[[], Facts]:
    """Register a function that yields (name, data), each name once, for its module."""
    module = function.__module__.rpartition(".")[2]
    _producers.setdefault(module, {})[function.__name__] = function
    return function


def modules() -> list[str]:
    """The modules of producers."""
    return sorted(path.stem for path in HERE.glob("*.py") if "\n@producer\n" in path.read_text("utf-8"))


def produced(module: str) -> dict[str, dict[str, Any]]:
    """{producer: {name: plain data}} of a module as it is now."""
    import_module(f"tests.facts.{module}")
    found: dict[str, dict[str, Any]] = {}
    for name, function in _producers[module].items():
        entries = found[name] = {}
        for key, data in function():
            assert key not in entries, f"{module}.{name} yields {key!r} twice"
            entries[key] = plain(data)
    return found


def recorded(module: str) -> dict[str, dict[str, Any]]:
    """{producer: {name: plain data}} as recorded; {} for a new module."""
    file = RECORDED / f"{module}.json.xz"
    return json.loads(lzma.decompress(file.read_bytes())) if file.exists() else {}


def record(module: str, found: Mapping[str, Mapping[str, Any]]) -> None:
    """Write a module's record, a line for each entry."""
    blocks = []
    for name, entries in found.items():
        lines = [f"{json.dumps(key)}: {json.dumps(data, separators=(',', ':'))}" for key, data in entries.items()]
        blocks.append(f"{json.dumps(name)}: {{\n" + ",\n".join(lines) + "\n}")
    RECORDED.mkdir(exist_ok=True)
    text = "{\n" + ",\n".join(blocks) + "\n}\n"
    (RECORDED / f"{module}.json.xz").write_bytes(lzma.compress(text.encode("utf-8"), preset=9))


@contextmanager
def folder() -> Iterator[Path]:
    """An empty temporary folder, which is "~" in recorded texts."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name).resolve()
        _folders.append(path.as_posix())
        try:
            yield path
        finally:
            _folders.pop()


def refused(call: Callable[..., Any], *arguments: Any) -> Any:
    """What a call returns, or {"refused": its problems} or {"raised": its exception's type}."""
    try:
        return plain(call(*arguments))
    except ProblemsError as error:
        return {"refused": plain(error.problems)}
    except (ValueError, KeyError, OSError) as error:
        return {"raised": type(error).__name__}


def problem(each: Problem) -> list[Any]:
    """A problem's code, place, severity, remedy and the numbers of its text: wording may change."""
    said = _at_home(f"{each.what} {each.fix}")
    digits = "".join(sign if sign.isdigit() or sign in ".,-" else " " for sign in said)
    numbers = [word for text in digits.split() if (word := text.strip(".,-"))]
    row = [each.code, _text(each.where), each.level, each.remedy, " ".join(numbers)]
    while row[-1] == "" and len(row) > 3:
        row.pop()
    return row


def digest(data: Any) -> str:
    """Ten digits that tell apart what has no floats in it and is too long to be recorded."""
    text = json.dumps(plain(data), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def plain(data: Any) -> Any:
    """`data` as JSON of 6-digit numbers; tensors and arrays as [type and shape, mean magnitude, two weighted means]."""
    if data is None or (isinstance(data, bool | int) and not isinstance(data, Enum)):
        return data
    if isinstance(data, float):
        return float(f"{data:.6g}") + 0.0 if math.isfinite(data) else str(data)
    if isinstance(data, Problem):
        return problem(data)
    if isinstance(data, Enum):
        return plain(data.value)
    if isinstance(data, str | PurePath):
        return _text(data.as_posix() if isinstance(data, PurePath) else data)
    if isinstance(data, bytes):
        return f"{len(data)} bytes {hashlib.sha256(data).hexdigest()[:10]}"
    if isinstance(data, Mapping):
        return {_key(key): plain(value) for key, value in data.items()}
    if isinstance(data, set | frozenset):
        return sorted((plain(each) for each in data), key=json.dumps)
    if isinstance(data, type):
        return data.__qualname__
    if hasattr(data, "model_dump"):
        return plain({name: getattr(data, name) for name in type(data).model_fields})
    if is_dataclass(data) and not isinstance(data, type):
        return {each.name: plain(getattr(data, each.name)) for each in fields(data)}
    if hasattr(data, "dtype") and hasattr(data, "shape"):
        return _numbers(data)
    if isinstance(data, Sequence | Iterator):
        return [plain(each) for each in data]
    return getattr(data, "__qualname__", type(data).__qualname__)


def _key(key: Any) -> str:
    return _text(key.as_posix()) if isinstance(key, PurePath) else key if isinstance(key, str) else str(plain(key))


def _at_home(text: str) -> str:
    for path in (*_folders, PROJECT):
        text = text.replace(path, "~").replace(path.replace("/", "\\"), "~")
    return text


def _text(text: str) -> str:
    text = _at_home(text)
    if len(text) <= LONGEST_TEXT:
        return text
    return f"{text[:60]} ... {len(text)} {hashlib.sha256(text.encode('utf-8', 'replace')).hexdigest()[:10]}"


def _numbers(data: Any) -> list[Any]:
    import numpy

    kind = f"{TENSOR}{str(data.dtype).removeprefix('torch.')} {'x'.join(map(str, data.shape))}"
    if hasattr(data, "detach"):
        data = data.detach().cpu().double().numpy()
    flat = numpy.asarray(data, dtype="float64").reshape(-1)
    if not flat.size:
        return [kind]
    places = numpy.arange(flat.size)
    means = numpy.abs(flat).mean(), (flat * numpy.cos(places)).mean(), (flat * numpy.sin(places * 0.37 + 1)).mean()
    return [kind, *(plain(float(mean)) for mean in means)]


def changes(before: Any, now: Any, at: str = "") -> Iterator[str]:
    """A line for each value that differs: its place, the recorded value and the present one."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in [*before, *(key for key in now if key not in before)]:
            place = f"{at} / {key}" if at else key
            if key not in now:
                yield f"{place}: gone, was {_short(before[key])}"
            elif key not in before:
                yield f"{place}: new, {_short(now[key])}"
            else:
                yield from changes(before[key], now[key], place)
    elif isinstance(before, list) and isinstance(now, list):
        yield from _changed_lists(before, now, at)
    elif not _equal(before, now):
        yield f"{at}: {_short(before)} recorded, {_short(now)} now"


def _changed_lists(before: list[Any], now: list[Any], at: str) -> Iterator[str]:
    if before and now and isinstance(before[0], str) and before[0].startswith(TENSOR):
        if before[0] != now[0] or len(before) != len(now) or not _near(before[1:], now[1:]):
            yield f"{at}: {_short(before)} recorded, {_short(now)} now"
    elif len(before) == len(now):
        for index, (old, new) in enumerate(zip(before, now)):
            yield from changes(old, new, f"{at}[{index}]")
    else:
        lost = [each for each in before if each not in now]
        more = [each for each in now if each not in before]
        yield f"{at}: {len(before)} recorded, {len(now)} now; gone: {_short(lost)}, new: {_short(more)}"


def _near(before: list[Any], now: list[Any]) -> bool:
    if any(isinstance(each, str) for each in (*before, *now)):
        return before == now
    return all(
        math.isclose(old, new, rel_tol=TENSORS_NEAR, abs_tol=TENSORS_NEAR * abs(before[0]) + 1e-12)
        for old, new in zip(before, now)
    )


def _equal(before: Any, now: Any) -> bool:
    if isinstance(before, float) or isinstance(now, float):
        both = isinstance(before, float | int) and isinstance(now, float | int)
        return both and math.isclose(before, now, rel_tol=NEAR, abs_tol=1e-12)
    return type(before) is type(now) and before == now


def _short(data: Any) -> str:
    text = json.dumps(data, ensure_ascii=False)
    return text if len(text) <= 160 else f"{text[:150]} ... ({len(text)} signs)"
