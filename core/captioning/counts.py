"""How many images have each tag, as a table: the outcome of a job lists the most frequent alone."""

from __future__ import annotations

import csv
import io
import time
from collections import Counter
from pathlib import Path

from core.record import atomic
from core.record.problems import unwritten
from core.record.workspace import Workspace


def write_counts(counts: Counter[str], name: str, workspace: Workspace) -> Path:
    """Write all of them, the most frequent first, into a new file of the outputs folder. Raises ProblemsError."""
    text = io.StringIO(newline="")
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["tag", "images"])
    rows.writerows(counts.most_common())
    path = workspace.outputs / "tags" / f"{time.strftime('%Y%m%d-%H%M%S')}_{name}.csv"
    try:
        atomic.write_text(path, text.getvalue())
    except OSError as error:
        raise unwritten(error, "The table of tags cannot be written", str(path), "the captions are written") from error
    return path
