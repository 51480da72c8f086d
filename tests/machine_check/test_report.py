"""The JSON of a check holds no names, keys or places of a machine, and says what is in the table."""

import getpass
import json
from pathlib import Path

from core.machine_check.item import ABSENT, FAILED, OK, SKIPPED, Finding, Item
from core.machine_check.report import Line, exit_code, private, report_of, summary, table_lines
from core.record.workspace import PROJECT, Workspace


def line(state, name="one", **more):
    return Line(Item(name, name.title(), "Group", lambda place: None), Finding(state, **more), 1.0)


def test_paths_names_and_keys_are_taken_out(tmp_path, monkeypatch):
    home = tmp_path / "home" / "florentine"
    home.mkdir(parents=True)
    monkeypatch.setattr(Path, "home", lambda: home)
    monkeypatch.setattr(getpass, "getuser", lambda: "florentine")
    monkeypatch.setenv("HF_TOKEN", "hf_secretsecret")
    workspace = Workspace(home / "images" / "out")
    texts = [
        f"{home}/notes.txt",
        f"File {workspace.outputs}/runs/x",
        f"{PROJECT}/core/x.py",
        "/home/florentine/.cache and C:\\Users\\florentine\\AppData and /Users/somebody/x",
        "token hf_secretsecret",
        "owner florentine",
    ]
    found = report_of([line(FAILED, found=text, traceback=text) for text in texts], workspace, "cpu", 1.0)
    words = json.dumps(found)
    for hidden in ("florentine", "somebody", "hf_secretsecret", str(PROJECT), "images"):
        assert hidden not in words
    assert "~/notes.txt" in words and "<outputs>/runs/x" in words and "<atelier>/core/x.py" in words


def test_numbers_that_json_has_no_form_for_become_texts(tmp_path):
    found = report_of([line(OK, facts={"a": [float("inf")], "b": float("nan")})], Workspace(tmp_path), "cpu", 1.0)
    facts = json.loads(json.dumps(found, allow_nan=False))["items"][0]["facts"]
    assert facts == {"a": ["inf"], "b": "nan"}


def test_a_common_word_that_is_a_login_stays(monkeypatch):
    monkeypatch.setattr(getpass, "getuser", lambda: "root")
    assert private("a root of two", {}) == "a root of two"


def test_only_what_failed_makes_the_exit_code(tmp_path):
    workspace = Workspace(tmp_path)
    fine = report_of([line(OK), line(ABSENT), line(SKIPPED, "two")], workspace, "cpu", 1.0)
    assert exit_code(fine) == 0 and "Two" in summary(fine)
    assert exit_code(report_of([line(OK), line(FAILED)], workspace, "cpu", 1.0)) == 1


def test_a_line_says_state_reason_and_fix():
    words = "\n".join(table_lines(line(FAILED, found="3 GB", reason="too little", fix="get more")))
    assert all(each in words for each in ("failed", "One", "3 GB", "too little", "get more"))
    assert len(table_lines(line(OK, found="fine", fix="unneeded"))) == 1
