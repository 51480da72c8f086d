"""Runs changes of many captions: small ones within the request, large ones in the background with progress."""

import time
from collections.abc import Callable
from typing import Any

from core.record.problems import ProblemsError
from core.record.units import count

AT_ONCE = 100  # changes of at most this number of files run within the request
WAIT_SECONDS = 1.5  # for which a response waits for a larger one

Progress = Callable[[int, int], None]


class Rewriting:
    """Runs one large change at a time. light: function that starts a background task"""

    def __init__(self, light: Callable[..., Any]):
        self._light = light
        self._task: Any = None
        self._number = 0  # of large changes that the tick reports

    @property
    def busy(self) -> bool:
        """Whether a change is running in the background."""
        return self._task is not None and not self._task.done

    def run(self, title: str, files: int, work: Callable[[Progress], str]) -> str:
        """Run a change of `files` captions and return a message: its result, or that it has started. Raises ProblemsError.

        work: function that applies the change, reports (done, total) to its argument, and returns the message
        """
        if files <= AT_ONCE:
            return work(lambda done, total: None)
        if self.busy:
            return "Another change of captions is running; wait until it is done"

        def in_background(task: Any) -> str:
            return work(lambda done, total: task.stage(f"{title}: {done:,} of {total:,}", done, total))

        self._task = task = self._light(in_background, title=title)
        end = time.monotonic() + WAIT_SECONDS
        while not task.done and time.monotonic() < end:
            time.sleep(0.01)
        if not task.done:
            self._number += 1  # the tick reports the result, which this call can no longer return
            return f"{title}: changing {count(files, 'caption')} ..."
        if task.error is not None:
            raise task.error
        return str(task.result)

    def state(self) -> dict[str, Any]:
        """Return the progress or result of the newest large change; {} before the first.

        {"id", "text", "share": 0 to 1, "done"}; when done also "said" (message) and "problems"
        """
        task = self._task
        if not self._number or task is None:
            return {}
        share = round(task.progress, 2)
        state = {"id": self._number, "text": task.text or task.title, "share": share, "done": task.done}
        if not task.done:
            return state
        problems = task.error.problems if isinstance(task.error, ProblemsError) else []
        return state | {
            "said": "" if problems else str(task.result),
            "problems": [problem.to_dict() for problem in problems],
        }
