"""The Chromium that the tests of the page drive. Without one they are skipped; in CI they fail."""

import os

import pytest

from core.setup.browser import MISSING, find_browser


def browser_path() -> str:
    """Path of the browser for playwright's `executable_path`. Skips the test without one, fails it where CI is set."""
    path = find_browser()
    if path is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(MISSING)
    return path
