"""The options of sd-scripts' training scripts, parsed as by argparse."""

import difflib
import json
import math
import re
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from core.imports.projects.report import Entry
from core.imports.projects.shells import unresolved
from core.settings.check import shorten
from core.settings.values import ONE_COMMA

FILE = Path(__file__).with_name("sd_scripts.json")
XTI = "train_textual_inversion_XTI"
NUMBER = re.compile(r"-(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?$")  # a negative number is a value, not an option
MAX_DIGITS, LONG, MOST_SEARCHED = 40, 60, 30
MORE_OPTIONS = "may hold more options, whose values the text does not give; set them in the form"
# Values that a file may have although they are none of the option's choices -> what they mean.
EQUIVALENTS: dict[tuple[str, Any], Any] = {
    ("save_model_as", "same as source model"): None,
    ("dynamo_backend", "no"): None,
    ("max_token_length", 75): None,
}


class DecimalComma(ValueError):
    """Error for a number written with a comma, which kohya_ss reads as 0."""


@dataclass(frozen=True)
class Option:
    """An option of a script.

    type  "bool" (a switch), "int", "float", "int_or_float" (steps or a fraction) or "str"
    many  whether the option takes several values
    """

    name: str
    type: str
    default: Any = None
    many: bool = False
    choices: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Script:
    """A training script of sd-scripts.

    method   training method, as in `method.kind`
    family   "sdxl"; "" for SD 1.x and 2.x
    guessed  whether the text does not name the script, so that it may be one for another family
    """

    name: str
    method: str
    family: str = ""
    guessed: bool = False

    @property
    def options(self) -> dict[str, Option]:
        """The script's options by name."""
        return options_of(self.name)


# method -> the script for SD 1.x and 2.x, and the one for SDXL; "": none
METHODS = {
    "lora": ("train_network", "sdxl_train_network"),
    "dreambooth": ("train_db", "sdxl_train"),
    "fine_tune": ("fine_tune", "sdxl_train"),
    "embedding": ("train_textual_inversion", "sdxl_train_textual_inversion"),
    "controlnet": ("train_control_net", "sdxl_train_control_net"),
    "lllite": ("", "sdxl_train_control_net_lllite"),
}
SCRIPTS = {
    script.name: script
    for script in (
        Script("train_network", "lora"),
        Script("sdxl_train_network", "lora", "sdxl"),
        Script("train_db", "dreambooth"),
        Script("fine_tune", "fine_tune"),
        Script("sdxl_train", "fine_tune", "sdxl"),
        Script("train_textual_inversion", "embedding"),
        Script("sdxl_train_textual_inversion", "embedding", "sdxl"),
        Script(XTI, "embedding"),
        Script("train_control_net", "controlnet"),
        Script("sdxl_train_control_net", "controlnet", "sdxl"),
        Script("sdxl_train_control_net_lllite", "lllite", "sdxl"),
    )
}


@cache
def _data() -> dict[str, dict[str, Any]]:
    """Return {option: attributes} from sd_scripts.json."""
    return json.loads(FILE.read_text("utf-8"))["options"]


