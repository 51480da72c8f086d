"""Import a program's config by a table of its keys: the settings that each key becomes, and a report entry for each key."""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from core.imports.projects.options import DecimalComma, Option, convert, unknown
from core.imports.projects.report import Entry, EntryKind, Import, Remarks, Source, known_settings, setting_text
from core.imports.projects.to_job import built, by_group
from core.record.problems import ProblemsError
from core.settings.base import value_of
from core.settings.check import shorten
from core.settings.job import TrainJob
from core.settings.optimization.optimizer import COMMON
from core.settings.optimization.optimizers import find, literal

T = TypeVar("T")
Values = dict[str, Any]
# Setting without a key -> its value in the program, and a sentence for the report
Fixed = Mapping[str, tuple[Any, str]]
IDLE, SECRET = "-", "secret"
TYPES = {bool: "bool", int: "int", float: "float", type(None): "float"}
KINDS: dict[str, EntryKind] = {"~": "changed", "!": "unavailable"}
MOST_STRANGERS, MOST_ITEMS = 200, 500  # unknown keys in a report, folders or prompts
TOKENS = re.compile(r"token|password|secret|api_?key|access_key|credential|webhook", re.IGNORECASE)
NO_SECRETS = "is never imported; enter keys and tokens on Tools"
# Bounds of a folder's settings
BOUNDS = {
    "loss_weight": (0, 100), "keep_tokens": (0, 1000), "num_repeats": (1, 10_000), "samples_per_epoch": (1, 1_000_000),
    "network_multiplier": (-10, 10), "caption_dropout_rate": (0.0, 1.0), "caption_tag_dropout_rate": (0.0, 1.0),
    "skip_image_resolution": (0, 16_384),
}  # fmt: skip
# Groups of settings that one method alone has
OF_METHODS = {"network": "lora", "embedding": "embedding"}


@dataclass(frozen=True)
class Row:
    """A key in the table.

    target    paths of the settings that it becomes ("=path" for its value unchanged), or IDLE or SECRET
    sentence  why it is not imported
    choices   {value: value of the setting}
    notes     {value as text, or "*" for all but the default: remark}, see `note`
    """

    default: Any
    target: str
    sentence: str = ""
    choices: Mapping[str, Any] | None = None
    notes: Mapping[str, str] = field(default_factory=dict)

    @property
    def settings(self) -> list[str]:
        """Paths of the settings that the key becomes; "dataset.sources" for those of a folder."""
        paths = [] if self.target in (IDLE, SECRET) else self.target.removeprefix("=").split()
        return list(dict.fromkeys("dataset.sources" if path.startswith("sources.") else path for path in paths))

    def note(self, value: Any) -> str:
        """Return the table's remark on a value: the kind ("~" changed, "!" not available) followed by a sentence; "" if there is none."""
        return self.notes.get(str(value)) or ("" if value == self.default else self.notes.get("*", ""))


@dataclass(frozen=True)
class Table:
    """The keys of a program's config.

    data      content of the table's file
    rows      {key: row}; keys of parts and list items contain dots, "flow_*" stands for all keys that begin with "flow_"
    lists     prefixes of keys of list items: ("concepts.",)
    nullable  keys that may be null although their default is not
    """

    title: str
    data: Mapping[str, Any]
    rows: Mapping[str, Row]
    lists: tuple[str, ...] = ()
    nullable: tuple[str, ...] = ()

    @cached_property
    def wildcards(self) -> list[str]:
        """Keys that end with *."""
        return [name for name in self.rows if name[-1] == "*"]

    def row(self, key: str) -> Row | None:
        """Return the row of a key, else of the longest matching key with *; None for unknown keys."""
        if key in self.rows:
            return self.rows[key]
        fitting = [name for name in self.wildcards if key.startswith(name[:-1])]
        return self.rows[max(fitting, key=len)] if fitting else None

    def rows_below(self, prefix: str) -> Iterator[tuple[str, Row]]:
        """Yield (key, row) of list items with this prefix, or of the config itself for ""; without secrets and keys with *."""
        for key, row in self.rows.items():
            inside = key.startswith(prefix) if prefix else not key.startswith(self.lists)
            if row.target != SECRET and key[-1] != "*" and inside:
                yield key, row


