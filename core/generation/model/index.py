"""What the model files of a machine are, kept in outputs/.atelier/models.json by size and time, so that a header is read once."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from core.dataset.sources.files import printable
from core.formats import detect
from core.formats.lora.metadata import trigger_words
from core.formats.lora.recognition import ranks_of
from core.formats.tensors.header import read_header
from core.record.atomic import write_json
from core.record.bounded_json import read_json_object
from core.record.problems import ProblemsError
from core.record.workspace import PROJECT, Workspace

FILE = "models.json"
UNREADABLE = "unreadable"
SHOWN_REASON, LONGEST_ALIAS = 100, 200
OF_FOLDER = ("model_index.json", "config.json")  # which tell what is in a diffusers folder: of a whole model, of a part
WEIGHTS = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")
BESIDE = tuple(f"{mark}{suffix}" for mark in ("", ".preview") for suffix in (".png", ".jpg", ".jpeg", ".webp"))
DETECTION = ("formats", "networks/kinds", "families")  # folders of core/ that say what a file is


@dataclass(frozen=True)
class FileFacts:
    """What is known of a file or folder.

    kind, family, variant, network, evidence    as `detect.ModelKind` has them; the kind "unreadable" has the problem in a few words
    rank    of a LoRA-like file, the largest if its layers differ     conv_rank   of its 3x3 convolutions, where it is another
    words   of one, trigger words and frequent tags, the likeliest first     alias   of a LoRA, by which A1111's prompts name it
    """

    kind: str
    family: str | None = None
    variant: str | None = None
    network: str | None = None
    offered: bool = True
    problem: str = ""
    evidence: str = ""
    rank: int | None = None
    conv_rank: int | None = None
    words: tuple[str, ...] = ()
    alias: str = ""

    def as_kind(self) -> detect.ModelKind:
        """What checks of files ask, without reading the file again."""
        variant, network = self.variant, self.network
        return detect.ModelKind(self.kind, self.family, "", None, self.evidence, variant, network=network)


GONE = FileFacts(UNREADABLE, problem="it no longer exists, or is a broken link")
State = tuple[int, int]  # size, time of change in ns
_known: dict[str, tuple[State, FileFacts]] = {}
_loaded: set[Path] = set()
_unsaved: set[str] = set()
_lock = threading.Lock()


def facts_of_file(path: Path) -> FileFacts:
    """What a model file or diffusers folder is, read again only when it has changed. Never raises: one bad file hides no others."""
    try:
        there = next((file for name in OF_FOLDER if (file := path / name).is_file()), path).stat()
    except (OSError, ValueError):
        return GONE
    name, state = str(path), (there.st_size, there.st_mtime_ns)
    known = _known.get(name)
    if known is not None and known[0] == state:
        return known[1]
    found = _read(path)
    with _lock:
        _known[name] = (state, found)
        _unsaved.add(name)
    return found


def _read(path: Path) -> FileFacts:
    try:
        return _found(path)
    except ProblemsError as error:
        return FileFacts(UNREADABLE, problem=_short(error.problems[0].what))
    except Exception as error:
        return FileFacts(UNREADABLE, problem=type(error).__name__)


def _found(path: Path) -> FileFacts:
    """Reads the header once. Raises ProblemsError."""
    if path.is_dir():
        found = detect.identify(path)
        return _facts(found)
    tensors, metadata = read_header(path)
    found = detect.identify_header(tensors, metadata)
    rank, conv_rank = ranks_of(tensors, found.network, metadata)
    words = trigger_words(path, metadata) if found.kind == "lora" else ()
    alias = metadata.get("ss_output_name", "")[:LONGEST_ALIAS] if found.kind == "lora" else ""
    return replace(_facts(found), rank=rank, conv_rank=conv_rank, words=words, alias=alias)


def _facts(found: detect.ModelKind) -> FileFacts:
    return FileFacts(found.kind, found.family, found.variant, found.network, found.offered, evidence=found.evidence)


def preview_of(path: Path, workspace: Workspace) -> Path | None:
    """The preview image next to a file, as in A1111 and ComfyUI (name.png, name.preview.png ...), else the first prompt's newest
    sample of its run. Looked for anew: images come and go without a change of the file."""
    stem = path.name.removesuffix(path.suffix) if path.suffix.lower() in WEIGHTS else path.name
    beside = next((file for end in BESIDE if (file := path.with_name(stem + end)).is_file()), None)
    if beside is not None or path.parent.name != "checkpoints" or not path.is_relative_to(workspace.runs):
        return beside
    try:
        samples = sorted(
            entry.name for entry in os.scandir(path.parent.parent / "samples") if entry.name.endswith(".png")
        )
    except OSError:
        return None
    newest = samples[-1].rpartition("_")[0] if samples else ""
    first = next((name for name in samples if name.startswith(f"{newest}_")), None)
    return path.parent.parent / "samples" / first if first else None


def _short(text: str) -> str:
    return text if len(text) <= SHOWN_REASON else text[:SHOWN_REASON] + " ..."


@contextmanager
def kept_index(workspace: Workspace) -> Iterator[None]:
    """What was found before is known inside; what is found is saved at the end. A file that cannot be read or written is no error."""
    file = workspace.private / FILE
    with _lock:
        if file not in _loaded:
            _loaded.add(file)
            _load(file)
    yield
    with _lock:
        below = tuple(f"{root}{os.sep}" for root in (workspace.models, workspace.outputs))
        news = {name for name in _unsaved if name.startswith(below)}
        if news and workspace.outputs.is_dir():
            _unsaved.difference_update(news)
            _save(file, below)


def _load(file: Path) -> None:
    with suppress(ProblemsError, OSError):
        kept = read_json_object(file)
        files = kept.get("files")
        if kept.get("detection") != _detection() or not isinstance(files, dict):
            return
        for name, entry in files.items():
            with suppress(TypeError, ValueError, KeyError):
                size, changed = entry["state"]
                _known.setdefault(name, ((int(size), int(changed)), _checker().validate_python(entry["facts"])))


def _save(file: Path, below: tuple[str, ...]) -> None:
    """Damaged files and folders are left out: they are read anew, since their parts may change unseen. So are names that are no text."""
    sound = {
        name: {"state": list(state), "facts": asdict(facts)}
        for name, (state, facts) in _known.items()
        if name.startswith(below) and facts.kind != UNREADABLE and printable(name) == name and os.path.isfile(name)
    }
    with suppress(OSError, ProblemsError):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, {"detection": _detection(), "files": sound})


@cache
def _checker() -> TypeAdapter[FileFacts]:
    return TypeAdapter(FileFacts)


@cache
def _detection() -> list[Any]:
    """Changes with the code that detects files, and with what packages have registered: what it found before is then found anew."""
    sources = [path.stat() for name in DETECTION for path in sorted((PROJECT / "core" / name).rglob("*.py"))]
    registered = [getattr(each, "__qualname__", "") for each in (*detect.RECOGNIZERS, *detect.FOLDER_RECOGNIZERS)]
    kept = [field.name for field in fields(FileFacts)]
    return [max(each.st_mtime_ns for each in sources), sum(each.st_size for each in sources), registered, kept]
