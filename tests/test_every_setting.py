"""No setting of a training is without a test that sets it, among the tests of what is done with settings."""

import re
from pathlib import Path

from core.settings.base import declared
from core.settings.job import TrainJob

TESTS = Path(__file__).parent
# These are about names, checks, widgets and metadata: they would pass if nothing else were done with the value.
OF_FORMS = {"settings", "tabs", "imports", "docs", "setup", "test_lora_metadata.py"}


def test_a_test_of_what_it_does_sets_each():
    """`name=value` or `"name": value`. That the test would fail if the value were ignored is for who writes it."""
    files = [path for path in TESTS.rglob("*.py") if not OF_FORMS & set(path.relative_to(TESTS).parts)]
    files += TESTS.glob("vectors/*.json")
    text = "\n".join(path.read_text("utf-8") for path in files)
    set_somewhere = set(re.findall(r"\b(\w+)=", text)) | set(re.findall(r'"(\w+)":', text))
    missing = {entry.name for entry in declared(TrainJob)} - set_somewhere
    assert not missing, "write tests that fail if these are ignored"
