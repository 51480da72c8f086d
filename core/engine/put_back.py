"""Returns trainings that ended with the program to the head of the queue, unless they make no progress."""

import sys
from collections.abc import Callable
from pathlib import Path

from core.engine.queue import Queue, QueueEntry, may_manage

MOST_TRIES = 2  # without a newer training state in between


def cut_off(queue: Queue, runs: Path) -> list[QueueEntry]:
    """Return the trainings that ended with the program, without those whose run was queued again or deleted since.
    runs: folder of all runs"""
    entries = queue.entries()
    ended = [entry for entry in entries if entry.id in queue.cut_off and entry.state in ("interrupted", "stopped")]
    resumed = {(each.id, entry.run) for each in ended for entry in entries if entry.run and entry.added > each.added}
    left = [each for each in ended if each.task == "train" and (each.id, each.run) not in resumed]
    return [each for each in left if not each.run or (runs / each.run).is_dir()]


def mark_broken_off(queue: Queue, entry: QueueEntry, newest_state: Callable[[str], int]) -> None:
    """Mark a job that ends the program as `cut_off`, if it is a training with a training state.
    newest_state: as in `requeue_cut_off`"""
    if entry.task == "train" and newest_state(entry.run) >= 0:
        queue.cut_off += (entry.id,)
        queue.change(entry.id, state="interrupted")


def move_cut_off_first(queue: Queue, runs: Path) -> list[QueueEntry]:
    """Move the `cut_off` trainings of the user of the current request back to the head of the queue, and return them."""
    with queue.lock:
        entries = [entry for entry in cut_off(queue, runs) if may_manage(entry)]
        for entry in reversed(entries):
            queue.change(entry.id, state="waiting", message="")
            queue.move(entry.id, 0)
        return entries


def requeue_cut_off(queue: Queue, runs: Path, newest_state: Callable[[str], int]) -> str:
    """After a start, move the `cut_off` trainings back to the head of the queue, and resume it unless a user has paused it.

    Trainings that ended with the program more than MOST_TRIES times without a newer training state become "failed" instead.

    newest_state   (run) -> step of its newest training state, -1 without one
    returns        message about those that failed; "" for none
    """
    left_out = []
    for entry in cut_off(queue, runs):
        state = newest_state(entry.run)
        if entry.state == "interrupted":
            tries = 1 if state > entry.tried_at else entry.tries + 1
            entry = queue.change(entry.id, tries=tries, tried_at=state)
        if entry.tries > MOST_TRIES:
            message = f"the program ended {entry.tries} times without a newer training state"
            queue.change(entry.id, state="failed", message=message)
            left_out.append(f"'{entry.title}' is not resumed: {message}. Resume it in Monitor or Runs.")
    for entry in move_cut_off_first(queue, runs):
        print(f"'{entry.title}' is put back at the head of the queue.", file=sys.stderr, flush=True)
    if queue.cut_off and queue.paused_by is None:
        queue.pause(False)
    queue.cut_off = ()
    for message in left_out:
        print(message, file=sys.stderr, flush=True)
    return " ".join(left_out)
