"""The result of an import: the job, and a report with an entry for every key of the other program's file."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path, PureWindowsPath
from typing import Any, Literal

from core.imports.projects.missing import missing_files
from core.imports.projects.shells import UNRESOLVED
from core.record.bounded_json import json_or_none
from core.record.bounded_toml import bounded_loads
from core.record.problems import Problem, ProblemsError, one_line
from core.record.regular import read_regular
from core.record.workspace import PROJECT
from core.settings.base import Declared, declared
from core.settings.check import shorten
from core.settings.job import TrainJob

EntryKind = Literal["taken", "changed", "default", "unavailable", "idle", "secret"]
TITLES: dict[EntryKind, str] = {
    "changed": "Changed",
    "unavailable": "Not available",
    "default": "Not in the file: defaults of the program that differ from Atelier's",
    "secret": "Never imported",
    "idle": "No effect on the training",
    "taken": "Taken",
}
LONGEST = 60  # characters of a value in a line
MAX_BYTES = 300_000  # of a text: the slowest take a second to be read
MOST_LINES, LONGEST_LINE = 200, 500  # of the report in a description
IMPORTED = "Imported from "  # begins the description of a preset that was imported
FOLDED: tuple[EntryKind, ...] = ("idle", "taken")  # what need not be read


class ChoiceNeeded(ProblemsError):
    """Error that a text can be read as several things. choices: the values for `import_project`'s `choice`"""

    def __init__(self, problem: Problem, choices: Sequence[str]):
        super().__init__([problem])
        self.choices = tuple(choices)


