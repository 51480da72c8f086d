"""ControlNets in A1111's text, as written by sd-webui-controlnet and Forge: `ControlNet 0: "Module: canny, Model: ..."`."""

import re
from collections.abc import Callable, Mapping
from pathlib import PurePath
from typing import Any

from core.generation.model.sources import Hashes
from core.settings.generation.controls import ControlUse
from core.settings.hints import BY_MODEL
from core.settings.job import GenerateJob

# Our preprocessor -> A1111's module, and our settings for its thresholds A and B. A1111's other modules are networks.
MODULES: dict[str, tuple[str, tuple[str, ...]]] = {
    "none": ("none", ()),
    "canny": ("canny", ("edge_low", "edge_high")),
    "invert": ("invert (from white bg & black line)", ()),
    "blur": ("blur_gaussian", ("blur_radius",)),
    "tile": ("tile_resample", ("tile_factor",)),
    "shuffle": ("shuffle", ()),
}
MODES = {  # the first name of each value is written
    "Balanced": "balanced",
    "My prompt is more important": "prompt",
    "ControlNet is more important": "control",
}
FITS = {
    "Just Resize": "resize",
    "Crop and Resize": "crop",
    "Resize and Fill": "fill",
    "Scale to Fit (Inner Fit)": "crop",
    "Envelope (Outer Fit)": "fill",
    "Inner Fit (Scale to Fit)": "crop",
    "Outer Fit (Shrink to Fit)": "fill",
}
THRESHOLDS = ("threshold a", "threshold b")
UNREAD, IDLE = ("hr option", "effective region mask"), (None, "", "None", "Both")
UNIT = re.compile(r"controlnet \d+", re.IGNORECASE)
# Versions before 1.1.400 have numbers in brackets.
PART = re.compile(r"\s*([A-Za-z][\w /]*):\s*(\([^)]*\)|[^,]*)(?:,|$)")
HASH = re.compile(r"\s*\[([0-9a-fA-F]+)\]$")
FIRST_HASH = 8  # digits of A1111's first hash
Note = Callable[[str, str, str], None]  # (what, end of its code, fix)


# -- writing


def units_of(job: GenerateJob, hashes: Hashes) -> dict[str, str]:
    """Return {"ControlNet 0": its text} for the active ControlNets, with A1111's first hash of each file."""
    return {f"ControlNet {number}": _unit(use, hashes) for number, use in enumerate(job.controls.used)}


def _unit(use: ControlUse, hashes: Hashes) -> str:
    """Return the text of one ControlNet as sd-webui-controlnet writes it: "Module: canny, Model: ..."."""
    name = PurePath(use.hint_model).stem if use.preprocessor == BY_MODEL else use.preprocessor
    module, settings = MODULES.get(use.preprocessor, (name, ()))
    digest = hashes.controls.get(use.file, "")
    modes = {mode: a1111 for a1111, mode in MODES.items()} | {"guess": "ControlNet is more important"}
    pairs = {
        "Module": module,
        "Model": PurePath(use.file).stem + (f" [{digest}]" if digest else ""),
        "Weight": f"{use.weight:g}",
        "Resize Mode": next(a1111 for a1111, fit in FITS.items() if fit == use.fit),
        **{key.title(): f"{getattr(use, name):g}" for key, name in zip(THRESHOLDS, settings, strict=False)},
        "Guidance Start": f"{use.start_at:g}",
        "Guidance End": f"{use.end_at:g}",
        "Pixel Perfect": use.preprocessor != "none",  # preprocessed at the size of the image
        "Control Mode": modes[use.mode],
    }
    return ", ".join(f"{key}: {re.sub('[,:]', '_', str(value))}" for key, value in pairs.items())


# -- reading


def uses_in(pairs: Mapping[str, str], note: Note) -> list[dict[str, Any]]:
    """Return the entries of `controls.nets` in A1111's settings, not validated.

    pairs   {A1111's name: text}
    note    called for what could not be read: (what, end of the code, fix)
    """
    uses = [_use(unit, note) for unit in _units_in(pairs)]
    if uses:
        note("The control images are not in the file", "no-control-image", "choose them")
    return uses


