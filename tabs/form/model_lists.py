"""Model files by kind, from the index of the model folders, for all lists of models on the page."""

import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from operator import methodcaller
from pathlib import Path

from core.control.kinds import CODES
from core.formats.detect import FAMILY_NAMES, KIND_NAMES
from core.generation.model.index import FileFacts, facts_of_file
from core.generation.model.library import Scan, find_all, portable_name
from core.generation.model.other_files import is_refiner
from core.record.problems import ProblemsError
from core.record.workspace import STARTER, Workspace, display_path, real_path

LISTS: dict[str, Callable[[Scan], list[tuple[str, Path]]]] = {
    "checkpoint": Scan.checkpoints,
    "lora": Scan.loras,
    "vae": Scan.vaes,
    "embedding": Scan.embeddings,
    "upscaler": Scan.upscalers,
    **{kind: methodcaller("control", kind) for kind in CODES},
}
KINDS = {"checkpoint": "", "embedding": "embedding"}  # text of the badge
REFINER = "refiner"  # a list of the checkpoints that are refiners
STARTER_LABEL = "starter (SD 1.x, 128 px)"
REFRESH_SECONDS = 3.0  # after which lists that are requested all the time are read again
IDLE = 9  # least pause between readings, as a multiple of the seconds of the last one
WAIT_SECONDS = 0.4  # for which a response waits for the first reading of the folders
CHOICES_WAIT, MAX_CHOICES = 0.12, 200  # of a list of choices: seconds it waits for a reading, and its length


@dataclass(frozen=True)
class Listed:
    """A file or folder in a list. label: its text; name: its name in generation settings; value: its value in other settings."""

    label: str
    name: str
    value: str
    path: Path
    facts: FileFacts

    @property
    def text(self) -> str:
        """The label with the badges in brackets, for plain text lists."""
        notes = [f"unreadable: {self.facts.problem}"] if self.facts.problem else badges(self.facts)
        return f"{self.label} ({', '.join(notes)})" if notes and self.label != STARTER_LABEL else self.label

    def with_reason(self, reason: str) -> str:
        """Return the label with the reason why the file cannot be chosen; `text` if the reason is ""."""
        return f"{self.label}: {reason}" if reason else self.text


def badges(facts: FileFacts) -> list[str]:
    """Return short texts on a file: family, network kind or file kind, rank; [] for an unreadable file."""
    if facts.problem:
        return []
    family = FAMILY_NAMES.get(facts.family or "", "")
    kind = facts.network or facts.variant or KINDS.get(facts.kind, KIND_NAMES.get(facts.kind, ""))
    rank = f"rank {facts.rank}" if facts.rank else ""
    rank += f", conv {facts.conv_rank}" if facts.conv_rank else ""
    return [text for text in (family, kind, rank) if text]


def network_text(facts: FileFacts) -> str:
    """Return the badges of a LoRA file on one line, without "LoRA"."""
    return " \u00b7 ".join(text for text in badges(facts) if text != "LoRA")


@lru_cache(maxsize=20_000)
def _names(path: Path, real: str, workspace: Workspace) -> tuple[str, str]:
    """Return (name, value) of a `Listed`, cached until a link in the path leads to another `real` file."""
    return portable_name(path, workspace), display_path(path)


