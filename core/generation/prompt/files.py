"""Prompts from files (.txt with one per line, sd-scripts' .toml and .json) and from Python modules.

A module defines `prompts(job)`, or sd-scripts' `get_prompter(args, pipe, networks)`. Reference: training, section 7.4.
"""

import importlib
import re
import secrets
import shlex
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from random import Random
from types import ModuleType, SimpleNamespace
from typing import Any

from core.dataset.captions.encodings import decode_text
from core.generation.prompt.options import KEYS, OTHER_NAMES, PromptLine, line_of, parts_of_line, read_line
from core.record.allowed import FILE, allowed_modules
from core.record.bounded_json import read_json
from core.record.bounded_toml import read_toml
from core.record.problems import Problem, ProblemsError
from core.record.regular import read_regular
from core.record.units import first_of, listed
from core.settings.base import declared, value_of
from core.settings.job import GenerateJob

MAX_BYTES, MAX_PROMPTS = 4_000_000, 10_000
Entry = str | dict[str, Any]  # a line, or a table
_OPTION_KEYS = {option: key for key, option in KEYS.items()}


def read_entries(path: Path, where: str) -> list[Entry]:
    """Read the prompts of a .txt, .toml or .json file as unparsed lines and tables. Raises ProblemsError for another or damaged file, and
    for more than MAX_PROMPTS.
    where: the setting that names the file"""
    kind = path.suffix.lower()
    reader = {".toml": _toml_entries, ".json": _json_entries, ".txt": _text_entries}.get(kind)
    if reader is None:
        what = f"'{path.name}' is not a prompt file"
        raise ProblemsError.one(what, where, "choose a .txt, .toml or .json file", "prompts.unknown-format")
    entries = reader(path, f"{where}, {path.name}")
    if len(entries) > MAX_PROMPTS:
        what, fix = f"There are {len(entries):,} prompts", f"use at most {MAX_PROMPTS:,}"
        raise ProblemsError.one(what, f"{where}, {path.name}", fix, "prompts.too-many")
    return entries


def parse_entry(entry: Entry, notes: list[Problem], where: str) -> PromptLine | None:
    """Parse a line or table into a prompt with options; None for an empty line or a comment. Raises ProblemsError for a table without text.
    notes: receives errors of invalid option values, and advice"""
    if isinstance(entry, dict):
        return _prompt_line(entry, notes, where)
    return read_line(entry, notes, where) if is_prompt(entry) else None


def is_prompt(line: str) -> bool:
    """Return whether a line is neither empty nor a comment."""
    return bool(line.strip()) and not line.startswith("#")


def line_of_table(table: dict[str, Any], notes: list[Problem], where: str) -> tuple[PromptLine, tuple[int, ...]]:
    """Return (the prompt of a table from a .toml or .json file, its seeds, () if it sets none). notes: receives problems of its options"""
    line = _prompt_line(table, notes, where)
    return line, line.values.get("seeds", ())


def _text_entries(path: Path, where: str) -> list[Entry]:
    """Return all lines of a text file, also empty ones and comments. Raises ProblemsError if its encoding is uncertain."""
    decoded = decode_text(read_regular(path, MAX_BYTES))
    if decoded.guessed:
        what = "The prompts cannot be read: the file is not UTF-8 text"
        raise ProblemsError.one(what, where, "save it as UTF-8 in your editor", code="file.not-utf8")
    return [_a1111_entry(line) for line in decoded.text.splitlines()]


def _a1111_entry(line: str) -> Entry:
    """Return a line of A1111's script for prompts from a file, --prompt "a fox" --steps 20, as a table; others unchanged."""
    if not re.match(r"\s*--(?:\w+\s.*\s--)?prompt\s", line):
        return line
    try:
        words = shlex.split(line)
    except ValueError:  # an unpaired quotation mark, as in "it's"
        words = line.split()
    table, key = dict[str, Any](), ""
    for word in words:
        if word.startswith("--"):
            key = _OPTION_KEYS.get(OTHER_NAMES.get(word[2:], ""), word[2:])
        table[key] = "" if word.startswith("--") else f"{table[key]} {word}".strip()
    return table


def _toml_entries(path: Path, where: str) -> list[Entry]:
    """Return a table for each [[prompt.subset]], with the defaults in [prompt]. Raises ProblemsError for invalid TOML or other tables."""
    table = read_toml(path, where, "correct it").get("prompt")
    subsets = table.get("subset") if isinstance(table, dict) else None
    valid = isinstance(subsets, list) and all(isinstance(each, dict) for each in subsets)
    if not isinstance(table, dict) or not isinstance(subsets, list) or not valid:
        what, fix = "The file contains no prompts", "write [prompt] and a [[prompt.subset]] for each"
        raise ProblemsError.one(what, where, fix, code="prompts.none")
    common = {key: value for key, value in table.items() if key != "subset"}
    return [common | subset for subset in subsets]


def _json_entries(path: Path, where: str) -> list[Entry]:
    """Return the strings and tables of a JSON list. Raises ProblemsError for invalid JSON and other content."""
    entries = read_json(path, "correct it", max_bytes=MAX_BYTES)
    if not isinstance(entries, list):
        what = "The file contains no list of prompts"
        raise ProblemsError.one(what, str(path), "write a list of texts or of tables", "prompts.none")
    for entry in entries:
        if not isinstance(entry, (str, dict)):
            what = f"'{str(entry)[:40]}' is not a prompt"
            raise ProblemsError.one(what, where, "write a text or a table", code="prompts.not-a-prompt")
    return entries


