"""Many captions changed as one, without a long answer: few at once, many on the light lane, with progress in the page."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from core.record.problems import ProblemsError
from core.record.units import count

AT_ONCE = 100  # files that are written before the answer
WAITED = 1.5  # seconds that an answer waits for more of them

Progress = Callable[[int, int], None]


class Rewriting:
    """One long change at a time. `light` starts work on the light lane."""

    def __init__(self, light: Callable[..., Any]):
        self._light = light
        self._task: Any = None
        self._told = 0  # long changes so far; the newest one is told by the tick

    @property
    def busy(self) -> bool:
        return self._task is not None and not self._task.done

    def run(self, title: str, files: int, work: Callable[[Progress], str]) -> str:
        """Do it; what to say. Raises ProblemsError. What takes longer is told by `state`.

        work   makes the change, with a function for its progress (done, total), and returns what to say of it
        """
        if files <= AT_ONCE:
            return work(lambda done, total: None)
        if self.busy:
            return "Another change of captions is running; wait until it is done"
        self._task = task = self._light(self._on_the_lane, title, work, title=title)
        end = time.monotonic() + WAITED
        while not task.done and time.monotonic() < end:
            time.sleep(0.01)
        if not task.done:
            self._told += 1
            return f"{title}: changing {count(files, 'caption')} ..."
        if task.error is not None:
            raise task.error
        return str(task.result)

    @staticmethod
    def _on_the_lane(title: str, work: Callable[[Progress], str], task: Any) -> str:
        return work(lambda done, total: task.stage(f"{title}: {done:,} of {total:,}", done, total))

    def state(self) -> dict[str, Any]:
        """How far the newest long change is, or what became of it; {} before the first."""
        task = self._task
        if not self._told or task is None:
            return {}
        told = {"id": self._told, "text": task.text or task.title, "share": round(task.progress, 2), "done": task.done}
        if not task.done:
            return told
        problems = task.error.problems if isinstance(task.error, ProblemsError) else []
        said = "" if problems else str(task.result)
        return told | {"said": said, "problems": [problem.to_dict() for problem in problems]}
