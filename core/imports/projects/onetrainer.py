"""Reads the training settings of OneTrainer: a preset, a saved config, or the one that a LoRA file has in it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from typing import Any

from core.imports.projects.onetrainer_config import IDLE, SECRET, Config, Row, Values, data, resolve, rows
from core.imports.projects.onetrainer_lists import concepts, first_other, items, samples
from core.imports.projects.onetrainer_rules import FIXED, RULES
from core.imports.projects.options import unknown
from core.imports.projects.report import Entry, Import, Source
from core.imports.projects.to_job import built, by_group, missing_files
from core.settings.base import Declared, declared, value_of
from core.settings.job import TrainJob
from core.settings.presets.foreign import MARKS, ONETRAINER

NAME, TITLE = "onetrainer", "OneTrainer"
MOST_STRANGERS = 200  # unknown keys in a report
TOKENS = re.compile(r"token|password|secret|api_?key|credential", re.IGNORECASE)
NO_SECRETS = "is never imported; enter keys and tokens on Tools"
# Groups of settings that one method alone has
OF_METHODS = {"network": "lora", "embedding": "embedding"}


def recognizes(source: Source) -> bool:
    given = source.json
    if given is None or "schema_version" in given:
        return False
    return "training_method" in given or len(MARKS[ONETRAINER] & given.keys()) > 2


def keys() -> Iterable[str]:
    """Every key that it knows; those of parts, concepts and samples with dots."""
    return [*rows(), *data()["former"]]


def read(source: Source) -> Import:
    config = resolve(source)
    found = _direct(config) | {path: value for rule in RULES for path, value in rule(config).items()}
    folders, prompts = (
        items(config, *names)
        for names in (("concepts", "concept_file_name"), ("samples", "sample_definition_file_name"))
    )
    found |= concepts(config, folders) | samples(config, prompts)
    found |= {path: value for path, (value, _) in FIXED.items()}
    found = {path: value for path, value in found.items() if path in known_settings()}
    job, corrected = built(by_group(found))
    written = config.written | first_other(folders) | first_other(prompts)
    report = [*_written(config, written, found, corrected), *_absent(config, written, found, job)]
    title = f"{TITLE}, {config['training_method']} of {config['model_type']}"
    options = {key: value for key, value in config.values.items() if rows()[key].here != IDLE}
    missing = missing_files(job) if source.folder is not None else ()
    return Import(NAME, title, job, report, options, [*config.problems, *missing])


@cache
def known_settings() -> dict[str, Declared]:
    return {entry.path: entry for entry in declared(TrainJob)}


def _direct(config: Config) -> Values:
    """Keys that are one setting each. Where it may be empty, empty texts and 0 are not set."""
    known, found = known_settings(), Values()
    for key, row in rows().items():
        path = row.here[1:]
        group = path.partition(".")[0]
        if row.here.startswith("=") and group != "sources" and OF_METHODS.get(group, config.method) == config.method:
            value = config.among(key, row.choices) if row.choices else config[key]
            found[path] = None if path in known and known[path].optional and value in ("", 0) else value
    return found


def _written(
    config: Config, written: Values, found: Mapping[str, Any], corrected: Mapping[str, str]
) -> Iterator[Entry]:
    """An entry for each key of the file."""
    strangers = 0
    for key, value in written.items():
        row = rows().get(config.today.get(key, key))
        if row is not None:
            yield _entry(config, key, row, value, found, corrected)
        elif key.rpartition(".")[2] == "__version":
            yield Entry("idle", key, value, sentence="is the version of the file")
        elif key in data()["former"]:
            yield Entry("unavailable", key, value, sentence="is read by OneTrainer in older files at most")
        elif TOKENS.search(key):
            yield Entry("secret", key, sentence=NO_SECRETS)
        else:
            strangers += 1
            if strangers <= MOST_STRANGERS:
                yield Entry("unavailable", key, value, sentence=unknown(key, rows(), strangers))
    if strangers > MOST_STRANGERS:
        yield Entry("unavailable", f"{strangers - MOST_STRANGERS} more keys", sentence="are unknown")


def _entry(
    config: Config, key: str, row: Row, value: Any, found: Mapping[str, Any], corrected: Mapping[str, str]
) -> Entry:
    today = config.today.get(key, key)
    settings = tuple(path for path in row.settings if path in found)
    wrong = next((f"{path} {corrected[path]}" for path in settings if path in corrected), "")
    if row.here == SECRET:
        return Entry("secret", key, sentence=NO_SECRETS)
    if today in config.notes:
        kind, sentence = config.notes[today]
        return Entry(kind, key, value, settings if kind in ("taken", "changed") else (), sentence)
    if wrong:
        return Entry("changed", key, value, settings, wrong)
    if row.here == IDLE:
        return Entry("idle", key, value, sentence=row.sentence)
    if settings or config.values.get(today, value) == row.default:
        return Entry("taken", key, value, settings, "" if settings else "not set")
    if known_settings().keys() & set(row.settings):
        return Entry("idle", key, value, sentence="has no effect with these choices")
    return Entry("unavailable", key, value, sentence=row.sentence)


def _absent(config: Config, written: Values, found: Mapping[str, Any], job: TrainJob) -> Iterator[Entry]:
    """An entry for each key that is not in the file and whose default makes the job another than ours."""
    plain = TrainJob()
    stated = {config.today.get(key, key) for key in written}
    reported = {path for key in stated if key in rows() for path in rows()[key].settings}
    for key, row in rows().items():
        kind, sentence = config.notes.get(key, ("", ""))
        paths = [path for path in row.settings if path in found and path not in reported]
        differs = [path for path in paths if value_of(job, path) != value_of(plain, path)]
        if key not in stated and differs:
            reported.update(differs)
            values = ", ".join(str(value_of(job, path)) for path in differs)
            yield Entry("default", key, values, tuple(differs), sentence)
        elif key not in stated and kind in ("changed", "unavailable"):
            yield Entry("default", key, row.default, sentence=sentence)
    for path, (value, sentence) in FIXED.items():
        if sentence:
            yield Entry("default", path, value, (path,), sentence)