def read_table(name: str, title: str, lists: tuple[str, ...], nullable: tuple[str, ...] = ()) -> Table:
    """Read the table in the JSON file `name` in this folder."""
    data = json.loads(Path(__file__).with_name(f"{name}.json").read_text("utf-8"))
    rows: dict[str, Row] = {}
    for names, cells in data["keys"].items():
        parts, colon, keys = names.rpartition(":")
        starts = [f"{part}." for part in parts.split()] if colon else [""]
        rows |= {start + key: Row(*cells) for start in starts for key in keys.split()}
    return Table(title, data, rows, lists, nullable)


@dataclass
class Config(Remarks):
    """A program's config as {key: value}; keys of a part contain a dot ("unet.train").

    written       keys and values of the file
    values        values of all keys in the table
    current_keys  {key in the file: key in the table} if they differ
    method        training method, as in `method.kind`
    """

    table: Table
    source: Source
    written: Values
    values: Values = field(default_factory=dict)
    current_keys: dict[str, str] = field(default_factory=dict)
    method: str = ""

    def __getitem__(self, key: str) -> Any:
        """Return the value of a key of the table. Raises KeyError for unknown keys."""
        return self.values[key]

    def choose_from(self, key: str, choices: Mapping[str, T], value: Any = None) -> T:
        """Return the entry of `choices` for a value; for a value that is none of them that of the key's default, with a note.

        key     whose default and note are meant
        value   None: that of `key` in the config
        """
        value, default = str(self[key] if value is None else value), str(self.table.rows[key].default)
        if value not in choices:
            self.note(key, "unavailable", f"{shorten(value)} is none of {', '.join(choices)}; {default} is set")
        return choices[value if value in choices else default]

    def choice(self, key: str, value: Any = None) -> Any:
        """Return the entry of the key's choices in the table for a value; for a value that is none of them that of the default, with a
        note.
        value: None: that of `key` in the config"""
        return self.choose_from(key, self.table.rows[key].choices or {}, value)

    def read(self, raw: Mapping[str, Any], prefix: str = "") -> Values:
        """Return {key: value} of all keys of the table below a prefix. Missing and invalid ones have their default.

        Notes are added for invalid values, and for values that the table remarks on.
        """
        values = {}
        for key, row in self.table.rows_below(prefix):
            values[key] = row.default
            try:
                values[key] = self._converted(key, row, raw[key]) if key in raw else row.default
            except ValueError as error:
                sentence = f"{error}; {self.table.title}'s default is set: {shorten(row.default)}"
                self.note(key, "unavailable", sentence)
                if isinstance(error, DecimalComma):
                    self.warn(str(error), key, "write numbers with a point", "import.decimal-comma")
            else:
                if sentence := row.note(values[key]):
                    self.note(key, KINDS[sentence[0]], sentence[1:])
        return values

    def _converted(self, key: str, row: Row, value: Any) -> Any:
        """Convert a value to the type of the key's default; None stays None only if the key may be empty. Raises ValueError for other
        types."""
        kind = type(row.default)
        if row.target == IDLE or kind in (list, dict):
            return value
        if value is None:
            return None if row.default is None or key in self.table.nullable else row.default
        if kind is not str:
            converted = convert(Option(key, TYPES[kind]), value)[0]
            return row.default if converted is None else converted
        if isinstance(value, (dict, list)):
            raise ValueError(f"{shorten(value)} is not a text")
        return str(value)

    def items(self, key: str, listed: Iterable[Any], prefix: str) -> list[Values]:
        """Return the items of a list as {prefix + name: value}, such as "concepts.path".

        Items that are no tables, and those beyond MOST_ITEMS, are left out with a note at `key`.
        """
        every = list(listed)
        tables = [each for each in every[:MOST_ITEMS] if isinstance(each, dict)]
        if len(tables) < len(every):
            self.note(key, "changed", f"{len(tables)} of {len(every)} are read")
        return [{f"{prefix}{name}": value for name, value in each.items()} for each in tables]

    def folder_settings(self, values: Values) -> Values:
        """Return {name: value} of those settings of a folder that each take the value of a single key.
        values: {key: value} of the folder's item"""
        direct = ((row.target, key) for key, row in self.table.rows.items() if row.target.startswith("=sources."))
        return {target.partition(".")[2]: values[key] for target, key in direct}

    def settings(self, rules: Iterable[Callable[[Any], Values]]) -> Values:
        """Return {path: value} of keys that are a setting each, and the results of `rules`, which take precedence."""
        return self._direct_settings() | {path: value for rule in rules for path, value in rule(self).items()}

    def _direct_settings(self) -> Values:
        """Return {path: value} of keys that are a setting each. "" and 0 become None if the setting may be empty."""
        known, settings = known_settings(), Values()
        for key, row in self.table.rows.items():
            path = row.target[1:]
            group = path.partition(".")[0]
            if row.target.startswith("=") and group != "sources" and OF_METHODS.get(group, self.method) == self.method:
                value = self.choice(key) if row.choices else self[key]
                settings[path] = None if path in known and known[path].optional and value in ("", 0) else value
        return settings


