"""What tests of several folders share."""

import gc
import os
import shutil
import sqlite3
import tempfile
import time
from collections import Counter
from contextlib import suppress

import hypothesis

# One thread: the models here are small, and two threads that wait for each other stall next to any busy neighbor.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# No key of the person who runs the tests is used, and nothing is written next to them.
os.environ["HF_HOME"] = os.path.join(tempfile.gettempdir(), "atelier-tests")
os.environ["ATELIER_KEYS"] = os.path.join(os.environ["HF_HOME"], "keys.json")

import pytest

from tests import selection

# huggingface_hub asks the hub for this list before a process' first request, unless it is here and of today.
os.makedirs(os.environ["HF_HOME"], exist_ok=True)
with open(os.path.join(os.environ["HF_HOME"], ".agent_harnesses.json"), "w", encoding="utf-8") as listed:
    listed.write('{"harnesses": {}}')

gc.disable()  # until all tests are collected: looking through the libraries' objects again and again takes 10 seconds

hypothesis.settings.register_profile("busy", deadline=None)  # how long a case takes on a busy machine decides nothing
hypothesis.settings.load_profile("busy")

# No test cuts the power: waiting for the disk, thousands of times, only takes time.
os.fsync = lambda handle: None
os.sync = lambda: None
_connect = sqlite3.connect


def _connect_without_waiting(*where, **how):
    connection = _connect(*where, **how)
    with suppress(sqlite3.Error):  # a damaged file, or what a test puts in place of one
        connection.execute("PRAGMA synchronous = OFF")
    return connection


sqlite3.connect = _connect_without_waiting


UNFINISHED = "atelier/unfinished"  # in pytest's cache: the file where the last run of --all was cut off


def pytest_addoption(parser):
    parser.addoption("--all", action="store_true", help="the tests that are marked slow too")
    parser.addoption(
        "--from",
        dest="first_file",
        nargs="?",
        const="",
        metavar="FILE",
        help="only this test file and those after it; without FILE the one where --all was cut off",
    )
    parser.addoption("--until", type=float, metavar="SECONDS", help="no further test begins after so long")


def pytest_configure(config):
    config.pluginmanager.register(Run(config))
    worker = getattr(config, "workerinput", {}).get("workerid")
    if worker == "gw1" and config.args == config.getini("testpaths"):
        config.args = selection.backwards(config.rootpath / "tests")


def pytest_collection_modifyitems(config, items):
    everything, arguments = config.getoption("--all"), config.args
    if not any("::" in word for word in arguments) and (stale := selection.stale_cases(items)):
        raise pytest.UsageError(f"marks of slow tests name cases that are gone: {', '.join(stale[:5])}")
    kept, left = [], []
    for item in items:
        runs = everything or not selection.is_slow(item) or selection.names_a_test(arguments, item.nodeid)
        (kept if runs else left).append(item)
    if not config.getoption("--until"):  # which has them nearest first
        whole = hasattr(config, "workerinput")  # collected from both ends
        kept.sort(key=lambda item: (selection.position(item.nodeid), selection.file_of(item.nodeid) if whole else ""))
    if (first := config.getoption("first_file")) is not None:
        file = first or config.cache.get(UNFINISHED, "")
        try:
            names = selection.starting_at([item.nodeid for item in kept], file)
        except ValueError as error:
            raise pytest.UsageError(f"--from: {error}") from None
        left += kept[: -len(names)]
        kept = kept[-len(names) :]
    items[:] = kept
    if left:
        config.hook.pytest_deselected(items=left)


class Run:
    """Ends a run after its time, and keeps the file where one was cut off. With two processes each of them has one."""

    def __init__(self, config):
        self.config = config
        self.end = time.monotonic() + (config.getoption("--until") or float("inf"))
        self.left_out = []  # names of tests that were not begun
        self.files = {}  # {file: tests of it that have not ended}, in the order of the run

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item):
        if time.monotonic() < self.end:
            return None
        self.left_out.append(item.nodeid)
        return True

    def pytest_collection_finish(self, session):
        self._begin([item.nodeid for item in session.items])

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, ids):
        self._begin(ids)

    def _begin(self, names):
        if names and not self.files:
            self.files = Counter(selection.file_of(name) for name in names)

    def pytest_runtest_logreport(self, report):
        file = selection.file_of(report.nodeid)
        if report.when != "teardown" or file not in self.files:
            return
        self.files[file] -= 1
        keeps = hasattr(self.config, "cache") and not hasattr(self.config, "workerinput")
        if not self.files[file] and self.config.getoption("--all") and keeps:
            self.config.cache.set(UNFINISHED, self.unfinished())

    def unfinished(self):
        """The first file with tests that have not run; empty if all have."""
        return next((file for file, count in self.files.items() if count > 0), "")

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self):
        if hasattr(self.config, "workerinput"):
            self.config.workeroutput["left_out"] = self.left_out

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node):
        self.left_out += getattr(node, "workeroutput", {}).get("left_out", [])

    def pytest_terminal_summary(self, terminalreporter):
        if self.left_out:
            files = list(dict.fromkeys(map(selection.file_of, self.left_out)))
            terminalreporter.write_line(
                f"left out, the time is over: {len(self.left_out)} tests of {len(files)} files, from {files[0]} on"
            )
        if self.config.getoption("--all") and (file := self.unfinished()):
            terminalreporter.write_line(f"cut off: --all --from {file} runs the rest")


def pytest_collection_finish():
    """The libraries' half a million objects are no garbage: a collection that looks through them takes half a second."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)  # a fifteenth of the time of the tests is garbage collection otherwise
    gc.enable()


@pytest.fixture
def onnx_here(monkeypatch):
    """ONNX models run in this process. `monkeypatch.undo()` gives them one of their own again."""
    from tests.onnx_here import Here

    monkeypatch.setattr("core.formats.onnx.process.Worker", Here)


@pytest.fixture(scope="session")
def sd15_file(tmp_path_factory):
    """A file of exactly SD 1.5's architecture, random numbers. Removed afterwards: 2 GB."""
    from tests.models import random_sd15_file

    root = tmp_path_factory.mktemp("sd15_file")
    yield random_sd15_file(root / "model.safetensors")
    shutil.rmtree(root)


@pytest.fixture(scope="session")
def sd15(tmp_path_factory, sd15_file):
    """(folder, file): the same model in both forms."""
    from tests.models import random_sd15_folder

    root = tmp_path_factory.mktemp("sd15_folder")
    yield random_sd15_folder(root / "folder"), sd15_file
    shutil.rmtree(root)
