"""A job that hears no stop, as in a library's endless call, holds up neither Ctrl-C nor the end of the page."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from core import extensions, tasks
from core.engine.engine import Engine
from core.record.journal import read_lines
from core.record.workspace import PROJECT, Workspace
from core.settings.check import build
from core.settings.job import JOBS, GenerateJob, TrainJob
from tests.tabs.work_parts import wait_until
from tests.tasks import stand_in

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.name == "nt", reason="signals and /bin/sh are POSIX")]
TOY = "tests.seams.toys.stuck"


@pytest.fixture
def engine(tmp_path, monkeypatch):
    monkeypatch.setattr(extensions, "EXTENSIONS", (*extensions.EXTENSIONS, TOY))
    __import__(TOY)
    engine = Engine(Workspace(tmp_path / "outputs", tmp_path / "models", tmp_path / "presets"), "cpu", "a test")
    engine.start()
    yield engine
    engine.close(wait_seconds=0.1)
    del tasks.TASKS["stuck"]
    sys.modules.pop(TOY)


def begun(engine, identity):
    wait_until(lambda: engine.progress(identity)["run"], 60)
    run = engine.progress(identity)["run"]
    log = engine._runs.folder(run).logs / "processes.txt"
    wait_until(lambda: log.is_file() and "computing" in log.read_text(), 60)
    return run


@pytest.mark.parametrize("closes", [False, True])
def test_a_process_that_hears_no_stop_is_killed_and_its_job_stopped(engine, closes):
    identity = engine.submit("stuck", build(JOBS["stuck"], {"stuck": {"holds": True}}))
    run = begun(engine, identity)
    if closes:
        engine.close(wait_seconds=None)
    else:
        engine.cancel(identity)
        wait_until(lambda: engine.queue()[0].state != "running", 60)
    assert engine.queue()[0].state == "stopped"
    states = [line["state"] for line in read_lines(engine._runs.folder(run).journal_file) if line["kind"] == "state"]
    assert states == ["running", "stopped"] and not engine._runs.folder(run).held


@pytest.mark.parametrize(("task", "job", "waits"), [("generate", GenerateJob, False), ("train", TrainJob, True)])
def test_a_page_that_closes_waits_for_a_training_and_not_for_what_hears_no_stop(engine, monkeypatch, task, job, waits):
    released, ended = threading.Event(), threading.Event()

    def stuck(job, context):
        released.wait(60)
        ended.set()
        return "stopped"

    stand_in(monkeypatch, task, stuck)
    monkeypatch.setattr("core.engine.engine.CLOSE_SECONDS", 0.2)
    engine.submit(task, job())
    wait_until(lambda: engine.status()["job"] is not None)
    if waits:
        threading.Timer(1.0, released.set).start()
    engine.close(wait_seconds=None)
    assert ended.is_set() == waits
    released.set()
    engine._device_thread.join()


@pytest.mark.parametrize(("number", "holds"), [(signal.SIGINT, "true"), (signal.SIGTERM, "false")])
def test_a_signal_ends_a_command_that_hears_none(tmp_path, number, holds):
    code = f"from core import extensions as e; e.EXTENSIONS += ({TOY!r},)\n"
    code += "import sys; from core.cli.main import main; sys.exit(main(sys.argv[1:]))"
    words = ["stuck", "--stuck.holds", holds, "--outputs", str(tmp_path)]
    program = subprocess.Popen([sys.executable, "-c", code, *words], cwd=PROJECT, stderr=subprocess.PIPE, text=True)
    assert program.stderr is not None
    for line in program.stderr:
        if "computing" in line:
            break
    time.sleep(1)
    program.send_signal(number)
    assert program.wait(60) == -signal.SIGKILL
    program.stderr.close()
