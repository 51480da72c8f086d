"""Every command is given words that no one means: paths that are missing, folders, empty files, names of 255 letters, NUL, half
surrogates, numbers without end. Each is answered in words that say what to do."""

from __future__ import annotations

import contextlib
import io

import pytest

from core import extensions, tasks
from core.cli.main import BAD_INPUT, DONE, FAILED, main
from core.cli.options import commands
from core.settings.base import declared

extensions.load()
# They work on their own, wait for a network, or measure for minutes.
NAMES = sorted(set(commands()) - {"check", "bench", "download"})
NUMBERS = ["-1", "nan", "inf", "1e400", "9" * 400, "0x10", "1_0", "", "\u0663"]
WORDS = ["", " ", "a\0b", "half \ud83d", "x" * 255, "x/" * 3000, "/dev/null", "-", "**/**", "[" * 3000, "~nobody/x"]
FILES = [f"{name}.{ending}" for name in ("empty", "noise") for ending in ("safetensors", "json", "png", "toml", "txt")]
CHECKED = ("train", "prepare", "generate", "grid", "class_images", "make_pairs")  # for minutes without --check


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    """A path that is missing, a folder, one below a file, empty files and files of noise. The working directory is an empty
    one: what a command makes of a word does no harm there."""
    for folder in ("work", "folder"):
        (tmp_path / folder).mkdir()
    for name in FILES:
        (tmp_path / name).write_bytes(b"" if name.startswith("empty") else bytes(range(256)) * 2)
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO()))  # what "-" reads
    return [str(tmp_path / name) for name in ("missing", "folder", "empty.txt/x", *FILES)]


def fault_of(tmp_path, words):
    """What is wrong with the answer to these words; "" for nothing."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            code = main([*words, "--outputs", str(tmp_path / "outputs")])
        except BaseException as error:  # SystemExit too: an answer is a code
            return f"{[word[:80] for word in words]}: {type(error).__name__}: {str(error)[-200:]}"
    text = said.getvalue()
    wrong = [sign for sign in ("Traceback", "unexpected error") if sign in text]
    wrong += [] if code in (DONE, FAILED, BAD_INPUT) else [f"code {code}"]
    wrong += [] if code == DONE or "fix:" in text else ["no fix"]
    return f"{[word[:80] for word in words]}: {wrong}: {text[-700:]}" if wrong else ""


def told(faults):
    found = [fault for fault in faults if fault]
    assert not found, f"{len(found)} faults:\n" + "\n".join(found)[:6000]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_command_answers_odd_words_in_words(name, places, tmp_path):
    check = ["--check"] if name in CHECKED else []
    told(fault_of(tmp_path, [name, word, *check]) for word in (*WORDS, *NUMBERS, *places))


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(NAMES) & {*tasks.tasks()} - {*CHECKED}))
def test_the_settings_of_a_tool_answer_odd_values_in_words(name, places, tmp_path):
    task = tasks.named(name)
    own = [entry for entry in declared(task.job) if entry.group == task.own]
    words = [*WORDS[:6], "-1", "nan", "9" * 400, *places[:3]]
    told(fault_of(tmp_path, [name, f"--{entry.path}", word, "--check"]) for entry in own for word in words)


def test_each_command_answers_one_odd_word_in_words(tmp_path):
    told(fault_of(tmp_path, [name, word, "--check"]) for name, word in zip(NAMES, WORDS * 9, strict=False))


@pytest.mark.parametrize("command", ["make_hints", "train"])
def test_an_image_in_place_of_its_folder_leads_to_the_folder(command, tmp_path, capsys):
    """It is not read as a preset."""
    assert main([command, str(tmp_path / "noise.png"), "--check"]) == BAD_INPUT
    assert f"choose the folder that contains it: {tmp_path}" in capsys.readouterr().err
