"""Peak memory, recognizing out-of-memory errors, and freeing memory."""

from __future__ import annotations

import gc
import sys
import threading
from contextlib import suppress

from core.record import machine
from core.record.heap import trim_heap
from core.record.lazy_torch import torch

WATCH_SECONDS = 0.01
# In errors of torch; the last of cuBLAS and cuDNN
OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "_status_alloc_failed")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that memory ran out, in torch, its CUDA libraries or Python."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    text = str(error).lower()  # also of an AcceleratorError, where "an illegal memory access" is something else
    return isinstance(error, RuntimeError) and any(each in text for each in OUT_OF_MEMORY)


def free_memory() -> None:
    """Free unused memory: collect garbage, empty torch's cache on the GPU, return freed memory to the system."""
    gc.collect()
    torch = sys.modules.get("torch")
    # RuntimeError: after a sticky CUDA error this raises again, which must not hide how the job ended.
    # AttributeError: another thread is still importing torch.
    with suppress(RuntimeError, AttributeError):
        if torch is not None and torch.cuda.is_available():
            torch.cuda.empty_cache()
        elif torch is not None and torch.backends.mps.is_available():
            torch.mps.empty_cache()
    trim_heap()


class PeakMemory:
    """Context that measures peak memory, available as `bytes` after it ends: memory reserved by torch on CUDA, else this process's resident
    memory, read every `seconds`."""

    def __init__(self, device: str, seconds: float = WATCH_SECONDS):
        self._device, self._seconds, self.bytes = device, seconds, 0
        self._cuda = device.startswith("cuda")
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> PeakMemory:
        if self._cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self._device)
        else:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        if self._cuda:
            self.bytes = torch.cuda.max_memory_reserved(self._device)
        else:
            self._thread.join()

    def _watch(self) -> None:
        """Raise `bytes` to the process's resident memory every `seconds` until the context ends."""
        while True:
            self.bytes = max(self.bytes, machine.memory("cpu")[0])
            if self._done.wait(self._seconds):
                return
