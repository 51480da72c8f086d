"""What the VAE sees in each picture, encoded once: on disk by content, in memory during a run.

An entry is named by everything it depends on (picture bytes, size, crop, VAE weights, type, this code), so a stale one
is never found. Mean and log-variance are kept, not a sample: each draw of an epoch makes its own.
"""

from __future__ import annotations

import shutil
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from core.dataset.buckets import LATENT_PIXELS
from core.dataset.cache_files import file_of, is_whole, key_of, read_tensors, write_tensors
from core.dataset.contents import content_hashes
from core.dataset.files import printable
from core.dataset.images import BrokenPicture, load_pixels, problem_of
from core.record import draws
from core.record.problems import Problem, ProblemsError

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from core.dataset.batches import Placed

# pixels [B, 3, H, W] float32 in [-1, 1] -> mean, logvar [B, C, H/8, W/8]
Encode = Callable[["Tensor"], "tuple[Tensor, Tensor]"]
PictureKey = tuple[str, str]

CODE_VERSION = 1  # raised when resizing, cropping or colours change
SPARE_BYTES = 200 << 20


class LatentCache:
    """Posteriors of pictures under one VAE.

    folder     where entries lie; several VAEs and datasets share it
    vae_id     hash of the VAE's weights      dtype   the type it computes in ("fp32")
    memo_path  where the hashes of picture files are remembered, so that a warm start reads no picture
    """

    def __init__(self, folder: Path | str, vae_id: str, dtype: str = "fp32", memo_path: Path | str | None = None):
        self.folder = Path(folder)
        self._identity = (vae_id, dtype)
        self._memo_path = memo_path
        self._contents: dict[tuple, str] = {}

    def missing(self, items: Sequence[Placed], check: Callable[[], None] | None = None) -> list[Placed]:
        """Those that are not on disk yet; of pictures with one content and place, the first stands for all."""
        return list(self._missing(items, check).values())

    def fill(
        self,
        items: Sequence[Placed],
        encode: Encode,
        *,
        batch_size: int = 1,
        threads: int = 2,
        retry: Encode | None = None,
        check: Callable[[], None] | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> int:
        """Encode and store those that are missing; return how many. Pictures are decoded ahead by `threads` threads.

        retry     encodes one picture again, in fp32, when the first result is not finite (fp16 VAEs overflow)
        check     called between batches; what it raises (a cancel) ends the work, finished entries stay
        progress  called with (done, all)

        ProblemsError at the end names every picture that could not be read or encoded; the others are stored.
        """
        missing = self._missing(items, check)
        files = {placed.key: path for path, placed in missing.items()}
        todo = sorted(missing.values(), key=lambda placed: placed.placement.bucket)
        self._check_room(todo)
        problems: list[Problem] = []
        done = 0
        with ThreadPoolExecutor(max(1, threads)) as decoders, ThreadPoolExecutor(1) as writer:
            store = _Store(writer, files, retry, problems)
            try:
                for batch in _batches(_decoded_ahead(todo, decoders, threads + 2 * batch_size, problems), batch_size):
                    if check:
                        check()
                    store.put([placed for placed, _ in batch], *_encode(batch, encode), batch)
                    done += len(batch)
                    if progress:
                        progress(done, len(todo))
                store.finish()
            finally:
                decoders.shutdown(wait=True, cancel_futures=True)
                writer.shutdown(wait=True)
        if problems:
            raise ProblemsError(problems)
        return done

    def load(self, items: Sequence[Placed]) -> dict[PictureKey, tuple[Tensor, Tensor]]:
        """{picture key: (mean, logvar)}, float32 [C, h, w] on the CPU; pictures of one content share tensors."""
        loaded: dict[Path, tuple[Tensor, Tensor]] = {}
        result: dict[PictureKey, tuple[Tensor, Tensor]] = {}
        for placed, path in self._files(items, None):
            if path not in loaded:
                tensors = read_tensors(path)
                if tensors is None:
                    raise ProblemsError.one(
                        "The encoded form of a picture is missing from the cache.",
                        printable(placed.picture.path),
                        "Start again: it is encoded anew.",
                    )
                loaded[path] = (tensors["mean"], tensors["logvar"])
            result[placed.key] = loaded[path]
        return result

    def _missing(self, items: Sequence[Placed], check: Callable[[], None] | None) -> dict[Path, Placed]:
        found: dict[Path, Placed] = {}
        for placed, path in self._files(items, check):
            if path not in found and not is_whole(path):
                found[path] = placed
        return found

    def _files(self, items: Sequence[Placed], check: Callable[[], None] | None) -> list[tuple[Placed, Path]]:
        """Each item with its entry. Contents are read once in the life of this object, and once ever with a memo."""
        unread = [placed.picture for placed in items if _state(placed) not in self._contents]
        hashes = content_hashes(unread, self._memo_path, check) if unread else {}
        self._contents |= {_state(placed): hashes[placed.key] for placed in items if placed.key in hashes}
        return [(placed, file_of(self.folder, self._key(placed, self._contents[_state(placed)]))) for placed in items]

    def _key(self, placed: Placed, content: str) -> str:
        where = placed.placement
        return key_of(
            "latents", CODE_VERSION, content, where.resized, where.crop, where.bucket, "as it is", *self._identity
        )

    def _check_room(self, items: Sequence[Placed]) -> None:
        need = sum(_stored_bytes(placed) for placed in items)
        self.folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.folder).free
        if items and need + SPARE_BYTES > free:
            what = f"Caching {len(items)} pictures needs {need / 2**30:.2f} GB and {free / 2**30:.2f} GB are free."
            raise ProblemsError.one(what, str(self.folder), "Free some space, or start with --outputs on another disk.")


