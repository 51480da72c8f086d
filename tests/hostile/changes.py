"""What makes a file hostile: things that are no file, bad ideas, and a good file with something in it made wrong."""

from __future__ import annotations

import copy
import json
import os
import random
import re
import socket
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DEEP = 100_000
NUMBERS = (
    b"0 -0 1 -1 0.5 -1.5 255 65536 2147483648 -2147483649 4294967296 9223372036854775808 -9223372036854775809 1e308 1e309 "
    b'-1e999 1e-400 NaN Infinity -Infinity null true false "" [] {} [[]] "\\ud800" "\\u0000" 0x10 1_000 '
    + b"9" * 30
    + b" "
    + b"9" * 5000
    + b" 1."
    + b"0" * 3000
).split()
SNIPPETS = [
    *(b"\0", b"\xff\xfe", b"\xed\xa0\x80", b"\n" * 5000, b"[" * 2000, b"{" * 2000, b'{"a":' * 2000, b'"' * 999, b"\\" * 999),
    *(b"(" * 5000, b"<" * 5000, b"\x1b[2J", "\u202e\u0000\ufeff".encode(), b"a" * 200_000, b"," * 20_000, b"__" * 3000),
    *(b"--" * 3000, b"{a|" * 3000, b"%s%n{0.__class__}"),
]  # fmt: skip
# Put into JSON as text, since no writer makes them.
RAW = {"@nan": "NaN", "@inf": "1e999", "@digits": "9" * 5000, "@deep": "[" * 50_000 + "]" * 50_000}
VALUES: tuple[Any, ...] = (
    *(None, True, False, -1, 0, 1, 3, 2**31, 2**63, 2**64, -(2**63), 10**30, 0.5, -1.5, 1e308),
    *("", "x", "12", "a" * 10_000, "\ud800", "\x00\x1b[2J\n", "🦊" * 300, "../../../etc/passwd", "/dev/zero"),
    *([], {}, [None], ["x"], [1] * 5000, [-1, -1], [0], [2**40, 2**40], [[[[1]]]], {"x": {"y": [1, {}]}}, {"": ""}),
    *RAW,
)


