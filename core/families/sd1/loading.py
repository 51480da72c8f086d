"""Load an SD 1.x model from one file or a diffusers folder: offline, straight into the compute type, quickly.

The modules are built without memory (on the "meta" device) and given the tensors as they come from the file. Reading
runs beside the imports of diffusers and transformers, which take several seconds of their own.
"""

from __future__ import annotations

import gc
import json
import logging
import sys
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

import torch

from core.families import check_family
from core.families.sd1.components import PARTS, Components
from core.formats import text_keys
from core.formats.checkpoint import PART_TITLES, Checkpoint, Part, open_checkpoint, open_vae, part_digest, read_part
from core.formats.hashes import HashMemo
from core.record.cancel import CancelToken
from core.record.problems import Problem, ProblemsError

CONFIGS = Path(__file__).parent / "configs"
SHOWN_KEYS = 5


def load(
    path: Path | str,
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    vae: Path | str | None = None,
    vae_dtype: torch.dtype = torch.float32,
    parts: Iterable[str] = PARTS,
    memo: HashMemo | None = None,
    cancel: CancelToken | None = None,
) -> Components:
    """Load parts of a model, frozen and in eval mode.

    dtype      of U-Net and text encoder    vae_dtype  of the VAE: its own, since 16 bits cost visible precision
    vae        a file or folder whose VAE replaces the model's
    memo       also fill `hashes` of the loaded parts, remembered here
    """
    wanted = set(parts)
    assert wanted <= set(PARTS), wanted
    checkpoint = open_checkpoint(path)
    check_family(checkpoint.kind, path, "sd1")
    found = _chosen_parts(checkpoint, vae, wanted)
    dtypes = {"unet": dtype, "text_encoder": dtype, "vae": vae_dtype}
    with turns_often(), ThreadPoolExecutor(1, thread_name_prefix="read-weights") as reader:
        states = {part.name: reader.submit(read_part, part, dtypes[part.name], device, cancel) for part in found}
        try:
            modules = {part.name: _build(part, states) for part in found}
        except BaseException:
            reader.shutdown(wait=True, cancel_futures=True)
            raise
    return Components(
        unet=modules.get("unet"),
        vae=modules.get("vae"),
        text_encoders=[modules["text_encoder"]] if "text_encoder" in modules else [],
        tokenizers=[load_tokenizer(checkpoint.path)] if "tokenizer" in wanted else [],
        prediction=checkpoint.kind.prediction or "epsilon",
        vae_scale=_vae_scale(checkpoint, vae),
        source=checkpoint.path,
        hashes={part.name: part_digest(part, memo, cancel) for part in found if memo is not None},
    )


def _vae_scale(checkpoint: Checkpoint, vae: Path | str | None) -> float:
    """From the config of the VAE in use, whether or not it is loaded: cached latents need it too."""
    part = open_vae(vae) if vae is not None else checkpoint.parts.get("vae")
    config = part.config if part is not None and part.config is not None else _shipped_config("vae")
    return float(config.get("scaling_factor", 0.18215))


def _chosen_parts(checkpoint: Checkpoint, vae: Path | str | None, wanted: set[str]) -> list[Part]:
    """The parts to read, largest last: what the imports hide is the small ones and most of the U-Net."""
    parts = dict(checkpoint.parts)
    if vae is not None and "vae" in wanted:
        parts["vae"] = open_vae(vae)
    names = [name for name in ("text_encoder", "vae", "unet") if name in wanted]
    missing = [PART_TITLES[name] for name in names if name not in parts]
    if missing:
        fix = (
            "set a VAE in the model settings"
            if missing == ["VAE"]
            else "choose a whole model: U-Net, text encoder and VAE"
        )
        raise ProblemsError.one(f"The model has no {' and no '.join(missing)}", str(checkpoint.path), fix)
    return [parts[name] for name in names]


def _build(part: Part, states: Mapping[str, Future]) -> Any:
    """The module of a part, with its weights."""
    config = dict(part.config if part.config is not None else _shipped_config(part.name))
    module = make_empty(part.name, config)
    state = states[part.name].result()
    if part.name == "text_encoder":
        state = text_keys.state_for(module, state)
    _give_weights(module, state, part)
    return module.eval().requires_grad_(False)


def _shipped_config(name: str) -> dict[str, Any]:
    """SD 1.5's, for single files, which hold none."""
    return json.loads((CONFIGS / name / "config.json").read_text(encoding="utf-8"))


def _unet_maker() -> Any:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    return UNet2DConditionModel.from_config


def _vae_maker() -> Any:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    return AutoencoderKL.from_config


def _text_encoder_maker() -> Any:
    from transformers.models.clip.configuration_clip import CLIPTextConfig
    from transformers.models.clip.modeling_clip import CLIPTextModel

    return lambda config: CLIPTextModel(
        CLIPTextConfig(**{key: value for key, value in config.items() if key not in ("dtype", "torch_dtype")})
    )


def make_empty(name: str, config: dict[str, Any]) -> Any:
    """A part without numbers, on the "meta" device: to be given weights, or to count shapes and work."""
    with quick_imports():
        make = _MAKERS[name]()
    with torch.device("meta"):
        return make(config).requires_grad_(False)


_MAKERS = {"unet": _unet_maker, "vae": _vae_maker, "text_encoder": _text_encoder_maker}


