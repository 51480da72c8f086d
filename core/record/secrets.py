"""Keys of the user on this machine: from the environment, else from a file that only they can read.

They are never in a job, preset, run folder, log or metadata. `mask` removes them from text that is written there.
"""

import json
import os
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

from core.record import atomic
from core.record.allowed import may_use_keys
from core.record.bounded_json import read_json_object
from core.record.problems import ProblemsError
from core.record.stamps import stamp

# name -> environment variables; the first one set is used
NAMES = {
    "huggingface_token": ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"),
    "wandb_api_key": ("WANDB_API_KEY",),
}
FILE_VARIABLE = "ATELIER_KEYS"  # another place for the file
MASK = "***"
SHORTEST = 8  # characters: shorter keys would mask ordinary text


def keys_file() -> Path:
    """Path of the keys file, outside the project, so that no copy of the project's folder contains it."""
    path = os.environ.get(FILE_VARIABLE)
    if path:
        return Path(path)
    base = os.environ.get("APPDATA" if os.name == "nt" else "XDG_CONFIG_HOME")
    return (Path(base) if base else Path.home() / ".config") / "atelier" / "keys.json"


def secret(name: str) -> str | None:
    """The key of this name; None if there is none, or if a job of a shared page may not use it."""
    if not may_use_keys():
        return None
    for variable in NAMES[name]:
        if value := os.environ.get(variable, "").strip():
            return value
    return _stored().get(name) or None


def is_stored(name: str) -> bool:
    """Whether the keys file has this key, regardless of the environment."""
    return bool(_stored().get(name))


def store(name: str, value: str | None) -> None:
    """Write a key into the file; None or empty removes it. Raises ProblemsError if the file cannot be written."""
    if name not in NAMES:
        raise ValueError(f"unknown key {name!r}")
    keys = _stored()
    keys.pop(name, None)
    if value and value.strip():
        keys[name] = value.strip()
    try:
        _write(keys_file(), keys)
    except OSError as error:
        what = f"The key could not be stored: {error.strerror or error}"
        fix = f"set the environment variable {NAMES[name][0]} instead"
        raise ProblemsError.one(what, str(keys_file()), fix, "file.unwritable") from None


def mask(text: str) -> str:
    """Return the text with every key of the user replaced by MASK."""
    for name in NAMES:
        for value in _values(name):
            if len(value) >= SHORTEST:
                text = text.replace(value, MASK)
    return text


def _values(name: str) -> list[str]:
    values = [os.environ.get(variable, "").strip() for variable in NAMES[name]]
    return [value for value in [*values, _stored().get(name, "")] if value]


def _stored() -> dict[str, str]:
    """The keys in the keys file by name, cached until it changes; {} if it cannot be read."""
    path = keys_file()
    try:
        key = (str(path), *stamp(path))
        if key not in _read:
            content = read_json_object(path)
            _read.clear()
            _read[key] = {name: text for name, text in content.items() if name in NAMES and isinstance(text, str)}
        return dict(_read[key])
    except (OSError, ProblemsError):
        return {}


_read: dict[tuple[str, int, int], dict[str, str]] = {}  # the file as last read, by path, time and size


def _write(path: Path, keys: dict[str, str]) -> None:
    """Write the keys file atomically, readable by its owner only from the first moment on."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=".tmp-", dir=path.parent)  # 0600
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(keys, file, indent=2)
            file.flush()
            os.fsync(file.fileno())
        with suppress(OSError):  # file systems without permissions
            os.chmod(name, stat.S_IRUSR | stat.S_IWUSR)
        atomic.replace(name, path)
    finally:
        atomic.remove(name)
