"""The files of a generation after they are found and detected, and their hashes."""

import struct
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from core.families import family
from core.families.locate import REFINER
from core.formats.hashes import HashMemo, file_sha256, legacy_hash
from core.formats.tensors.header import read_header, sniff
from core.formats.tensors.writer import WEIGHTS_HASH
from core.generation.model.embeddings import Embedding
from core.generation.model.library import KINDS, find_all, portable_name
from core.generation.model.other_files import ControlFile
from core.record.cancel import Cancelled, CancelToken
from core.record.problems import Problem, ProblemsError, collected
from core.record.regular import open_regular
from core.record.units import count
from core.record.workspace import Workspace

TENSORS = "tensors sha256"  # purpose in the memo
MAX_HASHED_BYTES = 256 << 20  # of files whose hash is not known yet, while the page waits
_ONLY_KNOWN = CancelToken()  # ends a hash that would have to be computed
_ONLY_KNOWN.cancel()


@dataclass(frozen=True)
class HookFile:
    """A model file of a hook. bytes: its weights on the device"""

    path: Path
    bytes: int


@dataclass(frozen=True)
class Sources:
    """The files of a job, found and detected by their headers.

    family                                             of the base model
    vae                                                separate VAE; None: the model's
    loras, refiners, controls, upscalers, hook_files   {name in the settings: file}
    notes                                              advice about the files
    """

    model: Path
    family: str
    vae: Path | None
    loras: dict[str, Path]
    embeddings: list[Embedding] = field(default_factory=list)
    notes: list[Problem] = field(default_factory=list)
    refiners: dict[str, Path] = field(default_factory=dict)
    controls: dict[str, ControlFile] = field(default_factory=dict)
    upscalers: dict[str, Path] = field(default_factory=dict)
    hook_files: dict[str, HookFile] = field(default_factory=dict)


@dataclass(frozen=True)
class Hashes:
    """Hashes of a generation's files, as other programs write them, in hex.

    model        SHA-256 of the file
    loras        {portable name: SHA-256 of the tensors without the header}
    embeddings   {name in prompts: SHA-256 of the file}
    refiners     {portable name: SHA-256 of the file}
    controls     {portable name: A1111's first hash, 8 digits}
    """

    model: str = ""
    loras: dict[str, str] = field(default_factory=dict)
    embeddings: dict[str, str] = field(default_factory=dict)
    refiners: dict[str, str] = field(default_factory=dict)
    controls: dict[str, str] = field(default_factory=dict)


def file_hashes(sources: Sources, workspace: Workspace, cancel: CancelToken | None) -> Hashes:
    """Return the hashes by which other programs identify the files of a job, cached until a file changes."""
    memo = HashMemo.of(workspace)
    model = model_hash(sources.model, sources.family, memo, cancel)
    loras = {portable_name(path, workspace): lora_hash(path, memo, cancel) for path in sources.loras.values()}
    refiners = {
        portable_name(path, workspace): model_hash(path, REFINER, memo, cancel) for path in sources.refiners.values()
    }
    embeddings = {embedding.name: _whole_file_hash(embedding.path, memo, cancel) for embedding in sources.embeddings}
    nets = {net.path for net in sources.controls.values() if net.path.is_file()}
    controls = {portable_name(path, workspace): legacy_hash(path) for path in nets}
    return Hashes(model, loras, embeddings, refiners, controls)


def model_hash(path: Path, family_name: str, memo: HashMemo, cancel: CancelToken | None) -> str:
    """Return the SHA-256 of a file in hex; of a diffusers folder that of its denoiser's weights, since other programs hash no folders."""
    if path.is_dir():
        return family(family_name).digest(path, "denoiser", memo=memo, cancel=cancel)
    return _whole_file_hash(path, memo, cancel)


def lora_hash(path: Path, memo: HashMemo, cancel: CancelToken | None = None) -> str:
    """Return `tensors_sha256` of a file, from `memo` until the file changes."""
    return memo.get(TENSORS, [path], partial(tensors_sha256, path, cancel))


