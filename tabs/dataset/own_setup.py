"""The offer to set up a job for one's own images, on Dataset and on Train: one card, two buttons, one step of undo."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from core.dataset.report import Report
from core.record.problems import ProblemsError
from core.record.workspace import Workspace
from core.settings.base import value_of
from core.settings.job import TrainJob
from core.settings.values import shown_value
from core.training.checks.own_images import (
    NAME,
    PROMPTS,
    Setup,
    holds_demo,
    other_images,
    setup_for,
    with_setup,
)
from tabs.dataset.questions import KEPT_DATASETS, dataset_key
from tabs.form.project import FIELDS, Project
from tabs.markup import button, esc, section, short

if TYPE_CHECKING:
    from core.engine.engine import Engine

STATE = "Dataset"  # the tab that keeps which datasets were answered with "keep"
TITLE = "Recommended settings for these images"
LONGEST = 160
DID = "applying recommended settings"


class OwnSetup:
    """What is offered for the project's images, until it is taken or turned down. The project keeps what was turned down."""

    def __init__(self, engine: Engine, workspace: Workspace, project: Project):
        self._engine, self._workspace, self._project = engine, workspace, project

    def offer(self, job: TrainJob, report: Report | None) -> Setup | None:
        """What is offered for these images; None where nothing of the demo is left or a person keeps it."""
        if report is None or not self.still_applies(job):
            return None
        return setup_for(job, report, self._workspace, self._gpu_memory(), self._left(job))

    def _gpu_memory(self) -> int:
        """Bytes, 0 without a GPU of its own memory."""
        status = self._engine.status()
        alone = not str(status["device"]).lower().startswith(("cpu", "apple"))
        return int(status.get("memory_total") or 0) if alone else 0

    def still_applies(self, job: TrainJob) -> bool:
        """Whether settings for these images are still to be offered: the form has the demo's or an earlier offer's, and nobody
        declined."""
        kept = self._project.tab_state(STATE).get("keep_demo", [])
        return dataset_key(job) not in kept and (bool(self._left(job)) or holds_demo(job, self._workspace))

    def _left(self, job: TrainJob) -> list[str]:
        """The settings that still are as an earlier offer made them for other folders."""
        made = self._project.tab_state(STATE).get("made")
        if not isinstance(made, dict) or made.get("of") == dataset_key(job) or not other_images(job):
            return []
        values = dict(made.get("values", {}))
        left = [path for path in values if path in FIELDS and value_of(job, path) == values[path]]
        return left if {NAME, PROMPTS} & set(left) else []

    def keep(self) -> None:
        """Offer it no more for these folders."""
        state, key = self._project.tab_state(STATE), dataset_key(self._project.job)
        others = [each for each in state.get("keep_demo", []) if each != key]
        self._project.keep(STATE, state | {"keep_demo": [*others, key][-KEPT_DATASETS:]})

    def apply(self, setup: Setup | None) -> None:
        """All changes of the offer as one step of undo."""
        if setup is None or not setup.changes:
            raise ProblemsError.one("Everything is already set up", "Train", "check the settings", code="setup.applied")
        with self._project.lock:
            self._project.change(with_setup(self._project.job, setup), did=DID)
            made = {"of": dataset_key(self._project.job), "values": {each.path: each.new for each in setup.changes}}
            self._project.keep(STATE, self._project.tab_state(STATE) | {"made": made})


def rows(setup: Setup) -> list[dict[str, str]]:
    """Each change in words."""
    return [
        {
            "title": FIELDS[change.path].title,
            "old": _words(change.path, change.old),
            "new": _words(change.path, change.new),
            "reason": change.reason,
        }
        for change in setup.changes
    ]


def _words(path: str, value: Any) -> str:
    return short(shown_value(FIELDS[path], value), LONGEST)


def setup_facts(setup: Setup | None) -> dict[str, Any] | None:
    """For the card on Train, which its script draws."""
    return None if setup is None else {"title": TITLE, "rows": rows(setup), "no_model": setup.no_model}


def card(setup: Setup | None) -> str:
    """The card on Dataset."""
    if setup is None:
        return ""
    lead = f'<p class="no-model">{esc(setup.no_model)}</p>' if setup.no_model else ""
    listed = "".join(map(_row, rows(setup)))
    table = f'<table class="setup-rows">{listed}</table>' if listed else ""
    both = button("setup", "Apply", kind="primary") if listed else ""
    both += button("keep_demo", "Keep current settings")
    both += button("get_model", "Get a base model") if setup.no_model else ""
    return section(TITLE, f'<div class="setup">{lead}{table}<div class="setup-buttons">{both}</div></div>')


def _row(row: dict[str, str]) -> str:
    title, old, new, reason = (esc(row[name]) for name in ("title", "old", "new", "reason"))
    return (
        f'<tr><th scope="row">{title}</th><td><span class="old" title="{old}">{old}</span><b title="{new}">→ {new}</b>'
        f'<span class="hint">{reason}</span></td></tr>'
    )
