"""The user's API keys on this machine: from the environment, else from a file that only the user can read.

Keys are never in a job, preset, run folder, log or metadata: `mask` removes them from text that is written there.
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
from core.record.stamps import cached_until_changed

# name -> environment variables; the first one set is used
NAMES = {
    "huggingface_token": ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"),
    "wandb_api_key": ("WANDB_API_KEY",),
}
FILE_VARIABLE = "ATELIER_KEYS"  # another place for the file
MASK = "***"
SHORTEST = 8  # characters: shorter keys would mask ordinary text


def keys_file() -> Path:
    """Return the path of the keys file, which is outside the project, so that copies of the project's folder do not contain it."""
    path = os.environ.get(FILE_VARIABLE)
    if path:
        return Path(path)
    base = os.environ.get("APPDATA" if os.name == "nt" else "XDG_CONFIG_HOME")
    return (Path(base) if base else Path.home() / ".config") / "atelier" / "keys.json"


def secret(name: str) -> str | None:
    """Return the key `name`, one of NAMES (KeyError for others); None if it is not set, or jobs of a shared page may not use it."""
    if not may_use_keys():
        return None
    for variable in NAMES[name]:
        if value := os.environ.get(variable, "").strip():
            return value
    return _stored().get(name) or None


def is_stored(name: str) -> bool:
    """Whether the keys file contains the key `name`; the environment is not considered."""
    return bool(_stored().get(name))


def store(name: str, value: str | None) -> None:
    """Write the key `name`, one of NAMES (ValueError for others), to the keys file; None or an empty value removes it. Raises ProblemsError
    if the file cannot be written."""
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
    """Return `text` with every key of the user replaced by MASK; keys shorter than SHORTEST stay."""
    for name in NAMES:
        for value in _values(name):
            if len(value) >= SHORTEST:
                text = text.replace(value, MASK)
    return text


def _values(name: str) -> list[str]:
    """Return all values of the key `name`: from its environment variables and the keys file."""
    values = [os.environ.get(variable, "").strip() for variable in NAMES[name]]
    return [value for value in [*values, _stored().get(name, "")] if value]


def _stored() -> dict[str, str]:
    """Return {name: key} of the keys file; {} if it cannot be read."""
    try:
        return dict(_read(keys_file()))
    except ProblemsError:
        return {}


@cached_until_changed(1, missing={})
def _read(path: Path) -> dict[str, str]:
    """Return {name: key} of the keys file at `path`. Raises ProblemsError."""
    content = read_json_object(path)
    return {name: text for name, text in content.items() if name in NAMES and isinstance(text, str)}


def _write(path: Path, keys: dict[str, str]) -> None:
    """Write the keys file atomically; at no moment can anyone but its owner read it."""
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