@cache
def options_of(script: str = "") -> dict[str, Option]:
    """Return {name: option} of a script; without a name, of all scripts together."""
    script = "train_textual_inversion" if script == XTI else script
    options = {}
    for name, row in _data().items():
        if not script or script in row.get("scripts", (script,)):
            default = row.get("defaults", {}).get(script, row["default"])
            options[name] = Option(name, row["type"], default, row.get("many", False), tuple(row.get("choices", ())))
    return options


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the known name most similar to `name`; "" if none is similar."""
    return next(iter(difflib.get_close_matches(name[:100], list(known), n=1, cutoff=0.7)), "")


# ---- words


def is_option(word: str) -> bool:
    """Return whether argparse takes a word as the name of an option."""
    return word.startswith("-") and len(word) > 1 and not NUMBER.match(word) and (" " not in word or "=" in word)


def parse_words(script: str, words: Iterable[str]) -> tuple[dict[str, Any], list[Entry]]:
    """Parse command line words as argparse does; returns ({option: True, text or list of texts}, entries for words not understood).

    Of a repeated option the last value counts.
    """
    known, entries = options_of(script), list[Entry]()
    values: dict[str, Any] = {}
    remaining = deque(words)
    while remaining:
        word = remaining.popleft()
        if not is_option(word):
            entries.append(_stray(word, "belongs to no option; sd-scripts refuses it"))
            continue
        name, equals, text = word.partition("=")
        following = [text] if equals else []
        while not equals and remaining and not is_option(remaining[0]):
            following.append(remaining.popleft())
        option, reason = _matching(name.lstrip("-"), known, script, len(entries))
        if option is None:
            entries.append(Entry("unavailable", name, " ".join(following), sentence=reason))
            continue
        max_values = 0 if option.type == "bool" else len(following) if option.many else 1
        if len(following) < max_values or (max_values == 1 and not following):
            entries.append(Entry("unavailable", name, sentence="has no value; left out"))
            continue
        if option.type == "bool":
            values[option.name] = True
            if equals:
                off = text.lower() in ("false", "0", "no", "off")
                values[option.name] = not off
                sentence = f"is a switch without a value, which sd-scripts refuses; read as {'off' if off else 'on'}"
                entries.append(Entry("changed", name, text, sentence=sentence))
                following = []
        else:
            values[option.name] = following if option.many else following[0]
        for extra in following[max_values:]:
            entries.append(_stray(extra, f"is one value too many after {name}"))
    return values, entries


def _stray(word: str, sentence: str) -> Entry:
    """Return the report entry for a word that is neither an option nor a value. `sentence` is replaced for unknown variables."""
    return Entry("unavailable", word, sentence=MORE_OPTIONS if unresolved(word) else sentence)


def _matching(name: str, known: Mapping[str, Option], script: str, before: int) -> tuple[Option | None, str]:
    """Return (the option that a name or its unique prefix means, ""), or (None, the reason).
    before: number of earlier entries, which limits the slow search for similar names"""
    if name in known:
        return known[name], ""
    completions = [each for each in known if each.startswith(name)]
    if len(completions) == 1:
        return known[completions[0]], ""
    if completions:
        return None, f"could be {' or '.join(completions[:5])}; write the whole name"
    if name in options_of():
        return None, f"is not an option of {script}.py, which refuses it"
    return None, unknown(name, known, before)


def unknown(name: str, known: Iterable[str], before: int = 0) -> str:
    """Return the sentence on an unknown name, with the most similar one of `known`.
    before: number of unknown names before it; after MOST_SEARCHED the slow search is skipped"""
    near = nearest(name, known) if before < MOST_SEARCHED else ""
    return f"is unknown{f'; did you mean {near}?' if near else ''}"


# ---- values


def convert(option: Option, value: Any) -> tuple[Any, str]:
    """Convert a value to the option's type; returns (value, note).

    The value is None if unset; the note is a sentence if the value was interpreted in another way than written, else "".
    Raises ValueError, with the reason, for a value that cannot be converted.
    """
    if value is None or value == "" or value == []:
        return None, ""
    if option.many:
        parts = [_convert_one(option, each) for each in (value if isinstance(value, list) else [value])]
        values = [each for each, _ in parts if each is not None]
        return values or None, next((sentence for _, sentence in parts if sentence), "")
    if isinstance(value, list) and option.type == "str" and all(isinstance(each, (int, float)) for each in value):
        value = ",".join(f"{each:g}" for each in value)  # resolution = [512, 768]
    value, sentence = _convert_one(option, value)
    if option.choices and value is not None and value not in option.choices:
        if (option.name, value) not in EQUIVALENTS:
            raise ValueError(f"'{value}' is none of {', '.join(map(str, option.choices))}")
        value = EQUIVALENTS[option.name, value]
    return value, sentence


def _convert_one(option: Option, value: Any) -> tuple[Any, str]:
    """Convert a single value to the option's type; returns (value, note), see `convert`. Raises ValueError for a value of another type."""
    if isinstance(value, (dict, list)) or value is None:
        raise ValueError(f"{shorten(value)} is not a value of this option")
    if option.type == "bool":
        return _switch(value), ""
    if value is False or value == "False":
        return None, "'False' in a field that is no switch counts as not set"
    if value is True:
        raise ValueError("true is not a value of this option")
    if option.type == "str":
        text = value if isinstance(value, str) else f"{value:g}" if isinstance(value, float) else str(value)
        return text, ""
    return _number(option, value)


def _switch(value: Any) -> bool:
    """Return the boolean that a text such as "true", "1" or "no" means. Raises ValueError for other texts."""
    values = {"true": True, "false": False, "1": True, "0": False, "yes": True, "no": False, "none": False}
    if str(value).strip().lower() not in values:
        raise ValueError(f"{shorten(value)} is neither on nor off")
    return values[str(value).strip().lower()]


def _number(option: Option, value: Any) -> tuple[Any, str]:
    """Convert a value to (number, or text such as "5%"; note, see `convert`) for an option of type int, float or int_or_float.

    Of int_or_float, whole numbers are steps; fractions and percentages are parts of the run.
    Raises ValueError for other texts, fractions for int, and a percentage outside of 0 to 100.
    """
    text = str(value).strip()
    if option.type == "int_or_float" and text.endswith("%"):
        percent = _float(text[:-1])
        if not 0 <= percent <= 100:
            raise ValueError(f"{text} is not a part of the run")
        return f"{percent:g}%", ""
    number = _float(text)
    whole = number == int(number)
    if option.type == "float":
        return number, ""
    if whole and (option.type == "int" or number >= 1 or number == 0):
        if option.type == "int_or_float" and (isinstance(value, float) or not text.isdecimal()) and number >= 1:
            if number == 1:
                return "100%", "1.0 is the whole run"
            return int(number), f"{text} would be {text} times the run in sd-scripts; read as {int(number)} steps"
        return (int(text) if text.lstrip("+-").isdecimal() else int(number)), ""
    if option.type == "int" or number >= 1:
        raise ValueError(f"{text[:LONG]} is not a whole number")
    return number, ""


def _float(text: str) -> float:
    """Parse a finite number. Raises ValueError, and DecimalComma for a decimal comma."""
    if re.fullmatch(ONE_COMMA, text, re.IGNORECASE):
        raise DecimalComma(f"'{text[:LONG]}' has a decimal comma; write it with a point")
    try:
        number = float(text) if len(text) <= MAX_DIGITS else math.nan
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"'{text[:LONG]}' is not a number")
    return number
