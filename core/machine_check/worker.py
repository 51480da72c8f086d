"""The process in which items run, so that a crash or hang ends neither the page nor the check.

Asked {"item", "earlier"}, it answers {"device", "finding"}.
"""

from __future__ import annotations

import faulthandler
import sys
import traceback
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from core.engine.explain import explain
from core.machine_check.item import FAILED, Finding, Item, Place
from core.record import machine
from core.record.worker import answer_questions
from core.record.workspace import Workspace

REPORT = "report this, with the JSON of the check"


def guarded(item: Item, place: Place) -> Finding:
    """The item's finding; an error becomes one too: in plain words where it has them, with its traceback."""
    try:
        return item.look(place)
    except Exception as error:
        words = explain(error)
        reason = words.what if words.known else f"{type(error).__name__}: {str(error)[:500]}"
        facts = {"poisoned": True} if words.poisoned or is_cuda_error(error) else {}
        return Finding(FAILED, "", reason, words.fix if words.known else REPORT, facts, traceback.format_exc())


def is_cuda_error(error: BaseException) -> bool:
    """Whether CUDA may be unusable for the rest of this process, as after a fault in a kernel; not when out of memory."""
    text = str(error).lower()
    return ("cuda error" in text or "hip error" in text or "cublas_status" in text) and "out of memory" not in text


def main(words: list[str], listed: Sequence[Item]) -> None:
    """words: device ("" for the best), outputs, models, folder for files of the items."""
    device, outputs, models, folder = words
    faulthandler.enable()
    items = {item.name: item for item in listed}
    workspace = Workspace.of(outputs, models)

    def answer(given: dict[str, Any]) -> dict[str, Any]:
        nonlocal device
        item = items[given["item"]]
        if not device and (item.needs or item.name == "torch"):
            device = _found()
        finding = guarded(item, Place(device or "cpu", workspace, Path(folder), given["earlier"]))
        return {"device": device, "finding": asdict(finding)}

    answer_questions(answer)


def _found() -> str:
    """The best device available; a torch that does not load is reported by its own item."""
    try:
        return machine.default_device()
    except Exception:
        return ""


if __name__ == "__main__":
    from core.machine_check.items import all_items  # imports all that is checked, which other lists do not need

    main(sys.argv[1:], all_items())
