"""What the caches of masks and control images share: entries made of a file that goes with an image, named by its content."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from core.dataset.caches.contents import file_hashes
from core.dataset.caches.files import FLOATS, Shapes, Warn, file_of, read_tensors, tell_damaged, write_tensors
from core.dataset.images.opening import BrokenImage, problem_of
from core.dataset.sources.walk import file_at
from core.record.problems import Problem, ProblemsError
from core.record.space import require_space

if TYPE_CHECKING:
    from torch import Tensor

    from core.dataset.buckets.batches import Placed

Check = Callable[[], None]


class PartnerCache(ABC):
    """Entries of the masks or control images of images.

    folder   the cache folder                memo_path   cached hashes of files
    writes   False: nothing is written       warn        told of damaged entries, which are made again

    A failed write, or too little space for one, ends the writing and nothing else: `unwritten` is then the problem.
    """

    dtypes: Sequence[str] = FLOATS  # of an entry's tensors
    fix = "free some space, or start with --outputs on another disk"

    def __init__(
        self,
        folder: Path | str,
        memo_path: Path | str | None = None,
        *,
        writes: bool = True,
        warn: Warn | None = None,
    ):
        self.unwritten: Problem | None = None
        self._folder, self._memo_path, self._writes, self._warn = Path(folder), memo_path, writes, warn
        self._damaged: list[Path] = []

    @abstractmethod
    def _source(self, placed: Placed) -> Path:
        """The file that an entry is made of."""

    @abstractmethod
    def _key(self, placed: Placed, content: str) -> str:
        """Of an entry. content: hash of its file."""

    @abstractmethod
    def _shapes(self, placed: Placed) -> Shapes: ...

    @abstractmethod
    def _make(self, placed: Placed) -> dict[str, Tensor]:
        """An entry's tensors. Raises BrokenImage for a file that cannot be read."""

    def _entries(
        self,
        items: Sequence[Placed],
        threads: int,
        check: Check | None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Iterator[tuple[Placed, Path, dict[str, Tensor]]]:
        """Each item with its entry, read or made by `threads` threads. Raises ProblemsError at the end with every file that
        cannot be read."""
        files, problems, done = self._files(items, check), list[Problem](), 0
        remaining = iter(zip(items, files, strict=True))
        with ThreadPoolExecutor(max(1, threads)) as pool:
            while part := list(islice(remaining, 8 * threads)):
                if check:
                    check()
                for (placed, path), found in zip(part, pool.map(lambda pair: self._entry(*pair), part), strict=True):
                    if isinstance(found, BrokenImage):
                        problems.append(problem_of(placed.image.path, found))
                    else:
                        yield placed, path, found
                done += len(part)
                if progress:
                    progress(done, len(items))
        tell_damaged(self._damaged, self._warn)
        if problems:
            raise ProblemsError(problems)

    def _entry(self, placed: Placed, path: Path) -> dict[str, Tensor] | BrokenImage:
        tensors = read_tensors(path, self._shapes(placed), self._damaged, self.dtypes)
        if tensors is not None:
            return tensors
        try:
            tensors = self._make(placed)
        except BrokenImage as error:
            return error
        if self._writes:
            self._write(path, tensors)
        return tensors

    def _write(self, path: Path, tensors: dict[str, Tensor]) -> None:
        try:
            require_space(self._folder, sum(each.nbytes for each in tensors.values()), "A cache entry", self.fix)
            write_tensors(path, tensors)
        except ProblemsError as error:
            self._writes, self.unwritten = False, error.problems[0]

    def _files(self, items: Sequence[Placed], check: Check | None) -> list[Path]:
        sources = {path: file_at(path, path.name) for path in map(self._source, items)}
        gone = [problem_of(path, BrokenImage(file.gone)) for path, file in sources.items() if file.gone]
        if gone:
            raise ProblemsError(gone)
        hashes = file_hashes(list(sources.values()), self._memo_path, check)
        return [file_of(self._folder, self._key(placed, hashes[self._source(placed)])) for placed in items]
