"""The dataset config of sd-scripts on the page: a file taken in, with what was found wrong in it; the folders written out."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from core.dataset.files import printable
from core.imports.dataset_config import apply_dataset_config
from core.imports.dataset_export import write_dataset_config
from core.record import atomic
from core.record.problems import Problem, ProblemsError
from tabs.context import Page, problems_html
from tabs.markup import button, count, esc, link
from tabs.safety import read_paths

KINDS = ("toml", "json")


@dataclass
class Told:
    """What the last import or export said. file: what can be downloaded."""

    lead: str
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    file: Path | None = None


class Exchange:
    """Import and export. What was said stays until it is closed."""

    def __init__(self, page: Page):
        self.page = page
        self.told: Told | None = None

    def take(self, file: str) -> None:
        """Put the file's folders and settings in place of the present ones; undo on Train takes it back."""
        name = printable(Path(file).name)
        try:
            job, report = apply_dataset_config(self.page.project.job, file)
            for path, where in read_paths(job):
                self.page.roots.check(path, where)
        except ProblemsError as error:
            self.told = Told(f"{name} was not taken over; nothing has changed.", self._named(error.problems, file))
            return
        finally:
            atomic.remove(file)  # the server's own copy of the upload
        self.page.project.replace(job, did=f"importing {name}")
        folders = len(job.dataset.all_sources())
        said = f"{name}: {count(folders, 'folder')} with their settings. Undo on Train takes it back."
        self.told = Told(said, self._named(report.problems, file), list(report.notes))

    def _named(self, problems: list[Problem], file: str) -> list[Problem]:
        """Without the place where the server keeps uploads."""
        folder = f"{Path(file).parent}"
        return [
            Problem(each.what, each.where.replace(folder, "").lstrip("/\\"), each.fix, each.level) for each in problems
        ]

    def give(self, kind: str) -> None:
        """Write the folders to a file that can be downloaded."""
        if kind not in KINDS:
            return
        self.page.workspace.private.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix="export-", dir=self.page.workspace.private))
        for path, where in read_paths(self.page.project.job):
            self.page.roots.check(path, where)
        written = write_dataset_config(self.page.project.job, folder / f"dataset.{kind}", kind)
        self.clear()
        said = (
            "Written for sd-scripts." if not written.problems else "Written for sd-scripts, but for what is named here."
        )
        self.told = Told(said, list(written.problems), file=written.path)

    def clear(self) -> None:
        """Close what was said; its file goes too."""
        if self.told is not None and self.told.file is not None:
            atomic.remove_folder(self.told.file.parent)
        self.told = None

    def html(self) -> str:
        """The buttons, and below them what was said."""
        buttons = "".join(button("export", f"Export {kind.upper()}", kind, kind="quiet") for kind in KINDS)
        about = "Folders and their settings as a dataset config of sd-scripts:"
        line = f'<div class="exchange"><span class="hint">{about}</span>{buttons}</div>'
        told = self.told
        if told is None:
            return line
        parts = [f"<strong>{esc(told.lead)}</strong>"]
        if told.file is not None:
            parts.append(
                link(
                    self.page.file_url(told.file), f"Download {told.file.name}", download=told.file.name, kind="primary"
                )
            )
        head = f'<div class="told">{"".join(parts)}{button("said", "Close", kind="quiet")}</div>'
        notes = "".join(f"<li>{esc(note)}</li>" for note in told.notes)
        body = (f'<ul class="notes">{notes}</ul>' if notes else "") + (
            problems_html(told.problems) if told.problems else ""
        )
        return f'{line}<div class="block-part exchange-told" role="status">{head}{body}</div>'
