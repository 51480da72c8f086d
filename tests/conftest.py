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
