"""Freed memory goes back to the system."""

from __future__ import annotations

import subprocess
import sys

import psutil
import pytest

from core.record.heap import TRIM_BYTES, HeapTrimmer, trim_heap
from core.record.workspace import PROJECT

PIECE, PIECES = 100 << 10, 3000  # below what glibc would map apart
glibc = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only glibc keeps freed memory")


def resident() -> int:
    return psutil.Process().memory_info().rss


def holes() -> list[bytearray]:
    """Every second of many pieces, the others freed: what lies between used blocks is not given back by itself."""
    pieces = [bytearray(b"x") * PIECE for _ in range(PIECES)]
    kept = pieces[::2]
    del pieces
    return kept


@glibc
def test_what_was_freed_between_used_blocks_goes_back_to_the_system() -> None:
    kept = holes()
    before = resident()
    assert trim_heap()
    assert before - resident() > PIECE * PIECES // 4
    assert len(kept) == PIECES // 2


@glibc
def test_it_is_asked_for_only_now_and_then() -> None:
    kept, memory = holes(), HeapTrimmer()
    before = resident()
    memory.freed(TRIM_BYTES - 1)
    assert before - resident() < PIECE * PIECES // 8
    memory.freed(1)
    assert before - resident() > PIECE * PIECES // 4
    assert kept


KEPT = """
import psutil
from core.record.heap import keep_freed_memory

SIZE = 200 << 20
resident = lambda: psutil.Process().memory_info().rss
block = bytearray(b"x") * SIZE
del block
before = resident()
with keep_freed_memory():
    block = bytearray(b"x") * SIZE
    del block
    print(resident() - before > SIZE // 2)
print(resident() - before < SIZE // 4)
block = bytearray(b"x") * SIZE
del block
print(resident() - before < SIZE // 4)
"""


@glibc
def test_what_is_freed_stays_for_the_next_large_block_until_it_is_over() -> None:
    """In a process of its own: one that has freed much before has room for the block already."""
    done = subprocess.run([sys.executable, "-c", KEPT], capture_output=True, text=True, check=True, cwd=PROJECT)
    assert done.stdout.split() == ["True"] * 3


AFTERWARDS = """
import resource
from core.record.heap import keep_freed_memory, single_arena

SIZE = 8 << 20

single_arena()
with keep_freed_memory():
    pass
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3):
    b"x" * SIZE
before = faults()
for _ in range(50):
    b"x" * SIZE
print(faults() - before)
"""


@glibc
def test_afterwards_blocks_of_some_megabytes_are_used_again_as_before() -> None:
    """glibc trains how large they are as a process runs, and stops training as soon as it is told anything."""
    done = subprocess.run([sys.executable, "-c", AFTERWARDS], capture_output=True, text=True, check=True, cwd=PROJECT)
    assert int(done.stdout) < 50 * (8 << 20) / 4096 / 10, "pages that the system had to clear"
