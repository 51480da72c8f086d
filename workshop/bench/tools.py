"""How long a LoRA's layers take to decompose by their factors instead of whole, and a merge into a checkpoint next to a copy of it."""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.record.draws import normal
from core.record.workspace import PROJECT
from workshop.bench.formats import copy_seconds, forget
from workshop.bench.measure import PeakWatch, webui

if TYPE_CHECKING:
    from torch import Tensor

    from core.formats.tensors.lazy import LazyTensor

RANK, MERGED_RANK = 128, 16


def measure_tools(folder: Path, quick: bool, say: Callable[[str], None]) -> dict[str, Any]:
    """SD 1.5's layers at rank 128 (quick: every eighth), and a file with SDXL's shapes in fp16 (quick: SD 1.5's)."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="tools-", dir=folder) as name:
        return {"svd": measure_svd(8 if quick else 1, say), "merge": measure_merge(Path(name), quick, say)}


def measure_svd(every: int, say: Callable[[str], None]) -> dict[str, float]:
    """Seconds by the factors and whole; the largest difference of singular values, as a share of each layer's first."""
    import torch

    from core.tools.loras.svd import Product, decompose

    shapes = {name: shape for name, shape in _lora_layers("sd1") if name.startswith("lora_unet")}
    products = {}
    for name, (out, into) in list(shapes.items())[::every]:
        up, down = normal((out, RANK), 0, "bench", name, "up"), normal((RANK, into), 0, "bench", name, "down")
        products[name] = Product(up, down)
    say(f"decomposing {len(products)} layers of rank {RANK} by their factors")
    begin = time.perf_counter()
    found = dict(decompose(products))
    by_factors = time.perf_counter() - begin
    say("decomposing them whole")
    begin = time.perf_counter()
    whole = {
        name: torch.linalg.svd(each.up @ each.down, full_matrices=False).S[:RANK] for name, each in products.items()
    }
    return {
        "layers": len(products),
        "factors_seconds": by_factors,
        "whole_seconds": time.perf_counter() - begin,
        "largest_difference": max(
            float(((found[n].s[:RANK] - s[: len(found[n].s)]) / s[0]).abs().max()) for n, s in whole.items()
        ),
    }


def measure_merge(folder: Path, quick: bool, say: Callable[[str], None]) -> dict[str, float]:
    """Seconds of a copy of the file and of the merge in a process of its own; both read from the disk."""
    from core.networks.adapter_file import save_lora

    family_name = "sd1" if quick else "sdxl"
    say("creating a checkpoint and a LoRA of random numbers")
    source = _checkpoint(folder / "model.safetensors", family_name)
    tensors: dict[str, Tensor] = {}
    for name, (out, into) in _lora_layers(family_name):
        tensors[f"{name}.lora_up.weight"] = normal((out, MERGED_RANK), 0, "bench", name, "up") * 0.01
        tensors[f"{name}.lora_down.weight"] = normal((MERGED_RANK, into), 0, "bench", name, "down") * 0.01
    lora = save_lora(
        folder / "lora.safetensors",
        tensors,
        {"ss_base_model_version": {"sd1": "sd_v1"}.get(family_name, "sdxl_base_v1-0")},
    )
    say("copying the checkpoint")
    copied = copy_seconds(source, folder / "copy.safetensors")
    say("merging the LoRA into it")
    forget(source)
    words = webui(
        folder / "outputs",
        "cpu",
        "merge_lora_to_model",
        str(source),
        "--merge_lora_to_model.models",
        str([str(lora)]).replace("'", '"'),
    )
    begin = time.perf_counter()
    process = subprocess.Popen(words, cwd=PROJECT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    watch = PeakWatch(process.pid)
    _, errors = process.communicate()
    seconds, peak = time.perf_counter() - begin, watch.finish()
    if process.returncode:
        raise RuntimeError(f"the merge ended with {process.returncode}:\n{errors.decode()[-2000:]}")
    return {
        "bytes": source.stat().st_size,
        "layers": len(tensors) // 2,
        "copy_seconds": copied,
        "seconds": seconds,
        "peak_bytes": peak,
    }


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


def tool_rows(found: dict[str, Any]) -> list[tuple[str, str]]:
    svd, merge = found["svd"], found["merge"]
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
            f"merging a LoRA of {merge['layers']} layers into {merge['bytes'] / 1e9:.2f} GB",
            f"{merged}; peak memory {merge['peak_bytes'] / 1e9:.2f} GB",
        ),
    ]