@dataclass(frozen=True)
class Entry:
    """Report entry on a key of the imported file.

    kind      taken: as written · changed: with a reason · default: not in the file, the program's default is set · unavailable: lost,
              with what is done instead · idle: changes nothing about the training · secret: a key or token
    key       name in the file
    value     value in the file; empty for secrets
    settings  dotted paths of the settings that it became
    sentence  the reason; empty where the value says it all
    """

    kind: EntryKind
    key: str
    value: Any = ""
    settings: tuple[str, ...] = ()
    sentence: str = ""

    @property
    def line(self) -> str:
        """The entry as a line: "network_dim 32 -> network.rank", "lr_warmup 10: 10% of 1600 steps = 160 steps", "dataset.enable_bucket =
        off (enable_bucket is not given)"."""
        text, settings = self.text, ", ".join(self.settings)
        if settings and self.kind == "default":  # the value is the setting's: an option may be its opposite
            line = f"{settings} = {text}" + (f" ({self.key} is not given)" if self.key != settings else "")
        else:
            line = f"{self.key} {text}".rstrip() + (f" -> {settings}" if settings and self.kind == "taken" else "")
        return line + (f": {self.sentence}" if self.sentence else "")

    @property
    def text(self) -> str:
        """The value on one line, shortened to LONGEST characters."""
        text = UNRESOLVED.sub(r"\1", self.value) if isinstance(self.value, str) else shorten(self.value)
        return one_line(text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…")


@cache
def known_settings() -> dict[str, Declared]:
    """Return {dotted path: setting} of a training."""
    return {entry.path: entry for entry in declared(TrainJob)}


@dataclass
class Remarks:
    """Remarks collected while a file is read.

    notes     {name: (kind, sentence)} for the report
    problems  warnings
    """

    notes: dict[str, tuple[EntryKind, str]] = field(init=False, default_factory=dict)
    problems: list[Problem] = field(init=False, default_factory=list)

    def key(self, name: str) -> str:
        """Return the key in the file for the name of an option; subclasses rename keys."""
        return name

    def note(self, name: str, kind: EntryKind, sentence: str) -> None:
        """Set the kind and sentence of the report entry for the option `name`."""
        self.notes[name] = (kind, sentence)

    def warn(self, what: str, name: str, fix: str, code: str) -> None:
        """Add a warning on the option `name`."""
        self.problems.append(Problem(what, self.key(name), fix, "warning", code=code))


@dataclass
class Import:
    """Another program's settings as a job.

    program   name of the importer
    title     what was read: "sd-scripts, train_network.py"
    options   {name in the program: resolved value}, without keys and tokens
    problems  advice and warnings: missing files, variables without a value
    choices   what the text can be read as (tabs, scripts, commands); () if there is nothing to choose
    choice    the one of `choices` that was read
    unused    names of the files imported together with it that it does not name
    absent    names of files that it names and that are missing
    """

    program: str
    title: str
    job: TrainJob
    report: list[Entry]
    options: dict[str, Any] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    choices: tuple[str, ...] = ()
    choice: str = ""
    unused: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()

    def entries(self, kind: EntryKind) -> list[Entry]:
        """Return the report entries of one kind."""
        return [entry for entry in self.report if entry.kind == kind]

    @property
    def compatible(self) -> TrainJob:
        """The job with sd-scripts' compatibility, so that it computes as sd-scripts does."""
        return self.job.with_settings(model={"compatibility": "sd-scripts-0.10"})

    @property
    def summary(self) -> str:
        """Counts of the report: "40 taken, 3 changed, 2 not available"."""
        titles: dict[EntryKind, str] = {"taken": "taken", "changed": "changed", "unavailable": "not available"}
        return ", ".join(f"{len(self.entries(kind))} {text}" for kind, text in titles.items())

    @property
    def description(self) -> str:
        """Description for the preset: the report without entries that were taken or have no effect, at most MOST_LINES lines."""
        return IMPORTED + "\n".join([line[:LONGEST_LINE] for line in self.lines(FOLDED)][:MOST_LINES])

    def lines(self, without: Sequence[EntryKind] = ()) -> Iterable[str]:
        """Yield the report as lines of text, except for entries of the kinds `without`."""
        yield f"{self.title}: {self.summary}"
        for kind, title in TITLES.items():
            entries = self.entries(kind)
            if entries and kind not in without:
                yield from ("", f"{title}:", *(f"  {entry.line}" for entry in entries))


@dataclass(frozen=True)
class Source:
    """A text to import.

    where   name of the text or its file, for messages
    suffix  extension of the file (".json"); "" for pasted text
    folder  where files that the text names are looked up; None reads no files
    choice  which of several commands, tabs or scripts to read the text as
    path    path of a binary file, which has no text
    files   {name in lower case: path} of the files imported together with it, on the page; None in a terminal
    used    names of those that the text names
    absent  names of files that the text names and that are missing
    """

    text: str
    where: str = "the text"
    suffix: str = ""
    folder: Path | None = None
    choice: str = ""
    path: Path | None = None
    files: Mapping[str, Path] | None = None
    used: set[str] = field(default_factory=set, compare=False)
    absent: set[str] = field(default_factory=set, compare=False)

    @cached_property
    def json(self) -> dict[str, Any] | None:
        """The parsed JSON object; None for other texts."""
        value = json_or_none(self.text) if self.text.lstrip("\ufeff \t\r\n").startswith("{") else None
        return value if isinstance(value, dict) else None

    @cached_property
    def toml(self) -> dict[str, Any] | None:
        """The tables of a TOML text; None for other texts."""
        try:
            return bounded_loads(self.text.removeprefix("\ufeff"))
        except (ValueError, RecursionError):
            return None

    @property
    def fix(self) -> str:
        """The fix for a syntax error in the text."""
        return "correct that line" + ("; in a path write / for each \\" if "\\" in self.text else "")

    def bring(self, name: str, title: str) -> str:
        """Return the fix for a file that the text names and that is missing. title: what the file is, for a text without its name"""
        name = shorten(PureWindowsPath(name).name) if name else title
        if self.files is not None:
            return f"drop {name} on Train together with the file that names it"
        return f"put {name} next to the file that names it and import that again"

    def together(self, name: str) -> Path | None:
        """Return the path of the file imported together with the text that has this name, in any folder; None if there is none."""
        name = PureWindowsPath(name).name.lower()
        if name not in (self.files or {}):
            return None
        self.used.add(name)
        return (self.files or {})[name]

    def file(self, name: str) -> Path | None:
        """Return the path of a file that the text names: imported together with it, or in `folder` or near it; None if it is missing."""
        path = self.together(name) or self._nearby(name)
        if path is None and name.strip():
            self.absent.add(name)
        return path

    def _nearby(self, name: str) -> Path | None:
        """Return the path of a file in `folder` or near it; None if there is none."""
        if self.folder is None or "\0" in name or not name.strip():
            return None
        candidates = [self.folder / name]
        if self.suffix:  # of a file; programs also count from their own folder, in which that of the file is
            candidates += [self.folder / PureWindowsPath(name).name, self.folder.parent / name]
        try:
            return next((path for path in (each.expanduser() for each in candidates) if path.is_file()), None)
        except (OSError, RuntimeError, ValueError):
            return None

    def json_of(self, name: str) -> Any:
        """Return the content of a JSON file that the text names; None if it is missing or invalid."""
        path = self.file(name)
        try:
            return json_or_none(read_regular(path, MAX_BYTES)) if path else None
        except ProblemsError:
            return None

    def missing(self, job: TrainJob) -> Iterable[Problem]:
        """Return warnings about files of the job that are not on this machine; () if files are not read."""
        return missing_files(job, [self.folder, PROJECT]) if self.folder is not None else ()


def choose(titles: Sequence[str], source: Source, what: str) -> tuple[int, tuple[str, ...]]:
    """Return (index of the title that `source.choice` names by number or line, the lines to choose from); (0, ()) for a single title.

    Raises ChoiceNeeded if `source.choice` names none of several. what: the titles in the message, such as "training commands"
    """
    if len(titles) < 2:
        return 0, ()
    lines = tuple(f"{number}: {title}" for number, title in enumerate(titles, 1))
    for index, line in enumerate(lines):
        if source.choice in (line, line.partition(":")[0]):
            return index, lines
    what, fix = f"The text has {len(lines)} {what}", f"choose one: {'; '.join(lines)}"
    raise ChoiceNeeded(Problem(what, source.where, fix, code="import.several-commands"), lines)


def setting_text(value: Any) -> str:
    """Return a setting's value as text for the report: "on", "off", "empty", "full, conv"."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, list | tuple):
        return ", ".join(map(setting_text, value)) or "empty"
    return "empty" if value is None else str(value)


def written_value(value: Any) -> Any:
    """Return a value for a report entry: lists are joined by spaces, as on sd-scripts' command line."""
    return " ".join(map(str, value)) if isinstance(value, list) else value
