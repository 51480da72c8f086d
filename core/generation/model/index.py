"""Facts about model files from their headers, cached in outputs/.atelier/models.json by size and modification time."""

import os
import stat
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
from core.record.file_titles import file_stem, is_average
from core.record.problems import ProblemsError
from core.record.stamps import Stamp, stamp, stamp_of, stamp_of_files
from core.record.workspace import PROJECT, Workspace

FILE = "models.json"
UNREADABLE = "unreadable"
MAX_REASON, MAX_ALIAS = 100, 200  # characters
FOLDER_CONFIGS = ("model_index.json", "config.json")  # that describe a diffusers folder: of a model, of a part
PREVIEWS = tuple(f"{mark}{suffix}" for mark in ("", ".preview") for suffix in (".png", ".jpg", ".jpeg", ".webp"))
DETECTION = ("formats", "networks/kinds", "families")  # folders of core/ that detect files


@dataclass(frozen=True)
class FileFacts:
    """Facts about a model file or diffusers folder, from its header.

    kind, family, variant, network, offered, evidence   as in `detect.ModelKind`; kind is "unreadable" for a damaged file
    problem           why an unreadable file cannot be read, else ""
    rank, conv_rank   of LoRA and its relatives, the largest if layers differ; conv_rank of 3x3 convolutions if it differs
    words             trigger words and frequent tags of a LoRA, the likeliest first
    alias             name of a LoRA in A1111's prompts (ss_output_name)
    step              training step in the metadata
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
    step: int | None = None

    def as_kind(self) -> detect.ModelKind:
        """Return the facts as a `ModelKind`, for checks that would otherwise read the header again."""
        variant, network = self.variant, self.network
        return detect.ModelKind(self.kind, self.family, "", None, self.evidence, variant, network=network)


GONE = FileFacts(UNREADABLE, problem="it no longer exists, or is a broken link")
_cache: dict[str, tuple[Stamp, FileFacts]] = {}
_loaded: set[Path] = set()
_unsaved: set[str] = set()
_lock = threading.Lock()


def facts_of_file(path: Path) -> FileFacts:
    """Return the facts of a model file or diffusers folder, cached until it changes. Never raises: errors are in the facts."""
    try:
        name, status = str(path), os.stat(path)
        parts = (path / each for each in FOLDER_CONFIGS) if stat.S_ISDIR(status.st_mode) else ()
        config = next((part for part in parts if part.is_file()), None)
        state = stamp_of(status) if config is None else stamp(config)
    except (OSError, ValueError):
        return GONE
    cached = _cache.get(name)
    if cached is not None and cached[0] == state:
        return cached[1]
    facts, lasting = _facts_or_error(path)
    if not lasting:
        return facts
    with _lock:
        _cache[name] = (state, facts)
        _unsaved.add(name)
    return facts


def _facts_or_error(path: Path) -> tuple[FileFacts, bool]:
    """Read the facts of a file; an unreadable file has the kind "unreadable" and its error in `problem`. Return (facts, whether they hold
    until the file changes: not those of a file that cannot be opened, perhaps only while another program has it open)."""
    try:
        return _detect(path), True
    except ProblemsError as error:
        what = error.problems[0].what
        facts = FileFacts(UNREADABLE, problem=what if len(what) <= MAX_REASON else what[:MAX_REASON] + " ...")
        return facts, error.problems[0].code != "file.unreadable"
    except Exception as error:
        return FileFacts(UNREADABLE, problem=type(error).__name__), True


def _detect(path: Path) -> FileFacts:
    """Detect a file's facts from its header. Raises ProblemsError for a file that cannot be read."""
    if path.is_dir():
        return _facts(detect.identify(path))
    tensors, metadata = read_header(path)
    kind = detect.identify_header(tensors, metadata)
    rank, conv_rank = ranks_of(tensors, kind.network, metadata)
    triggers = trigger_words(path, metadata) if kind.kind == "lora" else ()
    alias = metadata.get("ss_output_name", "")[:MAX_ALIAS] if kind.kind == "lora" else ""
    saved_after = metadata.get("ss_steps", "")
    step = int(saved_after) if saved_after.isascii() and saved_after.isdecimal() and len(saved_after) < 10 else None
    return replace(_facts(kind), rank=rank, conv_rank=conv_rank, words=triggers, alias=alias, step=step)


