"""Convert sd-scripts' options to a job, with a report entry for each option."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from core.generation.prompt.files import is_prompt, read_entries
from core.imports.dataset_config import Imported, read_dataset_config
from core.imports.dataset_options import COMMAND_LINE_NAMES, GENERAL, declaration
from core.imports.dataset_options import OPTIONS as DATASET_OPTIONS
from core.imports.dataset_text import Document
from core.imports.projects.options import XTI, options_of, unknown
from core.imports.projects.report import Entry, EntryKind, Import, Source, known_settings, setting_text, written_value
from core.imports.projects.rules import RULES, SECRETS, Reading, Values
from core.record.problems import ProblemsError, errors
from core.record.units import number_text
from core.settings.base import Declared, value_of
from core.settings.check import allowed, build, shorten
from core.settings.elsewhere import ELSEWHERE
from core.settings.job import TrainJob

# What sd-scripts does and has no option for, where our default differs: setting -> (value, sentence).
FIXED: dict[str, tuple[Any, str]] = {
    "samples.sample_steps": (30, "sd-scripts samples with 30 steps unless a prompt says otherwise"),
    "samples.guidance_scale": (7.5, "sd-scripts samples with a guidance scale of 7.5 unless a prompt says otherwise"),
    "samples.width": (512, "sd-scripts samples at 512 x 512 unless a prompt says otherwise"),
    "samples.height": (512, ""),
    "validation.best_checkpoint": ("off", "sd-scripts does not compare checkpoints"),
}
# Keys of kohya_ss' own .toml files that sd-scripts ignores
IGNORED: dict[str, tuple[EntryKind, str]] = {
    "epoch": ("idle", "is ignored by sd-scripts; max_train_epochs and max_train_steps are the length"),
    "noise_offset_type": ("idle", "is ignored by sd-scripts; noise_offset and multires_noise_iterations decide"),
}
# Ours stay on where they are not given: they change no weight
ON_BY_DEFAULT = frozenset(("save_state", "save_state_on_train_end"))


def to_import(
    reading: Reading, source: Source, program: str, title: str, options: Values, launcher: list[Entry]
) -> Import:
    """Convert sd-scripts' options to a job with a report.

    program, title  of the result, see `Import`
    options         {option: resolved value}, for `Import.options`; secrets are removed
    launcher        entries of accelerate's options, whose settings apply too
    """
    settings_of_option: dict[str, tuple[str, ...]] = {}  # option -> its settings
    settings: Values = {"method.kind": reading.script.method, "embedding.extended": reading.script.name == XTI}
    for names, values in settings_of(reading):
        settings |= values
        settings_of_option |= names
    for entry in launcher:
        settings |= dict.fromkeys(entry.settings, entry.value)
    settings |= {path: value for path, (value, _) in FIXED.items()}
    config = _dataset(reading, source, settings)
    prompts = str(settings.get("samples.sample_prompts_file") or "")
    if prompts.lower().endswith(".txt") and source.file(prompts) and (sent := source.together(prompts)) is not None:
        lines = [line for line in read_entries(sent, "sample_prompts") if isinstance(line, str) and is_prompt(line)]
        settings |= {"samples.sample_prompts_file": None, "samples.sample_prompts": lines}
        settings_of_option["sample_prompts"] = ("samples.sample_prompts",)
    if not reading["pretrained_model_name_or_path"] and "pretrained_model_name_or_path" not in reading.notes:
        fix = "choose the base model"
        reading.warn("The text names no model", "pretrained_model_name_or_path", fix, "import.no-model")
    nested = by_group(settings)
    stated, job_without_config = set[str](), None  # settings in the dataset config; the job without it
    if config is not None:
        stated = {
            declaration(each.setting).path
            for name in config.names
            if (each := DATASET_OPTIONS.get(name)) and each.setting
        }
        job_without_config = built(by_group(settings))[0]
        if reading.dataset is None:
            settings_of_option["dataset_config"] = ("dataset.sources",)
        nested |= {group: nested.get(group, {}) | values for group, values in config.values.items()}
        reading.extra += [Entry("changed", "dataset_config", sentence=note) for note in config.notes]
    if reading.script.name == "sdxl_train" and nested["dataset"].get("folder"):
        nested["method"]["kind"] = (
            "dreambooth"  # the script trains folders as DreamBooth, a metadata file as fine-tuning
        )
    job, corrected = built(nested)
    if job_without_config is not None:
        for path in sorted(stated):
            if path in settings and value_of(job_without_config, path) != value_of(job, path):
                corrected.setdefault(path, "is set by the dataset config")
    report = [*_entries(reading, job, settings_of_option, corrected, stated), *reading.extra, *launcher]
    options = {name: value for name, value in options.items() if name not in SECRETS}
    return Import(program, title, job, report, options, [*reading.problems, *source.missing(job)])


def direct_paths(method: str) -> dict[str, str]:
    """Return {option: path of the setting that declares this name in sd-scripts}.

    If several settings declare it, the one in the group of `method` counts; options that remain ambiguous are left out.
    """
    paths: dict[str, list[str]] = {}
    for entry in known_settings().values():
        for name in entry.kohya_names:
            paths.setdefault(name, []).append(entry.path)
    for name, candidates in paths.items():  # ControlNet-LLLite has a rank too
        of_method = [path for path in candidates if path.startswith(f"{method}.")]
        paths[name] = of_method or [path for path in candidates if not path.startswith("lllite.")] or candidates
    return {name: named[0] for name, named in paths.items() if len(named) == 1 and name not in ELSEWHERE}


def settings_of(reading: Reading) -> Iterator[tuple[dict[str, tuple[str, ...]], Values]]:
    """Yield ({option: paths of its settings}, {path: value}) for each option that is itself a setting, then for each rule in RULES.

    Options that are settings are left out if they have no value.
    """
    paths = direct_paths(reading.script.method)
    ruled = {name for names in RULES for name in names}
    for name, value in reading.values.items():
        if name in paths and name not in ruled and value not in (None, ""):
            yield {name: (paths[name],)}, {paths[name]: value}
    for names, function in RULES.items():
        if any(name in reading.values for name in names):
            values = function(reading)
            direct = {name: (paths[name],) for name in names if paths.get(name) in values and name in reading.values}
            rest = tuple(path for path in values if (path,) not in direct.values())
            yield {name: direct.get(name, rest) for name in names}, values


def _dataset(reading: Reading, source: Source, settings: Mapping[str, Any]) -> Imported | None:
    """Read the dataset config that the options name; None if there is none, or, with a note, if it is missing or has errors.
    settings: {path: value} of the options, as fallback"""
    name, fallback = reading["dataset_config"], _fallback(reading, settings)
    if reading.dataset is not None:
        config = read_dataset_config(Document(Path(source.where), reading.dataset, alone=True), fallback, alone=True)
        reading.problems += config.problems
        return None if errors(config.problems) else config
    if not name:
        return None
    for option in ("train_data_dir", "in_json", "reg_data_dir"):
        if option in reading.written and reading[option]:
            reading.note(option, "idle", "sd-scripts ignores it, since dataset_config names the folders")
    path = source.file(name)
    if path is None:
        reading.note("dataset_config", "unavailable", "is not found here; import it on the Dataset tab")
        fix = f"{source.bring(name, '')}, or import it on the Dataset tab"
        reading.warn(f"The dataset config {name} is not found", "dataset_config", fix, "import.no-dataset-config")
        return None
    config = read_dataset_config(path, fallback, alone=source.together(name) is not None)
    reading.problems += config.problems
    if errors(config.problems):
        reading.note("dataset_config", "unavailable", "has errors; correct them, and import it on the Dataset tab")
        return None
    sources = [config.values["dataset"], *config.values["dataset"]["sources"]]
    if reading["masked_loss"] and not any(each.get("masked_loss") for each in sources):
        alpha = any(each.get("alpha_mask") for each in sources)
        why = "is not needed: folders have alpha_mask" if alpha else "has no effect: no folder has masks"
        reading.note("masked_loss", "idle", f"{why} in the dataset config")
    return config


def _fallback(reading: Reading, settings: Mapping[str, Any]) -> Values:
    """Return {option: value} of the command line for a dataset config to use where it does not set the option."""
    names = {COMMAND_LINE_NAMES.get(name, name): name for name in reading.raw}
    general = {name: option for name, option in DATASET_OPTIONS.items() if name in names and GENERAL in option.levels}
    options = {name: reading[names[name]] for name in general}
    options |= {
        name: settings.get(f"dataset.{name}")
        for name, option in general.items()
        if option.kind in ("size", "area", "range")
    }
    return {name: value for name, value in options.items() if value is not None}


def by_group(settings: Mapping[str, Any]) -> dict[str, Values]:
    """Convert {"group.name": value} to {"group": {"name": value}}."""
    nested: dict[str, Values] = {}
    for path, value in settings.items():
        group, name = path.split(".", 1)
        nested.setdefault(group, {})[name] = value
    return nested


def built(nested: dict[str, Values]) -> tuple[TrainJob, dict[str, str]]:
    """Return (job, {path: sentence} of settings whose value is not allowed). These get the nearest allowed value, else the default.
    The path of a setting of a folder is "sources.name".

    nested  {group: {name: value}}; changed in place
    Raises ProblemsError for problems that no such value causes.
    """
    known = known_settings()
    corrected: dict[str, str] = {}
    while True:
        try:
            return build(TrainJob, nested), corrected
        except ProblemsError as error:
            if wrong_of_folders := _take_wrong_of_folders(nested, error):
                corrected |= wrong_of_folders
                continue
            wrong = {tuple(problem.where.split(".")[:2]) for problem in error.problems}
            wrong = {pair for pair in wrong if len(pair) == 2 and pair[1] in nested.get(pair[0], {})}
            if not wrong:
                raise
            for group, name in wrong:
                path, value = f"{group}.{name}", nested[group].pop(name)
                near = _near(known[path], value) if path in known and path not in corrected else None
                if near is not None:
                    nested[group][name] = near
                instead = "Atelier's default" if near is None else number_text(near)
                limits = allowed(known[path]) if path in known else "nothing"
                corrected[path] = f"takes {limits}; {instead} is set"


def _take_wrong_of_folders(nested: dict[str, Values], error: ProblemsError) -> dict[str, str]:
    """Remove the settings of single folders that are not allowed, so that the other settings stay; return {"sources.name": sentence}."""
    sentences: dict[str, str] = {}
    for problem in error.problems:
        if match := re.match(r"dataset\.sources\.(\d+)\.(\w+)", problem.where):
            folder, name = nested["dataset"]["sources"][int(match[1])], match[2]
            if name in folder:
                sentences[f"sources.{name}"] = f"cannot be {shorten(folder.pop(name))}; Atelier's default is set"
    return sentences


def _near(entry: Declared, value: Any) -> Any:
    """Return the nearest number that a setting allows; None if the value is not a number, is allowed, or the setting has no limits."""
    bounds = entry.bounds
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not {"ge", "le"} & set(bounds):
        return None
    step = bounds.get("multiple_of")
    nearest = max(1, round(value / step)) * step if step else value
    nearest = max(nearest, bounds.get("ge", nearest))
    nearest = min(nearest, bounds.get("le", nearest))
    return nearest if nearest != value else None


def _entries(
    reading: Reading,
    job: TrainJob,
    settings_of_option: Mapping[str, tuple[str, ...]],
    corrected: Mapping[str, str],
    stated: set[str],
) -> Iterator[Entry]:
    """Yield a report entry for each option in the file, and for each program default that differs from Atelier's.

    settings_of_option  {option: paths of its settings}
    corrected           {path: sentence}, see `built`
    stated              paths of the settings that a dataset config sets
    """
    plain, reported, unknown_options = TrainJob(), set(stated), 0
    for name in dict.fromkeys((*(each for each in reading.raw if each in reading.written), *reading.values)):
        settings, value = settings_of_option.get(name, ()), reading.raw.get(name, reading[name])
        differs = [path for path in settings if path not in reported and value_of(job, path) != value_of(plain, path)]
        reported |= set(settings)
        if name in reading.written:
            unknown_options += name not in options_of()
            yield _stated_entry(reading, name, written_value(value), settings, corrected, unknown_options)
        elif name in ON_BY_DEFAULT:
            sentence = "sd-scripts would save no training state; here it is saved, which does not change the training"
            yield Entry("default", reading.key(name), False, sentence=sentence)
        elif differs:
            values = ", ".join(setting_text(value_of(job, path)) for path in differs)
            yield Entry("default", reading.key(name), values, tuple(differs), reading.notes.get(name, ("", ""))[1])
    for path, (value, sentence) in FIXED.items():
        if sentence:
            yield Entry("default", path, setting_text(value), (path,), sentence)


def _stated_entry(
    reading: Reading, name: str, value: Any, settings: tuple[str, ...], corrected: Mapping[str, str], before: int
) -> Entry:
    """Return the report entry of an option in the file.

    settings   paths of its settings
    corrected  {path: sentence}, see `built`
    before     number of unknown options before it, which limits the slow search for similar names
    """
    key = reading.key(name)
    wrong = next((f"{path} {corrected[path]}" for path in settings if path in corrected), "")
    if name in SECRETS:
        return Entry("secret", key, sentence=ELSEWHERE[name])
    if wrong:
        return Entry("changed", key, value, settings, wrong)
    if name in reading.notes or name in IGNORED:
        kind, sentence = reading.notes.get(name) or IGNORED[name]
        return Entry(kind, key, value, settings, sentence)
    if name not in reading.values:
        other_script = name in options_of()
        reason = (
            f"{reading.script.name}.py has no such option" if other_script else unknown(name, reading.values, before)
        )
        return Entry("unavailable", key, value, sentence=reason)
    if settings or name == "dataset_config":
        return Entry("taken", key, value, settings)
    if name in ELSEWHERE:
        sentence = ELSEWHERE[name]
        kind = "idle" if sentence.startswith("remove it") else "unavailable"
        return Entry(kind, key, value, sentence=sentence.removeprefix("remove it: "))
    return Entry("taken", key, value)  # not set, as without it
