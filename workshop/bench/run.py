"""The benchmark: this machine's GEMM rate first, then what trainings and the page achieve."""

import platform
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from inspect import signature
from pathlib import Path
from typing import Any, NamedTuple

from core.machine_check.computing import gemm_rate
from core.machine_check.random_model import make_model
from core.record import machine
from core.record.workspace import Workspace
from core.settings.network import NetworkSettings
from workshop.bench import workload
from workshop.bench.caching import caching_rows, measure_caching
from workshop.bench.captions import caption_rows, measure_captions
from workshop.bench.compare import CASES, QUICK, compare, compare_rows
from workshop.bench.controls import control_rows, measure_controls
from workshop.bench.datasets import measure_datasets
from workshop.bench.formats import format_rows, measure_formats
from workshop.bench.generate import generate_rows, measure_generate
from workshop.bench.lists import list_rows, measure_lists
from workshop.bench.measure import measure_page, measure_training
from workshop.bench.operations import measure_operations, operation_rows
from workshop.bench.options import JOBS, measure_options, option_rows
from workshop.bench.start import measure_start, start_rows
from workshop.bench.tagger import measure_tagger, tagger_rows
from workshop.bench.tools import measure_tools, tool_rows

CASE = "baseline:"  # before the name of a single case
OPTIONS = "options:"  # before the name of a job that trains with each option
SIZE = 256
DTYPES = {"fp32": "float32", "bf16": "bfloat16"}
Rows = list[tuple[str, str]]


@dataclass
class Bench:
    """What the parts of a benchmark share. case: of the baseline or of the options; rates: {dtype: FLOP/s of its GEMM}"""

    folder: Path
    device: str
    quick: bool
    say: Callable[[str], None]
    case: str | None
    rates: dict[str, float] = field(default_factory=dict)


class Part(NamedTuple):
    """A part of the benchmark.

    measure     its parameters are fields of a Bench, or `bench` itself
    rows        (result) -> rows of the table
    usual       whether it runs without `--only`; others take hours or 21 GB of disk space
    with_rates  whether the GEMM rates are measured for it
    """

    measure: Callable[..., Any]
    rows: Callable[[Any], Sequence[tuple[str, str]]]
    usual: bool = False
    with_rates: bool = False

    def measured(self, bench: Bench) -> Any:
        given = vars(bench) | {"bench": bench}
        return self.measure(**{name: given[name] for name in signature(self.measure).parameters})


def known_part(name: str) -> bool:
    """Whether `--only` accepts it: a part, one case of the baseline (baseline:sd15_lora), or a job with each option."""
    if name.startswith(OPTIONS):
        return name.removeprefix(OPTIONS) in JOBS
    return name in PARTS or (name.startswith(CASE) and name.removeprefix(CASE) in {**CASES, **QUICK})


def run_bench(
    outputs: Path, device: str, *, quick: bool, only: str | None, say: Callable[[str], None]
) -> dict[str, Any]:
    """Measure the usual parts, or the one named by `only`; returns plain JSON. Ratios within one run are what matters: machines
    differ and are noisy."""
    import torch

    torch.set_num_threads(machine.threads())
    name, _, case = (only or "").partition(":")
    bench = Bench(outputs / ".atelier" / "bench", device, quick, say, case or None)
    chosen = {each: part for each, part in ALL_PARTS.items() if (part.usual if only is None else each == name)}
    result: dict[str, Any] = {"machine": machine_facts(device)}
    if any(part.with_rates for part in chosen.values()):
        say("measuring the GEMM rate")
        bench.rates = {dtype: gemm_rate(dtype, device, 3 if quick else 8) for dtype in ("float32", "bfloat16")}
        result["gemm_flops_per_second"] = bench.rates
    return result | {each: part.measured(bench) for each, part in chosen.items()}


def measure_all_captions(quick: bool, say: Callable[[str], None]) -> dict[str, Any]:
    return measure_captions(quick, say) | {"tagging": measure_tagger(quick, say)}


def all_caption_rows(captions: dict[str, Any]) -> Rows:
    return [*caption_rows(captions), *(tagger_rows(captions["tagging"]) if "tagging" in captions else [])]


def machine_facts(device: str) -> dict[str, Any]:
    import torch

    return {
        "device": machine.device_title(device),
        "CPU": platform.processor() or platform.machine(),
        "threads": machine.threads(),
        "bf16_in_hardware": machine.bf16_is_fast(device),
        "torch": str(torch.__version__),
        "python": platform.python_version(),
    }


def train_part(bench: Bench) -> dict[str, Any]:
    """Speed and memory of a training with empty caches, then with full ones: SD 1.5, LoRA rank 16 on U-Net and text encoder,
    256 px, batch 1, bf16."""
    folder, device, say = bench.folder, bench.device, bench.say
    say("creating a model of random weights with SD 1.5's architecture")
    model, images = make_model(folder), workload.make_images(folder, SIZE)
    say("counting the FLOPs of a step")
    flops = step_flops(SIZE, SIZE, 1, NetworkSettings(rank=16, alpha=16.0, train_text_encoder=True))
    values = workload.job_values(model, images, SIZE, 6 if bench.quick else 20, "bf16")
    outputs = folder / "outputs"
    shutil.rmtree(Workspace.of(outputs).cache, ignore_errors=True)  # filled by an earlier benchmark
    say("training with empty caches")
    cold = measure_training(values, outputs, device)
    say("training with full caches")
    warm = measure_training(values, outputs, device)
    reached = flops / warm.seconds_per_step
    return {
        "what": "SD 1.5 architecture, LoRA rank 16 on U-Net and text encoder, 256 px, batch 1, bf16",
        "flops_per_step": flops,
        "seconds_per_step": warm.seconds_per_step,
        "share_of_bf16_gemm": reached / bench.rates["bfloat16"],
        "start_to_first_step_seconds": warm.start_to_first_step,
        "start_to_first_step_done_seconds": warm.start_to_first_step_done,
        "start_to_first_step_done_with_empty_caches_seconds": cold.start_to_first_step_done,
        "peak_bytes": warm.peak_bytes,
        "peak_bytes_with_empty_caches": cold.peak_bytes,
        "runs": {"cold": asdict(cold), "warm": asdict(warm)},
    }


