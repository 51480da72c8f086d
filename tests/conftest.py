"""What tests of several folders share."""

import argparse
import gc
import os
import shutil
import sqlite3
import tempfile
from contextlib import suppress

import hypothesis

# One thread: the models here are small, and two threads that wait for each other stall next to any busy neighbor.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# No key of the person who runs the tests is used, and nothing is written next to them.
os.environ["ATELIER_KEYS"] = os.path.join(tempfile.gettempdir(), "atelier-tests", "keys.json")

import pytest

from tests import selection

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


def _slice(text):
    try:
        return selection.slice_of(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def pytest_addoption(parser):
    parser.addoption("--all", action="store_true", help="the tests that are marked slow too")
    parser.addoption(
        "--slice",
        type=_slice,
        metavar="N/M",
        help="the Nth of M slices of the slow tests too, or today: another of 21 each day",
    )


def pytest_collection_modifyitems(config, items):
    asked = config.getoption("--all"), config.getoption("--slice"), config.args
    listed = selection.listed()
    if config.args == ["tests"]:
        config.stash[selection.GONE] = listed - {item.nodeid for item in items}
    kept, left = [], []
    for item in items:
        slow = item.get_closest_marker("slow") is not None or item.nodeid in listed
        (kept if selection.runs(item.nodeid, slow, *asked) else left).append(item)
    items[:] = sorted(kept, key=lambda item: selection.place(item.nodeid))
    if left:
        config.hook.pytest_deselected(items=left)


def pytest_collection_finish():
    """The libraries' half a million objects are no garbage: a collection that looks through them takes half a second."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def sd15(tmp_path_factory):
    """(folder, file): a model of exactly SD 1.5's architecture, random numbers, in both forms. Removed afterwards: 4 GB."""
    from tests.models import random_sd15

    root = tmp_path_factory.mktemp("sd15")
    yield random_sd15(root / "folder", root / "model.safetensors")
    shutil.rmtree(root)
