"""Import a config of LoRA Easy Training Scripts: resolve it into sd-scripts' options and a dataset config as that program does.

The rules are those of derrian-distro/LoRA_Easy_Training_scripts_Backend 023c61e (utils/validation.py).
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from core.imports.dataset_options import OPTIONS as DATASET_OPTIONS
from core.imports.dataset_options import SUBSET
from core.imports.projects.options import METHODS, SCRIPTS, options_of
from core.imports.projects.report import Entry, Import, Source, written_value
from core.imports.projects.rules import Reading
from core.imports.projects.to_job import to_import
from core.record.problems import ProblemsError
from core.settings.optimization.optimizers import find

NAME, TITLE = "easy_scripts", "LoRA Easy Training Scripts"
METHOD = {"lora": "lora", "textual_inversion": "embedding"}  # by train_mode
OTHER_FAMILIES = {"flux_args": "FLUX", "anima_args": "Anima", "stable_cascade_args": "Stable Cascade"}  # by section
MODULES = {"algo": "lycoris.kohya", "unit": "networks.dylora"}  # by network argument
LISTS = ("network_args", "optimizer_args", "lr_scheduler_args")  # tables that become lists of name=value
TAKEN = {"fa": "network.kind", "sdxl": "model.family"}  # keys that are no options of sd-scripts -> the setting
OWN = {  # keys that change nothing about the training -> what they do
    "name": "is the folder's name in the program",
    "save_toml": "saves the config",
    "save_toml_location": "is the folder of the saved config",
    "tag_occurrence": "counts the tags",
}
UNREAD = "is in no table that the program reads"


def recognizes(source: Source) -> bool:
    """Return whether a text is a config of this program, by its sections: [general_args.args], [bucket_args.dataset_args] ..."""
    tables = source.toml or {}
    return any(bool(_part(tables, name, "args") or _part(tables, name, "dataset_args")) for name in tables)


def keys() -> Iterable[str]:
    """Return every key that the importer knows, without those of the dataset."""
    return [*options_of(), *TAKEN, *OWN, "warmup_ratio", "train_mode", "batch_size"]


def read(source: Source) -> Import:
    """Import a config as a job. Raises ProblemsError for other model families."""
    tables, entries = source.toml or {}, list[Entry]()
    if family := next((title for name, title in OTHER_FAMILIES.items() if _part(tables, name, "args")), ""):
        fix = "open a config for SD 1.x, SD 2.x or SDXL"
        raise ProblemsError.one(f"This config trains {family} models", source.where, fix, "import.other-family")
    options = _options(tables, entries)
    stated, taken = frozenset(options), {entry.key for entry in entries if entry.kind == "taken"}
    network, optimizer = options.get("network_args") or (), str(options.get("optimizer_type"))
    arguments = {str(word).partition("=")[0] for word in network}
    module = next((MODULES[name] for name in MODULES if name in arguments), f"networks.lora{'_fa' * ('fa' in taken)}")
    options = {"network_module": module} | options
    method = METHOD.get(str(_section(tables, "train_mode").get("train_mode")), "lora")
    script, dataset = SCRIPTS[METHODS[method]["sdxl" in taken]], _dataset(tables, entries)
    renames = any("batch_size" in _part(tables, name, "dataset_args") for name in tables)
    keys = {"train_batch_size": "batch_size"} if renames else {}
    keys |= {"lr_warmup_steps": "warmup_ratio"} if str(options.get("lr_warmup_steps")).endswith("%") else {}
    if renamed := find(optimizer) is None and find(short := optimizer.rpartition(".")[2]) is not None:
        options["optimizer_type"] = short
    reading = Reading(script, options, stated, keys, dataset=dataset)
    if renamed:
        reading.note("optimizer_type", "changed", f"is written {optimizer}")
    for entry in entries:
        if entry.key == "lr_scheduler_type" and entry.kind == "unavailable":
            fix = "choose one of Atelier's, such as cosine_with_restarts or rex"
            reading.warn(f"The scheduler {entry.value} is not available", entry.key, fix, "import.unknown-scheduler")
    reading.extra += [*entries, *_other_tables(tables)]
    return to_import(reading, source, NAME, f"{TITLE}, {script.name}.py", options, [])


def _section(tables: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return a table; {} if it is missing or of another type."""
    table = tables.get(name)
    return table if isinstance(table, dict) else {}