def clamp(low: Any, high: Any, number: Any) -> Any:
    """Return the number, limited to the range from `low` to `high`."""
    return min(max(low, number), high)


def with_bounds(source: Values) -> Values:
    """Return a folder's settings {name: value} with each number limited to BOUNDS."""
    return {
        name: clamp(*BOUNDS[name], value) if name in BOUNDS and value is not None else value
        for name, value in source.items()
    }


def item_values(listed: Iterable[Values], table: Table) -> Values:
    """Return {key: value} over the items of all lists: the value that is not the default, several as "4, 8", else the default."""
    values_by_key: dict[str, list[Any]] = {}
    for key, value in (pair for each in listed for pair in each.items()):
        distinct = values_by_key.setdefault(key, [])
        if value not in distinct:
            distinct.append(value)
    values: Values = {}
    for key, every in values_by_key.items():
        stated = [each for each in every if key not in table.rows or each != table.rows[key].default] or every
        texts = ", ".join(each if isinstance(each, str) else shorten(each) for each in stated)
        values[key] = stated[0] if len(stated) == 1 else texts
    return values


def optimizer_settings(name: str, arguments: Values) -> Values:
    """Return {path: value} of "optimizer.optimizer_type", "optimizer.optimizer_args", and the arguments that are settings of their own
    (COMMON).

    name        class of the optimizer
    arguments   {name: value}
    """
    pairs = {key for key, value in arguments.items() if isinstance(value, list) and (key, len(value)) != ("betas", 2)}
    settings = {f"optimizer.{key}": arguments[key] for key in COMMON if key in arguments and key not in pairs}
    other_arguments = {key: value for key, value in arguments.items() if f"optimizer.{key}" not in settings}
    return {"optimizer.optimizer_type": name, "optimizer.optimizer_args": other_arguments} | settings


def chosen_optimizer(config: Config, key: str, name: str) -> tuple[str, Values]:
    """Return (class for a program's optimizer `name`, arguments implied by it); the default's, with a warning, for an unknown name.
    key: the config's key, for the note"""
    data, row = config.table.data, config.table.rows[key]
    class_name, implied = (
        data["optimizers"].get(name) or data["near"].get(name) or (data["optimizers"] | data["near"])[row.default]
    )
    if name in data["near"]:
        config.note(key, "changed", f"is {class_name} here")
    elif name not in data["optimizers"]:
        config.note(key, "unavailable", f"is not available; {class_name} is set")
        what = f"The optimizer {shorten(name)} is not available"
        config.warn(what, key, "choose an optimizer before you train", "import.unknown-optimizer")
    return class_name, implied


def arguments_of(config: Config, name: str, arguments: Mapping[str, Any], key: str) -> Values:
    """Return {name: value} of the arguments that the optimizer `name` accepts; adds a note at `key` on others."""
    entry, accepted, refused = find(name), Values(), list[str]()
    for word, value in arguments.items():
        argument = None if entry is None else entry.arguments.get(word)
        value = literal(value) if isinstance(value, str) else value
        if argument is not None and argument.accepts(value):
            accepted[word] = value
        else:
            refused.append(word[:60])
    if refused:
        config.note(key, "unavailable", f"{name} has no such argument or value: {', '.join(refused[:10])}")
    return accepted


def other_family(config: Config, family: str) -> ProblemsError:
    """Return the error that a model of another family is not trained here; `family` is the program's name for the model."""
    families = config.table.data["others"].items()
    title = next((title for part, title in families if part in family), shorten(family))
    fix = "open a config for SD 1.x, SD 2.x or SDXL"
    return ProblemsError.one(f"This config trains {title} models", config.source.where, fix, "import.other-family")


def flattened(options: Mapping[str, Any], parts: tuple[str, ...]) -> Values:
    """Flatten nested tables named in `parts`: {"unet": {"train": True}} -> {"unet.train": True}."""
    flat: Values = {}
    for key, value in options.items():
        inside = key in parts and isinstance(value, dict)
        flat |= {f"{key}.{name}": each for name, each in value.items()} if inside else {key: value}
    return flat


