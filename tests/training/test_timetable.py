"""When a run saves, samples and measures: at its first step, at the ends of epochs, at its last step, at a stop and after it."""

import errno
import itertools
import json
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest

from core.record.processes import Processes
from core.settings.check import build
from core.settings.flags import merge
from core.settings.job import TrainJob
from core.settings.saving import SavingSettings
from core.training.loop import timetable
from core.training.loop import train as loop
from core.training.loop.run import Run, RunState
from core.training.loop.timetable import Timetable
from core.training.saving.checkpoints import epochs_between_saves, even_steps, save_steps

EPOCH = 3  # steps
QUIET = {
    "saving": {
        "save_every_n_epochs": None,
        "save_every_n_steps": None,
        "save_every_minutes": None,
        "save_n_evenly": None,
        "save_state": False,
        "save_state_on_train_end": False,
    },
    "samples": {"sample_every_n_epochs": None, "sample_every_n_steps": None, "sample_at_first": False},
    "validation": {"validate_every_n_epochs": None, "validate_every_n_steps": None},
}


def plan_of(total):
    return SimpleNamespace(
        total=total,
        epochs=SimpleNamespace(first_step=lambda epoch: epoch * EPOCH),
        epoch_of=lambda step: step // EPOCH,
        ends_epoch=lambda step: step > 0 and step % EPOCH == 0,
    )


class SimulatedRun:
    """A run of the real loop whose steps compute nothing, and what it did at which step."""

    def __init__(self, place, total=8, *, prompts=("a fox",), holds_out_images=True, ranks_checkpoints=False, **groups):
        self.done, self.messages, self.place = [], [], place
        self.job, self.plan = build(TrainJob, merge(QUIET, groups)), plan_of(total)
        self.prompts, self.holds_out_images, self.ranks_checkpoints, self.unmeasured_saves = (
            list(prompts),
            holds_out_images,
            ranks_checkpoints,
            frozenset(),
        )
        self.commands, self.begun = [], 0
        self.passes, self.seconds, self.stages = SimpleNamespace(encoding_seconds=0.0, encodes_each_step=False), [], []

    def note(self, what):
        self.done.append((self.state.step, what))

    def live(self, step=0, stop_at=None):
        """One life from `step` on; what it did: [(step, what)]."""
        self.done, self.state = [], RunState(step, 0.0, self.begun)
        folder = SimpleNamespace(journal_file=self.place / "journal.jsonl", path=self.place)
        context = SimpleNamespace(
            folder=folder,
            device="cpu",
            processes=Processes(),
            token=SimpleNamespace(wanted=False),
            journal=SimpleNamespace(put=lambda event: None),
            take_commands=lambda: [self.commands.pop()] if self.commands and self.state.step == 2 else [],
            say=lambda *words: self.messages.append(words),
            stage=lambda text: self.stages.append((self.state.step, text)),
            after_stop=nullcontext,
        )
        reports = SimpleNamespace(
            losses=SimpleNamespace(read_if_due=lambda: None),
            clock=SimpleNamespace(add=self.seconds.append),
            report=lambda read: None,
            report_all=lambda: None,
            report_validation=lambda found: None,
        )
        stepper = SimpleNamespace(tasks_done=lambda: None, weights_for=lambda use: nullcontext())
        run = Run(self.job, context, self.plan, self.passes, stepper, None, reports, self.state, stop_at)
        checkpoints = SimpleNamespace(
            final=self.place / "t.safetensors",
            epoch_name=lambda epoch: f"epoch {epoch}",
            step_name=lambda step: f"step {step}",
            write=lambda name, step, final=False: self.note("final" if final else name),
            remove_old=lambda step: None,
        )
        validation = SimpleNamespace(
            holds_out_images=self.holds_out_images,
            ranks_checkpoints=self.ranks_checkpoints,
            unmeasured_saves=self.unmeasured_saves,
            batches=[None],
            is_quick=True,
            limit_message="",
            measure=lambda *given: self.note("validated"),
        )
        samples = SimpleNamespace(prompts=self.prompts, generate=lambda step: self.note("sampled"))
        states = SimpleNamespace(save=lambda: self.note("state"), remove_old=lambda: None)
        loop.train(run, Timetable(run, checkpoints, states, validation, samples))
        return self.done

    def steps(self, what, **life):
        return [step for step, each in self.live(**life) if each == what]


