"""Recognizes LoRA-like files by the names of their tensors: naming scheme, network kind, input width of a layer."""

import re
from collections.abc import Collection, Mapping
from math import prod

from core import extensions
from core.formats.lora.names import BIAS_NORM_KEYS, COMFYUI, LYCORIS, NORM, kohya_prefixes, split_key, to_kohya_key
from core.formats.tensors.entry import TensorEntry
from core.settings.network import NETWORK_KINDS, KindTraits

LORA_VARIANTS = (  # suffix of a tensor's name -> algorithm, unless a registered kind reads it; the first match wins
    ("oft_diag", "OFT of an early LyCORIS"),
    ("lambda_layer", "T-LoRA"),
    (NORM, "norm difference"),
)
# Names of U-Nets' 3x3 convolutions, with underscores for dots: LyCORIS' products store kernels flattened or separately.
CONVOLUTION = re.compile(
    r"(resnets_\d+_conv[12]|samplers_\d+_conv|conv_in|conv_out|in_layers_2|out_layers_3|blocks_\d+_\d+_(op|conv)"
    r"|input_blocks_0_0|(unet|diffusion_model)_out_2)$"
)
# Those of 1x1 convolutions in every family
POINTWISE = re.compile(r"(conv_shortcut|skip_connection)$")


OLD_DIFFUSERS = tuple(
    f"{form}.{side}.weight" for form in ("_lora", ".lora", ".lora_linear_layer") for side in ("down", "up")
)


def lora_layout(tensors: Mapping[str, TensorEntry]) -> str | None:
    """Return the naming scheme of a LoRA-like file: "kohya", "lycoris", "comfyui", "peft" or "diffusers"; None for other files."""
    kohya = kohya_prefixes()
    if any(name.startswith(kohya) for name in tensors):
        return "kohya"
    if any(name.startswith(LYCORIS) for name in tensors):
        return "lycoris"
    peft = any(".lora_A." in name or ".lora_B." in name for name in tensors)
    telling = (
        ".oft_diag",
        ".lambda_layer",
        *(f".{key}" for kind in NETWORK_KINDS.values() for key in kind.telling_keys),
    )
    paths = any(name.endswith(telling) for name in tensors)
    if (peft or paths) and any(name.startswith(COMFYUI) for name in tensors):
        return "comfyui"
    if peft:
        return "peft"
    if any(name.endswith(OLD_DIFFUSERS) for name in tensors):
        return "diffusers"
    return "lycoris" if paths else None


def network_and_variant(tensors: Mapping[str, TensorEntry], module: str) -> tuple[str | None, str | None]:
    """Return (title of the registered network kind, title of an unsupported algorithm); each may be None.
    module: sd-scripts' `ss_network_module`, which decides between kinds with the same keys"""
    extensions.load()  # network kinds register their keys
    keys_of_layers = _keys_of_layers(tensors)
    fitting = (  # LoCon has LoRA's keys and one more
        ((len(form), bool(kind.prefix), kind.module_name == module), kind.title)
        for kind in NETWORK_KINDS.values()
        for form in kind.forms
        if keys_of_layers.issuperset(form)
        and any(name.startswith(kind.prefix) for name in tensors)
        and _shapes_match_kind(kind, form, tensors)
    )
    network = max(fitting, key=lambda each: each[0], default=(None, None))[1]
    known = frozenset[str]().union(*(kind.keys for kind in NETWORK_KINDS.values()))
    known |= BIAS_NORM_KEYS if network else set()
    unknown = keys_of_layers - known
    variants = (
        title for suffix, title in LORA_VARIANTS if any(key == suffix or key.endswith("." + suffix) for key in unknown)
    )
    return network, next(variants, None)


def _keys_of_layers(names: Collection[str]) -> set[str]:
    """Return the distinct tensor keys below the layers of a LoRA file, as kohya or LyCORIS write them."""
    kohya = kohya_prefixes()
    examples = {name.partition(".")[2]: name for name in names if name.startswith(kohya)}
    others = [name for name in names if not name.startswith(kohya)]
    return {to_kohya_key(name, None)[1] for name in (*examples.values(), *others)}


def ranks_of(
    tensors: Mapping[str, TensorEntry], network: str | None, metadata: Mapping[str, str]
) -> tuple[int | None, int | None]:
    """Return (rank, rank of the 3x3 convolutions if it differs, else None) of a LoRA-like file; the largest if layers differ.

    network  title of its kind; kinds without a rank give (None, None)
    The rank comes from the tensors' shapes, else from `ss_network_dim`, else it is None.
    """
    if not any(kind.ranked for kind in NETWORK_KINDS.values() if kind.title == network):
        return None, None
    rank_keys = {key for kind in NETWORK_KINDS.values() for key in kind.rank_keys}
    ranks, conv_ranks = list[int](), list[int]()
    for name, entry in tensors.items():
        layer, key = split_key(name)
        if key in rank_keys:
            is_conv = prod(entry.shape[2:]) > 1 or CONVOLUTION.search(layer.replace(".", "_")) is not None
            (conv_ranks if is_conv else ranks).append(entry.side(0))
    stated = metadata.get("ss_network_dim", "")
    conv = max(conv_ranks, default=None)
    rank = max(ranks, default=conv or (int(stated) if stated.isdecimal() and len(stated) < 6 else None))
    return rank, conv if conv != rank else None


def _shapes_match_kind(kind: KindTraits, form: tuple[str, ...], tensors: Mapping[str, TensorEntry]) -> bool:
    """Return whether any layer with all keys of `form` passes the kind's check of shapes (`kind.looks`); True without such a check."""
    if kind.looks is None:
        return True
    layers: dict[str | None, dict[str, TensorEntry]] = {}
    for name, entry in tensors.items():
        layer, key = to_kohya_key(name, None)
        layers.setdefault(layer, {})[key] = entry
    return any(kind.looks(layer) for layer in layers.values() if layer.keys() >= set(form))


def input_width(tensors: Mapping[str, TensorEntry], name: str) -> int | None:
    """Return the input width of the layer that tensor `name` belongs to; None if the tensor's shape does not show it."""
    layer, key = split_key(name)
    for kind in NETWORK_KINDS.values():
        if key in kind.input_keys:
            others = (tensors.get(f"{layer}.{each}") for each in kind.input_keys if each != key)
            factors = [tensors[name], *(other for other in others if other is not None)]
            return prod(entry.side(1) for entry in factors if len(entry.shape) >= 2)
    return None