def _facts(kind: detect.ModelKind) -> FileFacts:
    """Convert a detected kind to facts."""
    return FileFacts(kind.kind, kind.family, kind.variant, kind.network, kind.offered, evidence=kind.evidence)


def preview_of(path: Path, workspace: Workspace, step: int | None = None) -> Path | None:
    """Return the preview image of a model file, or None.

    An image next to the file, as in A1111 and ComfyUI (name.png, name.preview.png ...), else for a run's checkpoint the first
    prompt's sample at the nearest step after the first, none for an average. Not cached, since images come and go without a change of
    the file.

    step   the checkpoint's training step; None: the step in the file name, or the last one with samples
    """
    stem = file_stem(path.name)
    preview = next((file for end in PREVIEWS if (file := path.with_name(stem + end)).is_file()), None)
    is_checkpoint = path.parent.name == "checkpoints" and path.is_relative_to(workspace.runs)
    if preview is not None or not is_checkpoint or is_average(path.name):
        return preview
    folder, step_in_name = path.parent.parent / "samples", stem.rpartition("-step")[2]
    try:
        named = [entry.name.removesuffix("_00.png") for entry in os.scandir(folder) if entry.name.endswith("_00.png")]
    except OSError:
        return None
    steps = sorted(name for name in named if name.isdecimal() and int(name))
    if not steps:
        return None
    if step is None:
        step = int(step_in_name if step_in_name.isdecimal() else steps[-1])
    return folder / f"{min(steps, key=lambda name: abs(int(name) - step))}_00.png"


@contextmanager
def cached_facts(workspace: Workspace) -> Iterator[None]:
    """Context that loads the facts stored by earlier processes and stores new ones at its end. Ignores unreadable and unwritable files."""
    file = workspace.private / FILE
    with _lock:
        if file not in _loaded:
            _loaded.add(file)
            _load(file)
    yield
    with _lock:
        prefixes = tuple(f"{root}{os.sep}" for root in (workspace.models, workspace.outputs))
        unsaved = {name for name in _unsaved if name.startswith(prefixes)}
        if unsaved and workspace.outputs.is_dir():
            _unsaved.difference_update(unsaved)
            _save(file, prefixes)


def _load(file: Path) -> None:
    """Add the facts in the file to the cache, unless other code or other registered packages detected them."""
    with suppress(ProblemsError, OSError):
        stored = read_json_object(file)
        files = stored.get("files")
        if stored.get("detection") != _detection_version() or not isinstance(files, dict):
            return
        for name, entry in files.items():
            with suppress(TypeError, ValueError, KeyError):
                size, changed = entry["state"]
                _cache.setdefault(name, ((int(size), int(changed)), _facts_validator().validate_python(entry["facts"])))


def _save(file: Path, prefixes: tuple[str, ...]) -> None:
    """Write the facts of readable files below `prefixes`. Skips folders, whose parts may change unnoticed, and names not in Unicode."""
    readable = {
        name: {"state": list(state), "facts": asdict(facts)}
        for name, (state, facts) in _cache.items()
        if name.startswith(prefixes) and facts.kind != UNREADABLE and printable(name) == name and os.path.isfile(name)
    }
    with suppress(OSError, ProblemsError):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, {"detection": _detection_version(), "files": readable})


@cache
def _facts_validator() -> TypeAdapter[FileFacts]:
    return TypeAdapter(FileFacts)


@cache
def _detection_version() -> list[Any]:
    """Return a value that changes with the detection code and with registered packages; facts stored under another value are ignored."""
    sources = stamp_of_files(path for name in DETECTION for path in (PROJECT / "core" / name).rglob("*.py"))
    registered = [getattr(each, "__qualname__", "") for each in (*detect.RECOGNIZERS, *detect.FOLDER_RECOGNIZERS)]
    columns = [field.name for field in fields(FileFacts)]
    return [*sources, registered, columns]
