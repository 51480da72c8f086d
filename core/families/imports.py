"""Imports of diffusers and transformers, which take several seconds, made as quick as they can be."""

from __future__ import annotations

import gc
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def turns_often() -> Iterator[None]:
    """Give the reading thread its turn 25 times as often: at the usual 5 ms, beside the imports, it mostly waits."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(0.0002)
    try:
        yield
    finally:
        sys.setswitchinterval(usual)


@contextmanager
def quick_imports() -> Iterator[None]:
    """Import diffusers and transformers a fifth faster, by collecting no garbage in between, and without the remark of
    bitsandbytes (which they pull in) on kernels that nobody here asked for."""
    collected = gc.isenabled()
    remarks = logging.getLogger("bitsandbytes")
    level = remarks.level
    gc.disable()
    remarks.setLevel(logging.ERROR)
    try:
        yield
    finally:
        remarks.setLevel(level)
        if collected:
            gc.enable()
