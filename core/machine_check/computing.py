"""Items about torch and the compute libraries: device, dtypes, attention, optional packages, torch.compile."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

from core.families import compiling
from core.families.precision import use_tf32
from core.families.type_speed import EQUAL
from core.machine_check.item import ABSENT, FAILED, OK, SLOWER, CheckContext, Finding, absent
from core.machine_check.system import REINSTALL, installed
from core.optimization import trial
from core.record import machine
from core.record.lazy_torch import nn, torch
from core.record.problems import ProblemsError, errors
from core.record.units import listed, memory_text
from core.settings.memory import MemorySettings
from core.setup.facts import machine_facts

REPEATS = 3
LARGE, SMALL = 2048, 512  # rows and columns of a measured product
PATIENCE = 10.0  # seconds for all products: a processor without fp16 takes 44 s for one of [2048, 2048]
# For the largest entry, against the same product in float64: a product of 256 values around 1. Dtypes have 24, 11, 8 and 11
# significant bits; each bound is about ten times the rounding of one value, far below any wrong kernel.
ROUNDING = {"fp32": 1e-5, "tf32": 1e-2, "bf16": 5e-2, "fp16": 1e-2}
TYPES = {"fp32": "float32", "tf32": "float32", "bf16": "bfloat16", "fp16": "float16"}
AMPERE = 8  # compute capability of the first NVIDIA GPUs with TF32 and bf16


def torch_build(context: CheckContext) -> Finding:
    """Report the build of torch and its versions, and whether it can use the installed GPU."""
    facts = {
        "torch": torch.version.__version__,
        "cuda": torch.version.cuda,
        "hip": getattr(torch.version, "hip", None),
        "cudnn": torch.backends.cudnn.version() if torch.cuda.is_available() else None,
        "threads": torch.get_num_threads(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
    }
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else f"ROCm {facts['hip']}" if facts["hip"] else "CPU"
    finding = Finding(OK, f"torch {facts['torch']}, built for {build}", facts=facts)
    hardware = machine_facts()
    if torch.cuda.is_available() or not (hardware.nvidia_card or hardware.driver or hardware.amd_card):
        return finding
    if torch.version.cuda or facts["hip"]:
        reason = "torch cannot use the GPU; usually the driver is too old for this CUDA version"
        return finding.failed(reason, "install the newest driver and restart, then ./launch.sh update")
    reason = "there is a GPU, but this torch is built for the CPU only"
    return finding.limited(reason, "run ./launch.sh update, which installs the build for the GPU")


def device(context: CheckContext) -> Finding:
    """Report the device that jobs use, and check a matrix product on it."""
    ones = torch.ones(64, 64, device=context.device)
    if float((ones @ ones).sum()) != 64.0**3:
        reason = f"a product computed on '{context.device}' is wrong"
        return Finding(FAILED, "", reason, "restart the machine, then install the newest driver")
    name = machine.device_title(context.device)
    facts: dict[str, Any] = {"device": context.device, "name": name}
    if context.device == "mps":
        return Finding(OK, name, facts=facts)
    if not context.cuda:
        reason = "torch finds no usable GPU, so training runs on the CPU"
        return Finding(SLOWER, name, reason, "nothing to do; small models at small sizes train in minutes", facts)
    properties = torch.cuda.get_device_properties(context.device)
    facts |= {
        "compute_capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "count": torch.cuda.device_count(),
        "built_for": torch.cuda.get_arch_list(),
    }
    return Finding(OK, f"{name}, compute capability {properties.major}.{properties.minor}", facts=facts)


def vram(context: CheckContext) -> Finding:
    """Report the GPU's total and free memory; limited if less than 75% is free."""
    if not context.cuda:
        return absent("no CUDA device")
    free, total = torch.cuda.mem_get_info(context.device)
    summary = f"{memory_text(total)} VRAM, {memory_text(free)} free"
    finding = Finding(OK, summary, facts={"free": free, "total": total})
    if free < total * 0.75:
        return finding.limited("other programs use part of the VRAM", "close them before training")
    return finding


# -- dtypes


def dtype_products(name: str, context: CheckContext) -> Finding:
    """Check the rounding of matrix products in `name` (a key of TYPES, or "fp8") and their speed relative to fp32."""
    if name == "fp8":
        return fp8_storage(context)
    if name == "tf32" and (not context.cuda or torch.cuda.get_device_capability(context.device)[0] < AMPERE):
        return absent("TF32 needs an NVIDIA GPU from 2020 or later")
    torch.set_num_threads(machine.threads())
    use_tf32(name == "tf32")
    try:
        error = product_error(getattr(torch, TYPES[name]), context.device)
        rate = gemm_rate(TYPES[name], context.device, REPEATS)
    finally:
        use_tf32(False)
    facts = {"flops_per_second": rate, "error": error}
    finding = Finding(OK, f"{rate / 1e12:.2f} TFLOP/s, rounding {error:.0e}", facts=facts)
    if not error <= ROUNDING[name]:  # NaN fails too
        reason = f"products in {name} are wrong: off by {error:.1e} of the largest entry"
        return finding.failed(reason, "choose another precision, and report this")
    fp32_rate = context.earlier.get("fp32", {}).get("flops_per_second")
    if fp32_rate and rate * EQUAL < fp32_rate:
        reason = f"{fp32_rate / rate:.1f} times slower than fp32: this device has no fast {name}"
        return finding.limited(reason, "leave mixed precision on auto")
    return finding


