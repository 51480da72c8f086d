"""Which checkpoint of a run is used where the user names none."""

from __future__ import annotations

import json

import pytest

from core.assess.recommended import recommended
from core.engine.verdict import FILE as COMPARISON
from core.record import preference
from core.record.kept import keep
from core.record.preference import Choice, add_choice
from core.record.run_folder import RunFolder

FILES = ("fox-step00000020.safetensors", "fox-step00000040.safetensors", "fox.safetensors")
STEPS = (20, 40, 60)
BEST = {"file": f"checkpoints/{FILES[1]}", "step": 40, "as_good": [20, 60], "unknown": []}
COPY = {"distance": 0.1, "limit": 0.5, "typical": 0.8, "near": 2, "images": 8, "name": "fox.png", "files": []}


@pytest.fixture
def run(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    lines = []
    for file, step in zip(FILES, STEPS, strict=True):
        (tmp_path / "checkpoints" / file).write_bytes(b"x")
        lines.append({"kind": "saved", "seq": step, "time": 1.0, "step": step, "file": f"checkpoints/{file}"})
    RunFolder(tmp_path).journal_file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    content = {"grid": "g", "files": ["", *FILES], "prompts": [{"text": "a fox", "shows": "trigger"}]}
    (tmp_path / COMPARISON).write_text(json.dumps(content))
    return tmp_path


def assessed(run, *warned: str, clear: tuple[str, ...] = ()) -> None:
    cells = {file: {"copies": COPY} for file in warned} | {file: {"copies": {"why": "x"}} for file in clear}
    (run / "assess.json").write_text(json.dumps({"version": 1, "cells": cells}))


def choose(run, winner: str, loser: str, times: int) -> None:
    for number in range(times):
        add_choice(run, Choice(winner, loser, f"prompt {number}", "left"))


def test_the_lowest_loss_is_used_until_the_user_has_chosen(run):
    checkpoints = run / "checkpoints"
    assert recommended(run, None) == (None, "")
    assert recommended(run, BEST) == (checkpoints / FILES[1], "lowest")
    assert recommended(run, BEST | {"measured_on": "training"})[1] == "trained", "it shows no overfitting"
    assert recommended(run, BEST | {"others": 0})[1] == "only" and recommended(run, BEST | {"others": 1})[1] == "lowest"
    choose(run, FILES[0], FILES[2], preference.LEAST_CHOICES - 1)
    assert recommended(run, BEST)[1] == "lowest", "too few choices"
    choose(run, FILES[0], FILES[1], 10)
    assert recommended(run, BEST) == recommended(run, None) == (checkpoints / FILES[0], "preferred")
    keep(run, checkpoints / FILES[2], "")
    assert recommended(run, BEST) == (checkpoints / FILES[2], "kept")
    keep(run, checkpoints / FILES[2], None)
    (run / COMPARISON).unlink()  # choices between samples need no grid
    assert recommended(run, BEST) == (checkpoints / FILES[0], "preferred")
    (checkpoints / FILES[0]).unlink()
    assert recommended(run, BEST) == (checkpoints / FILES[1], "lowest"), "what is preferred was deleted"


def test_choices_without_a_clear_first_place_prefer_none(run):
    for one, other in ((FILES[0], FILES[1]), (FILES[1], FILES[2]), (FILES[2], FILES[0])):
        choose(run, one, other, 6)
    assert recommended(run, BEST) == (run / "checkpoints" / FILES[1], "lowest")


def test_a_warning_leads_to_the_nearest_one_that_may_be_as_good(run):
    assessed(run, FILES[1], clear=(FILES[2],))
    assert recommended(run, BEST) == (run / "checkpoints" / FILES[2], "clear")
    assessed(run, FILES[1], clear=(FILES[0], FILES[2]))
    assert recommended(run, BEST) == (run / "checkpoints" / FILES[0], "clear"), "the earlier of two as near"
    assert recommended(run, BEST | {"as_good": []})[1] == "lowest", "the others are clearly worse"
    for damaged in ({"as_good": None}, {"as_good": 20}, {"step": "x"}):
        assert recommended(run, BEST | damaged)[1] == "lowest"
    (run / "checkpoints" / FILES[0]).unlink()
    (run / "checkpoints" / FILES[2]).unlink()
    assert recommended(run, BEST)[1] == "lowest"
    assessed(run, *FILES)
    assert recommended(run, BEST)[1] == "lowest", "all are warned of"
    (run / "assess.json").write_text("{")
    assert recommended(run, BEST)[1] == "lowest"
