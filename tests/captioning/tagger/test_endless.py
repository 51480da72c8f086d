"""A model that never answers, crashes or takes long to open is ended: it ends neither the page nor the patience."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from core.captioning.tagger.folder import ModelFiles
from core.captioning.tagger.profile import WD
from core.captioning.tagger.session import Tagger
from core.formats.onnx import process
from core.formats.onnx.file import MAX_NODES, check_onnx
from core.record.cancel import Cancelled
from core.record.workspace import PROJECT, Workspace
from core.settings.captioning.tagger import TagSettings
from tests.captioning.tagger.endless import endless_folder, idle_folder
from tests.captioning.tagger.models import images, wd_folder
from tests.refusals import refused
from tests.tasks import surroundings


@pytest.fixture
def context(tmp_path):
    return surroundings(Workspace(tmp_path / "out"))


@pytest.fixture
def started(monkeypatch):
    """The processes of the models that a test loads."""
    made = []

    class Noted(process.Worker):
        def __init__(self, *words):
            super().__init__(*words)
            made.append(self._process)

    monkeypatch.setattr(process, "Worker", Noted)
    return made


def load(folder, context):
    return Tagger(ModelFiles(WD[0], folder, True), TagSettings(), context)


@pytest.mark.slow
def test_a_model_that_never_answers_is_ended_after_its_time(tmp_path, context, started, monkeypatch):
    monkeypatch.setattr(process, "LONGEST_SECONDS", 3.0)
    with refused("tagger.no-answer", "3 seconds"):
        load(endless_folder(tmp_path / "m"), context)
    assert started[0].poll() is not None


@pytest.mark.slow
def test_a_stop_is_heard_while_a_model_never_answers(tmp_path, context, started):
    threading.Timer(2.0, context.token.cancel).start()
    begun = time.monotonic()
    with pytest.raises(Cancelled):
        load(endless_folder(tmp_path / "m"), context)
    assert time.monotonic() - begun < process.LONGEST_SECONDS / 2 and started[0].poll() is not None


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ranks processes")
def test_where_memory_runs_out_the_model_ends_before_the_page(tmp_path, context, started):
    with load(wd_folder(tmp_path / "m"), context):
        assert Path(f"/proc/{started[0].pid}/oom_score_adj").read_text() == "1000\n"


def test_a_model_that_crashes_is_an_error_and_no_end(tmp_path, context, started):
    tagger = load(wd_folder(tmp_path / "m"), context)
    os.kill(started[0].pid, signal.SIGKILL)
    with refused("tagger.no-answer"), tagger:
        tagger._run_test_image()


def test_a_file_of_many_idle_nodes_is_refused_before_a_library_opens_it(tmp_path):
    check_onnx(idle_folder(tmp_path / "few", MAX_NODES - 1) / "model.onnx")
    with refused("tagger.bad-model", f"{MAX_NODES + 1:,}"):
        check_onnx(idle_folder(tmp_path / "many", MAX_NODES) / "model.onnx")


@pytest.mark.slow
def test_a_signal_ends_the_command(tmp_path):
    folder = images(tmp_path / "set", "red")
    words = ["tag", "--dataset.folder", str(folder), "--tag.model_dir", str(endless_folder(tmp_path / "m"))]
    program = subprocess.Popen(
        [sys.executable, "webui.py", *words, "--outputs", str(tmp_path / "out")],
        cwd=PROJECT,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert program.stderr is not None
    for line in program.stderr:
        if "loading" in line:
            break
    time.sleep(3)  # the model has been opened, and its loop begun
    program.send_signal(signal.SIGTERM)
    program.stderr.read()
    assert program.wait(60) == 130