def gemm_rate(dtype: str, device: str, repeats: int) -> float:
    """Return the FLOP/s of a [2048, 2048] x [2048, 2048] product: the fastest of `repeats` runs after a warm-up.

    If that would take longer than PATIENCE seconds, [512, 512] products are measured instead.
    """
    took = _product_seconds(SMALL, dtype, device, 1)
    if took * (LARGE / SMALL) ** 3 * (repeats + 1) > PATIENCE:
        return 2 * SMALL**3 / took
    return 2 * LARGE**3 / _product_seconds(LARGE, dtype, device, repeats)


def _product_seconds(size: int, dtype: str, device: str, repeats: int) -> float:
    """Return the seconds of the fastest of `repeats` products of two [size, size] matrices."""
    a, b = (torch.randn(size, size, device=device).to(getattr(torch, dtype)) for _ in range(2))
    return fastest(lambda: torch.mm(a, b), device, repeats)


def fastest(run: Callable[[], Any], device: str, repeats: int) -> float:
    """Return the seconds of the fastest of `repeats` calls of `run` after a warm-up, synchronizing with the device."""
    taken = []
    for _ in range(repeats + 1):
        machine.synchronize(device)
        begun = time.perf_counter()
        run()
        machine.synchronize(device)
        taken.append(time.perf_counter() - begun)
    return min(taken[1:])


def product_error(dtype: torch.dtype, device: str) -> float:
    """Return the largest error of a [256, 256] product and its gradient against float64, relative to the largest entry. NaN if any is."""
    draws = torch.Generator().manual_seed(0)
    exact = [torch.randn(256, 256, generator=draws).to(dtype).double() for _ in range(2)]
    a, b = (each.to(dtype).to(device).requires_grad_() for each in exact)
    (a @ b).float().square().mean().backward()
    product = exact[0] @ exact[1]
    gradient = 2 * product @ exact[1].T / product.numel()
    pairs = ((a.detach() @ b.detach(), product), (a.grad, gradient))
    errors = [(result.double().cpu() - expected).abs().max() / expected.abs().max() for result, expected in pairs]
    return float(torch.stack(errors).max())  # NaN if any is, unlike Python's max


def fp8_storage(context: CheckContext) -> Finding:
    """Check fp8 (float8_e4m3fn) as Atelier uses it: weights are stored in 8 bits and upcast at each use."""
    if context.device == "mps":
        return absent("Apple GPUs do not support fp8", "leave the fp8 base model off")
    values = torch.linspace(-8, 8, 4096).to(context.device)
    begun = time.perf_counter()
    restored = values.to(torch.float8_e4m3fn).to(torch.bfloat16).float()
    error = float(((restored - values).abs() / values.abs().clamp(min=2**-6)).max())
    facts = {"error": error, "seconds": time.perf_counter() - begun}
    if not error <= 2**-4 * 1.01:  # 3 mantissa bits, rounded to nearest
        reason = f"weights stored in fp8 are off by {error:.1e}"
        return Finding(FAILED, "", reason, "leave the fp8 base model off", facts)
    return Finding(OK, f"weights stored in 8 bits are within {error:.1%}", facts=facts)


# -- attention and optional packages


def attention(context: CheckContext) -> Finding:
    """Time each kernel of SDPA that runs here, on a GPU at the size of SD 1.5's largest attention map at 512 px (CPU: 256 tokens)."""
    backends = nn.attention.SDPBackend
    dtype = torch.float16 if context.cuda else torch.float32
    tokens = 4096 if context.cuda else 256
    draws = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 8, tokens, 40, generator=draws).to(context.device, dtype) for _ in range(3))
    seconds: dict[str, float] = {}
    refused: dict[str, str] = {}
    for name in ("FLASH_ATTENTION", "EFFICIENT_ATTENTION", "CUDNN_ATTENTION", "MATH"):
        try:
            with nn.attention.sdpa_kernel(getattr(backends, name)):
                seconds[name.lower()] = _attention_seconds(q, k, v, context)
        except RuntimeError as error:
            refused[name.lower()] = str(error).splitlines()[0][:200]
    summary = ", ".join(f"{name} {1000 * taken:.1f} ms" for name, taken in seconds.items())
    finding = Finding(OK, summary, facts={"seconds": seconds, "refused": refused})
    if "math" not in seconds:
        return finding.failed("torch's math attention does not run", REINSTALL)
    if len(seconds) == 1:
        reason = "torch only has its math attention here, which needs more memory"
        return finding.limited(reason, "use gradient checkpointing or sliced attention at large sizes")
    return finding


