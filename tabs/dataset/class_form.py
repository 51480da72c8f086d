"""The form that generates regularization images for a dataset folder, and the state of its jobs."""

from collections.abc import Callable
from typing import Any

from core.generation.class_plan import class_folder, first_class_word
from core.record.problems import ProblemsError
from core.record.workspace import display_path, resolve_path
from core.settings.dataset.source import Source
from core.settings.job import ClassImagesJob
from core.tasks import named
from tabs.context import Page
from tabs.form.task_form import TaskForm
from tabs.form.task_settings import job_of
from tabs.markup import button, esc

TASK = "class_images"
NEW = -1  # in place of a card's number: no regularization folder yet


class ClassForm:
    """The form for regularization images, open on one folder card at a time.

    load, keep: functions that read the state of the Dataset tab and store changed keys of it
    """

    def __init__(self, page: Page, load: Callable[[], dict[str, Any]], keep: Callable[..., None]):
        self.page, self._load, self._keep = page, load, keep
        storage = (lambda: load().get("class_values"), lambda values: keep(class_values=values))
        # The card says where.
        self.form = TaskForm(page, named(TASK), "class", "class_field", storage, without=("folder",))

    @property
    def open_on(self) -> int | None:
        """Index of the folder card on which the form is open; NEW for a new folder, None while the form is closed."""
        return self._load().get("class_on")

    def toggle(self, index: int) -> None:
        """Open the form on the folder card at `index`, or close it if it is open there."""
        self._keep(class_on=None if self.open_on == index else index)

    def make(self, listed: list[Source]) -> Source | None:
        """Queue the form's job and close the form. Raises ProblemsError, with the invalid fields marked.

        listed: the dataset's folders. Returns the Source of the images' folder to add to the dataset; None if the folder is in `listed`.
        """
        index = self.open_on
        entry = listed[index] if index is not None and 0 <= index < len(listed) else None
        try:
            self.form.check()
            job = self._job_into(entry)
        except ProblemsError as error:
            self.form.mark(error.problems)
            raise
        self.page.engine.submit(TASK, job, title=f"Regularization images: {job.class_images.class_word or 'class'}")
        self._keep(class_on=None)
        return None if entry else Source(folder=job.class_images.folder or "", role="regularization")

    def _job_into(self, entry: Source | None) -> ClassImagesJob:
        """Return the job that fills the folder of `entry`, or a new folder named after the class if None. Raises ProblemsError."""
        values = self.form.values()
        word = (
            values.get("class_word")
            or (entry.class_word if entry else None)
            or first_class_word(self.page.project.job.dataset)
        )
        if not word:
            fix = "write what the subject is, such as dog, in the field Class"
            what = "The regularization images have no class"
            raise ProblemsError.one(what, "class_images.class_word", fix, "class-images.no-class")
        folder = entry.folder if entry else display_path(class_folder(None, word, self.page.workspace))
        job = job_of(self.form.task, values | {"class_word": word, "folder": folder}, self.page.project.job)
        assert isinstance(job, ClassImagesJob)
        return job

    def jobs(self) -> list[Any]:
        """Return the queue entries of open regularization-image jobs; if there are none, of the newest ended one."""
        entries = [entry for entry in self.page.engine.queue() if entry.task == TASK]
        open_entries = [entry for entry in entries if entry.state in ("waiting", "running")]
        return open_entries or entries[-1:]

    @property
    def stamp(self) -> str:
        """Text that changes whenever a job starts or ends."""
        return " ".join(f"{entry.id}{entry.state}" for entry in self.jobs())

    def html(self, index: int, entry: Source | None) -> str:
        """Return the HTML on a folder card: the button or open form, and the state of the job that fills the folder.

        index: of the card, NEW for a new folder, for which `entry` is None
        """
        is_open = self.open_on == index
        label = "Close" if is_open else "Generate regularization images"
        tooltip = "Generates images of the class with the base model for prior preservation"
        head = button("class", label, index, kind="quiet", title=tooltip) + self._job_state_html(entry)
        if not is_open:
            return f'<div class="class-line">{head}</div>'
        word = (entry.class_word if entry else None) or first_class_word(self.page.project.job.dataset)
        known, hints = self.form.known, {"class_word": word} if word else {}
        fields = self.form.fields([name for name in known if known[name].level == "shown"], hints=hints)
        sampling = self.form.fields([name for name in known if known[name].level != "shown"], hints=hints)
        generate = button("class_make", "Generate", index, kind="primary")
        about = "At the training resolutions. Only missing images are generated, so a stopped job can be resumed."
        return (
            f'<div class="class-line">{head}</div><div class="concept-more">{self.form.bar()}'
            f'<div class="concept-fields">{fields}</div><h4>Sampling</h4><div class="concept-fields">{sampling}</div>'
            f'<div class="class-line">{generate}<span class="hint">{esc(about)}</span></div></div>'
        )

    def _job_state_html(self, entry: Source | None) -> str:
        """Return the HTML of the state of the job that fills the folder of `entry`; "" without one."""
        for job in self.jobs():
            folder = job.job.get(TASK, {}).get("folder") if isinstance(job.job, dict) else None
            if entry is None or not folder or resolve_path(folder) != resolve_path(entry.folder):
                continue
            state = {"running": "generating", "done": "generated"}.get(job.state, job.state)
            state += f". {job.message}" if job.message else ""
            waits = f' data-waits="{esc(job.id)}"' if job.state == "waiting" else ""
            return f'<span class="hint" role="status">Regularization images: <span{waits}>{esc(state)}</span></span>'
        return ""
