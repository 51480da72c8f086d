"""Import and export of sd-scripts dataset configs on the Dataset tab."""

import tempfile
from dataclasses import replace
from pathlib import Path

from core.dataset.sources.files import printable
from core.imports.dataset_export import write_dataset_config
from core.imports.importers import importer_of
from core.record import atomic
from core.record.problems import Problem, ProblemsError
from core.record.units import count
from tabs.context import Page
from tabs.markup import button

KINDS = ("toml", "json")
PREFIX = "export-"  # of the folder with the last export


class Exchange:
    """Imports and exports dataset configs, and reports the results in the message panel."""

    def __init__(self, page: Page):
        self.page = page

    def import_config(self, file: str) -> None:
        """Replace the dataset's folders and settings by those of the uploaded config `file`, and delete the upload.

        Errors are shown as a message. Undo in Train reverts the import.
        """
        name = printable(Path(file).name)
        try:
            job, report = importer_of(file).apply(self.page.project.job, file)
            self.page.roots.admit(job)
        except ProblemsError as error:
            text = f"{name} was not imported; nothing changed."
            self.page.say("error", title=text, problems=self._with_file_name(error.problems, file))
            return
        finally:
            atomic.remove(file)  # the server's own copy of the upload
        self.page.project.change(job, did=f"importing {name}")
        folders = len(job.dataset.all_sources())
        text = f"{name}: {count(folders, 'folder')} with their settings. Undo in Train reverts it."
        self.page.say("done", text, problems=self._with_file_name(report.problems, file), notes=report.notes)

    def _with_file_name(self, problems: list[Problem], file: str) -> list[Problem]:
        """Return the problems with the upload's folder removed from their `where`."""
        folder = f"{Path(file).parent}"
        return [replace(each, where=each.where.replace(folder, "").lstrip("/\\")) for each in problems]

    def export_config(self, kind: str) -> None:
        """Write the dataset's folders and settings to a config file and offer its download. kind: "toml" or "json", others are ignored"""
        if kind not in KINDS:
            return
        self.page.roots.admit(self.page.project.job)
        place = self.page.workspace.personal_private
        place.mkdir(parents=True, exist_ok=True)
        for earlier in place.glob(f"{PREFIX}*"):
            atomic.remove_folder(earlier)
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=place))
        written = write_dataset_config(self.page.project.job, folder / f"dataset.{kind}", kind)
        text = (
            "Exported for sd-scripts."
            if not written.problems
            else "Exported for sd-scripts, except for the items listed."
        )
        link = (self.page.file_url(written.path), written.path.name)
        self.page.say("done", text, problems=written.problems, link=link)


def buttons() -> str:
    """Return the HTML of the export buttons."""
    exports = "".join(button("export", f"Export {kind.upper()}", kind, kind="quiet") for kind in KINDS)
    text = "Export the folders and their settings as an sd-scripts dataset config:"
    return f'<div class="exchange"><span class="hint">{text}</span>{exports}</div>'
