"""Convert network types and network_args of sd-scripts, LyCORIS and kohya_ss to settings."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from core.record.problems import Problem
from core.settings.base import Declared
from core.settings.elsewhere import ELSEWHERE
from core.settings.network import NETWORK_KINDS
from core.settings.optimization.optimizers import literal

LYCORIS = "lycoris.kohya"
# kohya_ss' LoRA_type, or LyCORIS' algo, in small letters -> network.kind
KINDS = {
    "standard": "lora", "kohya locon": "lora", "lora-fa": "lora_fa", "kohya dylora": "dylora", "kohya loha": "loha",
    "kohya lokr": "lokr", "lora": "locon", "locon": "locon", "loha": "loha", "lokr": "lokr", "glora": "glora",
    "dylora": "dylora", "ia3": "ia3", "diag-oft": "diag_oft", "boft": "boft", "full": "full", "native fine-tuning": "full",
}  # fmt: skip
DECOMPOSED = {"locon": "dora", "loha": "dora_loha", "lokr": "dora_lokr"}  # with dora_wd
# Settings of the network -> the names that LyCORIS' arguments and kohya_ss' files have for them
ARGUMENTS = {
    "network.layers": ("preset", "LyCORIS_preset"),
    "network.conv_rank": ("conv_dim",),
    "network.conv_alpha": ("conv_alpha",),
    "network.network_dropout": ("dropout",),
    "network.rank_dropout": ("rank_dropout",),
    "network.module_dropout": ("module_dropout",),
    "network.rs_lora": ("rs_lora",),
    "network.train_norm": ("train_norm",),
    "network.rank_dropout_scale": ("rank_dropout_scale",),
}
ALSO_CALLED = {"use_tucker": ("use_cp", "use_conv_cp"), "constraint": ("constrain",), "wd_on_output": ("wd_on_out",)}
NEWER_NAMES = {"weight_decompose": "dora_wd"}  # of LyCORIS
GROUPS = ("network", "optimizer")


def arguments_of(text: Any) -> dict[str, str]:
    """Parse sd-scripts' network_args, "algo=lokr factor=8" or a list of such items, into {name: value}. Items without = are dropped."""
    words = text.replace('"', "").split() if isinstance(text, str) else text if isinstance(text, list) else []
    pairs = (str(word).partition("=") for word in words)
    return {NEWER_NAMES.get(name, name): value for name, sign, value in pairs if sign}


def as_lycoris(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return network_args with LyCORIS' default where Atelier's differs: with dora_wd, the magnitude is per output."""
    magnitude_per_output = is_on(arguments.get("dora_wd")) and "wd_on_out" not in arguments
    return {**({"wd_on_output": True} if magnitude_per_output else {}), **arguments}


def is_on(value: Any) -> bool:
    """Return whether a value in another trainer's file means on: not empty, false, 0 or None."""
    return isinstance(value, (str, int, float)) and str(value) not in ("", "False", "false", "0", "0.0", "None")


def kind_of(arguments: Mapping[str, Any]) -> str:
    """Return the network kind for kohya_ss' LoRA_type, or for sd-scripts' network_module and algo; "" if unknown.
    arguments: {name: value} with these names, including network_args"""
    module, algo = arguments.get("network_module"), arguments.get("algo") or arguments.get("LoRA_type")
    if algo or module == LYCORIS:
        kind = KINDS.get(str(algo or "lora").lower().rpartition("/")[2], "")
        kind = DECOMPOSED.get(kind, kind) if is_on(arguments.get("dora_wd")) else kind
        return kind if kind in NETWORK_KINDS else ""
    return next((each.name for each in NETWORK_KINDS.values() if module and each.module_name == module), "")


def settings_of_arguments(
    kind: str, arguments: Mapping[str, Any], known: Mapping[str, Declared]
) -> tuple[dict[str, Any], list[str]]:
    """Convert network_args of a network `kind` to ({dotted path: value}, names without a setting).
    known: {dotted path: setting} of a training"""
    settings: dict[str, Any] = {}
    unknown = []
    effective = as_lycoris(arguments) if kind in DECOMPOSED.values() else arguments
    for name, value in effective.items():
        path = _path_of(name, kind, known)
        if path:
            settings[path] = SEARCHED[path](value) if path in SEARCHED else value
        elif name not in ("algo", "dora_wd"):
            unknown.append(name)
    return settings, unknown


def _searched(patterns: str) -> str:
    """Return the expressions of sd-scripts' exclude_patterns, a Python list or text that a whole path must match, as JSON for a search;
    other text is returned unchanged."""
    listed = literal(patterns)
    if listed == patterns:
        return patterns
    return json.dumps([f"^(?:{each})$" for each in (listed if isinstance(listed, list) else [listed])])


def _searched_ranks(pairs: str) -> str:
    """Return sd-scripts' network_reg_dims, "pattern=rank,pattern=rank" whose patterns a whole path must match, as JSON for a search."""
    parts = (pair.strip().rpartition("=") for pair in pairs.split(","))
    return json.dumps([f"^(?:{pattern})$={rank}" if sign else rank for pattern, sign, rank in parts])


SEARCHED = {"network.exclude_layers": _searched, "network.layer_dims": _searched_ranks}


def _path_of(name: str, kind: str, known: Mapping[str, Declared]) -> str:
    """Return the dotted path of the setting for a network argument; "" if there is none."""
    setting = next((real for real, others in ALSO_CALLED.items() if name in others), name)
    if f"{kind}.{setting}" in known:
        return f"{kind}.{setting}"
    named = next((path for path, names in ARGUMENTS.items() if name in names), "")
    others = (path for path, each in known.items() if each.group in GROUPS and name in (each.name, *each.kohya_names))
    return named or next(others, "")


def network_problem(module: str | None, words: Iterable[str], known: Mapping[str, Declared]) -> Problem:
    """Return the problem of --network_module and --network_args on the command line, with the equivalent settings as its fix; for an
    unknown module, with the known ones.

    module  None if only --network_args is set
    words   the values of --network_args
    known   {dotted path: setting} of the job
    """
    arguments = arguments_of(list(words))
    kind = "lora" if module is None else kind_of({"network_module": module, **arguments})
    if not kind:
        modules = dict.fromkeys(filter(None, (each.module_name for each in NETWORK_KINDS.values())))
        what = f"The network module '{module}' is neither known here nor registered by an allowed package"
        named = f"{module}, algo={arguments['algo']}" if module == LYCORIS and "algo" in arguments else ""
        what = f"The network '{named}' is not known here" if named else what
        fix = f"use one of {', '.join(modules)}, or allow a package that registers it with --allow-module"
        return Problem(what, "command line", fix, code="network.unknown-module")
    settings, unknown = settings_of_arguments(kind, arguments, known)
    flags = [f"--network.kind {kind}"] if module is not None else []
    flags += [f"--{path} {value}" for path, value in settings.items()]
    fix = f"write {' '.join(flags)}" if flags else ELSEWHERE["network_args"]
    fix += f"; there is no setting for {', '.join(unknown)}" if unknown else ""
    option = "--network_args" if module is None else "--network_module"
    return Problem(f"There is no setting {option}", "command line", fix, code="settings.unknown-name")
