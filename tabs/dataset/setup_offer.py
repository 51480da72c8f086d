"""Recommended settings for the user's images: a card on Dataset and Train, offered in place of the demo's settings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from core.dataset.report import Report
from core.record.problems import ProblemsError
from core.record.workspace import Workspace
from core.settings.base import value_of
from core.settings.job import TrainJob
from core.settings.values import shown_value
from core.training.checks.demo_setup import (
    NAME,
    PROMPTS,
    TRIGGER,
    Change,
    Setup,
    apply_setup,
    recommended_setup,
    trains_other_images,
    trigger_setup,
    uses_demo_settings,
)
from tabs.dataset.questions import MAX_DATASETS, dataset_key
from tabs.form.project import FIELDS, Project
from tabs.markup import button, esc, section, short

if TYPE_CHECKING:
    from core.engine.engine import Engine

STATE = "Dataset"  # the tab that keeps which datasets were answered with "keep"
TITLE = "Recommended settings for these images"
NEW = '<p class="hint">New since you applied the others.</p>'
LONGEST = 160
DID = "applying recommended settings"


class SetupOffer:
    """Offers recommended settings for the project's images until the user applies or declines them."""

    def __init__(self, engine: Engine, workspace: Workspace, project: Project):
        self._engine, self._workspace, self._project = engine, workspace, project

    def offer(self, job: TrainJob, report: Report | None) -> Setup | None:
        """Return the recommended settings for the images; None without a report, without demo settings in the form, or if declined."""
        if report is None or not self.still_applies(job):
            return None
        if self._lacks_trigger(job) and not uses_demo_settings(job, self._workspace):
            return trigger_setup(job, report)
        return recommended_setup(job, report, self._workspace, self._gpu_memory(), self._offered(job))

    def _gpu_memory(self) -> int:
        """Return the GPU's memory in bytes; 0 without a GPU or if the GPU shares the RAM."""
        status = self._engine.status()
        dedicated = not str(status["device"]).lower().startswith(("cpu", "apple"))
        return int(status.get("memory_total") or 0) if dedicated else 0

    def still_applies(self, job: TrainJob) -> bool:
        """Return whether the form has settings of the demo or of an offer for other images, and the user has not declined."""
        declined = self._project.tab_state(STATE).get("keep_demo", [])
        return dataset_key(job) not in declined and (
            bool(self._offered(job)) or self._lacks_trigger(job) or uses_demo_settings(job, self._workspace)
        )

    def _offered(self, job: TrainJob) -> list[str]:
        """Return paths of settings that still have the values of an offer applied for other images.

        [] unless the output name or the sample prompts are among them
        """
        applied = self._project.tab_state(STATE).get("made")
        if not isinstance(applied, dict) or applied.get("of") == dataset_key(job) or not trains_other_images(job):
            return []
        values = dict(applied.get("values", {}))
        unchanged = [path for path in values if path in FIELDS and value_of(job, path) == values[path]]
        return unchanged if {NAME, PROMPTS} & set(unchanged) else []

    def applied(self, job: TrainJob) -> dict[str, Any]:
        """Return {setting: value} of the offers applied for the job's images; {} without one, or if it was undone."""
        made = self._project.tab_state(STATE).get("made")
        values = dict(made.get("values", {})) if isinstance(made, dict) and made.get("of") == dataset_key(job) else {}
        return values if any(path in FIELDS and value_of(job, path) == values[path] for path in values) else {}

    def _lacks_trigger(self, job: TrainJob) -> bool:
        """Return whether no trigger word is set or was among the settings applied for the job's images."""
        applied = self.applied(job)
        return bool(applied) and TRIGGER not in applied and not value_of(job, TRIGGER)

    def decline(self) -> None:
        """Store that the user keeps the current settings for these folders."""
        state, key = self._project.tab_state(STATE), dataset_key(self._project.job)
        others = [each for each in state.get("keep_demo", []) if each != key]
        self._project.update_tab(STATE, keep_demo=[*others, key][-MAX_DATASETS:])

    def apply(self, setup: Setup | None) -> None:
        """Apply the recommended settings as one undo step. Raises ProblemsError if there is nothing to change."""
        if setup is None or not setup.changes:
            raise ProblemsError.one("Everything is already set up", "Train", "check the settings", code="setup.applied")
        with self._project.lock:
            values = self.applied(self._project.job) | {each.path: each.new for each in setup.changes}
            self._project.change(apply_setup(self._project.job, setup), did=DID)
            self._project.update_tab(STATE, made={"of": dataset_key(self._project.job), "values": values})


def card(setup: Setup | None, lead: bool = True, again: bool = False) -> str:
    """Return the HTML of the offer: old value, new value and reason of each change; "" without an offer.

    lead    whether to show why no base model can be trained, which Train lists among its problems
    again   whether other recommendations for these images were applied
    """
    if setup is None:
        return ""
    reason = f'<p class="no-model">{esc(setup.missing_model)}</p>' if setup.missing_model and lead else ""
    listed = "".join(map(_row, setup.changes))
    reason += NEW if again and listed else ""
    table = f'<table class="setup-rows">{listed}</table>' if listed else ""
    buttons = button("setup", "Apply", kind="primary") if listed else ""
    buttons += button("keep_demo", "Keep current settings")
    buttons += button("get_model", "Get a base model") if setup.missing_model else ""
    return section(TITLE, f'<div class="setup">{reason}{table}<div class="setup-buttons">{buttons}</div></div>')


def _row(change: Change) -> str:
    """Return the HTML of the table row of a changed setting."""
    entry = FIELDS[change.path]
    old, new = (esc(short(shown_value(entry, value), LONGEST)) for value in (change.old, change.new))
    return (
        f'<tr><th scope="row">{esc(entry.title)}</th><td><span class="old" title="{old}">{old}</span>'
        f'<b title="{new}">→ {new}</b><span class="hint">{esc(change.reason)}</span></td></tr>'
    )