class ModelLists:
    """The files of each kind of a workspace, read in a thread since thousands of new files take long."""

    def __init__(self, workspace: Workspace):
        self.workspace = workspace
        self.version = 0  # increases with each change
        self._files: dict[str, list[Listed]] = {}
        self._read_at, self._read_seconds = float("-inf"), 0.0  # end and seconds of the last reading
        self._reading: threading.Thread | None = None
        self._lock = threading.Lock()

    def of(self, kinds: Sequence[str]) -> list[Listed]:
        """Return the files of these kinds, as of the last reading."""
        return [each for kind in kinds for each in self._files.get(kind, [])]

    def read(self) -> None:
        """Read the folders now. Only new and changed files have their headers read."""
        started = time.monotonic()
        try:
            self._read()
        finally:
            self._read_at = time.monotonic()
            self._read_seconds = self._read_at - started

    def _read(self) -> None:
        """Read the folders and increase `version` if a list has changed."""
        scan = Scan(self.workspace)
        files = {kind: [self._read_facts(*each) for each in listed(scan)] for kind, listed in LISTS.items()}
        files[REFINER] = [each for each in files["checkpoint"] if is_refiner(each.facts.as_kind())]
        if files != self._files:
            self._files = files
            self.version += 1

    def _read_facts(self, label: str, path: Path) -> Listed:
        """Return the list entry of a file, with the facts from its header."""
        facts = facts_of_file(path)
        label = label.removesuffix(f" (unreadable: {facts.problem})")
        return Listed(label, *_names(path, os.path.realpath(path), self.workspace), path, facts)

    def refresh(self, wait: float = WAIT_SECONDS, after: float = 0.0) -> None:
        """Start a reading in a thread, unless one ended within the last `after` seconds, and wait up to `wait` seconds for it.

        With `after`, the pause is also at least IDLE times as long as the last reading took.
        """
        with self._lock:
            pause = max(after, IDLE * self._read_seconds) if after else 0.0
            if not self.reading and time.monotonic() - self._read_at >= pause:
                self._reading = threading.Thread(target=self.read, name="model lists", daemon=True)
                self._reading.start()
            reading = self._reading
        if reading is not None:
            reading.join(wait)

    def find(self, name: str) -> list[Path]:
        """Return the paths that `find_all` finds for a LoRA's name; reads the folders again if there are none. Raises ProblemsError."""
        try:
            return self._find(name)
        except ProblemsError:
            self.refresh()
            return self._find(name)

    def _find(self, name: str) -> list[Path]:
        """Return the paths that `find_all` finds for a LoRA's name in the last reading. Raises ProblemsError."""
        return find_all("lora", name, self.workspace, [(each.label, each.path) for each in self.of(["lora"])])

    def named(self, name: str) -> Listed:
        """Return the LoRA with this name in generation settings. Raises ProblemsError if there is none."""
        file = next((each for each in self.of(["lora"]) if each.name == name), None)
        if file is None:
            what = "This LoRA no longer exists"
            raise ProblemsError.one(what, name[:100], "press Refresh and choose again", "generate.lora-gone")
        return file

    @property
    def reading(self) -> bool:
        """Whether a thread is reading the folders."""
        return self._reading is not None and self._reading.is_alive()


@cache
def model_lists(workspace: Workspace) -> ModelLists:
    """Return the ModelLists of a workspace, which all tabs and browsers share."""
    return ModelLists(workspace)


def with_starter(checkpoints: list[Listed]) -> list[Listed]:
    """Return the checkpoints with the starter model first, if that exists."""
    if not (STARTER / "model_index.json").is_file():
        return checkpoints
    others = [each for each in checkpoints if real_path(each.path) != STARTER.resolve()]
    value = display_path(STARTER)
    return [Listed(STARTER_LABEL, value, value, STARTER, facts_of_file(STARTER)), *others]


def choices_of(kind: str, workspace: Workspace, after: float = 0.0) -> list[tuple[str, str]]:
    """Return [(label, value)] of at most MAX_CHOICES files of a kind; for checkpoints with the starter model first.

    Waits up to CHOICES_WAIT seconds for a new reading, else uses the last one. after: as in `ModelLists.refresh`.
    """
    lists = model_lists(workspace)
    lists.refresh(CHOICES_WAIT, after)
    files = lists.of([kind])
    files = with_starter(files)[: MAX_CHOICES + 1] if kind == "checkpoint" else files[:MAX_CHOICES]
    return [(each.text, each.value) for each in files]
