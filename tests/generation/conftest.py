"""The starter, loaded once for all tests that only read it."""

import pytest

from core.families import family
from core.generation.model.store import make_store
from core.record.workspace import PROJECT


@pytest.fixture(scope="session")
def store():
    """A store that keeps what it loads: a test that counts what is loaded makes its own."""
    return make_store()


@pytest.fixture(scope="session")
def starter():
    """The starter's components, which no test changes for good."""
    return family("sd1").load(PROJECT / "models" / "starter")
