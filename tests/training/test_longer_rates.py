"""The learning rate of a run that is trained longer: what would jump is said before the start, and each choice works."""

from types import SimpleNamespace

import pytest

from core.cli.main import DONE, main
from core.engine.extend import job_of
from core.optimization.jumps import jump_advice, rate_jump
from core.optimization.schedules import Rates
from core.settings.check import build
from core.settings.job import TrainJob
from core.training.saving.resume import start_step_problems


def job(total=16, scheduler="cosine", **schedule):
    return build(TrainJob, {"schedule": {"max_train_steps": total, "lr_scheduler": scheduler, **schedule}})


HIGHER = {"schedule": {"max_train_steps": 24, "lr_scheduler": "cosine"}, "optimizer": {"learning_rate": 5e-4}}


def rates(settings, total):
    asked = Rates(settings, total)
    return [asked.at(step, {"unet": 1e-4})["unet"] for step in range(total)]


def test_a_cosine_that_was_at_its_end_jumps_when_it_is_stretched():
    last, now = rate_jump(job(), 16, job(24), 24, 16)
    assert (last, now) == (pytest.approx(9.6e-7, rel=0.02), pytest.approx(2.5e-5, rel=0.02))


@pytest.mark.parametrize(
    ("scheduler", "jumps"), [("constant", False), ("linear", True), ("cosine_with_restarts", True)]
)
def test_only_a_rate_that_rises_is_a_jump(scheduler, jumps):
    assert bool(rate_jump(job(16, scheduler), 16, job(24, scheduler), 24, 16)) == jumps


def test_another_rate_that_was_set_is_no_jump_of_the_schedule():
    higher = job(24, "constant").model_copy(update={"optimizer": build(TrainJob, HIGHER).optimizer})
    assert rate_jump(job(16, "constant"), 16, higher, 24, 16) is None
    last, now = rate_jump(job(), 16, build(TrainJob, HIGHER), 24, 16)
    assert (last, now) == (pytest.approx(9.6e-7, rel=0.02), pytest.approx(5 * 2.5e-5, rel=0.02))


def test_the_last_rate_is_kept():
    before, after = rates(job(), 16), rates(job(24, lr_scheduler_steps=16), 24)
    assert after[:16] == before and after[16:] == [before[-1]] * 8 and before[-1] > 0


def test_a_warm_restart_runs_the_schedule_over_the_remaining_steps():
    after = rates(job(24, lr_scheduler_steps=16, lr_scheduler_after="restart"), 24)
    assert after == rates(job(), 16) + rates(job(8), 8)


def test_a_schedule_may_be_longer_than_the_run():
    assert rates(job(8, lr_scheduler_steps=16), 8) == rates(job(), 16)[:8]


def test_custom_torch_schedules_keep_their_last_rate_too():
    custom = {"lr_scheduler_type": "StepLR", "lr_scheduler_args": {"step_size": 4, "gamma": 0.1}}
    after = rates(job(12, "constant", lr_scheduler_steps=6, **custom), 12)
    assert after[5:] == [after[5]] * 7


def test_a_longer_run_is_told_of_the_jump_and_trains_at_the_chosen_rates(train, workspace, capsys):
    training = train(schedule={"max_train_steps": 4, "seed": 7, "lr_scheduler": "cosine"})
    training.start()

    def longer(**schedule):
        before = training.job
        return before.with_settings(schedule={"max_train_steps": 8, **schedule})

    resume = training.job.resume.model_copy(update={"resume": str(training.folder.path)})
    other = longer().model_copy(update={"resume": resume})
    found = start_step_problems(other, workspace, SimpleNamespace(total_steps=8, placed=()))
    assert [each.code for each in found] == ["resume.rate-jumps"], "another run that begins from the state"
    for group, changes, wheres in (
        ("method", {"kind": "fine_tune"}, ["method.kind"]),
        ("optimizer", {"optimizer_type": "SGD"}, ["optimizer.optimizer_type"]),
        ("network", {"kind": "loha"}, ["network.kind"]),
        ("network", {"rank": 2}, ["network.rank"]),
        ("network", {"alpha": 2.0}, ["network.alpha"]),
        ("network", {"network_weights": "a.safetensors", "rank": 2}, []),
    ):
        changed = training.job.model_copy(
            update={group: getattr(training.job, group).model_copy(update=changes), "resume": resume}
        )
        found = start_step_problems(changed, workspace, SimpleNamespace(total_steps=8, placed=()))
        assert [each.where for each in found if each.code == "state.other-settings"] == wheres
    kept = {"lr_scheduler_steps": 4}
    for changes, told in (({}, True), ({**kept, "lr_scheduler_after": "restart"}, False), (kept, False)):
        assert bool(jump_advice(training.folder, training.job, longer(**changes))) == told
    words = ["train", "--continue", training.folder.path.name, "--outputs", str(workspace.outputs)]
    words += ["--models", str(workspace.models), "--device", "cpu", "--schedule.max_train_steps", "6"]
    assert main(words) == DONE and "lr_scheduler_steps" in capsys.readouterr().err
    job = job_of(training.folder)
    assert job.schedule.max_train_steps == 6
    last = training.lines("steps")[-1]
    assert last["steps"][-1] == 6
    assert last["rates"]["unet"] == pytest.approx(job.optimizer.unet_rate * rates(job, 6)[-1] / 1e-4)


def test_steps_that_a_scaler_skipped_do_not_move_the_schedule(at_first_step, monkeypatch):
    """A step whose gradients overflowed in fp16 changed nothing; the next one trains at its rate."""
    from core.training.loop.update import optimizer_update

    def at(training):
        run, steps = training.run, []
        run.state.step, run.stepper.overflow_steps = 3, 2
        monkeypatch.setattr(run.rates, "set", lambda optimizer, step: steps.append(step))
        optimizer_update(run)
        return steps

    assert at_first_step(at, schedule={"max_train_steps": 8, "seed": 7}) == [1]
