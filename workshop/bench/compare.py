"""Compares our trainer with the plain one (plain_trainer.py): step time and peak memory, each in its own process."""

import json
import os
import shutil
import statistics
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil

from core.machine_check.random_model import make_model
from core.machine_check.trainings import ADAFACTOR
from core.record.workspace import STARTER
from core.settings.flags import merge
from workshop.bench import workload
from workshop.bench.measure import WARM_UP_STEPS, measure_training, run_process, webui, write_job


@dataclass(frozen=True)
class Spec:
    """A conventional training. size in pixels; rank of a LoRA; model: a diffusers folder.
    frozen: dtype of frozen weights. trainable: dtype of a full model's weights (usually "fp32" masters under autocast).
    """

    method: str  # "lora", "dreambooth", "fine_tune" or "embedding"
    model: str
    size: int
    steps: int
    batch: int = 1
    rank: int = 16
    text: bool = False  # whether text encoders train (embedding: the token table always does)
    frozen: str = "bf16"
    trainable: str = "fp32"
    autocast: bool = True
    optimizer: str = "AdamW"
    rate: float = 1e-4
    device: str = "cpu"


@dataclass(frozen=True)
class Case:
    """One training. goal_*: our target as a fraction of the plain trainer's. needs_gb: memory of the larger of the two,
    estimated from the sizes of weights, gradients and optimizer state."""

    what: str
    method: str
    text: bool
    goal_time: float | None
    goal_memory: float | None = None
    family: str = "sd1"
    size: int = 256
    needs_gb: float = 8.0
    ours: dict[str, Any] = field(default_factory=dict)
    plain: dict[str, Any] = field(default_factory=dict)


CASES = {
    "sd15_lora": Case("SD 1.5 LoRA, U-Net and text encoder", "lora", True, 0.7, 0.6),
    "sd15_dreambooth": Case("SD 1.5 DreamBooth, U-Net and text encoder", "dreambooth", True, 1.0, needs_gb=19),
    "sd15_fine_tune": Case("SD 1.5 fine-tune, U-Net", "fine_tune", False, 1.0, needs_gb=17),
    "sd15_embedding": Case("SD 1.5 textual inversion", "embedding", False, 1.0),
    "sd2_lora": Case("SD 2.1 LoRA, U-Net and text encoder", "lora", True, 0.7, 0.6, family="sd2"),
    "sd2_fine_tune": Case("SD 2.1 fine-tune, U-Net", "fine_tune", False, 1.0, family="sd2", needs_gb=17),
    "sd2_embedding": Case("SD 2.1 textual inversion", "embedding", False, 1.0, family="sd2"),
    "sdxl_lora": Case("SDXL LoRA, U-Net", "lora", False, 0.7, 0.6, family="sdxl", needs_gb=20),
    "sdxl_embedding": Case("SDXL textual inversion", "embedding", False, 1.0, family="sdxl", needs_gb=12),
    "sdxl_fine_tune": Case(
        "SDXL fine-tune, U-Net, full bf16, Adafactor, ours with the fused backward pass",
        "fine_tune",
        False,
        1.0,
        family="sdxl",
        needs_gb=19,
        ours={"memory": {"full_precision": "bf16", "fused_backward_pass": True}, "optimizer": ADAFACTOR},
        plain={"trainable": "bf16", "autocast": False, "optimizer": "Adafactor"},
    ),
}
QUICK = {  # the packages take most of its memory: it only shows that the comparison runs, without goals
    f"starter_{case.method}": replace(
        case, what=case.what.replace("SD 1.5", "starter"), size=128, needs_gb=1.5, goal_time=None, goal_memory=None
    )
    for name, case in CASES.items()
    if name.startswith("sd15")
}


def compare(
    folder: Path, device: str, *, quick: bool, case: str | None, say: Callable[[str], None]
) -> dict[str, dict[str, Any]]:
    """{case: its results} for all cases or the named one. quick: the starter, few steps, one round."""
    chosen = QUICK if quick and case is None else CASES
    measured = {}
    for name, each in ({**CASES, **QUICK} if case else chosen).items():
        if case not in (None, name):
            continue
        free = psutil.virtual_memory().available / 1e9
        if device == "cpu" and free < each.needs_gb:
            say(f"skipped: {each.what} needs about {each.needs_gb:.0f} GB, {free:.0f} are free")
            measured[name] = {
                "what": each.what,
                "left_out": f"needs about {each.needs_gb:.0f} GB, {free:.0f} were free",
            }
            continue
        measured[name] = measure_case(each, folder, device, 8 if quick else 20, 1 if quick else 2, say)
    return measured


def measure_case(
    case: Case, folder: Path, device: str, steps: int, rounds: int, say: Callable[[str], None]
) -> dict[str, Any]:
    """`summary` of a case. Both trainers run in turn, `rounds` times."""
    model = model_of(case, folder)
    images = workload.make_images(folder, case.size)
    outputs = folder / "outputs"
    values, specs = our_values(case, model, images, steps), plain_specs(case, model, steps, device)
    say(f"{case.what}: filling caches")
    fill_caches(values, outputs, device)
    ours: list[tuple[float, int]] = []
    plain: dict[str, list[tuple[float, int]]] = {name: [] for name in specs}
    for number in range(rounds):
        say(f"{case.what}: ours, round {number + 1} of {rounds}")
        measured = measure_training(values, outputs, device)
        shutil.rmtree(outputs / "runs")  # whole models are large
        ours.append((measured.seconds_per_step, measured.peak_bytes))
        # At once: large cases take long, and a stopped benchmark has said what it knew.
        say(f"  {_text(_named(ours[-1]))}")
        for name, spec in specs.items():
            say(f"{case.what}: the plain trainer ({name}), round {number + 1} of {rounds}")
            plain[name].append(measure_plain(spec, folder))
            say(f"  {_text(_named(plain[name][-1]))}")
    return summary(case, device, ours, plain)


