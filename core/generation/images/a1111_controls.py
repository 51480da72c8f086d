"""ControlNets in A1111's text, as sd-webui-controlnet and Forge write and read them: `ControlNet 0: "Module: canny, Model: ..."`."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import PurePath
from typing import Any

from core.generation.model.sources import Hashes
from core.settings.generation.controls import ControlUse
from core.settings.hints import BY_MODEL
from core.settings.job import GenerateJob

# Ours -> theirs, and which of our settings are their thresholds A and B. Their others are networks of their own.
MODULES: dict[str, tuple[str, tuple[str, ...]]] = {
    "none": ("none", ()),
    "canny": ("canny", ("edge_low", "edge_high")),
    "invert": ("invert (from white bg & black line)", ()),
    "blur": ("blur_gaussian", ("blur_radius",)),
    "tile": ("tile_resample", ("tile_factor",)),
    "shuffle": ("shuffle", ()),
}
MODES = {  # the first name of each value is the one that is written
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
UNREAD, USUAL = ("hr option", "effective region mask"), (None, "", "None", "Both")
UNIT = re.compile(r"controlnet \d+", re.IGNORECASE)
PART = re.compile(
    r"\s*([A-Za-z][\w /]*):\s*(\([^)]*\)|[^,]*)(?:,|$)"
)  # versions before 1.1.400 have numbers in brackets
HASH = re.compile(r"\s*\[([0-9a-fA-F]+)\]$")
FIRST_HASH = 8  # digits of A1111's first hash
Note = Callable[[str, str, str], None]  # (what, end of its code, fix)


# -- writing


def units_of(job: GenerateJob, hashes: Hashes) -> dict[str, str]:
    """{"ControlNet 0": its values} of those that act. Models have A1111's first hash, as in the extension."""
    return {f"ControlNet {number}": _unit(use, hashes) for number, use in enumerate(job.controls.used)}


def _unit(use: ControlUse, hashes: Hashes) -> str:
    own = PurePath(use.hint_model).stem if use.preprocessor == BY_MODEL else use.preprocessor
    module, settings = MODULES.get(use.preprocessor, (own, ()))
    digest = hashes.controls.get(use.file, "")
    modes = {ours: theirs for theirs, ours in MODES.items()} | {"guess": "ControlNet is more important"}
    pairs = {
        "Module": module,
        "Model": PurePath(use.file).stem + (f" [{digest}]" if digest else ""),
        "Weight": f"{use.weight:g}",
        "Resize Mode": next(theirs for theirs, ours in FITS.items() if ours == use.fit),
        **{name.title(): f"{getattr(use, own):g}" for name, own in zip(THRESHOLDS, settings, strict=False)},
        "Guidance Start": f"{use.start_at:g}",
        "Guidance End": f"{use.end_at:g}",
        "Pixel Perfect": use.preprocessor != "none",  # made at the size of the image
        "Control Mode": modes[use.mode],
    }
    return ", ".join(f"{name}: {re.sub('[,:]', '_', str(value))}" for name, value in pairs.items())


# -- reading


def uses_in(pairs: Mapping[str, str], note: Note) -> list[dict[str, Any]]:
    """The ControlNets among the settings of A1111's text, unchecked."""
    uses = [_use(unit, note) for unit in _units_in(pairs)]
    if uses:
        note("The control images are not in the file", "no-control-image", "choose them")
    return uses


def unread_in(pairs: Mapping[str, str]) -> list[str]:
    """What the units say and no setting has: the passes of hires fix that they act in, and their regions."""
    units = enumerate(_units_in(pairs))
    return [f"ControlNet {number} {name}" for number, unit in units for name in UNREAD if unit.get(name) not in USUAL]


def hashes_in(pairs: Mapping[str, str]) -> dict[str, str]:
    """{name of a ControlNet: A1111's first hash} of those that have one."""
    models = [unit["model"] for unit in _units_in(pairs)]
    found = {HASH.sub("", model): named[1].lower() for model in models if (named := HASH.search(model))}
    return {name: digest for name, digest in found.items() if len(digest) == FIRST_HASH}


def _units_in(pairs: Mapping[str, str]) -> list[dict[str, str]]:
    units = [_values(text) for name, text in pairs.items() if UNIT.fullmatch(name)]
    return [unit for unit in units if unit.get("model", "None") != "None"]


def _values(text: str) -> dict[str, str]:
    """By the names of today, in lower case."""
    found = {name.strip().lower().replace("_", " "): value.strip() for name, value in PART.findall(text)}
    former = {"module": "preprocessor", "guidance start": "starting/ending", "processor res": "preprocessor params"}
    found |= {name: found[old] for name, old in former.items() if old in found}
    for names in (("guidance start", "guidance end"), ("processor res", *THRESHOLDS)):
        if found.get(names[0], "").startswith("("):
            found |= dict(zip(names, (each.strip() for each in found[names[0]].strip("()").split(",")), strict=False))
    return found


def _use(values: Mapping[str, str], note: Note) -> dict[str, Any]:
    module = values.get("module", "none")
    ours = next((own for own, (theirs, _) in MODULES.items() if theirs.casefold() == module.casefold()), None)
    if ours is None:
        what = f"The preprocessor {module[:60]} is not available; control images are used as they are"
        note(what, "no-preprocessor", "choose a preprocessor, or a finished control image")
    wanted = {"weight": "weight", "guidance start": "start_at", "guidance end": "end_at"}
    wanted |= dict(zip(THRESHOLDS, MODULES[ours or "none"][1], strict=False))
    numbers = {name: number for key, name in wanted.items() if (number := _number(values.get(key, ""))) is not None}
    return {
        "file": HASH.sub("", values["model"]),
        "preprocessor": ours or "none",
        "fit": _choice(FITS, values.get("resize mode", ""), "crop"),
        "mode": _choice(MODES, values.get("control mode", ""), "balanced"),
        **numbers,
    }


def _choice(names: Mapping[str, str], text: str, usual: str) -> str:
    """By its name or, as the API's clients write it, by its number."""
    known = {name.casefold(): value for name, value in names.items()}
    known |= {str(number): value for number, value in enumerate(list(names.values())[:3])}
    return known.get(text.casefold(), usual)


def _number(text: str) -> float | int | None:
    """None for none, and for -1, which stands for the default."""
    try:
        number = float(text)
    except ValueError:
        return None
    return None if number < 0 else int(number) if number.is_integer() else number
