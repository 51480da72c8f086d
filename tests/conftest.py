"""What tests of several folders share."""

import shutil

import pytest


@pytest.fixture(scope="session")
def sd15(tmp_path_factory):
    """(folder, file): a model of exactly SD 1.5's architecture, random numbers, in both forms. Removed afterwards: 4 GB."""
    from tests.models import random_sd15

    root = tmp_path_factory.mktemp("sd15")
    yield random_sd15(root / "folder", root / "model.safetensors")
    shutil.rmtree(root)
