"""Decompositions of LoRAs' and of models' layers next to whole ones, the memory of a resize, a merge next to a copy of the model."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.record.draws import normal
from workshop.bench.formats import copy_seconds, forget
from workshop.bench.measure import measure_tool, timed, webui

if TYPE_CHECKING:
    from torch import Tensor

    from core.formats.tensors.lazy import LazyTensor

RANK, MERGED_RANK = 128, 16
RESIZED_RANK, NEW_RANK = 64, 32
EXTRACTED_RANK = 32  # the usual one
MOST_QUICK = 640 * 2560  # numbers of a matrix
VERSIONS = {"sd1": "sd_v1", "sdxl": "sdxl_base_v1-0"}


def measure_tools(folder: Path, quick: bool, say: Callable[[str], None]) -> dict[str, Any]:
    """Results of SVDs of SD 1.5's layers at rank 128 (quick: every eighth), an extraction (quick: the smaller layers), a resize
    and a merge of files with SDXL's shapes in fp16 (quick: SD 1.5's)."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="tools-", dir=folder) as name:
        return {
            "svd": measure_svd(8 if quick else 1, say),
            "extract": measure_extract(quick, say),
            "resize": measure_resize(Path(name), quick, say),
            "merge": measure_merge(Path(name), quick, say),
        }


def measure_svd(every: int, say: Callable[[str], None]) -> dict[str, float]:
    """Seconds of the decompositions by the factors and of the whole products; the largest difference of singular values, as a
    share of each layer's first."""
    import torch

    from core.tools.loras.svd import Product, decompose

    shapes = {name: shape for name, shape in _lora_layers("sd1") if name.startswith("lora_unet")}
    products = {}
    for name, (out, into) in list(shapes.items())[::every]:
        up, down = normal((out, RANK), 0, "bench", name, "up"), normal((RANK, into), 0, "bench", name, "down")
        products[name] = Product(up, down)
    say(f"decomposing {len(products)} layers of rank {RANK} by their factors")
    by_name, by_factors = timed(lambda: {name: decompose(each) for name, each in products.items()})
    say("decomposing them whole")
    whole, whole_seconds = timed(
        lambda: {name: torch.linalg.svd(p.up @ p.down, full_matrices=False).S[:RANK] for name, p in products.items()}
    )
    return {
        "layers": len(products),
        "factors_seconds": by_factors,
        "whole_seconds": whole_seconds,
        "largest_difference": max(
            float(((by_name[n].s[:RANK] - s[: len(by_name[n].s)]) / s[0]).abs().max()) for n, s in whole.items()
        ),
    }


def measure_extract(quick: bool, say: Callable[[str], None]) -> dict[str, float]:
    """Seconds of the decompositions of an extraction of rank 32 from SD 1.5's U-Net: by the largest values, whole as without a rank, and
    as sd-scripts computes them. Each shape is measured once and counts as often as it occurs. The weights differ by noise, whose values
    are the hardest to tell apart. kept: the least share of the best norm of that rank that is kept."""
    import torch

    from core.tools.loras.svd import decompose

    shapes = Counter(shape for name, shape in _lora_layers("sd1") if name.startswith("lora_unet"))
    shapes = Counter(
        {shape: times for shape, times in shapes.items() if not quick or shape[0] * shape[1] <= MOST_QUICK}
    )
    result: dict[str, float] = dict.fromkeys(("seconds", "whole_seconds", "sd_scripts_seconds"), 0.0)
    shares = list[float]()
    for shape, times in shapes.items():
        say(f"decomposing {times} differences of {shape[0]} x {shape[1]}")
        matrix = normal(shape, 0, "bench", *shape) * 1e-3
        parts, seconds = timed(partial(decompose, matrix, rank=EXTRACTED_RANK))
        whole, whole_seconds = timed(partial(decompose, matrix))
        _, sd_scripts = timed(partial(torch.linalg.svd, matrix))
        for name, each in zip(result, (seconds, whole_seconds, sd_scripts), strict=True):
            result[name] += each * times
        shares.append(parts.retained(EXTRACTED_RANK) / whole.retained(EXTRACTED_RANK))
    return result | {"layers": shapes.total(), "kept": min(shares)}


def measure_resize(folder: Path, quick: bool, say: Callable[[str], None]) -> dict[str, float]:
    """Seconds and peak memory of the tool in a process of its own."""
    family_name = "sd1" if quick else "sdxl"
    say(f"creating a LoRA of rank {RESIZED_RANK}")
    lora = _lora(folder / "high.safetensors", family_name, RESIZED_RANK)
    say(f"resizing it to rank {NEW_RANK}")
    command = webui(folder / "outputs", "cpu", "resize_lora", str(lora), "--resize_lora.new_rank", str(NEW_RANK))
    return measure_tool(command) | {"bytes": lora.stat().st_size}


