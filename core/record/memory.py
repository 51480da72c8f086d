"""Out-of-memory errors: how to recognize them, and how to free memory."""

from __future__ import annotations

import gc
import sys
from contextlib import suppress

from core.record.heap import give_back


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch or Python ran out of memory."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    text = str(error).lower()  # also of an AcceleratorError, where "an illegal memory access" is something else
    return isinstance(error, RuntimeError) and (
        "out of memory" in text
        or "can't allocate memory" in text
        or "not enough memory" in text
        or "_status_alloc_failed" in text  # cuBLAS and cuDNN have their own words
    )


def free_memory() -> None:
    """Free unused memory: frames of tracebacks first, then the device's cache."""
    gc.collect()
    torch = sys.modules.get("torch")
    # RuntimeError: after a sticky CUDA error this raises again, which must not hide how the job ended.
    # AttributeError: another thread is still importing torch.
    with suppress(RuntimeError, AttributeError):
        if torch is not None and torch.cuda.is_available():
            torch.cuda.empty_cache()
    give_back()
