"""`.venv/atelier.json`: what an environment was made from, so that a start checks in milliseconds whether it is current.

Kept small: this is all that runs between `./launch.sh` and the page if nothing has changed.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys

STAMP_FILE = "atelier.json"
SCHEMA = 1


def digest(path: str) -> str:
    """SHA-256 of a text file regardless of line endings: a zip made on Windows has the same requirements."""
    with open(path, "rb") as file:
        return hashlib.sha256(file.read().replace(b"\r\n", b"\n")).hexdigest()


def python_of(environment: str) -> str:
    """The environment's interpreter. Always called as `python -m ...`: its other scripts contain absolute paths."""
    parts = ("Scripts", "python.exe") if os.name == "nt" else ("bin", "python")
    return os.path.join(environment, *parts)


def read_stamp(environment: str) -> dict | None:
    """What an environment was made from; None if it is missing, incomplete or not made by this launcher."""
    try:
        with open(os.path.join(environment, STAMP_FILE), encoding="utf-8") as file:
            stamp = json.load(file)
    except (OSError, ValueError):
        return None
    is_valid = isinstance(stamp, dict) and stamp.get("schema") == SCHEMA and os.path.exists(python_of(environment))
    return stamp if is_valid else None


def write_stamp(environment: str, stamp: dict) -> None:
    """Written last: an environment without it is incomplete."""
    path = os.path.join(environment, STAMP_FILE)
    with open(path + ".tmp", "w", encoding="utf-8") as file:
        json.dump(stamp, file, indent=1)
    os.replace(path + ".tmp", path)


def python_version() -> str:
    return f"{sys.version_info[0]}.{sys.version_info[1]}"


def is_current(root: str) -> bool:
    """Whether `.venv` was made from the current requirements.txt, for this Python and the requested build."""
    stamp = read_stamp(os.path.join(root, ".venv"))
    if stamp is None:
        return False
    want = os.environ.get("ATELIER_BUILD")
    return (
        stamp["requirements"] == digest(os.path.join(root, "requirements.txt"))
        and stamp["python"] == python_version()
        and (not want or stamp["build"]["name"] == want)
    )
