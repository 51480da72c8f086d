"""Numbers that a smaller type cannot hold."""

import pytest
import torch

from core.formats.models.overflow import fitting_type, fp32_advice, largest, largest_by_name, not_finite, overflowing


@pytest.mark.parametrize(
    ("value", "dtype", "is_beyond"),
    [
        (65_504.0, torch.float16, False),
        (65_519.0, torch.float16, False),  # still rounds down to 65,504
        (65_520.0, torch.float16, True),
        (-70_000.0, torch.float16, True),
        (1e38, torch.bfloat16, False),
        (3.4e38, torch.bfloat16, True),
        (1e38, torch.float32, False),
        (float("inf"), torch.float16, False),
        (float("nan"), torch.float16, False),
    ],
)
def test_exactly_what_the_conversion_makes_infinite_is_named(value, dtype, is_beyond):
    tensors = {"small": torch.ones(3), "one": torch.tensor([1.0, value])}
    assert overflowing(largest_by_name(tensors), dtype) == (["one"] if is_beyond else [])
    fitting, advice = fitting_type(largest_by_name(tensors), dtype, "x")
    assert (fitting, len(advice)) == ((torch.float32, 1) if is_beyond else (dtype, 0))
    if is_beyond:
        assert tensors["one"].to(dtype).isinf().any()


def test_values_that_are_no_numbers_are_told_apart_from_large_ones():
    tensors = {"nan": torch.tensor([0.0, float("nan")]), "inf": torch.tensor(float("-inf")), "large": torch.tensor(1e9)}
    assert not_finite(tensors) == ["nan", "inf"] and overflowing(largest_by_name(tensors), torch.float16) == ["large"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn])
def test_every_type_is_looked_through(dtype):
    assert largest(torch.tensor([[1.0, -3.0]]).to(dtype)) == 3.0


def test_integers_and_empty_tensors_have_no_size():
    assert largest(torch.arange(5)) == largest(torch.empty(0)) == 0.0


def test_the_advice_names_three_and_counts_the_others():
    problem = fp32_advice(list("abcde"), torch.float16, "x.safetensors")
    assert (problem.level, problem.code) == ("advice", "weights.overflow")
    assert "fp32" in problem.what and "a, b, c and 2 more" in problem.what
