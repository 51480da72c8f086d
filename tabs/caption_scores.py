"""Tags from kept scores on the Captions tab: what thresholds and lists make of the open image, while they are changed.

The settings are those of "Tags from kept scores" on Tools, which writes them to all images.
"""

from __future__ import annotations

from typing import Any

from core.dataset.buckets.batches import Placed
from core.record.problems import Problem, ProblemsError
from core.settings.base import Declared
from core.tasks import named
from tabs import tool_forms
from tabs.context import Page
from tabs.markup import button, esc
from tabs.own_settings import changed_values, fields

TASK = "retag"
SHOWN = (
    *("repo_id", "thresh", "general_threshold", "character_threshold", "undesired_tags", "order", "max_tags"),
    "remove_underscore",
)


class Scores:
    def __init__(self, page: Page):
        self.page, self.task = page, named(TASK)

    @property
    def _known(self) -> dict[str, Declared]:
        return tool_forms.own_settings_of(self.task)

    def _values(self) -> dict[str, Any]:
        assert self.task.card is not None
        return dict(self.page.project.tab_state(tool_forms.TAB).get(self.task.card.name, {}))

    def _keep(self, values: dict[str, Any]) -> None:
        assert self.task.card is not None
        with self.page.project.lock:
            state = self.page.project.tab_state(tool_forms.TAB)
            self.page.project.keep(tool_forms.TAB, state | {self.task.card.name: values})

    def fill(self, name: str, text: str) -> None:
        """One field as a person wrote it. Raises ProblemsError."""
        if name not in SHOWN:
            raise ProblemsError.one(
                f"There is no field '{name[:40]}'", "Captions", "reload the page", "edit.no-such-field"
            )
        self._keep(changed_values(self._known, self._values(), name, text, self.page.roots))

    def choose(self) -> dict[str, Any]:
        """Let Tools show the task."""
        self._keep(self._values() | {tool_forms.CHOSEN: TASK})
        return {}

    def form(self) -> str:
        known = self._known
        hints = {name: known[name].hint for name in SHOWN}
        ids = {name: f"cap-scores-{name}" for name in SHOWN}
        return f'<div class="concept-fields">{fields(known, self._values(), SHOWN, "scores_field", hints, ids)}</div>'

    def result(self, placed: Placed | None) -> str:
        """What the settings make of the open image."""
        if placed is None:
            return ""
        try:
            found = self._tagged(placed)
        except ProblemsError as error:
            found = error.problems[0]
        if isinstance(found, Problem):
            return f'<p class="hint">{esc(found.what)}: {esc(found.fix)}.</p>'
        write = button("scores_write", "Write to images ...", kind="quiet", title="Opens the form on Tools")
        return f'<p class="scored" role="status">{esc(found.text) or "<i>no tags</i>"}</p><p class="hint">{esc(found.shown)}</p>{write}'

    def _tagged(self, placed: Placed) -> Any:
        from core.captioning.tagger.tagging import check_retag, preview

        job = tool_forms.job_of(self.task, self._values(), self.page.project.job)
        settings = getattr(job, TASK)
        check_retag(settings, self.page.workspace)
        ((_, found),) = preview([placed.image.path], settings, self.page.workspace)
        return found
