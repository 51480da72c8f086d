"""Preview of the open image's tags from stored tagger scores while thresholds and tag lists are changed.

The settings are those of "Tags from kept scores" in the captioners' form, which writes the tags of all images.
"""

from typing import Any

from core.captioning.described import with_scores
from core.dataset.buckets.batches import Placed
from core.record.problems import Problem, ProblemsError
from core.tasks import named
from tabs.context import Page
from tabs.form.task_settings import job_of
from tabs.markup import button, esc
from tabs.tools.forms import ToolForm

TASK = "retag"
FIELDS = (
    *("repo_id", "thresh", "general_threshold", "character_threshold", "undesired_tags", "order", "max_tags"),
    "remove_underscore",
)


class Scores:
    """The preview and its form, which shares its values with the captioners' form."""

    def __init__(self, page: Page):
        task = named(TASK)
        assert task.card is not None
        self.page, self.task, self._form = page, task, ToolForm(page, task.card)

    def fill(self, name: str, text: str) -> None:
        """Set field `name` to the typed text. Raises ProblemsError."""
        self._form.form(self.task).change(name, text)

    def choose(self) -> dict[str, Any]:
        """Select "Tags from kept scores" in the captioners' form. Returns {}."""
        self._form.choose(TASK)
        return {}

    def form(self) -> str:
        """Return the HTML of the form's fields."""
        fields = self._form.form(self.task).fields(FIELDS, act="scores_field", id="cap-scores")
        return f'<div class="concept-fields">{fields}</div>'

    def result(self, placed: Placed | None) -> str:
        """Return the HTML of the image's tags and scores with the form's settings, or of the problem; "" without an image."""
        if placed is None:
            return ""
        try:
            tagged = self._tagged(placed)
        except ProblemsError as error:
            tagged = error.problems[0]
        if isinstance(tagged, Problem):
            return f'<p class="hint">{esc(tagged.what)}: {esc(tagged.fix)}.</p>'
        write = button(
            "scores_write", "Write to images ...", kind="quiet", title="Opens Tags from kept scores in Caption images"
        )
        scores = esc(with_scores(tagged.scored))
        return f'<p class="scored" role="status">{esc(tagged.text) or "<i>no tags</i>"}</p><p class="hint">{scores}</p>{write}'

    def _tagged(self, placed: Placed) -> Any:
        """Return the image's tags and scores, from stored scores and the form's settings. Raises ProblemsError."""
        from core.captioning.tagger.tagging import check_retag, preview

        job = job_of(self.task, self._form.values(self.task), self.page.project.job)
        settings = getattr(job, TASK)
        check_retag(settings, self.page.workspace)
        ((_, tagged),) = preview([placed.image.path], settings, self.page.workspace)
        return tagged
