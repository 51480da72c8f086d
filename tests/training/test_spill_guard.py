"""A GPU whose memory is full while steps become slow: it is warned of once for each slow episode, and nothing else changes."""

from types import SimpleNamespace

import pytest
import torch

from core.dataset.buckets.batches import PlannedBatch
from core.record.commands import NoCommands
from core.record.context import JobContext
from core.record.journal import Journal, read_lines
from core.settings.job import TrainJob
from core.training.loop import spill_guard
from core.training.loop import train as loop
from core.training.loop.loss_readback import ReadBack
from core.training.loop.run import Run
from core.training.loop.spill_guard import Reading, SpillGuard

USUAL, SLOW = 1.0, 8.0  # seconds of a step
ROOM, FULL, OVER = (40, 60), (2, 97), (0, 101)  # free and reserved, of 100


def steps(count, seconds, memory=ROOM, retries=0, size=512):
    """Steps in a row, each read back at its end."""
    return [(seconds, Reading(memory[0], 100, memory[1], retries), size, 1)] * count


def queued(count, seconds, memory, finished):
    """Steps that are read back together; finished: how many of them then."""
    *waiting, last = steps(count, seconds, memory)
    return [(*step[:3], None) for step in waiting] + [(*last[:3], finished)]


FAST = steps(20, USUAL)
CASES = {  # steps, and those after which a warning comes
    "no step is slow": (steps(200, USUAL, FULL), []),
    "memory has room": ([*FAST, *steps(50, SLOW)], []),
    "slow and full": ([*FAST, *steps(50, SLOW, FULL)], [25]),
    "four slow steps": ([*FAST, *steps(4, SLOW, FULL), *steps(40, USUAL, FULL), *steps(4, SLOW, FULL), *FAST], []),
    "less than 2.5 times": ([*FAST, *steps(50, 2.49, FULL)], []),
    "2.5 times": ([*FAST, *steps(50, 2.5, FULL)], [25]),
    "3% are free": ([*FAST, *steps(50, SLOW, (3, 97))], []),
    "torch holds all that the GPU has": ([*FAST, *steps(50, SLOW, (3, 100))], []),
    "torch holds more than the GPU has": ([*FAST, *steps(50, SLOW, (3, 101))], [25]),
    "torch frees its cache": ([*FAST, *steps(5, SLOW, ROOM, 1), *steps(50, SLOW, ROOM, 1)], [25]),
    "torch freed its cache long ago": ([*steps(70, USUAL, ROOM, 9), *steps(50, SLOW, ROOM, 9)], []),
    "memory fills up later": ([*FAST, *steps(7, SLOW), *steps(50, SLOW, FULL)], [30]),
    "a second episode": ([*FAST, *steps(9, SLOW, FULL), *FAST, *steps(9, SLOW, FULL)], [25, 54]),
    "the same after a short rest": ([*FAST, *steps(9, SLOW, FULL), *steps(19, USUAL), *steps(9, SLOW, FULL)], [25]),
    "slow from the first step on": (steps(300, SLOW, OVER), [10]),
    "samples before the first step left a large cache": (steps(5, SLOW, OVER) + steps(300, USUAL), []),
    "four slow steps of another size": ([*FAST, *(5 * [*steps(1, 24.0, FULL, size=1024), *steps(1, USUAL, FULL)])], []),
    "steps of one size become slow": (
        [*FAST, *steps(7, 4.0, size=1024), *(5 * [*steps(1, 24.0, FULL, size=1024), *steps(1, USUAL, FULL)])],
        [36],
    ),
    "a size is slow from its second step on": ([*FAST, *steps(9, 24.0, FULL, size=1024)], [26]),
    "the first steps of sizes": (
        [*FAST, *(step for size in range(576, 1536, 64) for step in steps(1, 60.0, FULL, size=size))],
        [],
    ),
    "steps are read back together": ([*FAST, *queued(3, USUAL, FULL, 3), *queued(7, SLOW, FULL, 7)], [30]),
    "a save reads steps back, which is not measured": (10 * [*FAST, *queued(3, SLOW, FULL, 1)], []),
}


@pytest.mark.parametrize("case", CASES)
def test_a_slow_episode_with_full_memory_is_warned_of_once(case):
    now, readings, emptied, found = [None], [], [], []

    def read():
        readings.append(now[0])
        return now[0]

    guard = SpillGuard(read, lambda: "gradient checkpointing saves about 2.1 GB", lambda: emptied.append(1))
    sequence, expected = CASES[case]
    for number, (seconds, now[0], size, finished) in enumerate(sequence, 1):
        problem = guard.add([PlannedBatch((size, size), (None,))], seconds, finished)
        if problem is not None:
            found.append(number)
            assert (problem.code, problem.level) == ("memory.spill", "warning")
            assert problem.fix.endswith(": gradient checkpointing saves about 2.1 GB")
    assert found == expected and bool(emptied) == (bool(expected) or sequence[0][1].reserved > 100)
    assert len(readings) <= len(sequence) / 5


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_a_run_on_a_gpu_writes_the_warning_to_its_journal_and_trains_to_its_end(tmp_path, monkeypatch, device):
    clock, emptied = [0.0], []

    def update(run):
        clock[0] += 0.9 if run.state.step < 20 else 8.2

    monkeypatch.setattr(loop, "optimizer_update", update)
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (100 << 20, 12 << 30))
    monkeypatch.setattr(torch.cuda, "memory_stats", lambda device: {"reserved_bytes.all.current": 11 << 30})
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(1))
    monkeypatch.setattr(spill_guard.platform, "release", lambda: "5.15.153.1-microsoft-standard-WSL2")
    nothing = SimpleNamespace(**dict.fromkeys(("before_first_step", "after_step", "at_the_end", "tasks_done"), tuple))
    reports = SimpleNamespace(
        losses=SimpleNamespace(read_if_due=lambda: ReadBack([run.state.step], [0.1], 0.0)),
        clock=SimpleNamespace(add=lambda seconds: None),
        report=lambda read: None,
        report_all=tuple,
    )
    plan = SimpleNamespace(total=40, step_batches=lambda step: (0, [PlannedBatch((512, 512), (None,) * 4)]))
    with Journal(tmp_path) as journal:
        context = JobContext(SimpleNamespace(), SimpleNamespace(), journal, NoCommands(), device)
        run = Run(
            TrainJob(),
            context,
            plan,
            SimpleNamespace(encoding_seconds=0.0, encodes_each_step=False),
            nothing,
            None,
            reports,
        )
        assert loop.train(run, nothing) == "done" and run.state.step == 40
    lines = [line for line in read_lines(journal.path) if line["kind"] == "log"]
    assert [line["level"] for line in lines] == ["warning"] * (device == "cuda") and bool(emptied) == bool(lines)
    assert all("8.20 s instead of 0.90 s" in line["text"] and "RAM" in line["text"] for line in lines)
    # The model of these settings cannot be read any more.
    assert all("gradient checkpointing" in line["fix"] for line in lines)
