"""What stands at a path is asked before it is opened; JSON is read within limits."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from core.record import regular
from core.record.bounded_json import MAX_DEPTH, parse_json, read_json, read_json_object
from core.record.problems import ProblemsError
from core.record.regular import MissingFile, check_regular, impossible_path, open_regular, read_regular
from core.record.workspace import display_path
from tests.refusals import refused

posix = pytest.mark.skipif(os.name == "nt", reason="special files of POSIX")


def code_of(path: Path | str) -> str:
    """The code that both functions report."""
    with pytest.raises(ProblemsError) as opened:
        open_regular(path)
    with pytest.raises(ProblemsError) as checked:
        check_regular(path)
    assert str(opened.value) == str(checked.value) and opened.value.problems[0].fix
    return opened.value.codes[0]


def test_a_regular_file_is_opened_and_read(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"12345")
    with open_regular(file) as handle:
        assert handle.read() == b"12345"
    assert read_regular(file, 5) == b"12345" and check_regular(file).st_size == 5
    with pytest.raises(ProblemsError) as refused:
        read_regular(file, 4)
    assert refused.value.codes == ["file.too-large"]


@posix
def test_special_files_are_refused_without_being_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with tempfile.TemporaryDirectory() as short, socket.socket(socket.AF_UNIX) as server:
        server.bind(f"{short}/socket")
        assert code_of(f"{short}/socket") == "file.is-socket"
    assert code_of(tmp_path / "pipe") == "file.is-pipe" and code_of("/dev/zero") == "file.is-device"
    (tmp_path / "link").symlink_to("pipe")
    assert code_of(tmp_path / "link") == "file.is-pipe"


@posix
def test_a_file_that_becomes_a_pipe_between_is_refused_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"1")
    os.mkfifo(tmp_path / "pipe")
    facts = os.stat(file)
    monkeypatch.setattr(os, "stat", lambda path: facts)
    with refused("file.is-pipe"):
        open_regular(tmp_path / "pipe")


@posix
def test_loops_of_links_long_names_and_impossible_names(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    assert code_of(tmp_path / "a") == "file.link-loop" and display_path(tmp_path / "a") == str(tmp_path / "a")
    for name in ("missing", "a" * 5000, "nul\0l", "half\ud83d", "missing/below"):
        assert code_of(tmp_path / name) in ("file.missing", "file.invalid-name", "file.path-too-long")
        with pytest.raises(MissingFile):
            open_regular(tmp_path / name)
    assert code_of(tmp_path) == "file.is-folder"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[" * 100_000, "nested"),
        ('{"a":' * 100_000, "nested"),
        ("[" + "9" * 5000 + "]", "digits"),
        ("[1e999]", "finite"),
        ("[NaN]", "finite"),
        ("[-Infinity]", "finite"),
        ('["\\ud800"]', "surrogate"),
        ('{"\\udc00": 1}', "surrogate"),
        ("[" + "[]," * 2_000_000 + "[]]", "values"),
        (b"\xff\xfe\x00", "UTF-8"),
        ("", "Expecting"),
        ('{"a": 1', "Expecting"),
        ('"' + '\\"' * 1_000_000, "Unterminated"),
    ],
)
def test_json_beyond_the_limits_is_refused(text: str | bytes, said: str) -> None:
    with refused("file.not-json", said) as refusal:
        parse_json(text, "here", "do this")
    assert (refusal.value.problems[0].where, refusal.value.problems[0].fix) == ("here", "do this")


def test_json_within_the_limits_is_what_pythons_own_reader_makes_of_it(tmp_path: Path) -> None:
    deep = "[" * MAX_DEPTH + "]" * MAX_DEPTH
    for text in ('{"a": [1, -2.5e-3, null, true, "x, [{ \\" \\ud83e\\udd8a"]}', deep, f'"{"[" * 200}"', "12"):
        assert parse_json(text, "") == json.loads(text)
        for encoding in ("utf-8-sig", "utf-16", "utf-32"):
            assert parse_json(text.encode(encoding), "") == json.loads(text)
    assert parse_json("[NaN]", "", finite=False)[0] != 0
    file = tmp_path / "a.json"
    file.write_text("[1]")
    assert read_json(file) == [1]
    with refused("file.not-json-object"):
        read_json_object(file)
    with pytest.raises(MissingFile):
        read_json(tmp_path / "b.json")


@pytest.mark.parametrize("opens", ["[", '{"a":'])
def test_depth_and_values_are_counted_outside_of_strings(opens):
    closes = "]" if opens == "[" else "}"

    def nested(levels: int) -> str:
        return opens * levels + "1" + closes * levels

    text = '"' + "[{,\\\\" * 300 + '"'  # nothing of it is structure
    for sound in (nested(MAX_DEPTH), f"[{text}, {nested(MAX_DEPTH - 1)}, {nested(MAX_DEPTH - 1)}]"):
        assert parse_json(sound, "x", max_values=4 * MAX_DEPTH) is not None
    assert parse_json(f"[{text}]", "x", max_values=2)
    for bad in (
        nested(MAX_DEPTH + 1),
        f"[{nested(MAX_DEPTH)}]",
        opens * (MAX_DEPTH + 1),
        "]" * 9 + opens * 2 * MAX_DEPTH,
    ):
        with refused("file.not-json", "nested deeper"):
            parse_json(bad, "x")
    with refused("file.not-json", "more than 3 values"):
        parse_json("[1, 2, 3, 4]" + " " * 5, "x", max_values=3)


@pytest.mark.slow
def test_hostile_json_takes_little_time_and_memory() -> None:
    """In a process of its own, whose peak can be measured."""
    resource = pytest.importorskip("resource")
    assert resource
    program = (
        "import resource, time\n"
        "from core.record.bounded_json import parse_json\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "before, start = peak(), time.process_time()\n"
        "for text in (b'[],' * 10_000_000, b'[' * 30_000_000, b'{\"\":' * 7_000_000, b'\"\\\\\"' * 10_000_000):\n"
        "    try: parse_json(text, '')\n"
        "    except Exception as error: assert type(error).__name__ == 'ProblemsError'\n"
        "print((peak() - before) >> 10, time.process_time() - start)\n"
    )
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert int(out[0]) < 200 and float(out[1]) < 8


def test_what_no_disk_can_hold_is_said_before_it_is_written(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    codes = {
        "new/folder/a.png": None,
        "n" * 255: None,
        "n" * 256: "file.path-too-long",
        "ä" * 128: "file.path-too-long",  # 256 bytes
        "/".join(["n" * 200] * 30): "file.path-too-long",
        "file/a.png": "file.not-a-folder",
        "loop/a.png": "file.not-a-folder",
        "a\0b": "file.invalid-name",
        "\ud800": "file.invalid-name",
    }
    for name, code in codes.items():
        problem = impossible_path(tmp_path / name, "a.output")
        assert (problem.code if problem else None) == code, name[:20]


@pytest.mark.parametrize("held", [3, 100])
def test_a_file_that_a_scanner_holds_for_a_moment_is_read_on_windows(tmp_path, monkeypatch, held):
    (tmp_path / "a").write_bytes(b"x")
    tries = []

    def opened(path, flags, real=os.open):
        tries.append(path)
        if len(tries) <= held:
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, flags)

    monkeypatch.setattr(regular, "WINDOWS", True)
    monkeypatch.setattr(regular, "RETRY_SECONDS", 0)
    monkeypatch.setattr(regular.os, "open", opened)
    if held < regular.RETRIES:
        assert regular.read_regular(tmp_path / "a", 9) == b"x"
    else:
        with refused("file.unreadable"):
            regular.read_regular(tmp_path / "a", 9)
