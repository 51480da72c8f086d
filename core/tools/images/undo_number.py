"""The tool that undoes a numbering in place."""

from core.record.context import JobContext, Outcome
from core.settings.tools.images import UndoNumberSettings
from core.tools.images.folders import FolderPlan
from core.tools.images.number import rename_back


def do(settings: UndoNumberSettings, plan: FolderPlan, context: JobContext) -> Outcome:
    """Give the files of the folder their original names back. Raises ProblemsError if there is no numbering to undo."""
    count = rename_back(plan.folder)
    return Outcome(lines=[f"{count} files have their original names again"], facts={"renamed": count})
