"""Memory forecasts of earlier processes, stored in outputs/.atelier/forecasts.json: one takes 11 s of CPU to compute, mostly the
import of diffusers and two passes on the meta device."""

import hashlib
import sys
import threading
from contextlib import suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from core import extensions
from core.record.atomic import write_json
from core.record.bounded_json import read_json_object
from core.record.problems import ProblemsError
from core.record.stamps import stamp_of_files
from core.record.workspace import PROJECT, Workspace

FILE, MOST_STORED = "forecasts.json", 50
LIBRARIES = ("torch", "diffusers", "transformers")
_WRITING = threading.Lock()


def forecast_key(*depends: Any) -> str:
    """Return a hash of what a forecast depends on: the values by `repr`, the libraries' versions, and the code."""
    return hashlib.sha256(repr((depends, _code_stamp())).encode("utf-8", "backslashreplace")).hexdigest()


def stored_forecast(key: str, workspace: Workspace) -> dict[str, Any] | None:
    """Return the forecast that was stored with this key; None without one."""
    return _read(workspace).get(key)


def store_forecast(key: str, forecast: dict[str, Any], workspace: Workspace) -> None:
    """Store a forecast, a JSON object, with its key; only the MOST_STORED newest remain. A failed write is ignored."""
    with _WRITING, suppress(OSError, ProblemsError):
        others = {other: value for other, value in _read(workspace).items() if other != key}
        file = workspace.private / FILE
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, dict([*others.items(), (key, forecast)][-MOST_STORED:]))


def _read(workspace: Workspace) -> dict[str, dict[str, Any]]:
    """Return {key: forecast}, oldest first; {} for a missing or damaged file."""
    try:
        stored = read_json_object(workspace.private / FILE)
    except (ProblemsError, OSError):
        return {}
    return {key: value for key, value in stored.items() if isinstance(value, dict)}


@cache
def _code_stamp() -> list[Any]:
    """Return values that change with the libraries' versions, the files of core/ and the modules of extensions."""
    modules = [getattr(sys.modules.get(name), "__file__", None) for name in extensions.EXTENSIONS]
    files = {*(PROJECT / "core").rglob("*.py"), *(Path(file) for file in modules if file)}
    return [*map(version, LIBRARIES), *stamp_of_files(files)]
