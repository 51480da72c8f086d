"""What each waiting job waits for, and about how long, for the page."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from core.engine.light import LANES, LightLane
from core.engine.queue import QueueEntry, lane_of
from core.record.units import clock, count

LONGEST_NAME = 40


@dataclass(frozen=True)
class Wait:
    """What a job waits for.

    on                       title of the job that runs before it; "" for none
    left                     seconds until that ends; 0 if unknown
    ahead                    number of waiting jobs before it
    on_pause, queue_paused   whether the running job, or the queue, is paused
    """

    on: str = ""
    left: float = 0.0
    ahead: int = 0
    on_pause: bool = False
    queue_paused: bool = False

    @property
    def begins(self) -> bool:
        """Whether the job starts next without waiting."""
        return not (self.on or self.queue_paused)

    @property
    def message(self) -> str:
        """Text such as "starts in about 1:20, after fox" or "starts in at least 1:20, after fox and 1 more"."""
        if not self.on:
            behind = f", after {count(self.ahead, 'job')}" if self.ahead else ""
            return f"waiting in the paused queue{behind}" if self.queue_paused else "about to start"
        name = self.on if len(self.on) <= LONGEST_NAME else f"{self.on[: LONGEST_NAME - 1]}…"
        known = self.left >= 1 and not self.on_pause
        when = f" in {'at least' if self.ahead else 'about'} {clock(self.left)}," if known else ""
        paused = ", which is paused" if self.on_pause else ""
        more = f"{',' if paused else ''} and {self.ahead} more" if self.ahead else ""
        return f"starts{when} after {name}{paused}{more}" + ("; the queue is paused" if self.queue_paused else "")


def waiting_runs(entries: Sequence[QueueEntry]) -> set[str]:
    """Return the names of the runs that wait in the queue to be resumed."""
    return {entry.run for entry in entries if entry.run and entry.state == "waiting"}


def waits(
    entries: Sequence[QueueEntry], time_left: Callable[[QueueEntry], tuple[float, bool]], *, paused: bool, lent_to: str
) -> dict[str, Wait]:
    """Return {id: what it waits for} of the waiting jobs.

    time_left  (running job) -> (seconds left, 0 if unknown; whether it is paused)
    paused     whether the queue is paused, which stops only device jobs
    lent_to    work outside of the queue that holds the device; "" for none
    """
    waits: dict[str, Wait] = {}
    for lane in dict.fromkeys(lane_of(entry) for entry in entries if entry.state == "waiting"):
        members = [entry for entry in entries if lane_of(entry) == lane]
        device = lane == "device"
        waits |= _in_lane(lane, members, time_left, paused and device, lent_to if device else "")
    return waits


def _in_lane(
    lane: str,
    entries: Sequence[QueueEntry],
    time_left: Callable[[QueueEntry], tuple[float, bool]],
    paused: bool,
    lent_to: str,
) -> Iterator[tuple[str, Wait]]:
    """Yield (id, what it waits for) for the waiting jobs among `entries`, which are all of one lane. Other arguments as in `waits`."""
    running = [entry for entry in entries if entry.state == "running"]
    waiting = [entry for entry in entries if entry.state == "waiting"]
    full = len(running) >= (1 if lane == "device" else LightLane.THREADS[LANES[lane]])
    first = Wait(lent_to, queue_paused=paused)
    if full:
        left, on_pause = time_left(running[0])
        first = Wait(running[0].title, left, on_pause=on_pause, queue_paused=paused)
    for position, entry in enumerate(waiting):
        if first.on or paused or not position:
            yield entry.id, Wait(first.on, first.left, position, first.on_pause, paused)
        else:
            yield entry.id, Wait(waiting[0].title, ahead=position - 1)