def written(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def text(value: str | bytes) -> Callable[[], bytes]:
    return lambda: value.encode("utf-8", "surrogatepass") if isinstance(value, str) else value


def said(problems: Any) -> None:
    """Each says what, where and what to do, briefly and in letters that any screen takes."""
    assert len(problems) < 5000, f"{len(problems)} problems"
    for each in problems:
        assert each.what and each.where and each.fix, f"no what, where or fix: {str(each)[:300]}"
        assert len(str(each)) < 3000, f"a problem of {len(str(each))} letters: {str(each)[:200]}"
        str(each).encode("utf-8")


# ---- files by number


SPECIAL = (
    *("pipe", "socket", "loop", "nowhere", "device", "folder", "closed", "missing", "to pipe", "empty", "page", "pointer"),
    *("zeros", "sparse"),
)  # fmt: skip
_CONTENT = {
    "closed": b"x",
    "empty": b"",
    "page": b"<!DOCTYPE html><title>Sign in</title>",
    "pointer": b"version https://git-lfs.github.com/spec/v1\n",
    "zeros": bytes(1000),
    # Of 1 TB that take no room on the disk; a safetensors file by its start.
    "sparse": struct.pack("<Q", 90) + b'{"emb_params":{"dtype":"F32","shape":[1048576,262144],"data_offsets":[0,1099511627776]}}  ',
}  # fmt: skip


def special(folder: Path, name: str, kind: str) -> Path:
    """What is no file: a pipe, a socket, a link to itself, to nowhere or to a device, a folder; and what is none of any use."""
    path = folder / name
    if kind == "pipe" or (kind == "socket" and len(name) > 60):
        os.mkfifo(path)
    elif kind == "to pipe":
        os.mkfifo(folder / f"{name}.pipe")
        path.symlink_to(f"{name}.pipe")
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            handle = os.open(folder, os.O_RDONLY)  # a socket's whole path may have 108 bytes
            server.bind(f"/proc/self/fd/{handle}/{name}"[:107])
            os.close(handle)
    elif kind in ("loop", "nowhere", "device"):
        path.symlink_to({"loop": name, "nowhere": "nothing", "device": "/dev/zero"}[kind])
    elif kind == "folder":
        path.mkdir()
    elif kind != "missing":
        path.write_bytes(_CONTENT[kind])
    if kind == "closed":
        path.chmod(0)
    if kind == "sparse":
        os.truncate(path, 2**40 + 98)
    return path


@dataclass(frozen=True)
class Files:
    """make(folder, case): case 0 good, then what is no file, then the bad ideas under names of their own, then the good one
    changed by chance (the case is the seed)."""

    name: str
    good: Callable[[], bytes]
    bad: Iterable[tuple[str, Callable[[], bytes]]]
    change: Callable[[random.Random], bytes] | None = None

    @property
    def ending(self) -> str:
        return os.path.splitext(self.name)[1]

    def __call__(self, folder: Path, case: int) -> Path:
        if case == 0:
            return written(folder, self.name, self.good())
        if case <= len(SPECIAL):
            return special(folder, self.name, SPECIAL[case - 1])
        bad = list(self.bad)
        if case <= len(SPECIAL) + len(bad):
            name, data = bad[case - len(SPECIAL) - 1]
            return written(folder, name, data())
        draw = random.Random(f"{self.name} {case}")
        return written(folder, self.name, self.change(draw) if self.change else changed(self.good(), draw))


# ---- changes by chance


def changed(good: bytes, draw: random.Random) -> bytes:
    """A good file with one to four changes: in what it says, if it is JSON, else in its bytes."""
    if good[:1] in b"[{" and draw.random() < 0.5:
        try:
            return text_of(change_json(json.loads(good), draw))
        except ValueError:  # lines of JSON
            pass
    data = good
    for _ in range(draw.randint(1, 4)):
        data = draw.choice((_cut, _flipped, _number, _spliced, _doubled, _removed, _length))(data, draw)
    return data


def _cut(data: bytes, draw: random.Random) -> bytes:
    return data[: draw.randrange(len(data) + 1)]


def _flipped(data: bytes, draw: random.Random) -> bytes:
    found = bytearray(data)
    for _ in range(draw.choice((1, 2, 8, 64)) if found else 0):
        found[draw.randrange(min(len(found), draw.choice((64, 1000, len(found)))))] ^= 1 << draw.randrange(8)
    return bytes(found)


def _number(data: bytes, draw: random.Random) -> bytes:
    """One number or word of a text replaced."""
    places = list(re.finditer(rb"\d+(\.\d+)?|true|false|null|\"[^\"]*\"", data))
    if not places:
        return _flipped(data, draw)
    place = draw.choice(places)
    return data[: place.start()] + draw.choice(NUMBERS) + data[place.end() :]


def _spliced(data: bytes, draw: random.Random) -> bytes:
    place = draw.randrange(len(data) + 1)
    return data[:place] + draw.choice((*SNIPPETS, draw.randbytes(draw.choice((1, 4, 40))))) + data[place:]


def _doubled(data: bytes, draw: random.Random) -> bytes:
    begin, end = sorted(draw.randrange(len(data) + 1) for _ in range(2))
    return data[:end] + data[begin:end] * draw.choice((1, 2, 20)) + data[end:]


def _removed(data: bytes, draw: random.Random) -> bytes:
    begin, end = sorted(draw.randrange(len(data) + 1) for _ in range(2))
    return data[:begin] + data[draw.choice((end, min(end, begin + 100))) :]


def _length(data: bytes, draw: random.Random) -> bytes:
    """Bytes that may be a length, a size or a place become an extreme."""
    place, form = draw.randrange(len(data) + 1), draw.choice((">I", "<I", "<Q", "<B"))
    value = draw.choice(
        (0, 1, 0x7F, 0xFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF, 2**63 - 1, 2**64 - 1)
    )
    packed = struct.pack(form, value % 256 ** struct.calcsize(form))
    return data[:place] + packed + data[place + len(packed) :]


def text_of(value: Any) -> bytes:
    """JSON with the raw values, and half surrogate pairs as other programs write them."""
    found = json.dumps(value)
    for mark, raw in RAW.items():
        found = found.replace(f'"{mark}"', raw)
    return found.encode()


def change_json(value: Any, draw: random.Random) -> Any:
    """One to three places made wrong: another value, gone, renamed, moved."""
    value = copy.deepcopy(value)
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        places = _nodes(value)
        if not places:
            return draw.choice(VALUES)
        holder, key = draw.choice(places)
        way = draw.randrange(6)
        if way < 3:
            holder[key] = copy.deepcopy(draw.choice(VALUES))
        elif way == 3:
            del holder[key]
        elif way == 4 and isinstance(holder, dict):
            holder[str(draw.choice(VALUES))] = holder.pop(key)
        else:
            other, at = draw.choice(places)
            there = at in other if isinstance(other, dict) else at < len(other)
            holder[key] = copy.deepcopy(other[at]) if there else 0
    return value


def _nodes(value: Any) -> list[tuple[Any, Any]]:
    """(container, key) of everything inside."""
    found: list[tuple[Any, Any]] = []
    rest = [value]
    while rest:
        each = rest.pop()
        keys = list(each) if isinstance(each, dict) else range(min(len(each), 8)) if isinstance(each, list) else ()
        found += [(each, key) for key in keys]
        rest += [each[key] for key in keys]
    return found
