"""Items that go wrong in every way, and the process that looks at them: `python -m tests.machine_check.odd_items ...`."""

import faulthandler
import os
import sys
import time

from core.machine_check.item import OK, Finding, Item

HANGS = 1.0  # seconds that the one that hangs may take


def _raises(place):
    raise RuntimeError(f"CUDA error: an illegal memory access was encountered in {place.workspace.outputs}")


def _crashes(place):
    faulthandler._sigsegv()


def _hangs(place):
    time.sleep(600)


def _prints(place):
    print("a library's greeting")
    os.write(1, b"and one of its C++ part\n")
    return Finding(OK, "printed", facts={"process": os.getpid()})


def _tells(place):
    return Finding(OK, "", facts={"process": os.getpid(), "earlier": sorted(place.earlier), "infinite": float("inf")})


def odd(name, look, **more):
    return Item(name, f"The one that {name}", "Odd", look, **more)


ITEMS = [
    odd("prints", _prints),
    odd("tells", _tells),
    odd("raises", _raises),
    odd("after a raise", _tells),
    odd("crashes", _crashes),
    odd("after a crash", _tells),
    odd("hangs", _hangs, seconds=HANGS),
    odd("needs it", _tells, needs=("hangs",)),
    odd("wants a GPU", _tells, gpu=True),
    odd("comes last", _tells),
]

if __name__ == "__main__":
    from core.machine_check.run import answer_items

    answer_items(sys.argv[1:], ITEMS)