@pytest.fixture(autouse=True)
def _steps_compute_nothing(monkeypatch):
    monkeypatch.setattr(loop, "optimizer_update", lambda run: None)
    monkeypatch.setattr(Timetable, "_write_best", lambda timetable: None)


@pytest.mark.parametrize(
    ("total", "saving", "saved"),
    [
        (8, {}, [(8, "final")]),
        (8, {"save_every_n_steps": 4}, [(4, "step 4"), (8, "final")]),
        (9, {"save_every_n_steps": 4}, [(4, "step 4"), (8, "step 8"), (9, "final")]),
        (8, {"save_every_n_steps": 8}, [(8, "final")]),
        (7, {"save_every_n_epochs": 1}, [(3, "epoch 1"), (6, "epoch 2"), (7, "final")]),
        (6, {"save_every_n_epochs": 1}, [(3, "epoch 1"), (6, "final")]),
        (8, {"save_every_n_epochs": 2}, [(6, "epoch 2"), (8, "final")]),
        (9, {"save_n_epoch_ratio": 3}, [(3, "epoch 1"), (6, "epoch 2"), (9, "final")]),
        (12, {"save_n_epoch_ratio": 2, "save_every_n_epochs": 1}, [(6, "epoch 2"), (12, "final")]),
        (10, {"save_n_evenly": 4}, [(2, "step 2"), (5, "step 5"), (8, "step 8"), (10, "final")]),
        (11, {"save_n_evenly": 3}, [(4, "step 4"), (7, "step 7"), (11, "final")]),
        (6, {"save_n_evenly": 2, "save_every_n_epochs": 1}, [(3, "epoch 1"), (6, "final")]),
        (6, {"save_every_n_steps": 3, "save_every_n_epochs": 1}, [(3, "epoch 1"), (3, "step 3"), (6, "final")]),
    ],
)
def test_checkpoints_are_saved_at_these_steps_and_the_last_one_is_the_final_file(tmp_path, total, saving, saved):
    table = SimulatedRun(tmp_path, total, prompts=(), saving=saving)
    assert table.live() == saved
    assert save_steps(table.job.saving, table.plan, total) == sorted({step for step, _ in saved})


def test_the_time_of_a_step_is_without_that_of_encoding_images(tmp_path, monkeypatch):
    table, clock = SimulatedRun(tmp_path, 3, prompts=()), [0.0]

    def update(run):
        clock[0] += 7
        run.passes.encoding_seconds += 5

    monkeypatch.setattr(loop, "optimizer_update", update)
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    table.live()
    assert table.seconds == [2, 2, 2]


def test_a_step_that_encodes_nothing_is_training_again_though_images_may_still_wait(tmp_path, monkeypatch):
    run = SimulatedRun(tmp_path, 5, prompts=())

    def update(run):
        run.passes.encoding_seconds += run.state.step in (0, 1, 3)

    monkeypatch.setattr(loop, "optimizer_update", update)
    run.live()
    assert run.stages == [(3, "training"), (5, "training")]


@pytest.mark.parametrize(
    ("count", "total", "steps"), [(None, 10, []), (1, 10, []), (2, 10, [5]), (10, 10, [*range(1, 10)]), (11, 3, [1, 2])]
)
def test_even_saves_leave_the_end_to_the_final_file(count, total, steps):
    assert even_steps(SavingSettings(save_n_evenly=count), total) == steps