def measure_merge(folder: Path, quick: bool, say: Callable[[str], None]) -> dict[str, float]:
    """Seconds of a copy of the file and of the merge in a process of its own; both read from the disk."""
    family_name = "sd1" if quick else "sdxl"
    say("creating a checkpoint and a LoRA of random numbers")
    source = _checkpoint(folder / "model.safetensors", family_name)
    lora = _lora(folder / "lora.safetensors", family_name, MERGED_RANK)
    say("copying the checkpoint")
    copied = copy_seconds(source, folder / "copy.safetensors")
    say("merging the LoRA into it")
    forget(source)
    command = webui(
        folder / "outputs",
        "cpu",
        "merge_lora_to_model",
        str(source),
        "--merge_lora_to_model.models",
        str([str(lora)]).replace("'", '"'),
    )
    return measure_tool(command) | {
        "bytes": source.stat().st_size,
        "layers": sum(1 for _ in _lora_layers(family_name)),
        "copy_seconds": copied,
    }


def _lora(path: Path, family_name: str, rank: int) -> Path:
    """A LoRA of random numbers in fp16."""
    import torch

    from core.networks.adapter_file import save_lora

    tensors: dict[str, Tensor] = {}
    for name, (out, into) in _lora_layers(family_name):
        tensors[f"{name}.lora_up.weight"] = (normal((out, rank), 0, "bench", name, "up") * 0.01).half()
        tensors[f"{name}.lora_down.weight"] = (normal((rank, into), 0, "bench", name, "down") * 0.01).half()
        tensors[f"{name}.alpha"] = torch.tensor(float(rank))
    return save_lora(path, tensors, {"ss_base_model_version": VERSIONS[family_name]})


def _lora_layers(family_name: str) -> Iterator[tuple[str, tuple[int, int]]]:
    """(name, (out, in)) of each Linear and 1x1 convolution that a LoRA has in the family's published models."""
    from core.families import family

    loaded = family(family_name)
    for part in (*loaded.layout.text_encoders, loaded.denoiser):
        for target in loaded.lora_targets(loaded.make_empty(part), conv=False):
            yield target.name, (target.module.weight.shape[0], target.module.weight.shape[1])


def _checkpoint(path: Path, family_name: str) -> Path:
    """A single file of the family's published size in fp16, written tensor by tensor."""
    import torch

    from core.families import family
    from core.formats.models.single_file import file_tensors
    from core.formats.tensors.lazy import LazyTensor
    from core.formats.tensors.writer import write_safetensors

    block = (normal((1 << 20,), 0, "bench", "weights") * 0.02).half()
    loaded = family(family_name)

    def lazy(shape: tuple[int, ...]) -> LazyTensor:
        numbers = torch.Size(shape).numel()
        return LazyTensor(
            "float16", shape, lambda dtype: block.repeat(-(-numbers // len(block)))[:numbers].view(shape).to(dtype)
        )

    states = {
        part: {
            name.removeprefix("text_model."): lazy(tuple(value.shape))
            for name, value in loaded.make_empty(part).state_dict().items()
            if not name.endswith("position_ids")
        }
        for part in loaded.layout.published.parts
    }
    write_safetensors(path, file_tensors(states, family_name), {})
    return path


def tool_rows(result: dict[str, Any]) -> list[tuple[str, str]]:
    svd, extract, resize, merge = (result[name] for name in ("svd", "extract", "resize", "merge"))
    share = svd["factors_seconds"] / svd["whole_seconds"]
    resized = (
        f"{svd['factors_seconds']:.1f} s by the factors, {share:.3f} of the {svd['whole_seconds']:.1f} s of whole SVDs"
    )
    times = merge["seconds"] / merge["copy_seconds"]
    merged = f"{merge['seconds']:.1f} s, {times:.2f} times the {merge['copy_seconds']:.1f} s of a copy"
    return [
        (
            f"resizing {svd['layers']} layers of rank {RANK}",
            f"{resized}; values within {svd['largest_difference']:.0e}",
        ),
        (
            f"extracting {extract['layers']} layers of rank {EXTRACTED_RANK}",
            f"{extract['seconds']:.1f} s, {extract['seconds'] / extract['sd_scripts_seconds']:.3f} of the "
            f"{extract['sd_scripts_seconds']:.1f} s of sd-scripts' SVDs ({extract['whole_seconds']:.1f} s in fp64); "
            f"kept norm at least {extract['kept']:.6f} of the best",
        ),
        (
            f"resizing a LoRA of rank {RESIZED_RANK}, {resize['bytes'] / 1e6:.0f} MB",
            f"{resize['seconds']:.1f} s; peak memory {resize['peak_bytes'] / 1e9:.2f} GB",
        ),
        (
            f"merging a LoRA of {merge['layers']} layers into {merge['bytes'] / 1e9:.2f} GB",
            f"{merged}; peak memory {merge['peak_bytes'] / 1e9:.2f} GB",
        ),
    ]
