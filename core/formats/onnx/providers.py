"""What an ONNX model runs on: onnxruntime, and its execution providers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from core.record.problems import ProblemsError

CPU = "CPUExecutionProvider"
# What the setting calls it -> onnxruntime's names, the newest first.
PROVIDERS = {
    "cuda": ("CUDAExecutionProvider",),
    "rocm": ("MIGraphXExecutionProvider", "ROCMExecutionProvider"),
    "directml": ("DmlExecutionProvider",),
    "openvino": ("OpenVINOExecutionProvider",),
    "coreml": ("CoreMLExecutionProvider",),
    "cpu": (CPU,),
}


def onnxruntime(providers: Sequence[str] = ()) -> Any:
    """The library. torch too where one of the providers is a GPU's: its package holds the CUDA libraries of both."""
    try:
        import onnxruntime as library

        if {*providers} & {*PROVIDERS["cuda"], *PROVIDERS["rocm"]}:
            import torch  # noqa: F401
    except Exception as error:  # a missing or broken library raises anything
        what = f"onnxruntime does not load ({str(error)[:200]})"
        raise ProblemsError.one(what, "", "run ./launch.sh update", "tagger.no-onnxruntime") from error
    return library


def providers_for(provider: str, device: str, available: Sequence[str], where: str = "tag.provider") -> list[str]:
    """Provider names to ask for, the CPU as the last. Raises ProblemsError for one that is not installed.

    device   of the job ("cuda:1"): automatic takes CUDA and ROCm only where torch has a GPU
    where    the setting that asks
    """
    names = PROVIDERS if provider == "auto" else {provider: PROVIDERS[provider]}
    on_gpu = device.startswith("cuda")
    for kind, candidates in names.items():
        found = next((name for name in candidates if name in available), None)
        if found is not None and (provider != "auto" or kind not in ("cuda", "rocm") or on_gpu):
            return [CPU] if found == CPU else [found, CPU]
    what = f"onnxruntime has no execution provider for '{provider}'; it has {', '.join(available)}"
    fix = "choose automatic, or install that build of onnxruntime"
    raise ProblemsError.one(what, where, fix, "tagger.no-provider")


def with_options(names: Sequence[str], device: str) -> list[Any]:
    number = device.partition(":")[2] or "0"
    of_gpu = (*PROVIDERS["cuda"], *PROVIDERS["rocm"], *PROVIDERS["directml"])
    # FP16 gives wrong scores with OpenVINO, which takes it by itself on a GPU
    own = {name: {"device_id": number} for name in of_gpu} | {"OpenVINOExecutionProvider": {"precision": "FP32"}}
    return [(name, own[name]) if name in own else name for name in names]


def words_of(provider: str) -> str:
    return provider.removesuffix("ExecutionProvider")
