"""Import settings of sd-scripts: command lines of every shell, scripts that contain one, and --config_file TOML, also as JSON."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from core.dataset.captions.encodings import decode_text
from core.imports.projects.options import MORE_OPTIONS, NUMBER, SCRIPTS, Script, is_option, options_of, parse_words
from core.imports.projects.report import MAX_BYTES, ChoiceNeeded, Entry, Import, Source, choose
from core.imports.projects.rules import Reading
from core.imports.projects.shells import SUFFIXES, read_script, unresolved
from core.imports.projects.shells import Script as Commands
from core.imports.projects.to_job import to_import
from core.record.bounded_toml import parse_toml
from core.record.problems import Problem, ProblemsError
from core.record.regular import read_regular
from core.record.workspace import last_part
from core.settings.check import shorten

NAME, TITLE = "sd_scripts", "sd-scripts"
TRAINING_SCRIPT = re.compile(r"(train|fine_?tune)\w{0,60}\.py(?![\w.])", re.IGNORECASE)
HEADER = re.compile(r"\ufeff?# sd-scripts, (\w+)\.py\n")  # of an exported config file
OPTION = re.compile(r"(?<!\S)--([a-z]\w+)")
# How scripts of other model families begin, or what they contain
OTHER_FAMILIES = {
    "flux": "FLUX", "sd3": "Stable Diffusion 3", "lumina": "Lumina", "hunyuan_image": "HunyuanImage", "anima": "Anima",
    "control_net": "ControlNet", "controlnet": "ControlNet", "leco": "LECO", "wan_": "Wan", "hv_": "HunyuanVideo",
    "qwen": "Qwen-Image", "zimage": "Z-Image", "fpack": "FramePack", "kandinsky": "Kandinsky", "chroma": "Chroma",
}  # fmt: skip
DIFFUSERS = re.compile("train_(dreambooth|text_to_image|instruct_pix2pix)|textual_inversion")
# Options of other families: text encoders, models and prompts
OTHER_OPTIONS = {
    "t5xxl": "FLUX or Stable Diffusion 3",
    "qwen3": "Anima",
    "gemma2": "Lumina",
    "dit": "DiT",
    "prompts_file": "LECO",
}
# What lora-scripts (SD-Trainer) writes into its config files -> the script
TRAIN_TYPE = "model_train_type"
SCRIPT_OF_TYPE = {
    "sd-lora": "train_network", "sdxl-lora": "sdxl_train_network", "sd-dreambooth": "train_db", "sdxl-finetune": "sdxl_train",
}  # fmt: skip
# Commands that name a script without running it
NO_RUN = frozenset("echo printf write-host write-output ls dir cat cp mv nano wget curl git chmod sed grep".split())
# Options that only one method's scripts have, where a file does not name its script
SCRIPT_OF_OPTION = {"network_module": "train_network", "token_string": "train_textual_inversion"}


def recognizes(source: Source) -> bool:
    """Return whether a text is a command line or config file of sd-scripts."""
    if source.text.lstrip("\ufeff \t\r\n").startswith("{"):
        return bool(TRAINING_SCRIPT.search(_code_of_notebook(source))) or _is_config(source.json or {})
    if source.suffix in SUFFIXES:
        return True
    tables = source.toml
    if tables is not None:
        return "datasets" not in tables and any(name in options_of() for name in flattened(tables)[0])
    names = OPTION.findall(source.text)
    return bool(TRAINING_SCRIPT.search(source.text)) or any(name in options_of() for name in names) or len(names) > 2


def read(source: Source) -> Import:
    """Import a command line or config file of sd-scripts as a job. Raises ProblemsError for a text without a command or options, and for
    other model families."""
    if code := _code_of_notebook(source):
        source = replace(source, text=code, suffix=".sh")
    tables = source.json or (source.toml if source.suffix not in SUFFIXES else None)
    return _from_toml(source, tables) if tables is not None else _from_command(source)


def _is_config(tables: Mapping[str, Any]) -> bool:
    """Return whether at least half of the keys of a JSON object, or of its tables, are options, as in a config file."""
    names = flattened(tables)[0]
    known = sum(name in options_of() for name in names)
    others = {"datasets", "schema_version", *(name for name in options_of() if isinstance(tables.get(name), dict))}
    return known > 1 and 2 * known >= len(names) and not others & tables.keys()


def _code_of_notebook(source: Source) -> str:
    """Return the code in the cells of a notebook (.ipynb); "" for other texts."""
    cells = (source.json or {}).get("cells")
    code = [each.get("source") for each in cells if isinstance(each, dict)] if isinstance(cells, list) else []
    return "\n".join("".join(map(str, each)) for each in code if isinstance(each, (str, list)))


def keys() -> Iterable[str]:
    """Return every option that the importer knows."""
    return options_of()


# ---- TOML


def flattened(tables: Mapping[str, Any]) -> tuple[dict[str, Any], list[Entry]]:
    """Flatten the tables of a config file as sd-scripts reads it; returns ({option: value}, entries for nested tables).

    Of a repeated option the last value counts.
    """
    values, entries = dict[str, Any](), list[Entry]()
    for name, value in tables.items():
        if not isinstance(value, dict):
            values[name] = _bounded(value)
            continue
        for inner, each in value.items():
            if isinstance(each, dict):
                sentence = "is a table within a table, whose options sd-scripts does not read"
                entries.append(Entry("unavailable", f"{name}.{inner}", sentence=sentence))
            else:
                values[inner] = _bounded(each)
    return values, entries


def _bounded(value: Any) -> Any:
    """Return a value with integers that are too long for Python to print as hexadecimal text."""
    if isinstance(value, list):
        return [_bounded(each) for each in value]
    return hex(value) if isinstance(value, int) and abs(value) >> 4000 else value


def _from_toml(source: Source, tables: Mapping[str, Any]) -> Import:
    """Import the tables of a --config_file."""
    values, entries = flattened(tables)
    _refuse_other_families(values, source)
    script, choices = _script_of(values, source)
    if SCRIPT_OF_TYPE.get(str(values.get(TRAIN_TYPE))) == script.name:
        entries.append(Entry("taken", TRAIN_TYPE, values.pop(TRAIN_TYPE), ("method.kind", "model.family")))
    return _imported(script, choices, values, source, entries, [])


def _refuse_other_families(values: Mapping[str, Any], source: Source) -> None:
    """Raise ProblemsError for options of another model family, which a config file or command without a script can have."""
    kind = str(values.get(TRAIN_TYPE, ""))
    names = f"{values.get('network_module', '')}_ {'' if kind in SCRIPT_OF_TYPE else kind}".lower()
    by_name = (title for part, title in OTHER_FAMILIES.items() if part in names and title != "ControlNet")
    by_option = (title for option, title in OTHER_OPTIONS.items() if values.get(option))
    if family := next(by_name, next(by_option, "")):
        fix = "open a config for SD 1.x, SD 2.x or SDXL"
        raise ProblemsError.one(f"This config trains {family} models", source.where, fix, "import.other-family")


def _script_of(values: Mapping[str, Any], source: Source) -> tuple[Script, tuple[str, ...]]:
    """Return (script for options that come without one, names of the scripts to choose from). Raises ChoiceNeeded if the options do not
    show the method."""
    header = HEADER.match(source.text)
    stated = header[1] if header else SCRIPT_OF_TYPE.get(str(values.get(TRAIN_TYPE)), "")
    name = last_part(source.choice or stated).removesuffix(".py")
    if name in SCRIPTS:
        return SCRIPTS[name], tuple(SCRIPTS)
    script_name = next((script for option, script in SCRIPT_OF_OPTION.items() if values.get(option)), "")
    if not script_name:
        what, where = "The text does not say which script of sd-scripts it is for", source.where
        fix = f"choose one of {', '.join(f'{name}.py' for name in SCRIPTS)}"
        raise ChoiceNeeded(Problem(what, where, fix, code="import.which-script"), list(SCRIPTS))
    method = SCRIPTS[script_name].method
    names = tuple(name for name, each in SCRIPTS.items() if each.method == method)
    fitting = max(names, key=lambda each: len(values.keys() & SCRIPTS[each].options))  # some options are of SDXL's only
    return Script(fitting, method, guessed=True), names


# ---- command lines


def _from_command(source: Source) -> Import:
    """Import the training command in a text, the one that `source.choice` names if there are several. Raises ProblemsError without a
    command, and ChoiceNeeded if none of several is named."""
    script = read_script(source.text, source.suffix)
    lines = _joined(script)
    commands = [words for words in lines if words[0].lower() not in NO_RUN and _script_index(words) >= 0]
    commands = [inner for words in commands for inner in _unwrapped(words)]
    bare_words = [word for words in lines if any(is_option(word) for word in words) for word in words]
    if not commands and not any(word.lstrip("-").partition("=")[0] in options_of() for word in bare_words):
        what = "The text has no training command of sd-scripts"
        fix = "paste the whole command, from accelerate or python on, or its options"
        raise ProblemsError.one(what, source.where, fix, "import.no-command")
    index, choices = choose([_title(words) for words in commands], source, "training commands")
    result = _command(commands[index] if commands else bare_words, source)
    if choices:
        result.choices, result.choice = choices, choices[index]
    result.problems += [Problem(note, source.where, level="advice", code="import.note") for note in script.notes]
    return result


def _joined(script: Commands) -> list[list[str]]:
    """Return the commands, with lines of options that follow a training command joined to it, and a note in `script` on them."""
    lines: list[list[str]] = []
    for words in script.commands:
        if words[0].startswith("--") and lines and _script_index(lines[-1]) >= 0:
            lines[-1] = [*lines[-1], *words]
        else:
            lines.append(words)
    if len(lines) < len(script.commands):
        what = "Lines of options follow the end of the command, where a shell would not pass them on; they were joined to it."
        script.notes.append(what)
    return lines


def _unwrapped(words: list[str]) -> list[list[str]]:
    """Return the commands inside a quoted word, as of `bash -c "python train_network.py ..."`; [words] if there are none."""
    word = words[_script_index(words)]
    inner = read_script(word).commands if word.split()[1:] else []
    return [each for each in inner if len(each) > 1 and _script_index(each) >= 0] or [words]


def _title(words: list[str]) -> str:
    """Return the title of a command for the choice: "train_network.py, fox"."""
    name = last_part(words[_script_index(words)])
    text = "=".join(words[_script_index(words) :])
    named = re.search(r"--output_name=([^=]{1,60})", text)
    return f"{name}, {named[1]}" if named else name


def _script_index(words: list[str]) -> int:
    """Return the index of the word that names a training script; -1 if there is none."""
    return next((number for number, word in enumerate(words) if TRAINING_SCRIPT.search(word)), -1)


def _command(words: list[str], source: Source) -> Import:
    """Import the words of a command. Raises ProblemsError for scripts of other model families."""
    index = _script_index(words)
    name = last_part(words[index]).removesuffix(".py") if index >= 0 else ""
    name = "train_control_net" if name == "train_controlnet" else name  # its older name
    if name and not re.fullmatch(r"[\w.+-]+", name):
        what, fix = f"{shorten(name)} is no script of a command", "paste the command as in a terminal, without a list"
        raise ProblemsError.one(what, source.where, fix, "import.no-command")
    if name and name not in SCRIPTS:
        family = next((title for begin, title in OTHER_FAMILIES.items() if begin in name.lower()), "")
        does = f"trains {family} models" if family else "is no training script of sd-scripts for SD and SDXL"
        code, fix = "other-family" if family else "unknown-script", f"paste a command of {'.py, '.join(SCRIPTS)}.py"
        if code == "unknown-script" and DIFFUSERS.match(name):
            does = "is a training script of diffusers, whose commands are not read"
            fix = "set in the form what it sets; its rank is both rank and alpha, and its instance prompt the caption"
        raise ProblemsError.one(f"{name}.py {does}", source.where, fix, f"import.{code}")
    arguments = words[index + 1 :]
    script, choices = (SCRIPTS[name], ()) if name else _script_of(parse_words("", arguments)[0], source)
    values, entries = parse_words(script.name, arguments)
    launcher = _launcher_entries(words[: max(index, 0)], values)
    values = _config_file(values, source, entries) | values
    _refuse_other_families(values, source)
    return _imported(script, choices, values, source, entries, launcher)


def _config_file(values: dict[str, Any], source: Source, entries: list[Entry]) -> dict[str, Any]:
    """Return {option: value} of the file that --config_file names; {} if none is named, or it is not found. Raises ProblemsError for
    invalid TOML.

    values    options of the command line, which override those of the file; "config_file" is removed
    entries   report entries are added to it
    """
    if "config_file" not in values or values.get("output_config"):
        return {}
    name = str(values.pop("config_file"))
    path = source.file(name if name.endswith(".toml") else f"{name}.toml")
    if path is None:
        sentence = f"is not found here, so its options are missing; {source.bring(name, '')}"
        entries.append(Entry("unavailable", "config_file", name, sentence=sentence))
        return {}
    text = decode_text(read_regular(path, MAX_BYTES)).text
    content, nested_tables = flattened(parse_toml(text, str(path), "correct that line"))
    entries += [Entry("taken", "config_file", name), *nested_tables]
    return content


def _launcher_entries(words: list[str], values: Mapping[str, Any]) -> list[Entry]:
    """Return report entries for accelerate's options in the words before the script.
    values: options of sd-scripts"""
    entries = []
    for number, word in enumerate(words):
        if not word.startswith("--"):
            continue
        name, equals, text = word.partition("=")
        following = words[number + 1] if number + 1 < len(words) else ""
        text = text if equals else "" if following.startswith("-") and not NUMBER.match(following) else following
        entries.append(
            _launcher_entry(f"accelerate {name}", text, name.removeprefix("--"), "mixed_precision" in values)
        )
    return entries


LAUNCHER = {
    "gpu_ids": "is not taken; choose the GPU with --device",
    "dynamo_backend": "is not taken; memory.torch_compile compiles the U-Net",
}


def _launcher_entry(key: str, text: str, name: str, precision: bool) -> Entry:
    """Return the report entry of an option of accelerate.

    key        its name in the report
    text       its value, "" for none
    name       its name without dashes
    precision  whether sd-scripts' own mixed_precision is set
    """
    if name == "num_processes" and text.isdecimal() and 0 < int(text[:9]) <= 64:
        return Entry("taken", key, int(text), ("memory.num_processes",))
    if name == "mixed_precision" and not precision:
        sentence = "has no effect: sd-scripts computes in the precision of its own option, which is not given: no"
        return Entry("changed", key, text, sentence=sentence)
    if name in LAUNCHER and text not in ("", "no"):
        return Entry("unavailable", key, text, sentence=LAUNCHER[name])
    return Entry("idle", key, text, sentence="is accelerate's own")


def _imported(
    script: Script,
    choices: tuple[str, ...],
    values: dict[str, Any],
    source: Source,
    entries: list[Entry],
    launcher: list[Entry],
) -> Import:
    """Convert the options of a script to an import, with a warning for each variable that may contain more options.

    choices   names of scripts to choose from
    entries   report entries to add
    launcher  report entries of accelerate's options
    """
    reading = Reading(script, values, frozenset(values))
    reading.extra += entries
    for entry in entries:
        if entry.sentence == MORE_OPTIONS:
            text = ", ".join(unresolved(entry.key))
            what, fix = f"{text} may hold more options", "set what it holds in the form"
            reading.warn(what, text, fix, "import.unset-variable")
    result = to_import(reading, source, NAME, f"{TITLE}, {script.name}.py", values, launcher)
    result.choices, result.choice = choices, script.name
    return result