def _prompt_line(entry: Mapping[str, Any], notes: list[Problem], where: str) -> PromptLine:
    """Parse a table of a .toml or .json file into a prompt with options. Raises ProblemsError if it has no text.
    notes: receives advice on unknown options, and errors of invalid values"""
    unknown = sorted(set(entry) - {"prompt", *KEYS})
    if unknown:
        what = f"'{first_of(unknown, 5)}' is not an option of prompts"
        known = [f"{_OPTION_KEYS[OTHER_NAMES[name]]} for {name}" for name in unknown if name in OTHER_NAMES]
        fixes = [f"write {listed(known)}"] * bool(known) + ["remove it"] * (len(known) < len(unknown))
        notes.append(Problem(what, where, "; ".join(fixes), "advice", code="prompts.unknown-option"))
    text = entry.get("prompt")
    if not isinstance(text, str):
        raise ProblemsError.one("A prompt has no text", where, "write prompt = '...' in each", code="prompts.no-text")
    for part in parts_of_line(text)[1:]:
        if part.switch:
            what = f"'--{part.switch} {part.text[:40]}' in the text of a table is read as text"
            fix = f"write {_OPTION_KEYS[part.switch]} = ..." if part.switch in _OPTION_KEYS else "remove it"
            notes.append(Problem(what, where, fix, "advice", code="prompts.option-in-table"))
    return line_of(text, {switch: entry[key] for key, switch in KEYS.items() if key in entry}, notes, where)


MODULE = "prompts.from_module"
# names in sd-scripts' generator -> settings, if they differ
KOHYA = {
    "W": "generate.width",
    "H": "generate.height",
    "scale": "generate.guidance_scale",
    "steps": "generate.steps",
    "seed": "generate.seed",
    "images_per_prompt": "generate.count",
    "prompt": "generate.prompt",
    "sampler": "generate.sampler",
    "ckpt": "model.base_model",
}


def module_entries(job: GenerateJob) -> list[Entry]:
    """Call the module in the setting `prompts.from_module` once and return its prompts, unparsed. Raises ProblemsError if it cannot be
    imported, fails, or returns anything but at most MAX_PROMPTS lines or tables."""
    name = job.prompts.from_module or ""
    module = _import_module(name)
    has_prompts, has_prompter = (callable(getattr(module, each, None)) for each in ("prompts", "get_prompter"))
    if not has_prompts and not has_prompter:
        what = f"The module '{name}' has no prompts(job) and no get_prompter(args, pipe, networks)"
        raise ProblemsError.one(what, MODULE, "define one of them in it", "prompts.module-empty")
    try:
        entries = list(islice(module.prompts(job) if has_prompts else _prompts_of_module(module, job), MAX_PROMPTS + 1))
    except (Exception, SystemExit) as error:  # of user code
        what = f"The module '{name}' failed: {type(error).__name__}: {error}"
        raise ProblemsError.one(what, MODULE, "fix the module", "prompts.module-failed") from error
    if len(entries) > MAX_PROMPTS:
        what, fix = f"There are more than {MAX_PROMPTS:,} prompts", f"use at most {MAX_PROMPTS:,}"
        raise ProblemsError.one(what, MODULE, fix, "prompts.too-many")
    invalid = next((entry for entry in entries if not isinstance(entry, str | dict)), None)
    if invalid is not None:
        what = f"The module '{name}' returned a {type(invalid).__name__} where a prompt is expected"
        raise ProblemsError.one(what, MODULE, "return lines of text", "prompts.module-failed")
    return [entry for entry in entries if isinstance(entry, dict) or is_prompt(entry)]


def _import_module(name: str) -> ModuleType:
    """Import a module that this machine allows (--allow-module). Raises ProblemsError for an invalid name, one that is not allowed, and an
    error of the import."""
    if not all(part.isidentifier() for part in name.split(".")) or name.endswith(".py"):
        fix = "put mine.py next to webui.py and write: mine"
        raise ProblemsError.one(f"'{name}' is not the name of a module", MODULE, fix, "prompts.module-name")
    top = name.partition(".")[0]
    if top not in allowed_modules():
        what = f"The module '{top}' is not allowed on this machine"
        fix = f"start with --allow-module {top} if you trust it, or add {top} to {FILE.name} next to webui.py"
        raise ProblemsError.one(what, MODULE, fix, "module.not-allowed")
    try:
        return importlib.import_module(name)
    except Exception as error:
        what = f"The module '{name}' cannot be imported: {type(error).__name__}: {error}"
        fix = "install it into Atelier's Python environment, or put it next to webui.py"
        raise ProblemsError.one(what, MODULE, fix, "module.import") from error


def _prompts_of_module(module: Any, job: GenerateJob) -> Iterator[Any]:
    """Yield the lines of a module's get_prompter, called as in sd-scripts' generator, but with pipe None and networks []."""
    args = SimpleNamespace(**{entry.kohya or entry.name: value_of(job, entry.path) for entry in declared(GenerateJob)})
    vars(args).update({name: value_of(job, path) for name, path in KOHYA.items()})
    prompter = module.get_prompter(args, None, [])
    seeds = Random(secrets.randbits(32) if job.generate.seed is None else job.generate.seed)
    iter_seed = seeds.randint(0, 2**32 - 1)
    for number in range(MAX_PROMPTS + 1):
        line = prompter(args, None, seeds, iter_seed, number, number * job.generate.count)
        if line is None:
            return
        yield line
