"""The offer to set up a job for one's own images, on Dataset and on Train: one card, two buttons, one step of undo."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from core.record.problems import ProblemsError
from core.settings.job import TrainJob
from core.settings.values import shown_value
from core.training.checks.own_images import Setup, holds_demo, setup_for, with_setup
from tabs.markup import button, esc, section, short
from tabs.project import FIELDS
from tabs.questions import KEPT_DATASETS, dataset_key

if TYPE_CHECKING:
    from core.dataset.report import Report
    from tabs.context import Page

STATE = "Dataset"  # the tab that keeps which datasets were answered with "keep"
TITLE = "Recommended settings for these images"
LONGEST = 160
DID = "applying recommended settings"


def offer(page: Page, job: TrainJob, report: Report | None) -> Setup | None:
    """What is offered for these images; None where nothing of the demo is left or a person keeps it."""
    if report is None or not still_offered(page, job):
        return None
    return setup_for(job, report, page.workspace, _gpu_memory(page))


def _gpu_memory(page: Page) -> int:
    """Bytes, 0 without a GPU of its own memory."""
    status = page.engine.status()
    alone = not str(status["device"]).lower().startswith(("cpu", "apple"))
    return int(status.get("memory_total") or 0) if alone else 0


def kept(page: Page, job: TrainJob) -> bool:
    return dataset_key(job) in page.project.tab_state(STATE).get("keep_demo", [])


def still_offered(page: Page, job: TrainJob) -> bool:
    """Whether an offer made for an earlier state of the form stands."""
    return not kept(page, job) and holds_demo(job, page.workspace)


def keep(page: Page) -> None:
    """Offer it no more for these folders."""
    state = page.project.tab_state(STATE)
    others = [key for key in state.get("keep_demo", []) if key != dataset_key(page.project.job)]
    page.project.keep(STATE, state | {"keep_demo": [*others, dataset_key(page.project.job)][-KEPT_DATASETS:]})


def apply(page: Page, setup: Setup | None, *, session: str = "", stamp: str | None = None) -> None:
    """All changes of the offer as one step of undo."""
    if setup is None or not setup.changes:
        raise ProblemsError.one("Everything is already set up", "Train", "check the settings", code="setup.applied")
    with page.project.lock:
        page.project.replace(with_setup(page.project.job, setup), did=DID, session=session, stamp=stamp)


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


def facts(setup: Setup | None) -> dict[str, Any] | None:
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
