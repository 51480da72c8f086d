"""The files of a generation after they are found and detected, and their hashes."""

import struct
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
from core.record.cancel import CancelToken
from core.record.problems import Problem, ProblemsError, collected
from core.record.regular import open_regular
from core.record.units import count
from core.record.workspace import Workspace

TENSORS = "tensors sha256"  # purpose in the memo
MAX_SEARCHED_BYTES = 2 << 30  # of files that are hashed to find one by its hash


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
    embeddings = {
        embedding.name: memo.get("sha256", [embedding.path], partial(file_sha256, embedding.path, cancel))
        for embedding in sources.embeddings
    }
    nets = {net.path for net in sources.controls.values() if net.path.is_file()}
    controls = {portable_name(path, workspace): legacy_hash(path) for path in nets}
    return Hashes(model, loras, embeddings, refiners, controls)


def model_hash(path: Path, family_name: str, memo: HashMemo, cancel: CancelToken | None) -> str:
    """Return the SHA-256 of a file in hex; of a diffusers folder that of its denoiser's weights, since other programs hash no folders."""
    if path.is_dir():
        return family(family_name).digest(path, "denoiser", memo=memo, cancel=cancel)
    return memo.get("sha256", [path], lambda: file_sha256(path, cancel))


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


def has_hash(path: Path, digest: str, memo: HashMemo) -> bool:
    """Whether the SHA-256 of a LoRA's or embedding's tensors, or of its whole file, begins with `digest`; True for less than
    10 digits, which are a hash of another kind or none."""
    if len(digest) < 10:
        return True
    digest = digest.lower()
    whole = partial(file_sha256, path)
    return lora_hash(path, memo).startswith(digest) or memo.get("sha256", [path], whole).startswith(digest)


def file_of_image(kind: str, name: str, digest: str, workspace: Workspace, memo: HashMemo) -> tuple[Path, bool]:
    """Find the LoRA or embedding that an image's metadata names; return (its file, whether it is the one used for the image).

    That is the file of this name, or of this file name in another folder. If none of them has the hash `digest`, any file in the lists with
    this hash is used, and otherwise the file of this name with False. Raises ProblemsError if there is neither.

    kind     "lora" or "embedding"
    digest   as in `has_hash`
    memo     of hashes; of files that are not in it, at most MAX_SEARCHED_BYTES are hashed
    """
    missing: list[Problem] = []
    named = collected(missing, find_all, kind, name, workspace) or []
    if named and has_hash(named[0], digest, memo):
        return named[0], True
    listed = KINDS[kind].listed(workspace)
    with suppress(ProblemsError):
        named += find_all(kind, Path(name).name, workspace, listed)
    if len(digest) >= 10:
        by_hash, unread = _by_hash([*named, *(path for _, path in listed)], digest, memo)
        if by_hash is not None:
            return by_hash, True
        more = f" ({count(unread, 'file')} not compared with its hash: they are too large)" if unread else ""
        missing = [replace(each, fix=f"{each.fix}{more}") for each in missing]
    if not named:
        raise ProblemsError(missing)
    return named[0], len(digest) < 10


def _by_hash(files: list[Path], digest: str, memo: HashMemo) -> tuple[Path | None, int]:
    """Return (the first of the files with a hash, None if there is none; the number of files that were too large to be hashed).

    Those whose metadata states the hash are compared first."""
    stated = [path for path in files if _stated_hash(path).startswith(digest.lower())]
    budget, unread = MAX_SEARCHED_BYTES, 0
    for path in dict.fromkeys([*stated, *files]):
        with suppress(OSError, ProblemsError):
            if memo.cached(TENSORS, [path]) is None and path not in stated:
                if path.stat().st_size > budget:
                    unread += 1
                    continue
                budget -= path.stat().st_size
            if has_hash(path, digest, memo):
                return path, 0
    return None, unread


def _stated_hash(path: Path) -> str:
    """Return the `tensors_sha256` that a file's metadata states; "" for none."""
    with suppress(OSError, ProblemsError):
        return read_header(path)[1].get(WEIGHTS_HASH, "")
    return ""