@contextmanager
def turns_often() -> Iterator[None]:
    """Give the reading thread its turn 25 times as often: at the usual 5 ms, beside the imports, it mostly waits."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(0.0002)
    try:
        yield
    finally:
        sys.setswitchinterval(usual)


@contextmanager
def quick_imports() -> Iterator[None]:
    """Import diffusers and transformers a fifth faster, by collecting no garbage in between, and without the remark of
    bitsandbytes (which they pull in) on kernels that nobody here asked for."""
    collected = gc.isenabled()
    remarks = logging.getLogger("bitsandbytes")
    level = remarks.level
    gc.disable()
    remarks.setLevel(logging.ERROR)
    try:
        yield
    finally:
        remarks.setLevel(level)
        if collected:
            gc.enable()


def _give_weights(module: Any, state: dict[str, torch.Tensor], part: Part) -> None:
    """Put the tensors into the module built on "meta"; every key must be there, none left over, every shape right."""
    wanted = module.state_dict()
    problems = []
    if missing := sorted(wanted.keys() - state.keys()):
        problems.append(_keys_problem("lacks", missing, part))
    if extra := sorted(state.keys() - wanted.keys()):
        problems.append(_keys_problem("has unknown", extra, part))
    wrong = []
    for name in wanted.keys() & state.keys():
        fitted = _fitted(state[name], wanted[name].shape)
        if fitted is None:
            wrong.append(f"{name} {_size(state[name].shape)} instead of {_size(wanted[name].shape)}")
        else:
            state[name] = fitted
    if wrong:
        problems.append(_shapes_problem(sorted(wrong), part))
    if problems:
        raise ProblemsError(problems)
    module.load_state_dict(state, strict=True, assign=True)
    _fill_counters(module, next(iter(state.values())).device)


def _fitted(tensor: torch.Tensor, shape: torch.Size) -> torch.Tensor | None:
    """The tensor in the shape asked for. Only ones at the end may differ: 1x1 convolution or linear layer."""
    if tensor.shape == shape:
        return tensor
    shorter, longer = sorted((tensor.shape, shape), key=len)
    same = len(shorter) >= 2 and longer[: len(shorter)] == shorter and prod(longer[len(shorter) :]) == 1
    return tensor.reshape(shape) if same else None


def _fill_counters(module: Any, device: torch.device) -> None:
    """CLIP's position_ids (0, 1, ...) are in no file; a module built on "meta" has them without values."""
    for name, buffer in list(module.named_buffers()):
        if buffer.is_meta:
            owner, _, attribute = name.rpartition(".")
            assert attribute == "position_ids", f"{name} has no values"
            setattr(
                module.get_submodule(owner),
                attribute,
                torch.arange(buffer.shape[-1], device=device).expand(buffer.shape).clone(),
            )


def _keys_problem(verb: str, keys: list[str], part: Part) -> Problem:
    shown = ", ".join(keys[:SHOWN_KEYS]) + (f" and {len(keys) - SHOWN_KEYS} more" if len(keys) > SHOWN_KEYS else "")
    return Problem(
        f"The {PART_TITLES[part.name]} {verb} {len(keys)} {'tensor' if len(keys) == 1 else 'tensors'}: {shown}",
        str(part.source),
        "the file is incomplete or not a plain SD 1.x model: choose another",
    )


def _shapes_problem(lines: list[str], part: Part) -> Problem:
    shown = "; ".join(lines[:SHOWN_KEYS]) + (f" and {len(lines) - SHOWN_KEYS} more" if len(lines) > SHOWN_KEYS else "")
    fix = (
        "a single file must have SD 1.5's sizes: use the model's diffusers folder, whose config tells its sizes."
        if part.config is None
        else "the folder's config.json and its weights are of different models: download it again."
    )
    return Problem(f"The {PART_TITLES[part.name]} has tensors of other sizes: {shown}", str(part.source), fix)


def _size(shape: torch.Size) -> str:
    return "x".join(str(side) for side in shape)


def load_tokenizer(path: Path | str | None = None) -> Any:
    """CLIP's tokenizer: the model folder's own, else the shipped one (the same 49,408 words). Never from a hub."""
    with quick_imports():
        from transformers.models.clip.tokenization_clip import CLIPTokenizer

    folder = Path(path) / "tokenizer" if path is not None else CONFIGS / "tokenizer"
    complete = (folder / "tokenizer.json").is_file() or (
        (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file()
    )
    return CLIPTokenizer.from_pretrained(str(folder if complete else CONFIGS / "tokenizer"), local_files_only=True)


def digest(
    path: Path | str,
    part: str,
    *,
    vae: Path | str | None = None,
    memo: HashMemo | None = None,
    cancel: CancelToken | None = None,
) -> str:
    """SHA-256 of a part's weights as stored ("unet", "vae", "text_encoder"), for the keys of caches. Loads nothing."""
    if part == "vae" and vae is not None:
        return part_digest(open_vae(vae), memo, cancel)
    return part_digest(_chosen_parts(open_checkpoint(path), None, {part})[0], memo, cancel)


def weight_bytes(path: Path | str, item_bytes: int | None = None) -> dict[str, int]:
    """Bytes of each part's weights as stored, or with `item_bytes` for each number (2 in bf16): what loading takes."""
    return {name: part.weight_bytes(item_bytes) for name, part in open_checkpoint(path).parts.items()}