def to_import(config: Config, job_settings: Values, written: Values, fixed: Fixed, name: str, about: str) -> Import:
    """Convert settings {path: value} to an import with a report.

    written  {key: value} of the file, also of list items
    fixed    {path: (value that the program always uses, sentence for the report)}
    name     name of the importer
    about    what the config trains, for the title
    """
    job_settings = {**job_settings, **{path: value for path, (value, _) in fixed.items()}}
    job_settings = {path: value for path, value in job_settings.items() if path in known_settings()}
    job, corrected = built(by_group(job_settings))
    report = [
        *_stated_entries(config, written, job_settings, corrected),
        *_absent(config, written, job_settings, job, fixed),
    ]
    rows = config.table.rows
    options = {key: value for key, value in config.values.items() if rows[key].target != IDLE}
    return Import(
        name, f"{config.table.title}, {about}", job, report, options, [*config.problems, *config.source.missing(job)]
    )


def _stated_entries(
    config: Config, written: Values, job_settings: Mapping[str, Any], corrected: Mapping[str, str]
) -> Iterator[Entry]:
    """Yield a report entry for each key of the file.

    job_settings  {path: value} of the job
    corrected     {path: sentence} of values that are not allowed, see `built`
    """
    unknown_keys = 0
    for key, value in written.items():
        row = config.table.row(config.current_keys.get(key, key))
        if row is not None:
            yield _entry(config, key, row, value, job_settings, corrected)
        elif key in config.notes:
            kind, sentence = config.notes[key]
            yield Entry(kind, key, value, sentence=sentence)
        elif value is None:
            yield Entry("taken", key, "", sentence="not set")
        elif TOKENS.search(key):
            yield Entry("secret", key, sentence=NO_SECRETS)
        else:
            unknown_keys += 1
            if unknown_keys <= MOST_STRANGERS:
                yield Entry("unavailable", key, value, sentence=unknown(key, config.table.rows, unknown_keys))
    if unknown_keys > MOST_STRANGERS:
        yield Entry("unavailable", f"{unknown_keys - MOST_STRANGERS} more keys", sentence="are unknown")


def _entry(
    config: Config, key: str, row: Row, value: Any, job_settings: Mapping[str, Any], corrected: Mapping[str, str]
) -> Entry:
    """Return the report entry of a key of the file that has a row in the table; arguments as in `_stated_entries`."""
    current = config.current_keys.get(key, key)
    settings = tuple(path for path in row.settings if path in job_settings)
    paths = (*settings, *row.target.removeprefix("=").split())
    wrong = next((f"{path} {corrected[path]}" for path in paths if path in corrected), "")
    if row.target == SECRET:
        return Entry("secret", key, sentence=NO_SECRETS)
    if current in config.notes:
        kind, sentence = config.notes[current]
        return Entry(kind, key, value, settings if kind in ("taken", "changed") else (), sentence)
    if wrong:
        return Entry("changed", key, value, settings, wrong)
    if row.target == IDLE:
        return Entry("idle", key, value, sentence=row.sentence)
    if settings or config.values.get(current, value) == row.default:
        return Entry("taken", key, value, settings, "" if settings else "not set")
    if known_settings().keys() & set(row.settings):
        return Entry("idle", key, value, sentence="has no effect with these choices")
    return Entry("unavailable", key, value, sentence=row.sentence)


def _absent(
    config: Config, written: Values, job_settings: Mapping[str, Any], job: TrainJob, fixed: Fixed
) -> Iterator[Entry]:
    """Yield a report entry for each default of the program that differs from Atelier's, for keys not in the file, and for fixed values."""
    plain, rows = TrainJob(), config.table.rows
    stated = {config.current_keys.get(key, key) for key in written}
    reported = {path for key in stated if key in rows for path in rows[key].settings}
    for key, row in rows.items():
        kind, sentence = config.notes.get(key, ("", ""))
        paths = [path for path in row.settings if path in job_settings and path not in reported]
        differs = [path for path in paths if value_of(job, path) != value_of(plain, path)]
        if key not in stated and differs:
            reported.update(differs)
            values = ", ".join(setting_text(value_of(job, path)) for path in differs)
            yield Entry("default", key, values, tuple(differs), sentence)
        elif key not in stated and kind in ("changed", "unavailable"):
            yield Entry("default", key, row.default, sentence=sentence)
    for path, (value, sentence) in fixed.items():
        if sentence:
            yield Entry("default", path, setting_text(value), (path,), sentence)
