"""Writes tensors into one file with several threads, each tensor at its offset."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from typing import TYPE_CHECKING

from core.formats.tensors.chunks import ChunkedFile
from core.formats.tensors.lazy import LazyTensor
from core.record import machine
from core.record.lazy_torch import torch

if TYPE_CHECKING:
    from core.record.cancel import CancelToken

Wrote = Callable[[int], None]  # called with the bytes of each tensor that was written
MOST_THREADS, WAITING_THREADS = 6, 2


def put_tensor(
    file: ChunkedFile,
    name: str,
    tensor: LazyTensor,
    offset: int,
    observe: Callable[[memoryview], Future[None] | None] | None,
    stop: threading.Event,
) -> int:
    """Read a lazy tensor piece by piece and write it from byte `offset` on; return the bytes written, fewer if `stop` was set.

    name      for error messages
    observe   called with the bytes of each piece; may return a Future, which is awaited before the next piece
    """
    done = 0
    for piece in tensor.pieces():
        assert piece.dtype == tensor.dtype, f"{name} differs from its declaration"
        content = piece.view(torch.uint8)
        pending = observe(memoryview(content.numpy())) if observe is not None else None
        file.put(offset + done, content)
        done += len(content)
        if pending is not None:
            pending.result()  # the next piece may take the memory of this one
        if stop.is_set():
            return done
    assert done == tensor.byte_count, f"{name} differs from its declaration"
    return done


def in_threads(
    puts: Sequence[Callable[[threading.Event], int]],
    threads: int | None,
    cancel: CancelToken | None,
    wrote: Wrote | None,
) -> None:
    """Run all `puts` in threads, so that some compute while others wait for the drive. Re-raises the first error.

    puts      (an event that is set on errors) -> number of bytes written
    threads   None: as many as useful; 1: in order, in this thread
    wrote     called with the bytes of each finished put; `cancel` is checked after it
    """
    stop = threading.Event()
    if threads == 1:
        for put in puts:
            report_written(put(stop), cancel, wrote)
        return
    threads = threads or min(machine.threads() + WAITING_THREADS, MOST_THREADS)
    with one_thread_each(), ThreadPoolExecutor(threads, thread_name_prefix="write-tensors") as workers:
        try:
            for job in as_completed([workers.submit(put, stop) for put in puts]):
                report_written(job.result(), cancel, wrote)
        except BaseException:
            stop.set()
            workers.shutdown(cancel_futures=True)
            raise


def as_bytes(content: bytes) -> torch.Tensor:
    """Return a copy of `content` as a uint8 tensor."""
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)


@contextmanager
def one_thread_each() -> Iterator[None]:
    """Context manager: torch uses one thread per operation, as the threads of its pool would busy-wait for one another's."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def report_written(size: int, cancel: CancelToken | None, wrote: Wrote | None) -> None:
    """Report `size` written bytes to `wrote`, then check `cancel`; either may be None."""
    if wrote is not None:
        wrote(size)
    if cancel is not None:
        cancel.check()
