"""Finds the weights of a model's parts in a single file or a diffusers folder and lists them under diffusers' names.

Only headers are read here; `read_part` then loads one part's tensors, one at a time, in the requested dtype.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import groupby
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

from core.formats.detect import ModelKind, identify, identify_header, read_json
from core.formats.hashes import HashMemo
from core.formats.models import sd_keys
from core.formats.models.part_config import check_config
from core.formats.models.part_kinds import PART_KINDS, USUAL, PartKind, kind_of
from core.formats.models.text_keys import bare_name
from core.formats.tensors.entry import ITEM_BYTES, TensorEntry
from core.formats.tensors.header import read_header
from core.formats.tensors.reading import TensorFile
from core.record.bounded_json import parse_json
from core.record.cancel import CancelToken
from core.record.lazy_torch import torch
from core.record.problems import ProblemsError
from core.record.regular import open_regular

# Weight file names in a diffusers folder, preferred first: full precision before 16 bits, safetensors before a pickle.
WEIGHT_FILES = (
    "diffusion_pytorch_model.safetensors",
    "model.safetensors",
    "diffusion_pytorch_model.bin",
    "pytorch_model.bin",
    "diffusion_pytorch_model.fp16.safetensors",
    "model.fp16.safetensors",
    "diffusion_pytorch_model.fp16.bin",
    "pytorch_model.fp16.bin",
)
VAE_MODULES = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")
# Metadata of a single file whose model does not have the published sizes: {part: {config key: value}}, as JSON.
SIZES_KEY = "atelier_sizes"


@dataclass(frozen=True)
class TensorLocation:
    """Where a tensor is stored: the file, the tensor's name in it, and its byte range.

    `entry` may also be a slice or the transpose of the tensor of that name.
    """

    file: Path
    name: str
    entry: TensorEntry


Place = TensorLocation  # in packages from outside


@dataclass(frozen=True)
class Part:
    """One part of a model: U-Net, VAE or text encoder.

    source     the single file, or the part's folder
    locations  by diffusers' tensor names (CLIP without "text_model.")
    config     of the part's folder; None for a single file
    reading    "kohya" if tensors are read as in sd-scripts, which gives other weights (see `open_checkpoint`); else ""
    sizes      config values of a single file that differ from the published ones
    """

    name: str
    source: Path
    locations: Mapping[str, TensorLocation]
    config: Mapping[str, Any] | None = None
    reading: str = ""
    sizes: Mapping[str, Any] = field(default_factory=dict)

    def full_config(self, published: Mapping[str, Any]) -> dict[str, Any]:
        """Return the folder's config; for a single file, `published` updated with `sizes`."""
        return dict(self.config) if self.config is not None else {**published, **self.sizes}

    @property
    def files(self) -> list[Path]:
        """The files that contain the part's tensors, sorted."""
        return sorted({location.file for location in self.locations.values()})

    def weight_bytes(self, item_bytes: int | None = None) -> int:
        """Return the bytes of all tensors as stored, or with `item_bytes` per element."""
        return sum(
            prod(location.entry.shape) * (item_bytes or ITEM_BYTES[location.entry.dtype])
            for location in self.locations.values()
        )


@dataclass(frozen=True)
class Checkpoint:
    """A model file or folder whose headers are read: its kind and its parts by name."""

    path: Path
    kind: ModelKind
    parts: Mapping[str, Part] = field(default_factory=dict)


def open_checkpoint(path: Path | str, family: str = "sd1", *, kohya_projection: bool = False) -> Checkpoint:
    """Read the headers of a single file or a diffusers folder and find the model's parts. Raises ProblemsError for a damaged model.

    family            decides the layout of a file whose family cannot be detected
    kohya_projection  read the text projection of an SDXL file untransposed, as sd-scripts does (reference: training section 1.11);
                      no effect on folders
    """
    path = Path(path)
    if path.is_dir():
        return Checkpoint(path, identify(path), _folder_parts(path))
    entries, metadata = read_header(path)
    kind = identify_header(entries, metadata)
    parts = _file_parts(path, entries, kind.family or family, kohya_projection)
    sizes = _named_sizes(path, metadata)
    if kind.variant == "inpainting":  # its U-Net also reads a mask and the masked image's latents
        sizes["unet"] = {"in_channels": 9, **sizes.get("unet", {})}
    return Checkpoint(path, kind, {name: replace(part, sizes=sizes.get(name, {})) for name, part in parts.items()})


