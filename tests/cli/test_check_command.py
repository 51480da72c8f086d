"""`webui.py check`: exit codes, the table, the JSON, and the whole check on this machine's CPU."""

import json

import pytest

from core.cli import check as command
from core.cli.main import main
from core.machine_check.items import all_items
from core.machine_check.report import Line, report_of
from core.record.workspace import Workspace


def pretended(monkeypatch, tmp_path, state):
    from core.machine_check.item import Finding, Item

    line = Line(Item("one", "Item one", "Group", lambda place: None), Finding(state, "found it", "why", "do that"), 1.0)

    def run(workspace, device, *, token, listener):
        listener([Line(line.item)], 1)
        listener([line], 1)
        return report_of([line], Workspace(tmp_path), "cpu", 1.0)

    monkeypatch.setattr(command, "run_check", run)


def test_the_exit_code_is_1_where_something_failed_and_the_json_is_written(monkeypatch, tmp_path, capsys):
    file = tmp_path / "check.json"
    pretended(monkeypatch, tmp_path, "failed")
    assert main(["check", "--json", str(file)]) == 1
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("Group", "Item one", "found it", "why", "do that"))
    assert json.loads(file.read_text("utf-8"))["items"][0]["state"] == "failed"
    for state in ("ok", "slower", "absent", "skipped"):
        pretended(monkeypatch, tmp_path, state)
        assert main(["check"]) == 0


def test_words_that_are_no_options_are_refused(capsys):
    assert main(["check", "--device", "toaster"]) == 2
    assert main(["check", "--memory.mixed_precision", "bf16"]) == 2


def test_the_help_lists_it(capsys):
    assert main(["--help"]) == 0 and "  check " in capsys.readouterr().out
    assert main(["check", "--help"]) == 0 and "--json" in capsys.readouterr().out


@pytest.mark.slow
def test_the_whole_check_on_a_cpu_finds_nothing_failed(tmp_path, monkeypatch):
    """With the time that a busy machine needs."""
    from core.machine_check.run import run_check

    report = run_check(Workspace(tmp_path / "outputs"), "cpu", budget=1800.0)
    failed = [line for line in report["items"] if line["state"] == "failed"]
    assert not failed and not report["skipped"], failed
    assert [line["name"] for line in report["items"]] == [item.name for item in all_items() if not item.gpu]
    states = {line["name"]: line["state"] for line in report["items"]}
    assert states["train_fp32"] == states["resume"] == states["sample"] == states["save_and_load"] == "ok"
    assert str(tmp_path) not in json.dumps(report)
