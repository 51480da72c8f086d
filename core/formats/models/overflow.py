"""Finds weights that are NaN, infinite, or too large for the dtype they are saved in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import TYPE_CHECKING

from core.formats.tensors.writer import PRECISIONS
from core.record.lazy_torch import torch
from core.record.problems import Problem, ProblemsError
from core.record.units import count, first_of

if TYPE_CHECKING:
    from core.formats.tensors.lazy import LazyTensor

SHOWN = 3


def largest_by_name(tensors: Mapping[str, torch.Tensor]) -> dict[str, float]:
    """Return {name: largest absolute value} of the tensors, as `largest`."""
    return {name: largest(value) for name, value in tensors.items()}


def not_finite(tensors: Mapping[str, torch.Tensor]) -> list[str]:
    """Return the names of tensors with NaN or infinite values."""
    return not_finite_names(largest_by_name(tensors))


def largest(value: torch.Tensor) -> float:
    """Return the largest absolute value of a tensor: NaN if it contains one; 0 for integers and empty tensors."""
    if not value.is_floating_point() or value.numel() == 0:
        return 0.0
    value = value.detach() if value.dtype.itemsize > 1 else value.detach().float()  # fp8 has no aminmax
    low, high = value.aminmax()  # nan if one is among them
    return float(high.abs().maximum(low.abs()))


def largest_of_lazy(tensors: Mapping[str, LazyTensor]) -> dict[str, float]:
    """Return {name: largest absolute value} of lazy tensors, read one after the other."""
    return {name: largest(tensor.read()) for name, tensor in tensors.items()}


def overflowing(sizes: Mapping[str, float], dtype: torch.dtype) -> list[str]:
    """Return the names of tensors whose largest value is finite but overflows in `dtype` (to infinity, or NaN in fp8).
    sizes: {name: largest absolute value}"""
    return [
        name
        for name, size in sizes.items()
        if isfinite(size) and not torch.tensor(size, dtype=torch.float64).to(dtype).double().isfinite()
    ]


def fitting_type(
    sizes: Mapping[str, float], dtype: torch.dtype | None, where: object
) -> tuple[torch.dtype | None, list[Problem]]:
    """Return (`dtype`, or fp32 if a value would overflow in it; advice about that).

    sizes   {name: largest absolute value}
    where   the file, for the advice
    """
    names = overflowing(sizes, dtype) if dtype is not None else []
    return (torch.float32, [fp32_advice(names, dtype, where)]) if names else (dtype, [])


def not_finite_names(sizes: Mapping[str, float]) -> list[str]:
    """Return the names whose largest absolute value is NaN or infinite."""
    return [name for name, size in sizes.items() if not isfinite(size)]


def refuse_not_finite(names: Sequence[str], where: object) -> None:
    """Raise ProblemsError if `names` lists weights with NaN or infinite values: such a model only makes black or noisy images."""
    if names:
        raise ProblemsError.one(
            f"The weights contain NaN or infinite values: {first_of(names, SHOWN)}",
            str(where),
            "lower the learning rate and resume from an earlier state",
            code="weights.not-finite",
        )


def not_finite_warning(names: Sequence[str], where: object) -> Problem:
    """Return a warning that a model was written with NaN or infinite values in the tensors `names`."""
    return Problem(
        f"{count(len(names), 'tensor')} with NaN or infinite values: {first_of(names, SHOWN)}",
        str(where),
        "download the model again; in a VAE, replace it by another one",
        level="warning",
        code="weights.not-finite",
    )


def fp32_advice(names: Sequence[str], dtype: torch.dtype | None, where: object) -> Problem:
    """Return the advice that a file was written in fp32 because the tensors `names` are too large for `dtype`."""
    name = next((short for short, long in PRECISIONS.items() if str(dtype) == f"torch.{long}"), str(dtype))
    return Problem(
        f"Some weights are too large for {name}, so this file was written in fp32: {first_of(names, SHOWN)}",
        str(where),
        "save as bf16 or fp32; weights this large usually mean that the learning rate is too high",
        level="advice",
        code="weights.overflow",
    )
