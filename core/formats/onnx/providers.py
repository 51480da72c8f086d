"""onnxruntime and its execution providers."""

from collections.abc import Sequence
from typing import Any

from core.record.problems import ProblemsError

CPU = "CPUExecutionProvider"
# The setting's value -> onnxruntime's names, newest first.
PROVIDERS = {
    "cuda": ("CUDAExecutionProvider",),
    "rocm": ("MIGraphXExecutionProvider", "ROCMExecutionProvider"),
    "directml": ("DmlExecutionProvider",),
    "openvino": ("OpenVINOExecutionProvider",),
    "coreml": ("CoreMLExecutionProvider",),
    "cpu": (CPU,),
}


def onnxruntime(providers: Sequence[str] = ()) -> Any:
    """Import onnxruntime and return the module. Raises ProblemsError if it does not load.

    If a provider in `providers` is CUDA or ROCm, torch is imported too: its package has the CUDA libraries that both use.
    """
    try:
        import onnxruntime as library

        if {*providers} & {*PROVIDERS["cuda"], *PROVIDERS["rocm"]}:
            import torch  # noqa: F401
    except Exception as error:  # a missing or broken library raises anything
        what = f"onnxruntime does not load ({str(error)[:200]})"
        raise ProblemsError.one(what, "", "run ./launch.sh update", "tagger.no-onnxruntime") from error
    return library


def providers_for(provider: str, device: str, available: Sequence[str], where: str = "tag.provider") -> list[str]:
    """Return the execution providers to use in order of preference, the CPU last.

    provider    a key of PROVIDERS, or "auto", which uses CUDA and ROCm only if `device` is a GPU of torch
    device      of the job, such as "cuda:1"
    available   providers of the installed onnxruntime
    where       the setting named in the problem
    Raises ProblemsError if the provider is not installed.
    """
    names = PROVIDERS if provider == "auto" else {provider: PROVIDERS[provider]}
    on_gpu = device.startswith("cuda")
    for kind, candidates in names.items():
        chosen = next((name for name in candidates if name in available), None)
        if chosen is not None and (provider != "auto" or kind not in ("cuda", "rocm") or on_gpu):
            return [CPU] if chosen == CPU else [chosen, CPU]
    what = f"onnxruntime has no execution provider for '{provider}'; it has {', '.join(available)}"
    fix = "choose automatic, or install that build of onnxruntime"
    raise ProblemsError.one(what, where, fix, "tagger.no-provider")


def with_options(names: Sequence[str], device: str) -> list[Any]:
    """Return the execution providers for onnxruntime, as names or (name, options), on the GPU of `device` ("cuda:1")."""
    number = device.partition(":")[2] or "0"
    of_gpu = (*PROVIDERS["cuda"], *PROVIDERS["rocm"], *PROVIDERS["directml"])
    # FP16, OpenVINO's default on a GPU, gives wrong scores
    options = {name: {"device_id": number} for name in of_gpu} | {"OpenVINOExecutionProvider": {"precision": "FP32"}}
    return [(name, options[name]) if name in options else name for name in names]


def provider_title(provider: str) -> str:
    """Return the provider's name without "ExecutionProvider": "CUDA"."""
    return provider.removesuffix("ExecutionProvider")