@pytest.mark.parametrize(
    ("ratio", "each", "total", "period"),
    [(None, None, 9, None), (None, 2, 9, 2), (3, 2, 9, 1), (1, None, 9, 3), (2, None, 13, 2), (9, None, 9, 1)],
)
def test_a_number_of_epoch_files_goes_before_a_period_and_counts_a_last_short_epoch(ratio, each, total, period):
    settings = SavingSettings(save_n_epoch_ratio=ratio, save_every_n_epochs=each)
    assert epochs_between_saves(settings, plan_of(total), total) == period


@pytest.mark.parametrize(
    ("samples", "sampled"),
    [
        ({}, [8]),
        ({"sample_at_first": True}, [0, 8]),
        ({"sample_every_n_steps": 2}, [2, 4, 6, 8]),
        ({"sample_every_n_steps": 7}, [7, 8]),
        ({"sample_every_n_epochs": 1}, [3, 6, 8]),
        ({"sample_every_n_epochs": 2}, [6, 8]),
        ({"sample_every_n_epochs": 2, "sample_every_n_steps": 1}, [6, 8]),  # epochs decide alone
    ],
)
def test_samples_are_generated_at_these_steps_and_once_at_the_end(tmp_path, samples, sampled):
    assert SimulatedRun(tmp_path, samples=samples).steps("sampled") == sampled
    assert SimulatedRun(tmp_path, samples=samples, prompts=()).steps("sampled") == []


@pytest.mark.parametrize(
    ("validation", "measured"),
    [
        ({}, []),
        ({"validate_every_n_steps": 4}, [0, 4, 8]),
        ({"validate_every_n_steps": 3, "validate_every_n_epochs": 1}, [0, 3, 6, 8]),
        ({"validate_every_n_epochs": 2}, [0, 6, 8]),
    ],
)
def test_what_a_person_holds_out_is_measured_before_the_first_step_when_due_and_at_the_end(
    tmp_path, validation, measured
):
    assert SimulatedRun(tmp_path, validation=validation).steps("validated") == measured


def test_what_finds_the_best_checkpoint_is_measured_at_each_save_but_those_that_cost_too_much(tmp_path):
    often = {"saving": {"save_every_n_steps": 2}, "validation": {"validate_every_n_steps": 1}}
    table = SimulatedRun(tmp_path, holds_out_images=False, ranks_checkpoints=True, **often)
    assert table.steps("validated") == [0, 2, 4, 6, 8], "its own timetable is not the settings'"
    table.unmeasured_saves = frozenset({0, 4})
    assert table.steps("validated") == [2, 6, 8]
    table.unmeasured_saves = frozenset({8})
    assert table.steps("validated") == [0, 2, 4, 6]


@pytest.mark.parametrize(
    ("saving", "states"),
    [
        ({"save_state": True}, [4, 8]),
        ({"save_state": False, "save_state_on_train_end": True}, [8]),
        ({}, []),
    ],
)
def test_training_states_come_with_the_checkpoints_or_at_the_end_alone(tmp_path, saving, states):
    assert SimulatedRun(tmp_path, saving={"save_every_n_steps": 4, **saving}).steps("state") == states


def test_a_stop_saves_a_checkpoint_and_a_state_also_where_none_are_asked_for_but_not_before_the_first_step(tmp_path):
    table = SimulatedRun(tmp_path)
    assert table.live(stop_at=2) == [(2, "step 2"), (2, "state")]
    assert table.live(stop_at=0) == []
    table.begun = 5
    assert table.live(step=5, stop_at=5) == [], "nothing was trained since it began there"


@pytest.mark.parametrize(("stop_at", "resumes"), [(None, [False, False, True]), (3, [False, True])])
def test_a_state_that_a_full_disk_does_not_take_is_saved_by_the_next_save_or_by_resuming(tmp_path, stop_at, resumes):
    saving = {"save_every_n_steps": 2, "save_state": True, "save_state_on_train_end": True}
    run = SimulatedRun(tmp_path, 6, prompts=(), saving=saving)

    def note(what):
        if what == "state":
            raise OSError(errno.ENOSPC, "full")

    run.note = note
    run.live(stop_at=stop_at)
    assert ["resume the run" in fix for _, _, fix in run.messages] == resumes


