"""Processes in the background have a low priority, between sessions too where Linux schedules by sessions."""

from __future__ import annotations

import os
import sys

import pytest

from core.engine import child
from core.record import priority, worker
from core.record.cancel import CancelToken
from core.record.priority import AUTOGROUP, NICENESS, lower_priority
from core.record.worker import Worker

pytestmark = pytest.mark.skipif(os.name == "nt", reason="priorities of POSIX")
WORKER = """
import os
from core.record.priority import AUTOGROUP
from core.record.worker import serve_requests
serve_requests(lambda asked: {"nice": os.nice(0), "session": AUTOGROUP.read_text() if AUTOGROUP.exists() else ""})
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """What is told to the system: the steps of niceness, and the text in the file of the session."""
    nice, file = [0], tmp_path / "autogroup"

    def change(step):
        nice[0] += step
        return nice[0]

    monkeypatch.setattr(priority, "AUTOGROUP", file)
    monkeypatch.setattr(priority, "PAUSE", 0)
    monkeypatch.setattr(priority.os, "nice", change)
    return nice, file


def test_twice_is_no_lower_than_once_and_a_session_of_others_keeps_its_priority(place, monkeypatch):
    nice, file = place
    monkeypatch.setattr(priority.os, "getsid", lambda pid: os.getpid() + 1)
    for _ in range(2):
        lower_priority()
        assert nice == [NICENESS]
    assert not file.exists()
    monkeypatch.setattr(priority.os, "getsid", lambda pid: os.getpid())
    lower_priority()
    assert file.read_text() == str(NICENESS)


@pytest.mark.parametrize(("error", "tries"), [(BlockingIOError, priority.TRIES), (PermissionError, 1)])
def test_a_system_that_takes_no_priority_of_a_session_is_asked_again_only_if_it_is_busy(
    error, tries, place, monkeypatch
):
    asked = []

    class Refusing:
        def write_text(self, *given):
            asked.append(given)
            raise error

    monkeypatch.setattr(priority, "AUTOGROUP", Refusing())
    monkeypatch.setattr(priority.os, "getsid", lambda pid: os.getpid())
    lower_priority()
    assert len(asked) == tries


def test_workers_and_jobs_of_the_engine_lower_theirs_before_they_begin(monkeypatch):
    class Lowered(Exception):
        pass

    def lowered():
        raise Lowered

    for module, begin in ((worker, lambda: worker.serve_requests(dict)), (child, lambda: child.main("{}"))):
        monkeypatch.setattr(module, "lower_priority", lowered)
        with pytest.raises(Lowered):
            begin()


def test_a_worker_has_a_low_priority_and_this_process_keeps_its_own(tmp_path):
    def facts():
        return os.nice(0), AUTOGROUP.read_text() if AUTOGROUP.exists() else ""

    before = facts()
    asked = Worker([sys.executable, "-c", WORKER], tmp_path)
    try:
        found = asked.ask({}, 60, CancelToken())
    finally:
        asked.end()
    assert found["nice"] == max(NICENESS, before[0]) and facts() == before
    assert found["session"].endswith(f" nice {NICENESS}\n") or not AUTOGROUP.exists()