def _part(tables: Mapping[str, Any], section: str, part: str) -> dict[str, Any]:
    """Return the table "args" or "dataset_args" of a section whose name ends with _args; {} if there is none."""
    return _section(_section(tables, section), part) if section.endswith("_args") else {}


def _options(tables: Mapping[str, Any], entries: list[Entry]) -> dict[str, Any]:
    """Return {option: value} that sd-scripts gets, here also those of [general] in the dataset config, which folders fall back to.
    entries: report entries on other keys are added"""
    values = {name: value for section in tables for name, value in _part(tables, section, "args").items()}
    common = {name: value for section in tables for name, value in _part(tables, section, "dataset_args").items()}
    values |= {"train_batch_size" if name == "batch_size" else name: value for name, value in common.items()}
    options = dict[str, Any]()
    for name, value in values.items():
        text = written_value(value)
        if isinstance(value, dict) and name in LISTS:
            options[name] = [f"{each}={_word(word)}" for each, word in value.items() if word != ""]
        elif not value:
            sentence = "is 0, off or empty, which is not passed on: sd-scripts' default counts"
            entries.append(Entry("idle", name, text, sentence=sentence))
        elif name in OWN:
            entries.append(Entry("idle", name, text, sentence=OWN[name]))
        elif name in TAKEN:
            entries.append(Entry("taken", name, text, (TAKEN[name],)))
        else:
            options[name] = value
    ratio, scheduler = options.pop("warmup_ratio", None), options.get("lr_scheduler_type")
    if isinstance(scheduler, str) and scheduler.startswith("LoraEasyCustomOptimizer."):
        sentence = "is a scheduler of this program: sd-scripts' default is set, without its arguments and warmup"
        arguments = {"lr_scheduler_args": options.pop("lr_scheduler_args", None), "warmup_ratio": ratio}
        entries.append(Entry("unavailable", "lr_scheduler_type", options.pop("lr_scheduler_type"), sentence=sentence))
        entries += [Entry("unavailable", name, written_value(each)) for name, each in arguments.items() if each]
    elif isinstance(ratio, (int, float)) and not isinstance(ratio, bool):
        options["lr_warmup_steps"] = f"{ratio * 100:g}%"
    elif ratio is not None:
        entries.append(Entry("unavailable", "warmup_ratio", written_value(ratio), sentence="is no part of the steps"))
    return options


def _other_tables(tables: Mapping[str, Any]) -> Iterator[Entry]:
    """Yield report entries on the method, and on what is in no table that the program reads."""
    for name, value in tables.items():
        if name == "train_mode":
            yield Entry("taken", name, written_value(value), ("method.kind",))
        elif name.endswith("_args") and isinstance(value, dict):
            for part in value.keys() - {"args", "dataset_args"}:
                yield Entry("unavailable", f"{name}.{part}", written_value(value[part]), sentence=UNREAD)
        elif name != "subsets":
            yield Entry("unavailable", name, written_value(value), sentence=UNREAD)
        elif others := [each for each in (value if isinstance(value, list) else [value]) if not isinstance(each, dict)]:
            yield Entry("unavailable", name, written_value(others), sentence="is not a folder with its settings")


def _word(value: Any) -> str:
    """Return a value of a table as text after name=: lists with commas, true and false as in Python."""
    if isinstance(value, list):
        return ",".join(map(str, value))
    return str(value).capitalize() if str(value).lower() in ("true", "false") else str(value)


def _dataset(tables: Mapping[str, Any], entries: list[Entry]) -> dict[str, Any] | None:
    """Return the folders as the dataset config that the program writes; None without any. entries: report entries on them are added"""
    listed, subsets = tables.get("subsets"), list[dict[str, Any]]()
    folders = [each for each in listed if isinstance(each, dict)] if isinstance(listed, list) else []
    for number, folder in enumerate(folders):
        subsets.append({})
        for name, value in folder.items():
            key, option = f"subsets.{number}.{name}", DATASET_OPTIONS.get(name)
            if option is not None and SUBSET in option.levels:
                subsets[-1] |= {name: value} if value else {}
                entries.append(Entry("taken", key, written_value(value), ("dataset.sources",)))
            else:
                sentence = OWN.get(name, "is no option of a folder in sd-scripts")
                entries.append(Entry("idle" if name in OWN else "unavailable", key, written_value(value), (), sentence))
    return {"datasets": [{"subsets": subsets}]} if subsets else None
