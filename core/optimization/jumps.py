"""Warns before a run is resumed with another length if its learning rate would jump."""

from core.optimization.schedules import Rates
from core.record.journal import read_lines
from core.record.problems import Problem
from core.record.run_folder import RunFolder, state_step, states_in
from core.settings.job import TrainJob
from core.settings.optimization.rates import effective_rates

RISES = 1.5  # times the last rate: a larger rise is a jump
OF_RATE = 0.01  # of the part's learning rate: a jump ends above this


def planned_length(folder: RunFolder) -> tuple[int, int] | None:
    """Return (steps, steps per epoch) with which the run was last started; None if it never started."""
    events = [event for event in read_lines(folder.path / "events.jsonl") if event.get("kind") == "planned"]
    return (int(events[-1]["total"]), int(events[-1].get("steps_per_epoch", 0))) if events else None


def steps_of_job(job: TrainJob, per_epoch: int) -> int | None:
    """Return the number of steps of a job from its settings; None if they leave it to the dataset. per_epoch: steps of an epoch"""
    epochs = job.schedule.max_train_epochs
    return job.schedule.steps_in_force or (epochs * per_epoch if epochs else None)


def rate_jump(
    before: TrainJob, before_steps: int, after: TrainJob, after_steps: int, at_step: int
) -> tuple[float, float] | None:
    """Return (last rate, next rate) of the part whose learning rate rises most at step `at_step`, when a run planned for `before_steps`
    continues with `after_steps`; None without a jump. Only the schedule counts, not a changed learning rate setting.
    before, after: jobs of the run so far and of its continuation"""
    processes = after.memory.num_processes
    base_before, base_after = effective_rates(before, processes), effective_rates(after, processes)
    last_rates = Rates(before, before_steps, before.memory.num_processes).at(max(0, at_step - 1), base_before)
    next_rates = Rates(after, after_steps, processes).at(at_step, base_after)
    rises = [  # rate / base rate is the schedule's factor
        (last_rates[name], rate)
        for name, rate in next_rates.items()
        if base_after.get(name)
        and base_before.get(name)
        and abs(rate / base_after[name]) > max(RISES * abs(last_rates[name] / base_before[name]), OF_RATE)
    ]
    return max(rises, key=lambda pair: abs(pair[1]) - abs(pair[0]), default=None)


def jump_advice(
    folder: RunFolder, before: TrainJob, after: TrainJob, step: int | None = None, total: int | None = None
) -> list[Problem]:
    """Return a warning if the learning rate would jump when the run is resumed, with the choices; else [].

    folder, before   of the run to resume: its folder and job
    after            the job to continue with
    step, total      first and last step; None: from the run's newest training state and the settings
    """
    plan, states, schedule = planned_length(folder), states_in(folder.path / "state"), after.schedule
    if step is None and states:
        step = state_step(states[0])
    if plan is None or not step or (schedule.lr_scheduler_steps and schedule.lr_scheduler_after == "restart"):
        return []
    length = total or steps_of_job(after, plan[1])
    jump = rate_jump(before, plan[0], after, length, step) if length and length > step else None
    if jump is None:
        return []
    what = f"The learning rate rises from {jump[0]:.2g} to {jump[1]:.2g} at step {step}: its schedule is that of {length} steps"
    fix = f"keep it so, or set lr_scheduler_steps to {plan[0]}, which keeps the last rate or, with lr_scheduler_after, restarts"
    return [Problem(what, "schedule.lr_scheduler_steps", fix, "warning", code="resume.rate-jumps")]
