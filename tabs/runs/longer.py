"""HTML of the fields that resume a run with a greater length."""

from typing import Any

from core.engine.run_summary import RunSummary
from core.optimization.jumps import rate_jump
from core.settings.job import TrainJob
from tabs.markup import esc, section


def length_of(job: TrainJob, facts: dict[str, Any]) -> tuple[str, str, int]:
    """Return (setting, unit, value) of the setting that determines the run's length. facts: the run's snapshot"""
    if job.schedule.steps_in_force is not None:
        return "max_train_steps", "steps", job.schedule.steps_in_force
    return "max_train_epochs", "epochs", job.schedule.max_train_epochs or int(facts.get("epochs") or 0)


def longer_html(run: RunSummary, facts: dict[str, Any], job: TrainJob) -> str:
    """Return the HTML of the fields to train longer; "" without a training state to resume from. facts: the run's snapshot"""
    if run.resumable_step <= 0:
        return ""
    _, unit, length = length_of(job, facts)
    steps = int(facts.get("total") or 0)
    jump = rate_jump(job, steps, job, 2 * steps, run.resumable_step) if steps else None
    field = (
        f'<input id="longer-{unit}" type="number" min="{length + 1}" step="1" value="{2 * length}" '
        f'aria-label="New length in {unit}">'
    )
    acts = {"longer": f"Train longer, with more {unit}"}
    text = f"From step {run.resumable_step:,}; so far it was {length:,} {unit} in all."
    if jump is not None:
        text += (
            f" The scheduler covers the whole new length: at twice the length the learning rate rises from {jump[0]:.2g} to"
            f" {jump[1]:.2g}. Or train on at the last rate, or with a warm restart of the scheduler."
        )
        acts |= {"longer-constant": "At the last rate", "longer-restart": "With a warm restart"}
    buttons = "".join(
        f'<button type="button" class="btn" data-act="{act}" data-arg="{esc(run.name)}" data-from="longer-{unit}">{label}</button>'
        for act, label in acts.items()
    )
    text = f'<p class="hint">{text}</p>'
    return section("Train longer", f'{text}<div class="longer">{field} {unit} in all {buttons}</div>')