def unread_in(pairs: Mapping[str, str]) -> list[str]:
    """Return the names of ControlNet values that have no setting here, such as "ControlNet 0 hr option" (see UNREAD)."""
    units = enumerate(_units_in(pairs))
    return [f"ControlNet {number} {name}" for number, unit in units for name in UNREAD if unit.get(name) not in IDLE]


def hashes_in(pairs: Mapping[str, str]) -> dict[str, str]:
    """Return {file name of a ControlNet: A1111's first hash, 8 digits} for those with a hash in the settings."""
    models = [unit["model"] for unit in _units_in(pairs)]
    hashes = {HASH.sub("", model): digest_match[1].lower() for model in models if (digest_match := HASH.search(model))}
    return {name: digest for name, digest in hashes.items() if len(digest) == FIRST_HASH}


def _units_in(pairs: Mapping[str, str]) -> list[dict[str, str]]:
    """Return the values (`_values`) of each ControlNet unit that has a model. pairs: {A1111's name: text}"""
    units = [_values(text) for name, text in pairs.items() if UNIT.fullmatch(name)]
    return [unit for unit in units if unit.get("model", "None") != "None"]


def _values(text: str) -> dict[str, str]:
    """Parse the text of a ControlNet unit into {current name in lower case: value}, also from older versions."""
    values = {name.strip().lower().replace("_", " "): value.strip() for name, value in PART.findall(text)}
    former = {"module": "preprocessor", "guidance start": "starting/ending", "processor res": "preprocessor params"}
    values |= {name: values[old] for name, old in former.items() if old in values}
    for names in (("guidance start", "guidance end"), ("processor res", *THRESHOLDS)):
        if values.get(names[0], "").startswith("("):
            values |= dict(zip(names, (each.strip() for each in values[names[0]].strip("()").split(",")), strict=False))
    return values


def _use(values: Mapping[str, str], note: Note) -> dict[str, Any]:
    """Return an entry of `controls.nets`, not validated: {"file", "preprocessor", "fit", "mode", and "weight", "start_at", "end_at",
    thresholds if stated}.

    values   from `_values`, with a "model"
    note     called for an unavailable preprocessor
    """
    module = values.get("module", "none")
    preprocessor = next((name for name, (a1111, _) in MODULES.items() if a1111.casefold() == module.casefold()), None)
    if preprocessor is None:
        what = f"The preprocessor {module[:60]} is not available; control images are used as they are"
        note(what, "no-preprocessor", "choose a preprocessor, or a finished control image")
    names = {"weight": "weight", "guidance start": "start_at", "guidance end": "end_at"}
    names |= dict(zip(THRESHOLDS, MODULES[preprocessor or "none"][1], strict=False))
    numbers = {path: number for key, path in names.items() if (number := _number(values.get(key, ""))) is not None}
    return {
        "file": HASH.sub("", values["model"]),
        "preprocessor": preprocessor or "none",
        "fit": _choice(FITS, values.get("resize mode", ""), "crop"),
        "mode": _choice(MODES, values.get("control mode", ""), "balanced"),
        **numbers,
    }


def _choice(names: Mapping[str, str], text: str, default: str) -> str:
    """Return the value of a choice for its name, or for its index among the first three, as API clients write it.

    names     {A1111's name: value}; names after the first three are other spellings
    default   for other texts
    """
    choices = {name.casefold(): value for name, value in names.items()}
    choices |= {str(number): value for number, value in enumerate(list(names.values())[:3])}
    return choices.get(text.casefold(), default)


def _number(text: str) -> float | int | None:
    """Parse a number that is 0 or above; None for other texts, and for negative numbers (-1 is A1111's default)."""
    try:
        number = float(text)
    except ValueError:
        return None
    return None if number < 0 else int(number) if number.is_integer() else number
