"""What prompts can name on this machine: LoRAs, embeddings and wildcard files."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from functools import lru_cache, partial
from pathlib import Path

from core.formats.embedding_file import read_shapes
from core.generation.library import embedding_words, find_loras, several_loras, wildcard_lines
from core.generation.prompt.analysis import Known
from core.record.problems import ProblemsError
from core.record.workspace import Workspace


def known_in(workspace: Workspace, more: Iterable[tuple[str, Path, str]] = ()) -> Known:
    """What prompts can name. more: (name, file, token) of embeddings outside models/"""
    files = partial(wildcard_lines, workspace)
    return Known(files, lambda name: several_loras(name, find_loras(name, workspace)), word_vectors(workspace, more))


def word_vectors(workspace: Workspace, more: Iterable[tuple[str, Path, str]] = ()) -> dict[str, int]:
    """{name of an embedding: its number of vectors}, unreadable files left out. more: as in `known_in`"""
    there = ((word, path, token) for word, (path, token) in embedding_words(workspace).items())
    found: dict[str, int] = {}
    for word, path, token in (*there, *more):
        with suppress(ProblemsError, OSError):
            facts = path.stat()
            found[word] = _vectors(path, token, facts.st_mtime_ns, facts.st_size)
    return found


@lru_cache(maxsize=4096)
def _vectors(path: Path, token: str, changed: int, size: int) -> int:
    return next(iter(read_shapes(path, token).values()))[0]