def _attention_seconds(q: Any, k: Any, v: Any, context: CheckContext) -> float:
    """Return the seconds of the fastest forward and backward pass. Raises RuntimeError if the kernel refuses or a gradient is not
    finite."""
    q.requires_grad_()

    def run() -> None:
        q.grad = None
        nn.functional.scaled_dot_product_attention(q, k, v).float().sum().backward()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch explains in several why a kernel is unsuitable
        seconds = fastest(run, context.device, REPEATS)
    if not bool(torch.isfinite(q.grad).all()):
        raise RuntimeError("the gradient is not finite")
    return seconds


def xformers(context: CheckContext) -> Finding:
    """Compare the output of xFormers' attention with SDPA's, in fp16."""
    if not context.cuda:
        return absent("xFormers has kernels for NVIDIA GPUs only")
    if find_spec("xformers") is None:
        return absent("xFormers is not installed", "nothing to do: SDPA is as fast")
    import xformers.ops

    q, k, v = (torch.randn(1, 1024, 8, 40, device=context.device, dtype=torch.float16) for _ in range(3))
    result = xformers.ops.memory_efficient_attention(q, k, v)
    expected = nn.functional.scaled_dot_product_attention(*(each.transpose(1, 2) for each in (q, k, v))).transpose(1, 2)
    error = float((result - expected).abs().max())
    facts = {"version": version("xformers"), "error": error}
    if not error <= 1e-2:  # fp16 has 11 significant bits; entries are below 4
        reason = f"xFormers differs from torch's attention by {error:.1e}"
        return Finding(FAILED, "", reason, "set Attention to SDPA", facts)
    return Finding(OK, f"xFormers {facts['version']}, equal to SDPA within {error:.0e}", facts=facts)


def bitsandbytes(context: CheckContext) -> Finding:
    """Check 8-bit AdamW: it must train, and a resumed optimizer must equal an uninterrupted one (core/optimization/trial.py)."""
    if find_spec("bitsandbytes") is None:
        return absent("bitsandbytes is not installed")
    import bitsandbytes as library

    facts = {"version": version("bitsandbytes")}

    def make(groups: list[dict[str, Any]]) -> Any:
        """Return the optimizer for parameter groups."""
        return library.optim.AdamW8bit(groups, lr=1e-3)

    result = trial.run_trial(make, 1e-3, device=context.device)
    summary = f"bitsandbytes {facts['version']}"
    if result.reason:
        fix = "use AdamW; " + REINSTALL
        return Finding(FAILED, summary, f"AdamW8bit does not work: {result.reason}", fix, facts)
    return Finding(OK, f"{summary}: AdamW8bit trains and resumes", facts=facts)


def onnxruntime(context: CheckContext) -> Finding:
    """Report the version and execution providers of onnxruntime, which runs the taggers."""
    names = [name for name in ("onnxruntime-gpu", "onnxruntime") if installed(name)]
    if find_spec("onnxruntime") is None:
        return absent("onnxruntime is not installed")
    import onnxruntime as library

    providers = library.get_available_providers()
    facts = {"version": library.__version__, "providers": providers, "packages": names}
    finding = Finding(OK, f"onnxruntime {library.__version__}: {', '.join(providers)}", facts=facts)
    if len(names) > 1:
        fix = f"run pip uninstall {' '.join(names)}, then ./launch.sh update"
        return finding.failed(f"{listed(names)} are both installed and conflict", fix)
    if context.cuda and "CUDAExecutionProvider" not in providers:
        return finding.limited("it uses the CPU although there is a GPU", REINSTALL)
    return finding


def compiler(context: CheckContext) -> Finding:
    """Check torch.compile: its requirements, and a small layer compiled with its gradient."""
    facts: dict[str, Any] = {"triton": installed("triton")}
    if unusable := errors(compiling.compile_problems(MemorySettings(torch_compile=True), context.device)):
        return Finding(ABSENT, "", unusable[0].what, f"{unusable[0].fix}; torch.compile is optional", facts)
    begun = time.perf_counter()
    try:
        compiling.try_compiling("inductor", context.device)
    except ProblemsError as error:
        return Finding(FAILED, "", error.problems[0].what, error.problems[0].fix, facts)
    facts["seconds"] = round(time.perf_counter() - begun, 2)
    summary = f"a small layer compiled in {facts['seconds']:.0f} s"
    if context.device == "cpu":
        reason = "on a CPU compiled code is slower than torch's kernels"
        return Finding(SLOWER, summary, reason, "leave torch.compile off", facts)
    return Finding(OK, summary + (f", triton {facts['triton']}" if facts["triton"] else ""), facts=facts)
