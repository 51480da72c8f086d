"""Imports of diffusers and transformers, which take several seconds, made as quick as they can be."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from core.record.heap import freeze_gc, without_gc

AVAILABLE = "_bitsandbytes_available"  # in diffusers.utils.import_utils
WHOLE_LIBRARY = 200  # modules: no model is in memory before they are imported

# Two threads that import packages of a circle break one another: one of both finds a module half made, or gone.
_one_at_a_time = threading.RLock()


@contextmanager
def turns_often() -> Iterator[None]:
    """Give the reading thread its turn 25 times as often: at the usual 5 ms, during the imports, it mostly waits."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(0.0002)
    try:
        yield
    finally:
        sys.setswitchinterval(usual)


@contextmanager
def quick_imports() -> Iterator[None]:
    """Import diffusers and transformers a fifth faster, by collecting no garbage in between, and without the remark of
    bitsandbytes (which others pull in) on kernels that nobody here asked for. One thread at a time."""
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
    """Inside, diffusers imports its models without bitsandbytes, which pulls in torch's compiler: seconds, for the loading of
    quantized models, which nothing here does. An optimizer that needs it imports it itself."""
    from diffusers.utils import import_utils

    found = getattr(import_utils, AVAILABLE, False)
    setattr(import_utils, AVAILABLE, False)
    try:
        yield
    finally:
        setattr(import_utils, AVAILABLE, found)