def _state(placed: Placed) -> tuple:
    """A picture file as the scan saw it."""
    return (placed.key, placed.picture.path, placed.picture.bytes, placed.picture.mtime_ns)


def _stored_bytes(placed: Placed) -> int:
    """Mean and log-variance of 4 channels in float32."""
    width, height = placed.placement.bucket
    return width // LATENT_PIXELS * (height // LATENT_PIXELS) * 4 * 4 * 2


def _decoded_ahead(
    items: Sequence[Placed], pool: ThreadPoolExecutor, ahead: int, problems: list[Problem]
) -> Iterator[tuple[Placed, np.ndarray]]:
    """Pictures as [3, H, W], in order, at most `ahead` of them waiting; those that fail go to `problems`."""
    waiting: deque[tuple[Placed, Future]] = deque()
    remaining = iter(items)
    while True:
        while len(waiting) < ahead and (placed := next(remaining, None)) is not None:
            waiting.append((placed, pool.submit(load_pixels, placed.picture.path, placed.placement)))
        if not waiting:
            return
        placed, future = waiting.popleft()
        try:
            pixels = future.result()
        except BrokenPicture as error:
            problems.append(problem_of(placed.picture.path, error))
            continue
        yield placed, pixels


def _batches(pictures: Iterator[tuple[Placed, np.ndarray]], size: int) -> Iterator[list[tuple[Placed, np.ndarray]]]:
    """Runs of one bucket, cut to at most `size`."""
    for _, run in groupby(pictures, key=lambda each: each[0].placement.bucket):
        batch: list[tuple[Placed, np.ndarray]] = []
        for each in run:
            batch.append(each)
            if len(batch) == size:
                yield batch
                batch = []
        if batch:
            yield batch


def _encode(batch: Sequence[tuple[Placed, np.ndarray]], encode: Encode) -> tuple[Tensor, Tensor]:
    import numpy as np
    import torch

    return encode(torch.from_numpy(np.stack([pixels for _, pixels in batch])))


class _Store:
    """Takes results one batch late: reading a result waits for the device, which meanwhile has the next batch."""

    def __init__(
        self, writer: ThreadPoolExecutor, files: dict[PictureKey, Path], retry: Encode | None, problems: list[Problem]
    ):
        self._writer, self._files, self._retry, self._problems = writer, files, retry, problems
        self._late: tuple | None = None
        self._writing: deque[Future] = deque()

    def put(self, pictures: Sequence[Placed], mean: Tensor, logvar: Tensor, batch: Sequence) -> None:
        self._settle()
        self._late = (pictures, mean, logvar, batch)

    def finish(self) -> None:
        self._settle()
        while self._writing:
            self._writing.popleft().result()

    def _settle(self) -> None:
        import torch

        if self._late is None:
            return
        (pictures, mean, logvar, batch), self._late = self._late, None
        mean, logvar = mean.detach().float().cpu(), logvar.detach().float().cpu()
        for index, placed in enumerate(pictures):
            one = (mean[index], logvar[index])
            if not all(torch.isfinite(part).all() for part in one):
                one = self._again(batch[index])
            if not all(torch.isfinite(part).all() for part in one):
                self._problems.append(_not_finite(placed))
                continue
            path, tensors = self._files[placed.key], {"mean": one[0].clone(), "logvar": one[1].clone()}
            self._writing.append(self._writer.submit(write_tensors, path, tensors))
        while len(self._writing) > 64 or (self._writing and self._writing[0].done()):
            self._writing.popleft().result()  # raises what the writing met: a full disk ends the work here

    def _again(self, picture: tuple[Placed, np.ndarray]) -> tuple[Tensor, Tensor]:
        import torch

        if self._retry is None:
            return torch.tensor([torch.nan]), torch.tensor([torch.nan])
        mean, logvar = _encode([picture], self._retry)
        return mean[0].detach().float().cpu(), logvar[0].detach().float().cpu()


def _not_finite(placed: Placed) -> Problem:
    name = printable(placed.picture.relative)
    what = f"The VAE gives no finite numbers (NaN) for the picture {name}."
    return Problem(what, printable(placed.picture.path), "Remove the picture, or choose another VAE.")


def sample_latent(mean: Tensor, logvar: Tensor, seed: int, epoch: int, key: Sequence[str], repeat: int) -> Tensor:
    """One draw from a picture's posterior, float32 [C, h, w], not scaled: mean + exp(logvar / 2) * noise.

    The noise is addressed by (seed, epoch, picture, repeat) and drawn on the CPU: the same on every device. The
    log-variance is clamped as in the VAE of latent diffusion (Rombach et al. 2022, arXiv:2112.10752).
    """
    noise = draws.normal(mean.shape, seed, "latent", epoch, *key, repeat).to(mean.device, non_blocking=mean.is_cuda)
    return mean.float() + logvar.float().clamp(-30.0, 20.0).mul(0.5).exp() * noise
