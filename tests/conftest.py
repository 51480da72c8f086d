"""What tests of several folders share."""

import os
import shutil

# One thread: the models here are small, and two threads that wait for each other stall beside any busy neighbour.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest


@pytest.fixture(scope="session")
def sd15(tmp_path_factory):
    """(folder, file): a model of exactly SD 1.5's architecture, random numbers, in both forms. Removed afterwards: 4 GB."""
    from tests.models import random_sd15

    root = tmp_path_factory.mktemp("sd15")
    yield random_sd15(root / "folder", root / "model.safetensors")
    shutil.rmtree(root)


# Files that take a minute or more: begun first, so that at the end no process waits for another.
LONG = (
    "test_main_job.py",
    "test_page_whole.py",
    "test_processes.py",
    "test_sharding.py",
    "test_on_a_card.py",
    "test_sd15_training.py",
    "test_resume_matrix.py",
    "test_train_command.py",
    "test_page_monitor.py",
    "test_sd15_real_size.py",
)


def pytest_collection_modifyitems(items):
    """Long files first; the order of all others, and within a file, stays."""
    items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))
