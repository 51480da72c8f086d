"""Find files and folders that an imported job names but this machine does not have, and suggest where they may be instead."""

import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import takewhile
from pathlib import Path, PureWindowsPath

from core.record.problems import Problem
from core.record.workspace import PROJECT, is_foreign, resolve_path
from core.settings.base import declared, value_of
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
    """Yield (setting, path) of the job's files and folders that are not on this machine."""
    yield from ((setting, text) for setting, text, is_here in _paths_to_read(job, exists) if not is_here)
    for setting in WRITTEN:
        if (text := value_of(job, setting)) and is_foreign(text):
            yield setting, text


def _paths_to_read(job: TrainJob, exists: Callable[[Path], bool]) -> Iterator[tuple[str, str, bool]]:
    """Yield (setting, path, whether it is on this machine) of the files and folders that the job reads."""
    folders = [(SOURCES, each.folder) for each in job.dataset.sources if each.enabled]
    for setting, text in (*((path, value_of(job, path)) for path in PATHS), *folders):
        if isinstance(text, str) and text and "\0" not in text and (setting not in MODELS or LOCAL.match(text)):
            try:
                yield setting, text, exists(resolve_path(text))
            except OSError:
                yield setting, text, False


def nearby_folders(job: TrainJob, exists: Callable[[Path], bool] = Path.exists) -> list[Path]:
    """Return parents and grandparents of those files and folders of the job that are on this machine, those of the dataset first."""
    paths = [resolve_path(text) for _, text, is_here in reversed([*_paths_to_read(job, exists)]) if is_here]
    return list(dict.fromkeys(parent for path in paths for parent in path.parents[:2] if parent.name))


def missing_files(job: TrainJob, folders: Sequence[Path] = ()) -> Iterator[Problem]:
    """Yield a warning for each missing file or folder of the job.
    folders: searched for files and folders of the same name, to suggest; () suggests none"""
    missing = list(missing_paths(job))
    near = nearby(missing, [*nearby_folders(job), *folders] if folders else [])
    for setting, text in missing:
        fix = "choose where it is here" + "".join(f", such as {path}" for path in near[setting, text][:1])
        yield Problem(f"{text} is not on this machine", setting, fix, "warning", code="import.missing-path")


def nearby(missing: Sequence[tuple[str, str]], folders: Sequence[Path]) -> dict[tuple[str, str], list[Path]]:
    """Return {(setting, path): existing files or folders below `folders` with the same name}, for each of `missing`.

    At most MOST_FOUND each, of the type that the setting needs; those that share most parent folders come first.
    """
    parts = {pair: PureWindowsPath(pair[1]).parts for pair in missing}
    names = {path[-1].lower() for path in parts.values() if path}
    named = defaultdict[str, list[Path]](list)
    for path in dict.fromkeys(_below(list(folders))) if names else ():
        if path.name.lower() in names:
            named[path.name.lower()].append(path)
    widgets = {entry.path: entry.widget for entry in declared(TrainJob)} | {SOURCES: "folder"}

    def fits(path: Path, setting: str) -> bool:
        """Return whether a path is a file or folder as the setting needs."""
        return widgets.get(setting) not in ("file", "folder") or path.is_dir() == (widgets[setting] == "folder")

    def order(path: Path, wanted: Sequence[str]) -> tuple[int, bool]:
        """Return a sort key: paths that share more trailing parts with `wanted` first, then those with its upper and lower case."""
        same = (
            part.lower() == wanted_part.lower()
            for part, wanted_part in zip(reversed(path.parts), reversed(wanted), strict=False)
        )
        return -sum(1 for _ in takewhile(bool, same)), path.name != wanted[-1]

    suggestions: dict[tuple[str, str], list[Path]] = {}
    for (setting, text), wanted in parts.items():
        candidates = [path for path in named[wanted[-1].lower()] if fits(path, setting)] if wanted else []
        suggestions[setting, text] = sorted(candidates, key=partial(order, wanted=wanted))[:MOST_FOUND]
    return suggestions


def _below(level: list[Path]) -> Iterator[Path]:
    """Yield the files and folders in the folders `level` and below, the nearest first. Limited in depth and number."""
    remaining = MOST_SEARCHED
    for _ in range(DEEPEST):
        inner = []
        for folder in level:
            if folder in PROGRAM:
                continue
            try:
                entries = [each for each in os.scandir(folder) if not each.name.startswith(".")]
            except (OSError, ValueError):
                continue
            remaining -= len(entries)
            if remaining < 0:
                return
            inner += [Path(each.path) for each in entries if each.is_dir(follow_symlinks=False)]
            yield from (Path(each.path) for each in entries)
        level = inner