def summary(
    case: Case, device: str, ours: list[tuple[float, int]], plain: dict[str, list[tuple[float, int]]]
) -> dict[str, Any]:
    """Time and memory of both, with ratios of the faster times and lower peaks. On a GPU, resident memory does not include
    VRAM, so there is no memory ratio. ours, plain: (seconds per step, peak bytes) of each round"""

    def best(measured: list[tuple[float, int]]) -> dict[str, Any]:
        return {
            "seconds_per_step": min(seconds for seconds, _ in measured),
            "peak_bytes": min(peak for _, peak in measured) if device == "cpu" else None,
        }

    atelier = best(ours)
    against = {}
    for name, measured in plain.items():
        other = best(measured)
        against[name] = other | {
            "time_ratio": atelier["seconds_per_step"] / other["seconds_per_step"],
            "memory_ratio": atelier["peak_bytes"] / other["peak_bytes"] if device == "cpu" else None,
        }
    return {
        "what": f"{case.what}, {case.size} px, batch 1",
        "goal_time": case.goal_time,
        "goal_memory": case.goal_memory,
        "ours": atelier,
        "plain": against,
    }


def model_of(case: Case, folder: Path) -> Path:
    if case.size == 128:
        return STARTER
    return make_model(folder, case.family)


def our_values(case: Case, model: Path, images: Path, steps: int) -> dict[str, Any]:
    """Our settings for the same training: the defaults, except what the case sets."""
    base = workload.job_values(model, images, case.size, steps, "auto")
    base["network"]["train_text_encoder"] = case.text
    more: dict[str, Any] = {"method": {"kind": case.method}}
    if case.method == "embedding":
        more["embedding"] = {"token_string": "zunkel"}
    return merge(merge(base, more), case.ours)


def plain_specs(case: Case, model: Path, steps: int, device: str) -> dict[str, Spec]:
    """The plain trainer's settings by name. LoRAs are usually trained on a model in bf16 or in fp32. On a
    CPU, where bf16 can be slower, fp32 throughout is included too."""
    spec = Spec(case.method, str(model), case.size, steps, text=case.text, device=device, **case.plain)
    lora = {"model in fp32": replace(spec, frozen="fp32"), "model in bf16": spec}
    specs = lora if case.method == "lora" else {"as usual": spec}
    if device == "cpu" and not case.plain:
        specs["fp32 throughout"] = replace(spec, frozen="fp32", autocast=False)
    return specs


def fill_caches(values: dict[str, Any], outputs: Path, device: str) -> None:
    """`webui.py prepare`, so that neither trainer encodes images while being measured."""
    run_process(webui(outputs, device, "prepare", str(write_job(values, outputs))), "filling the caches")


def measure_plain(spec: Spec, folder: Path) -> tuple[float, int]:
    """Median seconds per step after the warm-up, and the process's peak memory in bytes."""
    file = folder / "plain.json"
    file.write_text(json.dumps(asdict(spec)), encoding="utf-8")
    argv = [sys.executable, "-m", "workshop.bench.plain_trainer", str(file)]
    usual = {name: value for name, value in os.environ.items() if name != "THP_MEM_ALLOC_ENABLE"}  # ours, not torch's
    ended = run_process(argv, "the plain trainer", usual)
    seconds = json.loads(ended.printed.splitlines()[-1])["seconds"]
    return statistics.median(seconds[WARM_UP_STEPS:]), ended.peak_bytes


def compare_rows(result: dict[str, dict[str, Any]]) -> list[tuple[str, str]]:
    rows = []
    for case in result.values():
        if "left_out" in case:
            rows.append((case["what"], f"skipped: {case['left_out']}"))
            continue
        rows.append((case["what"], f"ours {_text(case['ours'])}{_goal(case)}"))
        for name, plain in case["plain"].items():
            memory = f", {plain['memory_ratio']:.2f} of its memory" if plain["memory_ratio"] else ""
            ratio = f"ours takes {plain['time_ratio']:.2f} of its time{memory}"
            rows.append((f"plain trainer, {name}", f"{_text(plain)}; {ratio}"))
    return rows


def _goal(case: dict[str, Any]) -> str:
    time, memory = case["goal_time"], case["goal_memory"]
    if time is None:
        return ""
    return f"; goal: at most {time} of the time" + (f", {memory} of the memory" if memory else "")


def _named(measured: tuple[float, int]) -> dict[str, Any]:
    return {"seconds_per_step": measured[0], "peak_bytes": measured[1]}


def _text(measured: dict[str, Any]) -> str:
    memory = f", {measured['peak_bytes'] / 1e9:.2f} GB" if measured["peak_bytes"] else ""
    return f"{measured['seconds_per_step']:.2f} s a step{memory}"
