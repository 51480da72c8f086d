"""The captions of all images in one file for fine-tuning, in place of caption files: what sd-scripts' tagger writes with
`--output_path` (reference: captioning.md, section 4.7)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from core.captioning.report import Row
from core.dataset.captions.history import Change, History, content_of
from core.dataset.sources.files import printable
from core.record.problems import Problem, ProblemsError, unwritten
from core.record.workspace import Workspace, typed_path

SETTING = "captioning.output_path"


def path_problems(text: str) -> list[Problem]:
    """Why captions cannot be written to such a file, as far as that can be seen before."""
    path = typed_path(text)
    if path is None or path.suffix.lower() not in (".json", ".jsonl") or "\0" in text:
        fix = "use a name that ends in .json or .jsonl"
        return [Problem("The caption file is neither .json nor .jsonl", SETTING, fix, code="captioning.one-file")]
    if path.is_dir():
        fix = "choose a file in it"
        return [Problem("The caption file is a folder", printable(path), fix, code="captioning.one-file")]
    return []


def write_one_file(
    path: Path, kind: str, captions: Mapping[Row, str], title: str, about: Mapping[str, Any], workspace: Workspace
) -> None:
    """Write the captions, in a way that can be undone. kind: what they are in a .json, "tags" or "caption".
    Raises ProblemsError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritten(error, "The captions cannot be written", printable(path), "nothing was changed") from error
    form = _lines if path.suffix.lower() == ".jsonl" else _object
    new = form(captions, kind).encode("utf-8", "backslashreplace")
    done = History(workspace.captions).apply(title, [Change(path, content_of(path), new)], about=about)
    if done.changed_since:
        what = "Another program changed the caption file in the meantime; nothing was written"
        raise ProblemsError.one(what, printable(path), "start again", "captioning.one-file-changed")


def _object(captions: Mapping[Row, str], kind: str) -> str:
    entries = {str(row.image.path): {kind: text, "image_size": _size(row)} for row, text in captions.items()}
    return json.dumps(entries, indent=2, ensure_ascii=False) + "\n"


def _lines(captions: Mapping[Row, str], kind: str) -> str:
    entries = (
        {"image_path": str(row.image.path), "caption": text, "image_size": _size(row)} for row, text in captions.items()
    )
    return "".join(f"{json.dumps(entry, ensure_ascii=False)}\n" for entry in entries)


def _size(row: Row) -> list[int]:
    return [row.image.width, row.image.height]
