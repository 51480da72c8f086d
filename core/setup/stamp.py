"""Stamp of an environment, `.venv/atelier.json`: the inputs it was made from, to check quickly whether it is current.

Kept small: nothing else runs between `./launch.sh` and the page if nothing has changed.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys

STAMP_FILE = "atelier.json"
SCHEMA = 1


def digest(path: str) -> str:
    """Return the SHA-256 of a text file, the same for LF and CRLF line endings."""
    with open(path, "rb") as file:
        return hashlib.sha256(file.read().replace(b"\r\n", b"\n")).hexdigest()


def python_of(environment: str) -> str:
    """Return the path of the environment's interpreter. Packages are run as `python -m ...`, since scripts contain absolute paths."""
    parts = ("Scripts", "python.exe") if os.name == "nt" else ("bin", "python")
    return os.path.join(environment, *parts)


def read_stamp(environment: str) -> dict | None:
    """Return the stamp of an environment, see `stamp_for` in environment.py; None if that is missing, incomplete or of another format."""
    try:
        with open(os.path.join(environment, STAMP_FILE), encoding="utf-8") as file:
            stamp = json.load(file)
    except (OSError, ValueError):
        return None
    is_valid = isinstance(stamp, dict) and stamp.get("schema") == SCHEMA and os.path.exists(python_of(environment))
    return stamp if is_valid else None


def write_stamp(environment: str, stamp: dict) -> None:
    """Write the stamp of an environment atomically. Call it last: an environment without a stamp counts as incomplete."""
    path = os.path.join(environment, STAMP_FILE)
    with open(path + ".tmp", "w", encoding="utf-8") as file:
        json.dump(stamp, file, indent=1)
    os.replace(path + ".tmp", path)


def python_version() -> str:
    """Return the running Python's major and minor version, "3.11"."""
    return f"{sys.version_info[0]}.{sys.version_info[1]}"


def is_current(root: str) -> bool:
    """Return whether `.venv` was made from the current requirements.txt, by this Python version, with the build of ATELIER_BUILD."""
    stamp = read_stamp(os.path.join(root, ".venv"))
    if stamp is None:
        return False
    requested = os.environ.get("ATELIER_BUILD")
    return (
        stamp["requirements"] == digest(os.path.join(root, "requirements.txt"))
        and stamp["python"] == python_version()
        and (not requested or stamp["build"]["name"] == requested)
    )
