"""A launched process ends when the one that launched it, or the page behind it, is killed."""

import os
import subprocess
import sys
import time

import psutil
import pytest

from core.record import processes
from core.record.processes import LAUNCHED, SUPERVISED

WORKER = "from core.record.processes import end_with_launcher; end_with_launcher(); print('up', flush=True); import time; time.sleep(600)"
LAUNCHER = f"import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', {WORKER!r}]); print(p.pid, flush=True); p.wait()"


def started(code, **environment):
    return subprocess.Popen(
        [sys.executable, "-c", code], env=os.environ | environment, stdout=subprocess.PIPE, text=True
    )


def ends(process, seconds):
    end = time.monotonic() + seconds
    while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


@pytest.mark.parametrize("launched", [True, False])
def test_a_worker_ends_when_its_launcher_is_killed_unless_it_was_started_by_hand(launched):
    launcher = started(LAUNCHER, **({LAUNCHED: "1"} if launched else {}))
    worker = psutil.Process(int(launcher.stdout.readline()))
    try:
        assert launcher.stdout.readline() == "up\n"
        launcher.kill()
        launcher.wait()
        assert ends(worker, 60 if launched else 1.5) == launched
    finally:
        launcher.stdout.close()
        if worker.is_running():
            worker.kill()


def test_a_worker_ends_when_the_page_is_killed_that_had_it_launched():
    page = started("import time; time.sleep(600)")
    worker = started(WORKER, **{SUPERVISED: str(page.pid)})
    try:
        assert worker.stdout.readline() == "up\n"
        page.kill()  # not waited for: it stays as a zombie, which counts as gone
        assert worker.wait(60) == 1
    finally:
        page.wait()
        for each in (page, worker):
            each.stdout.close()
            if each.poll() is None:
                each.kill()


def test_a_process_that_sees_another_one_gone_ends_too_if_their_launcher_is(monkeypatch):
    ended = []
    monkeypatch.setattr(processes, "_end", lambda: ended.append(1))
    for launcher, result in ((psutil.Process(), []), (None, [1])):
        monkeypatch.setattr(processes, "_launchers", [psutil.Process(), launcher])
        processes.end_if_launcher_gone()
        assert ended == result
