"""Loads a model from a single file or a diffusers folder: offline, directly in the compute dtype.

Modules are built on the "meta" device, without memory, and then get the tensors of the file. A thread reads the file during the
imports of diffusers and transformers, which take several seconds themselves.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from core.families.components import PARTS, Components
from core.families.imports import quick_thread_switches
from core.families.layout import Layout
from core.families.locate import GENERATED, check_family
from core.families.part_shapes import (
    config_of,
    expected_shapes,
    integer_problems,
    make_empty,
    mismatch_problems,
    shape_problems,
    shapes_of,
    stored_shapes,
    tensor_problems,
)
from core.families.tokenizer import tokenizer_folder
from core.families.vae import overflows, safe_type
from core.families.vocabulary import unusual_digests
from core.formats.detect import FAMILY_NAMES
from core.formats.hashes import HashMemo
from core.formats.models.checkpoint import (
    Checkpoint,
    Part,
    open_checkpoint,
    open_vae,
    part_digest,
    read_part,
)
from core.formats.models.part_kinds import PartKind, part_title
from core.record.cancel import CancelToken
from core.record.problems import Problem, ProblemsError, raise_if_errors


def load(
    layout: Layout,
    path: Path | str,
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    vae: Path | str | None = None,
    vae_dtype: torch.dtype = torch.float32,
    parts: Iterable[str] = PARTS,
    memo: HashMemo | None = None,
    cancel: CancelToken | None = None,
    kohya_projection: bool = False,
) -> Components:
    """Load parts of a model, frozen and in eval mode.

    dtype      of U-Net and text encoders
    vae        a file or folder whose VAE replaces the model's
    vae_dtype  of the VAE, separate since 16 bits visibly reduce its quality
    parts      a selection of PARTS
    memo       cache of hashes; if given, `Components.hashes` is filled
    kohya_projection   see core.formats.models.checkpoint.open_checkpoint
    Raises ProblemsError for a model of another family, missing parts and wrong tensors.
    """
    wanted = set(parts)
    assert wanted <= set(PARTS), wanted
    checkpoint = open_checkpoint(path, layout.family, kohya_projection=kohya_projection)
    check_family(checkpoint.kind, path, layout.family, GENERATED)
    chosen = _chosen_parts(layout, checkpoint, vae, wanted)
    kinds = {part.name: layout.kind(part.name) for part in chosen}
    dtypes = {name: safe_type(kind.overflows, dtype, device) for name, kind in kinds.items()}
    if "vae" in dtypes:
        dtypes["vae"] = safe_type(overflows(layout, _vae_config(layout, checkpoint, vae)), vae_dtype, device)
    with quick_thread_switches(), ThreadPoolExecutor(1, thread_name_prefix="read-weights") as reader:
        states = {
            part.name: reader.submit(read_part, part, dtypes[part.name], device, cancel, kinds[part.name].wide)
            for part in chosen
        }
        try:
            title = FAMILY_NAMES[layout.family]
            modules = {
                part.name: _build(part, config_of(layout, part), kinds[part.name], title, states[part.name].result)
                for part in chosen
            }
        except BaseException:
            reader.shutdown(wait=True, cancel_futures=True)
            raise
    return Components(
        denoiser=modules.get(layout.denoiser),
        vae=modules.get("vae"),
        text_encoders=[modules[name] for name in layout.text_encoders if name in modules],
        tokenizers=[make(checkpoint.path) for make in layout.tokenizers] if "tokenizers" in wanted else [],
        prediction=checkpoint.kind.prediction or _prediction(layout, modules.get(layout.denoiser)),
        zero_terminal_snr=checkpoint.kind.zero_terminal_snr,
        vae_config={**layout.config("vae"), **_vae_config(layout, checkpoint, vae)},
        family=layout.family,
        device=str(device),
        source=checkpoint.path,
        hashes={part.name: part_digest(part, memo, cancel) for part in chosen if memo is not None},
    )


def fit_problems(layout: Layout, path: Path | str, vae: Path | str | None = None) -> list[Problem]:
    """Return the problems for which `load` would fail, and parts that do not work together; from headers and configs only."""
    try:
        checkpoint = open_checkpoint(path, layout.family)
        check_family(checkpoint.kind, path, layout.family, GENERATED)
        parts = _chosen_parts(layout, checkpoint, vae, set(PARTS))
    except ProblemsError as error:
        return error.problems
    problems: list[Problem] = []
    for part in parts:
        try:
            wanted = expected_shapes(layout, part, whole=True)
        except ProblemsError as error:
            problems += [replace(problem, where=str(part.source)) for problem in error.problems]
            continue
        problems += tensor_problems(wanted, part, FAMILY_NAMES[layout.family])
    try:
        return problems or mismatch_problems(layout, parts, Path(path))
    except ProblemsError as error:
        return error.problems


def _prediction(layout: Layout, unet: Any) -> str:
    """Return "epsilon" or "v" of a model whose file does not state it, by running the U-Net if the family needs that."""
    if layout.find_prediction is None or unet is None:
        return "epsilon"
    return layout.find_prediction(unet)


def _vae_config(layout: Layout, checkpoint: Checkpoint, vae: Path | str | None) -> dict[str, Any]:
    """Return the config of the VAE in use, even if it is not loaded: cached latents need its scaling factor."""
    part = open_vae(vae) if vae is not None else checkpoint.parts.get("vae")
    return layout.config("vae") if part is None else config_of(layout, part)


def _chosen_parts(layout: Layout, checkpoint: Checkpoint, vae: Path | str | None, wanted: set[str]) -> list[Part]:
    """Return the parts to read, largest last, so that imports hide the reading of the others and most of the U-Net.

    wanted   a selection of PARTS
    Raises ProblemsError for missing parts.
    """
    parts = dict(checkpoint.parts)
    if vae is not None and "vae" in wanted:
        parts["vae"] = open_vae(vae)
    names = list(layout.text_encoders) if "text_encoders" in wanted else []
    names += [name for role, name in (("vae", "vae"), ("denoiser", layout.denoiser)) if role in wanted]
    missing = [part_title(name) for name in names if name not in parts]
    if missing:
        fix = (
            "set a VAE in the model settings"
            if missing == ["VAE"]
            else "choose a full model, with its text encoders and VAE"
        )
        what = f"The model has no {' and no '.join(missing)}"
        raise ProblemsError.one(what, str(checkpoint.path), fix, code="model.missing-part")
    return [layout.used(parts[name]) for name in names]


def load_vae(layout: Layout, path: Path | str, device: str = "cpu", cancel: CancelToken | None = None) -> Any:
    """Load a VAE in fp32 from a VAE file or folder, or from a full model. `layout` is that of a family with this VAE."""
    part, title = open_vae(path), FAMILY_NAMES[layout.family]
    return load_part(part, config_of(layout, part), layout.kind("vae"), title, device, cancel)


def load_part(
    part: Part, config: Mapping[str, Any], kind: PartKind, title: str, device: str, cancel: CancelToken | None = None
) -> Any:
    """Load a single part in fp32, frozen and in eval mode. Raises ProblemsError for wrong tensors.

    config   of the part
    kind     of the part
    title    of its model family, for messages
    """
    return _build(part, config, kind, title, lambda: read_part(part, torch.float32, device, cancel))


def _build(
    part: Part, config: Mapping[str, Any], kind: PartKind, title: str, read: Callable[[], dict[str, torch.Tensor]]
) -> Any:
    """Build the module of a part with the tensors that `read` returns, frozen and in eval mode."""
    module = make_empty(part.name, config, kind)
    _assign_weights(module, kind.named(module, read()), part, kind, title)
    _fill_buffers(module, config, kind)
    return module.eval().requires_grad_(False)


def part_problems(part: Part, kind: PartKind, title: str) -> list[Problem]:
    """Return the problems for which `load_part` would fail, from header and config only."""
    wanted = shapes_of(kind, part.name, json.dumps(part.config, sort_keys=True))
    return tensor_problems(wanted, part, title)


def _assign_weights(module: Any, state: dict[str, torch.Tensor], part: Part, kind: PartKind, title: str) -> None:
    """Put the tensors into a module on "meta". Raises ProblemsError unless names and shapes match and weights are floats.
    state: {name as in the module: tensor}; changed in place"""
    expected = stored_shapes(kind, module)
    raise_if_errors(shape_problems(expected, {name: tensor.shape for name, tensor in state.items()}, part, title))
    raise_if_errors(integer_problems([name for name in expected if not state[name].is_floating_point()], part))
    for name, shape in expected.items():
        state[name] = state[name].reshape(shape)
    state |= {name: state[other] for name, other in kind.tied.items()}
    module.load_state_dict(state, strict=True, assign=True)
    if kind.tied:
        module.tie_weights()


def _fill_buffers(module: Any, config: Mapping[str, Any], kind: PartKind) -> None:
    """Fill the buffers that files do not store and that are empty on "meta".

    CLIP's position_ids are 0, 1, ...; those that a class computes (PixArt's position table) come from a second module without weights.
    """
    empty = {name: buffer for name, buffer in module.named_buffers() if buffer.is_meta}
    counters = {name: buffer for name, buffer in empty.items() if name.rpartition(".")[2] == "position_ids"}
    values = {name: torch.arange(each.shape[-1]).expand(each.shape).clone() for name, each in counters.items()}
    if computed := empty.keys() - counters.keys():
        from accelerate import init_empty_weights

        with init_empty_weights(include_buffers=False):
            computed_buffers = dict(kind.module_builder()(config).named_buffers())
        values |= {name: computed_buffers[name] for name in computed}
    device = next(module.parameters()).device
    for name, value in values.items():
        owner, _, attribute = name.rpartition(".")
        setattr(module.get_submodule(owner), attribute, value.to(device))


# Config values that change what a VAE or text encoder computes, but no tensor of it.
FORMULA = ("act_fn", "norm_num_groups", "hidden_act", "layer_norm_eps", "num_attention_heads")


def digest(
    layout: Layout,
    path: Path | str,
    part: str,
    *,
    vae: Path | str | None = None,
    memo: HashMemo | None = None,
    cancel: CancelToken | None = None,
    kohya_projection: bool = False,
) -> str:
    """Return the SHA-256 of the stored weights of a part, for cache keys. Loads nothing.

    part   "denoiser", "vae" or "text_encoders"
    vae    a file or folder whose VAE replaces the model's
    A VAE or text encoder that computes otherwise with the same weights than the published one has another key, and so have text
    encoders with another vocabulary. Raises ProblemsError for a missing part.
    """
    assert part in ("denoiser", "vae", "text_encoders"), part
    if part == "vae" and vae is not None:
        vae_part = open_vae(vae)
        return _joined([part_digest(vae_part, memo, cancel), *_unpublished(layout, vae_part)])
    checkpoint = open_checkpoint(path, layout.family, kohya_projection=kohya_projection)
    parts = _chosen_parts(layout, checkpoint, None, {part})
    digests = [part_digest(each, memo, cancel) for each in parts]
    if part != "denoiser":
        digests += [line for each in parts for line in _unpublished(layout, each)]
    if part == "text_encoders":
        digests += unusual_digests(tokenizer_folder(checkpoint.path))
    return _joined(digests)


def _joined(digests: list[str]) -> str:
    """Return the only digest, or the SHA-256 of several."""
    return digests[0] if len(digests) == 1 else hashlib.sha256(" ".join(digests).encode()).hexdigest()


def _unpublished(layout: Layout, part: Part) -> list[str]:
    """Return "part.name=value" of each config value of FORMULA that is not the published one."""
    config, published = config_of(layout, part), layout.config(part.name)
    return [
        f"{part.name}.{name}={config[name]}"
        for name in FORMULA
        if name in config and config[name] != published.get(name)
    ]