def test_a_resumed_run_makes_up_for_what_was_due_where_it_ended_and_is_not_in_its_journal(tmp_path):
    due = {"samples": {"sample_every_n_steps": 2}, "validation": {"validate_every_n_steps": 2}}
    table = SimulatedRun(tmp_path, prompts=("a fox", "a bear"), **due)

    def told(*lines):
        (tmp_path / "journal.jsonl").write_text(
            "".join(json.dumps({"seq": n, "time": 0.0, **line}) + "\n" for n, line in enumerate(lines, 1))
        )
        return [what for step, what in table.live(step=4, stop_at=4) if what in ("validated", "sampled")]

    sample, measured = {"kind": "sample", "step": 4}, {"kind": "validated", "step": 4}
    assert told() == ["validated", "sampled"]
    assert told(measured, sample) == ["sampled"], "one of two samples is there"
    assert told(measured, sample, sample) == []
    assert told({"kind": "validated", "step": 2}, sample, sample) == ["validated"]
    assert table.steps("sampled", step=5) == [6, 8], "step 5 owes nothing"


def test_save_and_sample_of_the_moment_come_with_a_state(tmp_path):
    table = SimulatedRun(tmp_path, 4)
    table.commands = ["sample", "save"]
    assert [each for each in table.live() if each[0] == 2] == [(2, "step 2"), (2, "state")]
    table.commands = ["sample"]
    assert [each for each in table.live() if each[0] == 2] == [(2, "sampled")]


def test_a_back_up_is_due_after_exactly_so_many_minutes_and_not_where_a_checkpoint_was_saved(tmp_path, monkeypatch):
    """Each look at the clock finds it 200 s later: once at the beginning, at each step, and after each back-up."""
    times = itertools.count(0.0, 200.0)
    monkeypatch.setattr(timetable, "time", SimpleNamespace(monotonic=lambda: next(times)))
    table = SimulatedRun(tmp_path, 9, saving={"save_every_minutes": 10.0})
    assert table.steps("state") == [3, 6]


@pytest.mark.parametrize(
    ("groups", "what", "steps"),
    [
        ({"saving": {"checkpoint_every_minutes": 10.0}}, "checkpoint", [3, 6, 9]),
        ({"saving": {"checkpoint_every_minutes": 10.0, "save_every_n_steps": 4}}, "checkpoint", [3, 4, 7, 8]),
        ({"saving": {"checkpoint_every_minutes": 0.0}}, "checkpoint", []),
        ({"samples": {"sample_every_minutes": 10.0}}, "sampled", [3, 6, 9, 10]),
        ({"samples": {"sample_every_minutes": 10.0, "sample_every_n_steps": 5}}, "sampled", [3, 5, 8, 10]),
    ],
)
def test_checkpoints_and_samples_also_come_when_so_many_minutes_have_passed_since_the_last(
    tmp_path, monkeypatch, groups, what, steps
):
    table = SimulatedRun(tmp_path, 10, **groups)
    clock = SimpleNamespace(monotonic=lambda: 200.0 * table.state.step)
    monkeypatch.setattr(timetable, "time", clock)
    done = [(step, "checkpoint" if each.startswith("step") else each) for step, each in table.live()]
    assert [step for step, each in done if each == what] == steps


def test_a_finished_run_does_nothing_again_but_what_it_was_cut_off_from(tmp_path):
    Path(tmp_path / "t.safetensors").touch()
    table = SimulatedRun(tmp_path, saving={"save_every_n_steps": 2})
    assert table.live(step=8) == [(8, "sampled")]
    (tmp_path / "journal.jsonl").write_text('{"seq": 1, "time": 0.0, "kind": "sample", "step": 8}\n')
    assert table.live(step=8) == []
