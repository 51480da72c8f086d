"""The model files of the folders by kind, from their index: what every list of models on the page offers."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

from core.control.kinds import CODES
from core.formats.detect import FAMILY_NAMES, KIND_NAMES
from core.generation.model.index import FileFacts, facts_of_file
from core.generation.model.library import (
    find_all,
    list_control,
    list_embeddings,
    list_loras,
    list_models,
    list_upscalers,
    list_vaes,
    portable_name,
)
from core.generation.model.other_files import is_refiner
from core.record.problems import ProblemsError
from core.record.workspace import PROJECT, Workspace, display_path, real_path

LISTS: dict[str, Callable[[Workspace], list[tuple[str, Path]]]] = {
    "checkpoint": list_models,
    "lora": list_loras,
    "vae": list_vaes,
    "embedding": list_embeddings,
    "upscaler": list_upscalers,
    **{kind: partial(list_control, kind=kind) for kind in CODES},
}
KINDS = {"checkpoint": "", "embedding": "embedding"}  # in few words
REFINER = "refiner"  # of the checkpoints
STARTER = PROJECT / "models" / "starter"
STARTER_WORDS = "starter (SD 1.x, 128 px)"
AGAIN = 3.0  # seconds after which lists that are asked for all the time are read again
SOON = 0.4  # seconds that an answer waits for a first reading of the folders
QUICK, MOST = 0.12, 200  # of a list of choices: seconds that it waits, and files in it


@dataclass(frozen=True)
class Listed:
    """A file or folder that is offered. label: its words; name: as settings of images name it; value: as other settings do"""

    label: str
    name: str
    value: str
    path: Path
    facts: FileFacts

    @property
    def words(self) -> str:
        """The label with the badges, for lists of plain text."""
        found = [f"unreadable: {self.facts.problem}"] if self.facts.problem else badges(self.facts)
        return f"{self.label} ({', '.join(found)})" if found and self.label != STARTER_WORDS else self.label

    def with_reason(self, why: str) -> str:
        """`words`, or the label with the reason why it cannot be chosen."""
        return f"{self.label}: {why}" if why else self.words


def badges(facts: FileFacts) -> list[str]:
    """What a file is, in few words each: family, network kind or kind, rank."""
    if facts.problem:
        return []
    family = FAMILY_NAMES.get(facts.family or "", "")
    kind = facts.network or facts.variant or KINDS.get(facts.kind, KIND_NAMES.get(facts.kind, ""))
    rank = f"rank {facts.rank}" if facts.rank else ""
    rank += f", conv {facts.conv_rank}" if facts.conv_rank else ""
    return [words for words in (family, kind, rank) if words]


class ModelLists:
    """The files of each kind, read in a thread: thousands of new files take longer than an answer may."""

    def __init__(self, workspace: Workspace):
        self.workspace = workspace
        self.version = 0  # grows with each change
        self._of: dict[str, list[Listed]] = {}
        self._ended = float("-inf")  # when the last reading did
        self._reading: threading.Thread | None = None
        self._lock = threading.Lock()

    def of(self, kinds: Sequence[str]) -> list[Listed]:
        """Those of these kinds, as they were at the last reading."""
        return [each for kind in kinds for each in self._of.get(kind, [])]

    def read(self) -> None:
        """Look through the folders now. Headers are read again only of files that have changed."""
        try:
            self._read()
        finally:
            self._ended = time.monotonic()

    def _read(self) -> None:
        found = {kind: [self._listed(*each) for each in listed(self.workspace)] for kind, listed in LISTS.items()}
        found[REFINER] = [each for each in found["checkpoint"] if is_refiner(each.facts.as_kind())]
        if found != self._of:
            self._of = found
            self.version += 1

    def _listed(self, label: str, path: Path) -> Listed:
        facts = facts_of_file(path)
        label = label.removesuffix(f" (unreadable: {facts.problem})")
        return Listed(label, portable_name(path, self.workspace), display_path(path), path, facts)

    def look(self, wait: float = SOON, after: float = 0.0) -> None:
        """Start a reading in a thread, unless one ended in the last `after` seconds, and wait up to `wait` seconds for it."""
        with self._lock:
            if not self.reading and time.monotonic() - self._ended >= after:
                self._reading = threading.Thread(target=self.read, name="model lists", daemon=True)
                self._reading.start()
            reading = self._reading
        if reading is not None:
            reading.join(wait)

    def find(self, name: str) -> list[Path]:
        """The files of a LoRA's name, as `find_all`; reads the folders again if it is not listed. Raises ProblemsError."""
        try:
            return self._found(name)
        except ProblemsError:
            self.look()
            return self._found(name)

    def _found(self, name: str) -> list[Path]:
        return find_all("lora", name, self.workspace, [(each.label, each.path) for each in self.of(["lora"])])

    def named(self, name: str) -> Listed:
        """The LoRA that settings of images name so. Raises ProblemsError."""
        found = next((each for each in self.of(["lora"]) if each.name == name), None)
        if found is None:
            what = "This LoRA no longer exists"
            raise ProblemsError.one(what, name[:100], "press Refresh and choose again", "generate.lora-gone")
        return found

    @property
    def reading(self) -> bool:
        return self._reading is not None and self._reading.is_alive()


@cache
def model_lists(workspace: Workspace) -> ModelLists:
    """The one of these folders, for every tab and browser."""
    return ModelLists(workspace)


def with_starter(found: list[Listed]) -> list[Listed]:
    """The checkpoints with the starter model first, where it is."""
    if not (STARTER / "model_index.json").is_file():
        return found
    others = [each for each in found if real_path(each.path) != STARTER.resolve()]
    value = display_path(STARTER)
    return [Listed(STARTER_WORDS, value, value, STARTER, facts_of_file(STARTER)), *others]


def choices_of(kind: str, workspace: Workspace) -> list[tuple[str, str]]:
    """(words, value) for each file of a kind: as they are if that is soon known, else as they were at the last look. Base models
    begin with the starter."""
    lists = model_lists(workspace)
    lists.look(QUICK)
    found = lists.of([kind])
    found = with_starter(found)[: MOST + 1] if kind == "checkpoint" else found[:MOST]
    return [(each.words, each.value) for each in found]
