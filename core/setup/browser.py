"""Finds the Chromium used by the page's tests, and installs Debian's if possible."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "msedge")
LOCATIONS = (
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
    r"C:\Program Files\Google\Chrome\Application\chrome.exe",
    r"C:\Program Files (x86)\Google\Chrome\Application\chrome.exe",
    r"C:\Program Files (x86)\Microsoft\Edge\Application\msedge.exe",
)
MISSING = (
    "the tests of the page need Chromium or Chrome, but none was found: install one (on Debian and Ubuntu: "
    "sudo apt install chromium), or set ATELIER_BROWSER to its path."
)


def find_browser() -> str | None:
    """Return the path of Chromium, Chrome or Edge; None if there is none. If ATELIER_BROWSER is set, only that program is looked for."""
    named = os.environ.get("ATELIER_BROWSER")
    if named:
        return shutil.which(named)
    paths = (shutil.which(name) for name in NAMES)
    return next((path for path in paths if path), None) or next(
        (location for location in LOCATIONS if Path(location).exists()), None
    )


def install_browser() -> None:
    """Install Debian's Chromium and a font (needed to render text). Does nothing unless run as root with apt-get."""
    if sys.platform == "win32" or os.geteuid() != 0 or shutil.which("apt-get") is None:
        return
    quiet = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    packages = ["chromium", "fonts-liberation"]
    for command in (["apt-get", "update"], ["apt-get", "install", "-y", "--no-install-recommends", *packages]):
        subprocess.run(command, env=quiet, stdin=subprocess.DEVNULL, stdout=sys.stderr, check=False)