def open_vae(path: Path | str) -> Part:
    """Find the VAE in a VAE file or folder or in a full model. Raises ProblemsError if there is none."""
    path = Path(path)
    if path.is_dir():
        for folder in (path, path / "vae"):
            config = read_json(folder / "config.json")
            if config is not None and config.get("_class_name") == "AutoencoderKL":
                return replace(folder_part(folder, config, PART_KINDS["AutoencoderKL"]), name="vae")
        fix = "choose a folder whose config.json names AutoencoderKL, or a VAE file"
        raise ProblemsError.one("This folder does not contain a VAE", str(path), fix, "model.no-vae")
    entries, metadata = read_header(path)
    part = _vae_part(path, entries)
    if part is None:
        kind = identify_header(entries, metadata)
        what, fix = f"This is not a VAE but: {kind}", "choose a VAE, or a checkpoint that contains one"
        if kind.kind == "vae":
            what = "The VAE is incomplete: it needs an encoder and a decoder"
        raise ProblemsError.one(what, str(path), fix, "model.not-a-vae")
    return replace(part, sizes=_named_sizes(path, metadata).get("vae", {}))


def _named_sizes(path: Path, metadata: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Return {part: {config key: value}} from a file's metadata (SIZES_KEY). Raises ProblemsError for invalid values."""
    fix = "save the model again, or use its diffusers folder"
    sizes_by_part = parse_json(metadata.get(SIZES_KEY, "{}"), f"{path}, {SIZES_KEY} in its metadata", fix)
    if not isinstance(sizes_by_part, dict) or not all(isinstance(sizes, dict) for sizes in sizes_by_part.values()):
        what = f"The model sizes in the file's metadata ({SIZES_KEY}) are invalid"
        raise ProblemsError.one(what, str(path), fix, "model.bad-sizes")
    for part, sizes in sizes_by_part.items():
        if part in USUAL:
            check_config(PART_KINDS[USUAL[part]], sizes, f"{path}, {SIZES_KEY}", complete=False)
    return sizes_by_part


def _file_parts(path: Path, entries: Mapping[str, TensorEntry], family: str, kohya_projection: bool) -> dict[str, Part]:
    """Return {name: Part} of a single file, by LDM's prefixes; parts without tensors are missing."""
    clip = sd_keys.CLIP_PREFIXES.get(family)
    open_clip, open_clip_part = sd_keys.OPEN_CLIP_PREFIXES.get(family), sd_keys.OPEN_CLIP_PARTS.get(family, "")
    locations: dict[str, dict[str, TensorLocation]] = {"unet": {}, "text_encoder": {}, "text_encoder_2": {}}
    for name, entry in entries.items():
        if name.startswith(sd_keys.UNET_PREFIX):
            diffusers_name = sd_keys.unet_to_diffusers(name.removeprefix(sd_keys.UNET_PREFIX), family)
            locations["unet"][diffusers_name] = TensorLocation(path, name, entry)
        elif clip is not None and name.startswith(clip):
            locations["text_encoder"][bare_name(name.removeprefix(clip))] = TensorLocation(path, name, entry)
        elif open_clip is not None and name.startswith(open_clip):
            names = _open_clip_entries(name.removeprefix(open_clip), entry, kohya_projection)
            locations[open_clip_part].update(
                {diffusers_name: TensorLocation(path, name, part) for diffusers_name, part in names.items()}
            )
    reading = {"text_encoder_2": "kohya"} if kohya_projection else {}
    parts = {
        part: Part(part, path, _used(PART_KINDS[USUAL[part]], names), reading=reading.get(part, ""))
        for part, names in locations.items()
        if names
    }
    vae = _vae_part(path, entries)
    return parts | ({"vae": vae} if vae is not None else {})


def _open_clip_entries(name: str, entry: TensorEntry, kohya_projection: bool) -> dict[str, TensorEntry]:
    """Return {transformers' name: entry} of one OpenCLIP tensor; three for stacked q, k, v, none for unused tensors.
    name: without the prefix in the file"""
    names = sd_keys.open_clip_to_diffusers(name)
    if len(names) == 3:
        return dict(zip(names, _thirds(entry), strict=True)) if entry.side(0) >= 3 else {}
    if name == "text_projection" and not kohya_projection and len(entry.shape) == 2:
        entry = _transposed(entry)
    return {each: entry for each in names}


def _thirds(entry: TensorEntry) -> list[TensorEntry]:
    """Split the entry of q, k and v stacked along the first axis into three."""
    rows = entry.shape[0] // 3
    row = (entry.strides[0] if entry.strides else prod(entry.shape[1:])) * ITEM_BYTES[entry.dtype]
    slices = []
    for start in (entry.start, entry.start + rows * row, entry.start + 2 * rows * row):
        stop = entry.stop if entry.strides else start + rows * row
        slices.append(replace(entry, shape=(rows, *entry.shape[1:]), start=start, stop=stop))
    return slices


def _transposed(entry: TensorEntry) -> TensorEntry:
    """Return the entry of the transposed matrix, by exchanged strides."""
    strides = entry.strides or (entry.shape[1], 1)
    return replace(entry, shape=entry.shape[::-1], strides=strides[::-1])


def _vae_part(path: Path, entries: Mapping[str, TensorEntry]) -> Part | None:
    """Find the VAE of a file under any of its prefixes, without losses and EMA weights of its training; None without one."""
    for prefix in (sd_keys.VAE_PREFIX, "vae.", ""):
        locations = {
            sd_keys.vae_to_diffusers(name.removeprefix(prefix)): TensorLocation(path, name, entry)
            for name, entry in entries.items()
            if name.startswith(tuple(prefix + module for module in VAE_MODULES))
        }
        if "encoder.conv_in.weight" in locations:
            return Part("vae", path, locations)
    return None


def _folder_parts(path: Path) -> dict[str, Part]:
    """Return {name: Part} of a diffusers folder, for subfolders with a config.json of a known kind."""
    parts = {}
    for folder in sorted(each for each in path.iterdir() if each.is_dir()):
        config = read_json(folder / "config.json")
        kind = kind_of(folder.name, config) if config is not None else None
        if config is not None and kind is not None:
            parts[folder.name] = folder_part(folder, config, kind)
    return parts


def folder_part(folder: Path, config: Mapping[str, Any], kind: PartKind) -> Part:
    """Read the headers of one part's folder. Raises ProblemsError for an invalid config, missing or damaged weights."""
    check_config(kind, config, str(folder / "config.json"))
    locations = {}
    for file in weight_files(folder):
        entries, _ = read_header(file)
        locations.update({kind.rename(key): TensorLocation(file, key, entry) for key, entry in entries.items()})
    return Part(folder.name, folder, _used(kind, locations), config)


def weight_files(folder: Path) -> list[Path]:
    """Return the folder's preferred weight file, or the shards that its index lists. Raises ProblemsError if one is missing."""
    for name in WEIGHT_FILES:
        if (folder / name).is_file():
            return [folder / name]
        index = read_json(folder / index_name(name))
        if index is not None:
            shards = _shards(index.get("weight_map"), folder)
            missing = [shard for shard in shards if not (folder / shard).is_file()]
            if missing:
                what = f"A part of the model is missing: {missing[0]}"
                raise ProblemsError.one(what, str(folder), "download it into this folder", "model.missing-part")
            return [folder / shard for shard in shards]
    fix = f"put {WEIGHT_FILES[0]} (or model.safetensors for a text encoder) into it"
    raise ProblemsError.one("The folder contains no weights", str(folder), fix, "model.no-weights")


def index_name(file: str) -> str:
    """Return the name of the index of a sharded weight file, as diffusers and transformers build it.

    `model.fp16.safetensors` -> `model.safetensors.index.fp16.json`
    """
    stem, *variant, ending = file.split(".")
    return ".".join([stem, ending, "index", *variant, "json"])


def _shards(listed: Any, folder: Path) -> list[str]:
    """Return the file names in an index's weight map. Raises ProblemsError if one is not directly in the folder."""
    names = list(listed.values()) if isinstance(listed, dict) else []
    if not names or not all(isinstance(name, str) and name and Path(name).name == name for name in names):
        what = "The index of the model's shards lists files that are not next to it"
        raise ProblemsError.one(what, str(folder), "download the folder again", code="model.bad-index")
    return sorted(set(names))


def _used(kind: PartKind, locations: Mapping[str, TensorLocation]) -> dict[str, TensorLocation]:
    """Return the locations without CLIP's position_ids, tied duplicates, and tensors that the kind of part does not read.

    position_ids only count up, and 16-bit files round them.
    """
    return {
        name: location
        for name, location in locations.items()
        if not name.endswith("embeddings.position_ids") and name not in kind.unused and name not in kind.tied
    }


def in_file_order(part: Part) -> Iterator[tuple[Path, list[tuple[str, TensorLocation]]]]:
    """Yield (file, [(tensor name, location)] by byte offset), since disks are fastest when read forwards."""
    locations = sorted(part.locations.items(), key=lambda item: (str(item[1].file), item[1].entry.start))
    for file, group in groupby(locations, key=lambda item: item[1].file):
        yield file, list(group)


def read_part(
    part: Part,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    cancel: CancelToken | None = None,
    wide: tuple[str, ...] = (),
) -> dict[str, torch.Tensor]:
    """Return a part's tensors by name on `device`, with memory for these and one more.

    dtype   of floats; None keeps the stored one
    wide    prefixes of names that are read as float32 whatever `dtype` is
    """
    state = {}
    for file, locations in in_file_order(part):
        with TensorFile(file) as handle:
            for name, location in locations:
                if cancel is not None:
                    cancel.check()
                tensor_dtype = torch.float32 if name.startswith(wide) else dtype
                state[name] = handle.read_entry(location.entry, tensor_dtype).to(device)
    return state


def part_digest(part: Part, memo: HashMemo | None = None, cancel: CancelToken | None = None) -> str:
    """Return the SHA-256 of a part's tensor names, dtypes, shapes and values: equal for the same weights in a file and a folder.

    It is the key of latent and text encoder caches.
    """
    memo = memo or HashMemo()
    return memo.get(f"part:{part.name}{part.reading}", part.files, lambda: _digest(part, cancel))


def _digest(part: Part, cancel: CancelToken | None) -> str:
    """Compute `part_digest` by reading all tensors."""
    digest = hashlib.sha256()
    lines: dict[str, str] = {}
    for file, locations in in_file_order(part):
        with open_regular(file) as handle:
            for name, location in locations:
                if cancel is not None:
                    cancel.check()
                content = hashlib.sha256(_row_major_bytes(handle, file, location.entry)).hexdigest()
                lines[name] = f"{name} {location.entry.dtype} {_core_shape(location.entry.shape)} None {content}\n"
    for name in sorted(lines):
        digest.update(lines[name].encode())
    return digest.hexdigest()


def _row_major_bytes(handle: BinaryIO, file: Path, entry: TensorEntry) -> bytes | memoryview:
    """Return the tensor's bytes in row-major order.
    handle: the open `file`"""
    if entry.strides is None:
        handle.seek(entry.start)
        return handle.read(entry.stop - entry.start)
    with TensorFile(file) as tensors:
        return memoryview(tensors.read_entry(entry).contiguous().flatten().view(torch.uint8).numpy())


def _core_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape without trailing ones from the third dimension on, so that a linear layer equals a 1x1 convolution."""
    while len(shape) > 2 and shape[-1] == 1:
        shape = shape[:-1]
    return shape
