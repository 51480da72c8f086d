"""Network files: read with any program's names, written atomically with kohya's or diffusers' names and metadata.

A layer's name is `lora_unet_` or `lora_te_` and its diffusers path with `_` for `.`. The keys below it (`lora_down.weight`, `alpha` ...)
are those of its network kind (core/networks/kinds); their values come from `Adapter.tensors` and `alpha_in_file` (adapter.py).
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from core.formats.detect import ModelKind, identify_header, read_json
from core.formats.lora.metadata import version_metadata
from core.formats.lora.names import (
    ALPHA,
    BIAS,
    BIAS_NORM_KEYS,
    BIAS_NORM_PARAMETERS,
    BUNDLED,
    DORA_SCALE,
    DOWN,
    NORM,
    PEFT_BIAS,
    UP,
    group_by_module,
    module_path,
    part_and_path,
    resembled_kind,
    split_key,
    to_kohya_key,
)
from core.formats.models.overflow import (
    SHOWN,
    fitting_type,
    largest,
    largest_by_name,
    not_finite,
    not_finite_names,
    overflowing,
    refuse_not_finite,
)
from core.formats.models.text_keys import bare_name
from core.formats.tensors.entry import TORCH_NAMES
from core.formats.tensors.lazy import as_lazy, loaded
from core.formats.tensors.outline import Outline, StoredTensor
from core.formats.tensors.reading import TensorFile
from core.formats.tensors.writer import (
    LEGACY_HASH,
    NO_HASH,
    NO_LEGACY_HASH,
    WEIGHTS_HASH,
    library_order,
    save_pickle,
    write_safetensors,
)
from core.networks.kinds import NetworkKind, is_number, kind_of_keys, kinds
from core.networks.kinds.lora import network_sizes
from core.record import atomic
from core.record.bounded_json import parse_json
from core.record.lazy_torch import torch
from core.record.problems import Problem, ProblemsError
from core.record.units import first_of
from core.record.workspace import display_path
from core.settings.blocks import BlockSize
from core.settings.model import traits_of

PROJECTION = re.compile(r"^lora_unet_.*_proj_(in|out)\.")
RELOAD = "download or copy it again"
PEFT_METADATA = "lora_adapter_metadata"
SECOND_ENCODER = re.compile(r"_layers_(1[2-9]|[2-9]\d)_")
MOST_ALPHA = 1e9
MODULE_PATH = re.compile(r"[\w.]+")
# PEFT's initializations that also change the model's weights, by their beginnings ("pissa_niter_16"): without that change a file gives
# another result.
MODEL_CHANGING = ("pissa", "olora", "corda", "loftq", "lora_ga")


@dataclass(frozen=True)
class LoraFile:
    """A LoRA in memory, whose `tensors` have kohya's keys whatever the file's format.

    left_out   names in the file of biases and norms next to LoRA layers, which no network kind reads: not in `tensors`
    bias_norm  {kohya's key: tensor} of these, in the same order, for core/networks/bias_norm.py
    bundled    tensors of embeddings in the same file, by their names in the file
    """

    tensors: Mapping[str, torch.Tensor]
    metadata: Mapping[str, str] = field(default_factory=dict)
    family: str | None = None
    path: Path | None = None
    left_out: tuple[str, ...] = ()
    bias_norm: Mapping[str, torch.Tensor] = field(default_factory=dict)
    bundled: Mapping[str, torch.Tensor] = field(default_factory=dict)

    @property
    def bias_norm_in_use(self) -> dict[str, torch.Tensor]:
        """The tensors of `bias_norm` that have an effect: changes of biases and norm layers under kohya's keys."""
        return {key: value for key, value in self.bias_norm.items() if key.partition(".")[2] in BIAS_NORM_PARAMETERS}

    @property
    def with_norms(self) -> dict[str, torch.Tensor]:
        """All tensors that can be trained further: `tensors` and the changes of norm layers."""
        norms = {
            f"{name}.{key}": value
            for name, layer in group_by_module(self.bias_norm).items()
            if NORM in layer
            for key, value in layer.items()
        }
        return {**self.tensors, **norms}


# ---- writing ----


def save_lora(
    path: Path | str,
    tensors: Mapping[str, torch.Tensor | StoredTensor],
    metadata: Mapping[str, str] | None = None,
    dtype: torch.dtype | None = None,
) -> Path:
    """Write a LoRA file atomically, with the hashes by which A1111 identifies it. Return its path.

    tensors   by kohya's key, on any device; a StoredTensor is read twice
    metadata  None or empty writes only the hashes
    dtype     of the matrices; alphas stay float32, which stores them exactly
    Raises ProblemsError for weights that are not finite or that overflow in `dtype` (`write_lora` falls back to fp32).
    """
    path = Path(path)
    _refuse_overflow(path, tensors, dtype)
    ready = {name: as_lazy(value).cast(dtype) for name, value in tensors.items()}  # flags and counts keep their dtypes
    ready |= {name: replace(value, type="float32") for name, value in ready.items() if name.endswith(".alpha")}
    texts = {str(key): str(value) for key, value in (metadata or {}).items()}
    texts |= {WEIGHTS_HASH: NO_HASH, LEGACY_HASH: NO_LEGACY_HASH}
    with atomic.open_atomic(path) as temporary:
        write_safetensors(temporary, ready, texts, order=library_order, format=None)
    return path


def write_lora(
    path: Path | str,
    tensors: Mapping[str, torch.Tensor],
    metadata: Mapping[str, str] | None = None,
    dtype: torch.dtype | None = None,
) -> list[Problem]:
    """Write a LoRA file as `save_lora`, but in fp32 if `dtype` would overflow, since a run must not fail at its save.

    returns  advice that names the weights that are too large
    Raises ProblemsError for weights that are not finite.
    """
    dtype, advice = fitting_type(largest_by_name(_matrices(tensors)), dtype, path)
    save_lora(path, tensors, metadata, dtype)
    return advice


def write_lora_pickle(path: Path, tensors: Mapping[str, torch.Tensor], dtype: torch.dtype) -> list[Problem]:
    """Write a .ckpt or .pt as sd-scripts does: torch.save of {kohya's key: tensor}, without metadata.

    Returns and raises as `write_lora`. `torch.load(weights_only=True)` reads the file.
    """
    refuse_not_finite(not_finite(tensors), path)
    matrices = _matrices(tensors)
    fitting, advice = fitting_type(largest_by_name(matrices), dtype, path)
    dtypes = {name: fitting if name in matrices else torch.float32 for name in tensors}
    ready = {name: value.detach().to("cpu", dtypes[name]).contiguous().clone() for name, value in tensors.items()}
    with atomic.open_atomic(path) as temporary:
        save_pickle(ready, temporary)
    return advice


def with_convolutions(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Return the tensors with those of proj_in and proj_out in the U-Net as 1x1 convolutions: [r, in, 1, 1] and [out, r, 1, 1].

    sd-scripts builds these layers of SD 2.x so when it reads a single file.
    """
    return {
        name: value.reshape(*value.shape, 1, 1) if value.ndim == 2 and PROJECTION.search(name) else value
        for name, value in tensors.items()
    }


def _refuse_overflow(path: Path, tensors: Mapping[str, torch.Tensor | StoredTensor], dtype: torch.dtype | None) -> None:
    """Raise ProblemsError for NaN, infinity, and values that overflow in `dtype`."""
    sizes = {name: largest(loaded(value)) for name, value in tensors.items()}
    refuse_not_finite(not_finite_names(sizes), path)
    names = overflowing(_matrices(sizes), dtype) if dtype is not None else []
    if names:
        what = f"Some weights are too large for the dtype of the file: {first_of(names, SHOWN)}"
        fix = "save as bf16 or fp32; weights this large usually mean that the learning rate is too high"
        raise ProblemsError.one(what, str(path), fix, "weights.overflow")


def _matrices(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Return the tensors without the alphas, which are always saved in float32."""
    return {name: value for name, value in tensors.items() if not name.endswith(".alpha")}


# ---- reading ----


def load_lora(path: Path | str, *, shapes: bool = False) -> LoraFile:
    """Read a LoRA file with any program's names (core/formats/lora/names.py). Raises ProblemsError for any other file.
    shapes: read only the header and single numbers; the weights are on torch's "meta" device"""
    if not shapes:
        return _read(Path(path), TensorFile.read, torch.tensor)
    lora = lora_outline(path)
    tensors, bias_norm, bundled = (_on_meta(each) for each in (lora.tensors, lora.bias_norm, lora.bundled))
    return replace(lora, tensors=tensors, bias_norm=bias_norm, bundled=bundled)


def lora_outline(path: Path | str) -> LoraFile:
    """Read a LoRA file as `load_lora`, but without torch: each tensor is an Outline (core/formats/tensors/outline.py)."""
    return _read(Path(path), TensorFile.outline, partial(Outline, (), "F32"))


def _read(path: Path, read: Callable[[TensorFile, str], Any], number: Callable[[float], Any]) -> LoraFile:
    """Read a LoRA file. Raises ProblemsError if it is not a complete LoRA of a known kind.

    read     (file, name) -> the tensor
    number   (alpha) -> a tensor for an alpha that the file has only in its metadata
    """
    with TensorFile(path) as file:
        kind = identify_header(file.entries, file.metadata)
        _refuse_other(kind, path)
        metadata = dict(file.metadata)
        bundled = {name: read(file, name) for name in file.entries if name.startswith(BUNDLED)}
        kohya_keys = _kohya_keys([name for name in file.entries if name not in bundled], kind.family, path)
        left_out = _unread_names(kohya_keys)
        tensors = {kohya_key: read(file, name) for name, kohya_key in kohya_keys.items() if name not in left_out}
        bias_norm = {kohya_keys[name]: read(file, name) for name in left_out}
    from_peft = {key: reshaped for kind in kinds().values() for key, reshaped in kind.from_peft.items()}
    for name, kohya_key in kohya_keys.items():
        for key, reshaped in from_peft.items():
            if f".{key}" in name:
                tensors[kohya_key] = reshaped(tensors[kohya_key])
    for kind_of_network in kinds().values():
        if kind_of_network.from_older is not None:
            tensors = kind_of_network.from_older(tensors)
    alphas = _peft_alphas(kohya_keys, tensors, metadata, path)
    tensors |= {kohya_key: number(alpha) for kohya_key, alpha in alphas.items()}
    single = {key: each for key, each in tensors.items() if key.endswith(f".{ALPHA}") and each.numel() == 1}
    _refuse_not_finite([key for key, each in single.items() if not is_number(each)], path)
    _refuse_incomplete(tensors, path)
    bias_norm = _with_peft_biases(bias_norm, tensors)
    return LoraFile(tensors, metadata, kind.family, path, left_out, bias_norm, bundled)


def load_finite(path: Path | str) -> LoraFile:
    """Read a LoRA file as `load_lora`. Raises ProblemsError also for NaN and infinite values."""
    return _require_finite(load_lora(path), Path(path))


@contextmanager
def open_lora(path: Path) -> Iterator[LoraFile]:
    """Context manager: a LoRA as `load_finite` reads it, but with StoredTensors, which can be read inside the context."""
    with TensorFile(path) as file:
        stored = partial(StoredTensor, (), "F32")
        lora = _read(
            path, lambda _, name: file.stored(name), lambda alpha: stored(alpha, fetch=partial(torch.tensor, alpha))
        )
        yield _require_finite(lora, path)


def _require_finite(lora: LoraFile, path: Path) -> LoraFile:
    """Return `lora`; raise ProblemsError if it has NaN or infinite values."""
    sizes = {name: largest(loaded(value)) for name, value in {**lora.tensors, **lora.bias_norm, **lora.bundled}.items()}
    _refuse_not_finite(not_finite_names(sizes), path)
    return lora


def _refuse_not_finite(names: Sequence[str], path: Path) -> None:
    """Raise ProblemsError if `names` lists tensors with NaN or infinite values."""
    if names:
        what = f"{path.name} contains NaN or infinite values, which make black images: {first_of(names, SHOWN)}"
        fix = "use an earlier checkpoint of this LoRA: its training failed, or the file is damaged"
        raise ProblemsError.one(what, display_path(path), fix, "weights.not-finite")


def _with_peft_biases(bias_norm: Mapping[str, Any], tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Return `bias_norm` with PEFT's biases of B (lora_bias) as changes of the layers' biases: times alpha / rank."""
    converted = {}
    for key, value in bias_norm.items():
        layer, _, role = key.partition(".")
        down, alpha = tensors.get(f"{layer}.{DOWN}"), tensors.get(f"{layer}.{ALPHA}")
        if role == PEFT_BIAS and down is not None and f"{layer}.{BIAS}" not in bias_norm:
            key, value = f"{layer}.{BIAS}", value * (float(alpha) / down.shape[0] if alpha is not None else 1.0)
        converted[key] = value
    return converted


def _on_meta(tensors: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Convert outlines to tensors on the meta device; those with one element become CPU tensors with their value."""
    meta = {}
    for name, each in tensors.items():
        dtype = getattr(torch, TORCH_NAMES[each.dtype])
        empty = torch.empty(each.shape, dtype=dtype, device="meta")
        meta[name] = empty if each.number is None else torch.tensor(each.number).to(dtype).reshape(each.shape)
    return meta


def _refuse_other(kind: ModelKind, path: Path) -> None:
    """Raise ProblemsError unless the file is a LoRA of a supported type."""
    if kind.kind != "lora":
        what = f"This file is not a LoRA but: {kind} ({kind.evidence})"
        raise ProblemsError.one(what, str(path), "choose a LoRA file", "lora.not-a-lora")
    if kind.variant is not None:
        what = f"The network type of this file is not supported: {kind.variant}"
        raise ProblemsError.one(what, str(path), "choose a LoRA of another type", "lora.unsupported-variant")


def _kohya_keys(names: Iterable[str], family: str | None, path: Path) -> dict[str, str]:
    """Return {name in the file: kohya's key} of each tensor. Raises ProblemsError for an unknown part or a key that occurs twice."""
    keys: dict[str, str] = {}
    for name in names:
        layer, key = to_kohya_key(name, family)
        if layer is None:
            what = f"The LoRA has layers of an unknown part: {name}"
            raise ProblemsError.one(what, str(path), "choose a LoRA for Stable Diffusion", "lora.unknown-layer")
        keys[name] = f"{layer}.{key}"
    if traits_of(family).two_encoders:
        keys = _with_encoder(keys)
    twice = next((key for key, count in Counter(keys.values()).items() if count > 1), None)
    if twice is not None:
        what = f"The LoRA has {twice} twice, under the names of different programs"
        raise ProblemsError.one(what, str(path), RELOAD, "lora.layer-twice")
    return keys


def _with_encoder(keys: dict[str, str]) -> dict[str, str]:
    """Replace "lora_te_" by the first or second encoder's prefix in the keys of an SDXL file.

    sd-scripts' DyLoRA writes no number, and only the second encoder, recognized by its layers from 12 on.
    """
    text_layers = [name for name, key in keys.items() if key.startswith("lora_te_")]
    if not text_layers:
        return keys
    encoder = "lora_te2_" if any(SECOND_ENCODER.search(name) for name in text_layers) else "lora_te1_"
    return keys | {name: encoder + keys[name].removeprefix("lora_te_") for name in text_layers}


def _unread_names(keys_by_name: Mapping[str, str]) -> tuple[str, ...]:
    """Return the file's names of biases and norms that no network kind reads together with the layer's other tensors.
    keys_by_name: {name in the file: kohya's key}"""
    names = {kohya_key: name for name, kohya_key in keys_by_name.items()}
    unread: list[str] = []
    for layer, keys in group_by_module(names).items():
        extra = {key for key in keys if key in BIAS_NORM_KEYS}
        if extra and kind_of_keys(keys.keys()) is None and (extra == keys.keys() or kind_of_keys(keys.keys() - extra)):
            unread += [names[f"{layer}.{key}"] for key in keys if key in extra]
    return tuple(unread)


def _peft_alphas(
    keys_by_name: Mapping[str, str], tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str], path: Path
) -> dict[str, float]:
    """Return {kohya's key: alpha} of alphas that PEFT stores in the metadata or adapter_config.json; none for alpha = rank.
    keys_by_name: {name in the file: kohya's key}"""
    config = _peft_config(keys_by_name, metadata, path)
    ranked = {key for kind in kinds().values() for key in kind.rank_keys}
    alphas: dict[str, float] = {}
    for name, kohya_key in keys_by_name.items() if config else ():
        layer, _, key = kohya_key.partition(".")
        if key not in ranked or f"{layer}.{ALPHA}" in tensors or not tensors[kohya_key].ndim:
            continue
        part, inner = part_and_path(split_key(name)[0], None)
        alpha = _peft_alpha(config, part, inner, tensors[kohya_key].shape[0], path)
        if alpha is not None:
            alphas[f"{layer}.{ALPHA}"] = alpha
    return alphas


def _peft_config(names: Iterable[str], metadata: Mapping[str, str], path: Path) -> dict[str, Any]:
    """Return PEFT's LoraConfig from the metadata, else from adapter_config.json next to a PEFT file; {} without one.

    names   of the file's tensors
    Raises ProblemsError for PEFT methods other than LoRA and LoHa, and for initializations that change the model.
    """
    if text := metadata.get(PEFT_METADATA):
        config = parse_json(text, f"{path}, {PEFT_METADATA}", RELOAD)
        if not isinstance(config, dict):
            what = f"The LoRA's metadata ({PEFT_METADATA}) is invalid"
            raise ProblemsError.one(what, str(path), RELOAD, "lora.bad-metadata")
        _refuse_model_changes(config, path)
        return config
    if not any(name.startswith("base_model.model.") for name in names):
        return {}
    config = read_json(path.with_name("adapter_config.json")) or {}
    if (kind := config.get("peft_type")) not in (None, "LORA", "LOHA"):
        what, fix = f"This is a {str(kind)[:20]} of PEFT, whose scale is not known", "choose a LoRA or LoHa"
        raise ProblemsError.one(what, str(path), fix, "lora.unsupported-variant")
    _refuse_model_changes(config, path)
    return config


def _refuse_model_changes(config: Mapping[str, Any], path: Path) -> None:
    """Raise ProblemsError for a LoRA whose training began with a change of the model that its file does not contain."""
    values = (str(value).lower() for key, value in config.items() if key.rpartition(".")[2] == "init_lora_weights")
    if (start := next((value for value in values if value.startswith(MODEL_CHANGING)), None)) is not None:
        what = f"The LoRA's initialization ({start[:20]}) also changed the model, and the file does not contain that change"
        fix = "in PEFT, save it with path_initial_model_for_weight_conversion, which makes it a usual LoRA"
        raise ProblemsError.one(what, str(path), fix, "lora.unsupported-variant")


def _peft_alpha(config: Mapping[str, Any], part: str | None, path: str, rank: int, where: Path) -> float | None:
    """Return the alpha of a module in PEFT's config; None if the config has none.

    `alpha_pattern` comes before `lora_alpha`; with use_rslora it is multiplied by the square root of the rank.
    part    "unet", "text_encoder" ..., whose keys in the config may be prefixed "unet."
    path    of the module in its part
    where   the file, for messages
    Raises ProblemsError for a pattern with a regular expression, and for an alpha that is not a number.
    """
    start = f"{part}." if f"{part}.r" in config else ""
    if f"{start}r" not in config:
        return None
    pattern = config.get(f"{start}alpha_pattern") or {}
    alpha = config.get(f"{start}lora_alpha", config.get(f"{start}alpha"))
    if isinstance(pattern, dict):
        if (regex := next((key for key in pattern if not MODULE_PATH.fullmatch(key)), None)) is not None:
            what = f"The LoRA gives alphas by a regular expression, which is not supported: {regex[:80]}"
            raise ProblemsError.one(what, str(where), "save it with one alpha", "lora.alpha-by-regex")
        names = path.split(".")
        ends = (".".join(names[start:]) for start in range(len(names)))  # PEFT takes the end of a path for the path
        alpha = next((pattern[end] for end in ends if end in pattern), alpha)
    if alpha is None:
        return None
    if type(alpha) not in (int, float) or not abs(alpha) < MOST_ALPHA:
        what = f"The LoRA's alpha of {path} is not a number"
        raise ProblemsError.one(what, str(where), RELOAD, "lora.bad-metadata")
    return float(alpha) * (rank**0.5 if config.get(f"{start}use_rslora") is True else 1.0)


def _refuse_incomplete(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    """Raise ProblemsError unless every layer is of a known kind and has all its tensors in matching shapes."""
    problems = [flaw for name, layer in group_by_module(tensors).items() if (flaw := _flaw(name, layer))]
    if problems:
        raise ProblemsError.one(
            f"The LoRA is incomplete: {first_of(problems, 1)}", str(path), RELOAD, "lora.incomplete"
        )


def _flaw(name: str, layer: Mapping[str, torch.Tensor]) -> str:
    """Return the error in one layer of a file, as a clause with the layer's name; "" if there is none."""
    kind = kind_of_keys(layer, name)
    if kind is not None:
        return kind.flaw(name, layer)
    near = [kind for kind in kinds().values() if layer.keys() & kind.keys]
    near = near or [kind for kind in kinds().values() if layer.keys() & set(kind.optional)]
    known_keys = {key for kind in near for key in (*kind.keys, *kind.optional)}
    unknown = sorted(layer.keys() - known_keys)
    if unknown:
        what = resembled_kind(layer) or "is of an unknown kind"
        return f"{name} {what}" if "unknown keys" in what else f"{name}.{unknown[0]} {what}"
    flaws = (flaw for kind in near if (flaw := kind.flaw(name, layer)))  # plain kinds come before those built on them
    return next(flaws, f"{name} has tensors that do not belong together")


# ---- conversion for other programs ----


def to_diffusers(lora: LoraFile, *, fold_alpha: bool = False) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Return (tensors, metadata) of a LoRA with PEFT's names as in diffusers: `unet.<path>.lora_A.weight` ...

    fold_alpha  False: matrices unchanged, ranks and alphas in the metadata, where diffusers and `load_lora` read them; converting back
                gives the same bits. True: alpha / rank is multiplied into B, for programs that read no metadata; all in float32, since
                16 bits would round B
    Raises ProblemsError as `peft_layers`.
    """
    tensors: dict[str, torch.Tensor] = {}
    sizes: dict[str, dict[str, BlockSize]] = {}
    convolutions = traits_of(lora.family).convolutions_in_loras
    for name, part_path, stored, kind in peft_layers(lora):
        layer = {key: loaded(value) for key, value in stored.items()}
        size = kind.size(layer)
        dtype = next(value.dtype for key, value in layer.items() if key in kind.keys)
        # With alpha = rank the scale is 1, so that nothing is multiplied into B.
        unscaled = layer if fold_alpha else {**layer, ALPHA: torch.tensor(float(size.rank))}
        assert kind.to_peft is not None
        if convolutions and PROJECTION.match(f"{name}."):  # PEFT has a Linear there
            unscaled = {key: value.flatten(1) if value.ndim == 4 else value for key, value in unscaled.items()}
        peft = kind.to_peft(unscaled, torch.float32 if fold_alpha else dtype)
        tensors |= {f"{'.'.join(part_path)}.{key}": value for key, value in peft.items()}
        part, path = part_path
        sizes.setdefault(part, {})[path] = BlockSize(size.rank, float(size.rank)) if fold_alpha else size
    metadata = {key: value for key, value in lora.metadata.items() if not key.startswith("sshs_")}
    config = json.dumps(_peft_metadata(sizes, any(key.endswith(f".{DORA_SCALE}") for key in lora.tensors)))
    bundled = {name: loaded(value) for name, value in lora.bundled.items()}
    return {**tensors, **bundled}, {**metadata, "format": "pt", PEFT_METADATA: config}


def peft_layers(lora: LoraFile) -> Iterator[tuple[str, tuple[str, str], dict[str, torch.Tensor], NetworkKind]]:
    """Yield (kohya's name, (part, path), tensors, kind) of each layer. Raises ProblemsError for a layer that PEFT has no names for."""
    for name, layer in group_by_module(lora.tensors).items():
        part_path, kind = module_path(name), kind_of_keys(layer, name)
        if part_path is None or kind is None:
            what, fix = f"The LoRA has a layer of an unknown part or kind: {name}", "choose a LoRA for Stable Diffusion"
            raise ProblemsError.one(what, str(lora.path or ""), fix, "lora.unknown-layer")
        if kind.to_peft is None or not kind.in_peft(layer):
            form = "" if kind.to_peft is None else " with magnitudes per input or in Tucker form"
            what = f"diffusers and PEFT have no names for {kind.title}{form}"
            fix = "make it a LoRA (convert_lora.network_type), or choose kohya's names"
            raise ProblemsError.one(what, str(lora.path or ""), fix, "lora.no-diffusers-names")
        yield name, part_path, layer, kind


def save_diffusers(
    path: Path | str, lora: LoraFile, dtype: torch.dtype | None = None, *, fold_alpha: bool = False
) -> Path:
    """Write a LoRA with diffusers' names, converted by `to_diffusers`, atomically. Return its path.

    Raises ProblemsError as `to_diffusers`, and for weights that are not finite or overflow in `dtype` (None keeps theirs).
    """
    from safetensors.torch import save_file

    tensors, metadata = to_diffusers(lora, fold_alpha=fold_alpha)
    _refuse_overflow(Path(path), tensors, dtype)
    ready = {name: value.to(dtype or value.dtype).contiguous() for name, value in tensors.items()}
    with atomic.open_atomic(path) as temporary:
        save_file(ready, temporary, metadata)
    return Path(path)


def _peft_metadata(sizes: Mapping[str, Mapping[str, BlockSize]], dora: bool) -> dict[str, Any]:
    """Return the arguments of PEFT's LoraConfig of each part as diffusers stores them: {"unet.r": 16, ...}.
    sizes: {part: {module path: rank and alpha}}"""
    metadata: dict[str, Any] = {}
    for part, layers in sizes.items():
        modules = {bare_name(path) for path in layers}  # CLIP has a `text_model` or not; PEFT takes the end of a path
        rank = Counter(size.rank for size in layers.values()).most_common(1)[0][0]
        alpha = Counter(size.alpha for size in layers.values()).most_common(1)[0][0]
        ranks = {bare_name(path): size.rank for path, size in layers.items() if size.rank != rank}
        alphas = {bare_name(path): size.alpha for path, size in layers.items() if size.alpha != alpha}
        values = {"r": rank, "lora_alpha": alpha, "rank_pattern": ranks, "alpha_pattern": alphas}
        values |= {"target_modules": sorted(modules), "use_dora": dora, "bias": "none"}
        metadata |= {f"{part}.{name}": value for name, value in values.items()}
    return metadata


def to_kohya(lora: LoraFile) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Return (tensors, metadata) of a LoRA with kohya's names, for `save_lora`; SD 2.x's projections as 1x1 convolutions."""
    sizes, module = set(), ""
    for name, layer in group_by_module(lora.tensors).items():
        if (kind := kind_of_keys(layer, name)) is not None:
            module = kind.module_name
            sizes.add(kind.size(layer))
    network_metadata = network_sizes(module, {size.rank for size in sizes}, {size.alpha for size in sizes})
    if lora.family is not None:
        network_metadata |= version_metadata(lora.family)
    metadata = {key: value for key, value in lora.metadata.items() if key not in (PEFT_METADATA, "format")}
    tensors = {**lora.tensors, **lora.bias_norm_in_use, **lora.bundled}
    if traits_of(lora.family).convolutions_in_loras:
        tensors |= with_convolutions({key: tensors[key] for key in tensors if key.endswith((DOWN, UP, DORA_SCALE))})
    return tensors, network_metadata | metadata
