"""Files and folders that an imported job names and this machine does not have, and where they may be instead."""

import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from itertools import takewhile
from pathlib import Path, PureWindowsPath

from core.record.problems import Problem
from core.record.workspace import PROJECT, is_foreign, resolve_path
from core.settings.base import value_of
from core.settings.job import TrainJob

SOURCES = "dataset.sources"
MODELS = ("model.base_model", "model.vae")  # also names on Hugging Face
PATHS = (
    *MODELS, "dataset.folder", "dataset.reg_data_dir", "network.network_weights", "embedding.embedding_weights",
    "samples.sample_prompts_file", "resume.resume", "logging.log_tracker_config",
)  # fmt: skip
WRITTEN = ("logging.logging_dir", "logging.console_log_file", "saving.copy_to")  # created when missing
LOCAL = re.compile(r"[/~.\\]|[A-Za-z]:|.*\\|.*\.(?:safetensors|ckpt|pt|bin)$", re.IGNORECASE | re.DOTALL)
PROGRAM = {PROJECT / name for name in ("core", "tabs", "tests", "docs", "workshop")}  # nothing of a user is there
MOST_SEARCHED, DEEPEST, MOST_FOUND = 20_000, 4, 4  # entries of folders, folders in one another, answers


def missing_paths(job: TrainJob, exists: Callable[[Path], bool] = Path.exists) -> Iterator[tuple[str, str]]:
    """(setting, path) of the job's files and folders that are not on this machine."""
    folders = [(SOURCES, each.folder) for each in job.dataset.sources]
    for setting, text in (*((path, value_of(job, path)) for path in PATHS), *folders):
        if isinstance(text, str) and text and "\0" not in text and (setting not in MODELS or LOCAL.match(text)):
            try:
                missing = not exists(resolve_path(text))
            except OSError:
                missing = True
            if missing:
                yield setting, text
    for setting in WRITTEN:
        if (text := value_of(job, setting)) and is_foreign(text):
            yield setting, text


def missing_files(job: TrainJob, folders: Sequence[Path] = ()) -> Iterator[Problem]:
    """Warnings about `missing_paths`. folders: searched for files and folders of the same name, to suggest"""
    missing = list(missing_paths(job))
    near = nearby([text for _, text in missing], folders)
    for setting, text in missing:
        fix = "choose where it is here" + "".join(f", such as {path}" for path in near[text][:1])
        yield Problem(f"{text} is not on this machine", setting, fix, "warning", code="import.missing-path")


def nearby(texts: Sequence[str], folders: Sequence[Path]) -> dict[str, list[Path]]:
    """For each path, at most MOST_FOUND files and folders below `folders` that have the name at its end, those with most of its
    parents first."""
    parts = {text: [part.lower() for part in PureWindowsPath(text).parts] for text in texts}
    names = {path[-1] for path in parts.values() if path}
    named = defaultdict[str, list[Path]](list)
    for path in _below(list(folders)) if names else ():
        if path.name.lower() in names:
            named[path.name.lower()].append(path)

    def shared(path: Path, wanted: list[str]) -> int:
        same = (here.lower() == there for here, there in zip(reversed(path.parts), reversed(wanted), strict=False))
        return sum(1 for _ in takewhile(bool, same))

    return {
        text: sorted(dict.fromkeys(named[wanted[-1]]), key=lambda path: -shared(path, wanted))[:MOST_FOUND]
        if wanted
        else []
        for text, wanted in parts.items()
    }


def _below(level: list[Path]) -> Iterator[Path]:
    """Files and folders in `level` and in folders below, the nearest first. Limited in depth and number."""
    left = MOST_SEARCHED
    for _ in range(DEEPEST):
        inner = []
        for folder in level:
            if folder in PROGRAM:
                continue
            try:
                entries = [each for each in os.scandir(folder) if not each.name.startswith(".")]
            except (OSError, ValueError):
                continue
            left -= len(entries)
            if left < 0:
                return
            inner += [Path(each.path) for each in entries if each.is_dir(follow_symlinks=False)]
            yield from (Path(each.path) for each in entries)
        level = inner