def page_part(bench: Bench) -> dict[str, Any]:
    """HTTP response times for the whole page while SD 1.5 trains in it."""
    bench.say("measuring the page while it trains")
    model, images = make_model(bench.folder), workload.make_images(bench.folder, SIZE)
    values = workload.job_values(model, images, SIZE, 100000, "bf16")
    return measure_page(values, bench.folder / "page_outputs", bench.device, 15 if bench.quick else 60)


def table(result: dict[str, Any]) -> str:
    """The numbers as a Markdown table."""
    facts, rates = result["machine"], result.get("gemm_flops_per_second")
    about = f"{facts['device']}, {facts['threads']} threads, bf16 in hardware: {facts['bf16_in_hardware']}"
    rows = [("machine", f"{about}, torch {facts['torch']}")]
    if rates:
        rows += [(f"GEMM {name}", f"{rates[dtype] / 1e12:.3f} TFLOP/s") for name, dtype in DTYPES.items()]
    for name, part in ALL_PARTS.items():
        if measured := result.get(name):
            rows += part.rows(measured)
    return "\n".join(["| what | measured |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])


def train_rows(train: dict[str, Any]) -> Rows:
    to_end = "time to the end of the first step"
    return [
        ("job", train["what"]),
        ("FLOPs of a step", f"{train['flops_per_step'] / 1e12:.3f} TFLOP"),
        ("seconds per step", f"{train['seconds_per_step']:.3f}"),
        ("fraction of the bf16 GEMM rate", f"{train['share_of_bf16_gemm']:.0%}"),
        ("time to the start of the first step, full caches", f"{train['start_to_first_step_seconds']:.1f} s"),
        (f"{to_end}, full caches", f"{train['start_to_first_step_done_seconds']:.1f} s"),
        (f"{to_end}, empty caches", f"{train['start_to_first_step_done_with_empty_caches_seconds']:.1f} s"),
        ("peak memory, full caches", f"{train['peak_bytes'] / 1e9:.2f} GB"),
        ("peak memory, empty caches", f"{train['peak_bytes_with_empty_caches'] / 1e9:.2f} GB"),
    ]


def page_rows(page: dict[str, Any]) -> Rows:
    median, p95 = page["median"] * 1000, page["p95"] * 1000
    return [("page while training", f"{median:.0f} ms median, {p95:.0f} ms at the 95th percentile")]


def dataset_rows(datasets: dict[str, Any]) -> list[tuple[str, str]]:
    many = f"{datasets['images']} images with captions"
    return [
        (f"scanning {many}", f"{datasets['scan_images_per_second']:.0f} images/s"),
        (f"reopening {many}", f"{datasets['reopen_seconds']:.2f} s"),
        (f"memory for {many}", f"{datasets['memory_bytes'] / 1e6:.0f} MB"),
        (f"planning an epoch of {datasets['planned_images']} images", f"{datasets['plan_seconds']:.2f} s"),
    ]


def step_flops(width: int, height: int, batch: int, network: NetworkSettings) -> int:
    """FLOPs of a forward and backward pass of SD 1.5 with this LoRA, multiply and add counted as two."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from core.families.clip import last_states
    from core.families.part_shapes import make_empty
    from core.families.sd1 import FAMILY as sd1
    from core.networks.network import Network

    unet, text_encoder = (make_empty(name, sd1.layout.config(name)) for name in ("unet", "text_encoder"))
    targets = [*sd1.lora_targets(text_encoder), *sd1.lora_targets(unet, conv=network.conv_rank is not None)]
    lora = Network.create(targets, network, seed=0)
    lora.attach()
    latents = torch.empty(batch, 4, height // 8, width // 8, device="meta")
    ids = torch.zeros(batch, 77, dtype=torch.long, device="meta")
    with FlopCounterMode(display=False) as counter:
        if network.train_text_encoder:
            text = last_states(text_encoder, ids)
        else:
            text = torch.empty(batch, 77, 768, device="meta")
        out = unet(latents, torch.zeros(batch, device="meta"), encoder_hidden_states=text, return_dict=False)[0]
        out.sum().backward()
    return int(counter.get_total_flops())


ALL_PARTS = {
    "train": Part(train_part, train_rows, usual=True, with_rates=True),
    "start": Part(measure_start, start_rows),
    "page": Part(page_part, page_rows, usual=True, with_rates=True),
    "caching": Part(measure_caching, caching_rows, usual=True, with_rates=True),
    "controls": Part(measure_controls, control_rows),
    "baseline": Part(compare, compare_rows),
    "options": Part(measure_options, option_rows),
    "generate": Part(measure_generate, generate_rows),
    "formats": Part(measure_formats, format_rows),
    "tools": Part(measure_tools, tool_rows),
    "datasets": Part(measure_datasets, dataset_rows, usual=True),
    "operations": Part(measure_operations, operation_rows),
    "lists": Part(measure_lists, list_rows),
    "captions": Part(measure_all_captions, all_caption_rows, usual=True),
}
PARTS = tuple(name for name in ALL_PARTS if name != "options")  # which is run with the name of a job