def tensors_sha256(path: Path, cancel: CancelToken | None = None) -> str:
    """Return the SHA-256 in hex of a safetensors file without its header: A1111's hash of a LoRA (`sshs_model_hash`).

    Edited metadata do not change it. For a pickle, the SHA-256 of the whole file.
    """
    if sniff(path) != "safetensors":
        return file_sha256(path, cancel)
    with open_regular(path) as handle:
        (header,) = struct.unpack("<Q", handle.read(8))
    return file_sha256(path, cancel, start=8 + header)


def _whole_file_hash(path: Path, memo: HashMemo, cancel: CancelToken | None) -> str:
    return memo.get("sha256", [path], partial(file_sha256, path, cancel))


@dataclass
class HashComparison:
    """Compares files with the hashes that an image states. left: bytes of files that may still be read for hashes that `memo` lacks"""

    memo: HashMemo
    left: int = MAX_HASHED_BYTES

    def is_model(self, path: Path, digest: str, family_name: str) -> bool | None:
        """Whether the `model_hash` of a model begins with `digest`; None if it is not known and the model too large to be read now."""
        return self._is(path, digest, lambda path, *rest: model_hash(path, family_name, *rest))

    def is_file(self, path: Path, digest: str) -> bool | None:
        """Whether the SHA-256 of a LoRA's or embedding's tensors, or of its whole file, begins with `digest`; True for less than 10 digits,
        which are a hash of another kind or none. None as in `is_model`; a large file is compared with the hash in its metadata."""
        if len(digest) < 10:
            return True
        same = self._is(path, digest, lora_hash, _whole_file_hash)
        return True if same is None and _stated_hash(path).startswith(digest.lower()) else same

    def _is(self, path: Path, digest: str, *hashes: Callable[[Path, HashMemo, CancelToken | None], str]) -> bool | None:
        """Return whether one of the hashes of a file or folder begins with `digest`; None if one of them is unknown, and none does."""
        same: bool | None = False
        for compute in hashes:
            try:
                value = compute(path, self.memo, _ONLY_KNOWN)
            except Cancelled:
                size = sum(file.stat().st_size for file in (path.glob("*/*") if path.is_dir() else [path]))
                if size > self.left:
                    same = None
                    continue
                self.left -= size
                value = compute(path, self.memo, None)
            if value.startswith(digest.lower()):
                return True
        return same


def file_of_image(
    kind: str, name: str, digest: str, workspace: Workspace, comparison: HashComparison
) -> tuple[Path, bool | None]:
    """Find the LoRA or embedding that an image's metadata names; return (its file, whether it is the one used for the image, None if that
    is not known).

    That is the file of this name, or of this file name in another folder. If none of them has the hash `digest`, any file in the lists with
    this hash is used, and otherwise the file of this name. Raises ProblemsError if there is neither.

    kind     "lora" or "embedding"
    digest   as in `HashComparison.is_file`
    """
    missing: list[Problem] = []
    named = collected(missing, find_all, kind, name, workspace) or []
    if named and comparison.is_file(named[0], digest):
        return named[0], True
    listed = KINDS[kind].listed(workspace)
    with suppress(ProblemsError):
        named += find_all(kind, Path(name).name, workspace, listed)
    unread: list[Path] = []
    if len(digest) >= 10:
        files = [*named, *(path for _, path in listed)]
        files.sort(key=lambda path: not _stated_hash(path).startswith(digest.lower()))
        for path in dict.fromkeys(files):
            with suppress(OSError, ProblemsError):
                if same := comparison.is_file(path, digest):
                    return path, True
                unread += [path] if same is None else []
        more = f" ({count(len(unread), 'file')} not compared with its hash: they are too large)" if unread else ""
        missing = [replace(each, fix=f"{each.fix}{more}") for each in missing]
    if not named:
        raise ProblemsError(missing)
    return named[0], None if named[0] in unread else len(digest) < 10


def _stated_hash(path: Path) -> str:
    """Return the `tensors_sha256` that a file's metadata states; "" for none."""
    with suppress(OSError, ProblemsError):
        return read_header(path)[1].get(WEIGHTS_HASH, "")
    return ""
