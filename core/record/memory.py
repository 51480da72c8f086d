"""When memory runs out: how it shows, and how it is given back."""

from __future__ import annotations

import gc
import sys
from contextlib import suppress

from core.record.heap import give_back


def is_out_of_memory(error: BaseException) -> bool:
    """torch's and Python's ways of saying it."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    text = str(error).lower()  # an AcceleratorError too: "an illegal memory access" is another thing
    return isinstance(error, RuntimeError) and (
        "out of memory" in text
        or "can't allocate memory" in text
        or "not enough memory" in text
        or "_status_alloc_failed" in text  # cuBLAS and cuDNN have their own words
    )


def free_memory() -> None:
    """Give back what nothing holds any more: frames first, then the device's cache."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        # After a poisoning error this raises it once more, which must not hide how the job ended.
        with suppress(RuntimeError):
            torch.cuda.empty_cache()
    give_back()
