"""A toy tool: counts the files of a folder, one at a time, in a process of its own."""

import time
from pathlib import Path

from core.record.context import JobContext, Outcome
from core.settings.base import Settings, setting
from core.tasks import register, tool


class CountSettings(Settings):
    """Counts the files of a folder."""

    folder: str = setting("", title="Folder", level="shown", widget="folder", help="Where to count.", names="path")
    suffix: str = setting("", title="Suffix", help="Counts only files that end in this, such as .txt.", names="part")
    seconds: float = setting(0.0, ge=0, le=10, title="Seconds for each file", help="How long to look at each file.")


def count(asked: CountSettings, context: JobContext) -> Outcome:
    files = sorted(path for path in Path(asked.folder).iterdir() if path.name.endswith(asked.suffix))
    for number, path in enumerate(files, 1):
        context.check()
        context.stage(f"counting {path.name}", number, len(files))
        time.sleep(asked.seconds)
    return Outcome(lines=[f"{len(files)} files"], facts={"files": len(files)})


register(tool("count", CountSettings, count, title="Count files", about="count the files of a folder", reads=True))
