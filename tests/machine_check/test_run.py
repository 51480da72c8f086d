"""The check goes on whatever an item does, keeps to its time, and leaves nothing behind."""

import json
import os
import sys
import threading
import time

import pytest

from core.machine_check.run import run_check
from core.record.cancel import Cancelled, CancelToken
from core.record.lock import Lock
from core.record.problems import ProblemsError
from core.record.run_folder import RunFolder
from core.record.workspace import Workspace
from tests.machine_check.odd_items import HANGS, ITEMS

WORKER = [sys.executable, "-m", "tests.machine_check.odd_items"]


@pytest.fixture
def workspace(tmp_path):
    return Workspace(tmp_path / "outputs")


def check(workspace, names=None, **more):
    items = [item for item in ITEMS if names is None or item.name in names]
    return run_check(workspace, "cpu", items=items, worker=WORKER, **more)


def by_name(report):
    return {line["name"]: line for line in report["items"]}


def test_an_item_that_raises_crashes_or_hangs_is_told_and_the_others_go_on(workspace):
    told = []
    report = check(workspace, listener=lambda lines, total: told.append((len(lines), total)))
    lines = by_name(report)
    states = {name: line["state"] for name, line in lines.items()}
    assert states == {
        "prints": "ok",
        "tells": "ok",
        "raises": "failed",
        "after a raise": "ok",
        "crashes": "failed",
        "after a crash": "ok",
        "hangs": "failed",
        "needs it": "skipped",
        "comes last": "ok",
    }
    assert "_raises" in lines["raises"]["traceback"] and lines["raises"]["fix"]
    assert "_crashes" in lines["crashes"]["traceback"]  # Python's place, from faulthandler
    if os.name == "posix":
        assert "SIGSEGV" in lines["crashes"]["reason"]
    assert f"{HANGS:.0f} seconds" in lines["hangs"]["reason"] and lines["hangs"]["seconds"] >= HANGS
    assert "The one that hangs" in lines["needs it"]["reason"]
    process = {name: line["facts"].get("process") for name, line in lines.items()}
    assert process["prints"] == process["tells"]
    assert process["after a raise"] != process["tells"]  # CUDA would be unusable for the rest of that process
    assert process["after a crash"] != process["after a raise"]
    assert lines["comes last"]["facts"]["earlier"] == sorted(set(lines) - {"comes last"})
    assert report["counts"] == {"ok": 5, "slower": 0, "absent": 0, "failed": 3, "skipped": 1}
    assert told[-1] == (9, 9)  # the one for a GPU is not shown
    json.dumps(report, allow_nan=False)
    assert str(workspace.outputs) not in json.dumps(report)
    assert not (workspace.private / "check").exists()


def test_what_there_is_no_time_for_is_skipped_and_named(workspace):
    report = check(workspace, ["hangs", "tells", "comes last"], budget=0.5)
    lines = by_name(report)
    assert [line["state"] for line in lines.values()].count("skipped") >= 2
    assert lines["hangs"]["state"] == "skipped" and "time" in lines["hangs"]["reason"]  # its own time was not up
    assert "The one that comes last" in report["skipped"]
    assert report["counts"]["failed"] == 0


@pytest.mark.slow
def test_a_cancelled_check_ends_at_once(workspace):
    token = CancelToken()

    def tell(lines, total):
        if lines[-1].item.name == "hangs":
            threading.Timer(0.2, token.cancel).start()

    started = time.monotonic()
    with pytest.raises(Cancelled):
        run_check(
            workspace,
            "cpu",
            items=[item for item in ITEMS if item.name == "hangs"],
            worker=WORKER,
            token=token,
            listener=tell,
        )
    assert time.monotonic() - started < HANGS + 20
    assert not (workspace.private / "check").exists()
    assert by_name(check(workspace, ["tells"]))["tells"]["state"] == "ok"  # the lock is free again


def test_while_a_run_trains_the_check_is_refused_with_its_name(workspace):
    folder = RunFolder.create(workspace.runs, "fox", {})
    folder.lock()
    try:
        with pytest.raises(ProblemsError) as told:
            check(workspace)
    finally:
        folder.unlock()
    assert told.value.codes == ["check.training-runs"] and folder.name in told.value.problems[0].what


def test_one_check_at_a_time(workspace, monkeypatch):
    monkeypatch.setattr("core.record.lock.LOOK_SECONDS", 0.1)
    workspace.private.mkdir(parents=True)
    lock = Lock(workspace.private / "check.lock")
    lock.acquire()
    try:
        with pytest.raises(ProblemsError):
            check(workspace)
    finally:
        lock.release()


@pytest.mark.slow
def test_an_outputs_folder_that_cannot_be_made_stops_nothing(tmp_path):
    (tmp_path / "file").write_text("in the way")
    report = check(Workspace(tmp_path / "file" / "outputs"), ["tells"])
    assert by_name(report)["tells"]["state"] == "ok"


def test_a_process_that_does_not_start_fails_each_item_and_the_report_comes(workspace):
    items = [item for item in ITEMS if item.name in ("tells", "prints")]
    report = run_check(workspace, "cpu", items=items, worker=[sys.executable, "-c", "import no_such_module"])
    assert [line["state"] for line in report["items"]] == ["failed", "failed"]
    assert "no_such_module" in report["items"][0]["traceback"]
