"""Contexts that speed up importing diffusers and transformers, which takes several seconds."""

import logging
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from core.record.heap import freeze_gc, without_gc

AVAILABLE = "_bitsandbytes_available"  # in diffusers.utils.import_utils
WHOLE_LIBRARY = 200  # modules: no model is in memory before they are imported

# Two threads that import packages with circular imports break each other: one finds a module half initialized, or missing.
_one_at_a_time = threading.RLock()


@contextmanager
def quick_thread_switches() -> Iterator[None]:
    """Context manager: threads switch every 0.2 ms, since at the usual 5 ms a thread that reads weights mostly waits for imports."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(0.0002)
    try:
        yield
    finally:
        sys.setswitchinterval(usual)


@contextmanager
def quick_imports() -> Iterator[None]:
    """Context manager: imports are a fifth faster, without garbage collection, and bitsandbytes logs no warning. One thread at a time."""
    with _one_at_a_time:
        remarks = logging.getLogger("bitsandbytes")
        level = remarks.level
        remarks.setLevel(logging.ERROR)
        try:
            known = len(sys.modules)
            with without_gc():
                yield
            if len(sys.modules) - known > WHOLE_LIBRARY:
                freeze_gc()
        finally:
            remarks.setLevel(level)


@contextmanager
def without_bitsandbytes() -> Iterator[None]:
    """Context manager: diffusers imports its models without bitsandbytes, which would import torch's compiler for seconds.

    diffusers needs it only for quantized models, which are not used here; an optimizer that needs it imports it itself.
    """
    from diffusers.utils import import_utils

    available = getattr(import_utils, AVAILABLE, False)
    setattr(import_utils, AVAILABLE, False)
    try:
        yield
    finally:
        setattr(import_utils, AVAILABLE, available)
