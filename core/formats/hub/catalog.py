"""The base models and VAEs that are offered by name (catalog.json), and where they are on this machine."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter

from core.formats.detect import FAMILY_NAMES
from core.formats.hub.fetch import partial_bytes
from core.record import atomic
from core.record.bounded_json import read_json_object
from core.record.problems import ProblemsError

OPEN_RAIL = (
    "Use, sharing and changes are allowed, also commercially; the use restrictions of the license apply to every model trained from "
    "it and must be passed on with it."
)
ALLOWS = {  # by `Entry.license`, in short; the license itself decides
    "CreativeML Open RAIL-M": OPEN_RAIL,
    "CreativeML Open RAIL++-M": OPEN_RAIL,
    "Fair AI Public License 1.0-SD": "Use, sharing and changes are allowed, also commercially; a model trained from it must be shared "
    "under the same license with its sources, also when it only runs as a service, and its use restrictions are passed on.",
    "MIT": "Nearly everything is allowed, as long as the license text goes with it.",
}
RECORD = ".downloads.json"  # under models/: each downloaded file's source and hash


@dataclass(frozen=True)
class Entry:
    """A model file offered for download.

    use        the setting it is a value of                 family   a key of detect.FAMILY_NAMES
    size       bytes                                       place    path below models/
    revision   the commit of the hub repository, or a branch if the commit is unknown (`sha256` identifies the bytes)
    names      spellings that users type, lower case without punctuation
    gone       repositories that used to have the file and no longer exist
    needs      {setting: value} that its model card requires for training
    unverified "license", "revision" or "author", if not confirmed on the author's own pages
    """

    id: str
    title: str
    use: Literal["base_model", "vae"]
    family: str
    purpose: str
    size: int
    license: str
    license_url: str
    repository: str
    file: str
    revision: str
    sha256: str
    place: str
    names: tuple[str, ...] = ()
    gone: tuple[str, ...] = ()
    needs: Mapping[str, Any] = field(default_factory=dict)
    unverified: tuple[str, ...] = ()

    @property
    def page(self) -> str:
        """The hub's web page of the repository."""
        return f"https://huggingface.co/{self.repository}"


ENTRIES = TypeAdapter(tuple[Entry, ...]).validate_json(Path(__file__).with_name("catalog.json").read_bytes())


def named(text: str) -> Entry | None:
    """Return the entry that a user's text means, or None: one of its names ("sd1.5"), its file name, or a repository that no longer
    exists."""
    name = text.strip()
    plain = re.sub(r"[^a-z0-9]", "", name.lower().removesuffix(".safetensors"))
    for entry in ENTRIES:
        file = re.sub(r"[^a-z0-9]", "", entry.file.removesuffix(".safetensors").lower())
        if name in entry.gone or ("/" not in name and plain in (*entry.names, file)):
            return entry
    return None


def of_hub(repository: str, file: str | None) -> Entry | None:
    """Return the entry of a file in a hub repository, or None. A repository that no longer exists matches with any `file`."""
    return next(
        (each for each in ENTRIES if repository in each.gone or (each.repository, each.file) == (repository, file)),
        None,
    )


def of_sha256(digest: str) -> Entry | None:
    """Return the entry whose file has this SHA-256 (64 hex digits), or None."""
    return next((each for each in ENTRIES if each.sha256 == digest), None)


def known_names() -> str:
    """Return the ids of all base models, separated by commas, for messages."""
    return ", ".join(entry.id for entry in ENTRIES if entry.use == "base_model")


def target(entry: Entry, models: Path) -> Path:
    """Return the path that the entry's file is downloaded to."""
    return models / entry.place


def installed_path(entry: Entry, models: Path) -> Path | None:
    """Return the path of an entry's complete file on this machine; None without one.

    Looks at the download target, the repository's folder, models/ and its direct subfolders. A file is complete if its size is that of the
    entry, or that of a recorded download with the entry's hash.
    """
    owner, name = entry.repository.split("/")
    paths = [target(entry, models), models / f"{owner}--{name}" / entry.file, models / name / entry.file]
    paths += [models / entry.file, *sorted(models.glob(f"*/{entry.file}"))]
    fetched = recorded(models)
    for path in paths:
        facts = fetched.get(_name(path, models), {})
        sizes = {entry.size} | ({facts.get("size")} if facts.get("sha256") == entry.sha256 else set())
        if _size(path) in sizes:
            return path
    return None


def state(entry: Entry, models: Path) -> dict[str, Any]:
    """Return an entry's facts for the page.

    id, title, use, purpose, size, license, license_url, page   as in the entry
    family       its name as on the page
    unverified   which of "license", "revision", "author" are not confirmed on the author's own pages
    source       "repository/file"
    found        path on this machine; None if it is not installed
    have         bytes of a partial download; 0 if it is installed
    """
    path = installed_path(entry, models)
    return {
        "id": entry.id,
        "title": entry.title,
        "use": entry.use,
        "purpose": entry.purpose,
        "family": FAMILY_NAMES[entry.family],
        "unverified": list(entry.unverified),
        "size": entry.size,
        "license": entry.license,
        "license_url": entry.license_url,
        "source": f"{entry.repository}/{entry.file}",
        "page": entry.page,
        "found": path,
        "have": 0 if path else partial_bytes(target(entry, models)),
    }


def _size(path: Path) -> int | None:
    """Return the size of a file in bytes; None if it is missing or unreadable."""
    try:
        return path.stat().st_size if path.is_file() else None
    except OSError:
        return None


# ---- downloaded files ----


def recorded(models: Path) -> dict[str, dict[str, Any]]:
    """Return the recorded single-file downloads: {path below models/: {"source", "sha256", "size"}}, with "query" for some links."""
    try:
        facts = read_json_object(models / RECORD)
    except ProblemsError:
        return {}
    return {name: each for name, each in facts.items() if isinstance(each, dict)}


def record(path: Path, models: Path, source: str, sha256: str, query: str = "") -> None:
    """Record the source and SHA-256 of a downloaded file.
    query: hash of the link's query string (`Link.query`); "" without one"""
    facts = {"source": source, "sha256": sha256, "size": path.stat().st_size} | ({"query": query} if query else {})
    atomic.write_json(models / RECORD, recorded(models) | {_name(path, models): facts})


def _name(path: Path, models: Path) -> str:
    """Return the path of a file below models/ with forward slashes, its key in the record of downloads."""
    return path.relative_to(models).as_posix()
