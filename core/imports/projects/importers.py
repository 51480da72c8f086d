"""Registry of the programs whose training settings can be imported. A package registers more with `register`."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

from core.dataset.captions.encodings import decode_text
from core.imports.projects import ai_toolkit, easy_scripts, kohya_ss, lora_file, onetrainer, sd_scripts, simpletuner
from core.imports.projects.options import options_of
from core.imports.projects.report import MAX_BYTES, Import, Source
from core.record.bounded_json import parse_json
from core.record.bounded_toml import parse_toml
from core.record.bounded_yaml import parse_yaml
from core.record.problems import ProblemsError
from core.record.regular import read_regular
from core.settings.presets.foreign import foreign_problem

FENCE = re.compile(r"^[ \t]*```\w*[ \t]*$", re.MULTILINE)  # around code in a chat
TOML_KEY = re.compile(r"^[ \t]*(\w+) = ", re.MULTILINE)
EXPECTED = (
    "use a preset of kohya_ss or OneTrainer (.json), a config of AI Toolkit (.yaml), SimpleTuner (.json) or LoRA "
    "Easy Training Scripts (.toml), a LoRA (.safetensors), or a command line, script or config file of sd-scripts; "
    "files that it names, such as one of concepts, are opened together with it"
)

# Texts that are not read, by what they have alone -> (what they are, fix)
NOT_READ = (
    (
        re.compile(r"^export TRAINER_EXTRA_ARGS=", re.MULTILINE),
        "a config.env of an older SimpleTuner",
        "open a config.json of SimpleTuner, or set in the form what it sets",
    ),
)


@dataclass(frozen=True)
class ProjectImporter:
    """Importer for the training settings of a program.

    recognizes  source -> whether the text belongs to this program
    read        source -> a job with a report, in which each key of the text has an entry. Raises ProblemsError
    keys        () -> every key that the importer knows
    """

    name: str
    title: str
    recognizes: Callable[[Source], bool]
    read: Callable[[Source], Import]
    keys: Callable[[], Iterable[str]]


PROJECT_IMPORTERS: dict[str, ProjectImporter] = {}


def register(importer: ProjectImporter) -> None:
    """Register an importer; of several that recognize a text, the one registered last reads it."""
    PROJECT_IMPORTERS[importer.name] = importer


def import_project(
    source: str | Path,
    *,
    folder: Path | None = None,
    choice: str = "",
    name: str = "",
    reads: bool = True,
    files: Mapping[str, Path] | None = None,
) -> Import:
    """Import another program's training settings, from a text or the path of a file, as a job with a report.

    name    file name, for messages and its suffix; by default that of the path
    reads   for a path: whether other files that its text names are read
    folder  for a text: where files that it names are looked up; None reads no files
    choice  which of several commands, scripts or tabs to read the text as: one of `Import.choices`; "": none is chosen
    files   {name: path} of files imported together with it, where those that it names are looked up first; None in a terminal

    Raises ProblemsError for a text of no known program or one that cannot be imported, and ChoiceNeeded.
    """
    together = None if files is None else {each.lower(): path for each, path in files.items()}
    if isinstance(source, Path):
        suffix = source.suffix.lower()
        path = source if suffix == lora_file.SUFFIX else None
        text = "" if path else decode_text(read_regular(source, MAX_BYTES)).text
        folder = source.resolve().parent if reads else None
        opened = Source(text, name or str(source), suffix, folder, choice, path, together)
    else:
        opened = Source(
            FENCE.sub("", source), name or "the text", Path(name).suffix.lower(), folder, choice, None, together
        )
        if len(source) > MAX_BYTES:
            what, fix = f"The text has more than {MAX_BYTES:,} characters", "paste only the settings"
            raise ProblemsError.one(what, opened.where, fix, "import.too-long")
    for mark, title, fix in NOT_READ:
        if mark.search(opened.text):
            raise ProblemsError.one(f"This is {title}, which is not read", opened.where, fix, "import.not-read")
    importer = next((each for each in reversed(PROJECT_IMPORTERS.values()) if each.recognizes(opened)), None)
    if importer is None:
        foreign = foreign_problem(opened.json or opened.toml, opened.where)
        if foreign is not None and foreign.code != "preset.other-program":  # whose fix is this import
            raise ProblemsError([foreign])
        if opened.text.lstrip("\ufeff \t\r\n").startswith("{"):
            parse_json(opened.text, opened.where, opened.fix)
        elif opened.suffix == ".toml" or sum(name in options_of() for name in TOML_KEY.findall(opened.text)) > 1:
            parse_toml(opened.text, opened.where, opened.fix)
        elif opened.suffix in (".yaml", ".yml"):
            parse_yaml(opened.text, opened.where, opened.fix)
        what = "The settings of no known program are in this text"
        raise ProblemsError.one(what, opened.where, EXPECTED, "import.unknown")
    imported = importer.read(opened)
    imported.unused = tuple(each for each in files or () if each.lower() not in opened.used)
    imported.absent = tuple(opened.absent)
    return imported


def main_file(texts: Mapping[str, str]) -> str:
    """Return the name of the file, of {name: text}, that names most of the others, of those with settings that can be imported."""

    def rank(name: str) -> tuple[bool, int]:
        text = texts[name]
        known = is_config(name, text) or '"schema_version"' in text
        return known, sum(each.lower() in text.lower() for each in texts if each != name)

    return max(texts, key=rank)


def is_config(name: str, text: str) -> bool:
    """Return whether a file has settings that can be imported."""
    source = Source(text if len(text) <= MAX_BYTES else "", suffix=Path(name).suffix.lower())
    return source.suffix == lora_file.SUFFIX or any(each.recognizes(source) for each in PROJECT_IMPORTERS.values())


def adapted_to_machine(imported: Import) -> Import:
    """Adapt an import to this machine: attention by xFormers, kohya_ss' default, becomes auto if xFormers is not installed."""
    if imported.job.memory.attention != "xformers" or find_spec("xformers") is not None:
        return imported
    job = imported.job.with_settings(memory={"attention": "auto"})
    sentence = "xFormers is not installed; auto gives the same result up to rounding"
    report = [
        replace(entry, kind="changed", sentence=sentence) if "memory.attention" in entry.settings else entry
        for entry in imported.report
    ]
    return replace(imported, job=job, report=report)


for module in (sd_scripts, easy_scripts, kohya_ss, onetrainer, ai_toolkit, simpletuner, lora_file):
    register(ProjectImporter(module.NAME, module.TITLE, module.recognizes, module.read, module.keys))
