"""Weights that a smaller number type cannot hold, found before anything is written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import isfinite
from typing import TYPE_CHECKING

from core.record.problems import Problem, ProblemsError

if TYPE_CHECKING:
    import torch

    from core.formats.lazy_tensors import LazyTensor

SHOWN = 3
TYPE_NAMES = {"float16": "fp16", "bfloat16": "bf16", "float32": "fp32"}


def overflowing(tensors: Mapping[str, torch.Tensor], dtype: torch.dtype) -> list[str]:
    """Names of those whose numbers become infinite in `dtype`. (Those that hold no number already are not among them.)"""
    return beyond({name: largest(value) for name, value in tensors.items()}, dtype)


def not_finite(tensors: Mapping[str, torch.Tensor]) -> list[str]:
    """Names of those that hold values that are no numbers, or infinite."""
    return no_numbers({name: largest(value) for name, value in tensors.items()})


def largest(value: torch.Tensor) -> float:
    """The largest size of a tensor's numbers: nan where one is none; 0 of integers and of nothing."""
    if not value.is_floating_point() or value.numel() == 0:
        return 0.0
    value = value.detach() if value.dtype.itemsize > 1 else value.detach().float()  # fp8 knows no minimum
    low, high = value.aminmax()  # nan where one is among them
    return float(high.abs().maximum(low.abs()))


def largest_of(tensors: Mapping[str, LazyTensor]) -> dict[str, float]:
    """The same of each, read one after the other."""
    return {name: largest(tensor.read()) for name, tensor in tensors.items()}


def beyond(sizes: Mapping[str, float], dtype: torch.dtype) -> list[str]:
    """Those whose largest number becomes infinite in `dtype`."""
    import torch

    return [
        name
        for name, size in sizes.items()
        if isfinite(size) and bool(torch.tensor(size, dtype=torch.float64).to(dtype).isinf())
    ]


def no_numbers(sizes: Mapping[str, float]) -> list[str]:
    return [name for name, size in sizes.items() if not isfinite(size)]


def refuse_no_numbers(names: Sequence[str], where: object) -> None:
    """A file with such values gives black or noisy images only."""
    if names:
        raise ProblemsError.one(
            f"The weights hold values that are not numbers: {shown(names)}",
            str(where),
            "lower the learning rate and go on from an earlier file",
        )


def kept_wide(names: Sequence[str], dtype: torch.dtype | None, where: object) -> Problem:
    """What is said where a file is written in fp32 because of these."""
    name = TYPE_NAMES.get(str(dtype).removeprefix("torch."), str(dtype))
    return Problem(
        f"Some weights are too large for {name}, so this file was written in fp32: {shown(names)}",
        str(where),
        "save as bf16 or fp32; weights this large usually mean that the learning rate is too high",
        level="advice",
    )


def shown(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
