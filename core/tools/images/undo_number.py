"""The tool that undoes a numbering in place."""

from core.record.context import JobContext, Outcome
from core.record.units import count
from core.settings.tools.images import UndoNumberSettings
from core.tools.images.folders import FolderPlan
from core.tools.images.number import rename_back


def do(settings: UndoNumberSettings, plan: FolderPlan, context: JobContext) -> Outcome:
    """Give the files of the folder their original names back. Raises ProblemsError if there is no numbering to undo."""
    renamed, missing = rename_back(plan.folder)
    lines = [f"{count(missing, 'numbered file')} not found"] if missing else []
    return Outcome(lines=[*lines, f"{renamed} files have their original names again"], facts={"renamed": renamed})
