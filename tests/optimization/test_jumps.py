"""The warning before a run is resumed at a rate that jumps."""

import pytest

from core.optimization.jumps import jump_advice, planned_length, rate_jump, steps_of_job
from core.record.events import Planned
from core.record.journal import Journal
from core.record.run_folder import RunFolder
from core.settings.check import build
from core.settings.job import TrainJob


def job(schedule="linear", rate=1e-4, **more):
    return build(TrainJob, {"schedule": {"lr_scheduler": schedule, **more}, "optimizer": {"learning_rate": rate}})


@pytest.mark.parametrize(
    ("step", "total", "jumps"),
    # Linear from 1 to 0: the last rate of 100 steps is 1 - (step - 1) / 100, the next one 1 - step / total.
    [(40, 97, False), (51, 203, False), (51, 206, True), (99, 100, False), (99, 101, False), (99, 103, True)],
)
def test_a_rate_jumps_that_rises_by_more_than_half(step, total, jumps):
    last, now = 1 - (step - 1) / 100, 1 - step / total
    assert (now > 1.5 * last and now > 0.01) is jumps
    found = rate_jump(job(), 100, job(), total, step)
    assert found == (pytest.approx((last * 1e-4, now * 1e-4)) if jumps else None)


def test_another_rate_is_no_jump_of_the_schedule_and_a_rate_below_a_hundredth_is_none():
    assert rate_jump(job("constant"), 100, job("constant", 1e-2), 200, 50) is None
    assert rate_jump(job(), 1000, job(), 1005, 999) is None, "from 2 to 6 thousandths"
    assert rate_jump(job(), 1000, job(), 1011, 999) is not None, "to 12"


def test_the_steps_of_a_job_are_those_set_else_its_epochs_else_unknown():
    assert steps_of_job(job(max_train_steps=7, max_train_epochs=None), 5) == 7
    assert steps_of_job(job(max_train_steps=None, max_train_epochs=3), 5) == 15
    assert steps_of_job(job(max_train_steps=None, max_train_epochs=None), 5) is None


def test_advice_needs_a_plan_a_state_and_a_rest_of_the_run(tmp_path):
    folder = RunFolder.create(tmp_path, "x", {})
    longer = job(max_train_steps=200)
    assert planned_length(folder) is None and jump_advice(folder, job(), longer, 60, 200) == []
    with Journal(folder.path) as journal:
        journal.put(Planned(90, 1, 9, 4, ""))
        journal.put(Planned(100, 2, 25, 4, ""))
    assert planned_length(folder) == (100, 25), "the last plan"
    assert jump_advice(folder, job(), longer) == [], "no state"
    codes = [each.code for each in jump_advice(folder, job(), longer, 60)]
    assert codes == [each.code for each in jump_advice(folder, job(), job(), 60, 200)] == ["resume.rate-jumps"]
    assert jump_advice(folder, job(), longer, 60, 60) == jump_advice(folder, job(), longer, 60, 59) == []
    (folder.states / "step00000060").mkdir(parents=True)
    (folder.states / "step00000040").mkdir()
    assert jump_advice(folder, job(), longer) != [], "at the newest state"
    kept = {"lr_scheduler_steps": 100}
    assert jump_advice(folder, job(), job(max_train_steps=200, lr_scheduler_after="restart", **kept), 60) == []
    assert jump_advice(folder, job(), job(max_train_steps=200, **kept), 60) == []
