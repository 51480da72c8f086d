"""The largest singular values alone are those of the whole decomposition; what is not found is decomposed whole."""

from __future__ import annotations

import pytest
import torch

from core.record.draws import normal
from core.tools.loras import svd
from core.tools.loras.resize_lora import needed_rank
from core.tools.loras.svd import BLOCK, ORTHOGONAL, TOLERANCE, Product, decompose, leading

SIDE, RANK = 256, 6
WIDE, TALL, SQUARE = (SIDE, 320), (400, SIDE), (SIDE, SIDE)
SPECTRA = {
    "geometric": lambda n: 0.7**n,
    "steep": lambda n: 0.1**n,
    "slow": lambda n: 1 / (1 + n),
    "one above noise": lambda n: torch.where(n == 0, 1.0, 0.02),
    "of rank 3": lambda n: torch.where(n < 3, 2.0 - n / 2, 0.0),
}
NAMES = [*SPECTRA, "noise"]


def changed(spectrum, shape=WIDE):
    """A matrix of these singular values; noise has the flattest that occur."""
    if spectrum == "noise":
        return normal(shape, 0, "noise") * 1e-3
    values = SPECTRA[spectrum](torch.arange(SIDE, dtype=torch.float64))
    u, v = (torch.linalg.qr(normal((side, SIDE), number, "test")).Q.double() for number, side in enumerate(shape))
    return (u * values @ v.T).float()


@pytest.mark.parametrize(
    ("spectrum", "shape"), [*((name, WIDE) for name in NAMES), ("slow", TALL), ("noise", TALL), ("noise", SQUARE)]
)
def test_as_much_of_the_norm_is_kept_as_the_whole_decomposition_keeps(spectrum, shape):
    matrix = changed(spectrum, shape)
    found, whole = leading(matrix, RANK), decompose(matrix)
    assert found is not None, "the subspace did not hold them"
    assert [tuple(each.shape) for each in (found.u, found.s, found.v)] == [(shape[0], RANK), (RANK,), (RANK, shape[1])]
    assert {each.dtype for each in (found.u, found.s, found.v)} == {torch.float32}
    best = torch.linalg.svdvals(matrix.double())
    assert [found.norm, whole.norm] == pytest.approx([float(best.norm())] * 2, rel=1e-6)
    # What is lost goes by the square of the residuals; in squares, and float32 next to the largest.
    assert float(found.s.double().square().sum()) >= (1 - TOLERANCE / 50) * float(best[:RANK].square().sum())
    assert (found.s.double() <= best[:RANK] + 1e-6 * best[0]).all()
    assert found.retained(RANK) == pytest.approx(whole.retained(RANK), rel=TOLERANCE / 100)
    up, down = found.cut(RANK)
    error, least = float((matrix - up @ down).norm()), float(best[RANK:].norm())
    assert error <= least * (1 + TOLERANCE) + 1e-5 * float(best[0])


@pytest.mark.parametrize("spectrum", ["geometric", "steep", "of rank 3"])
def test_where_values_are_apart_the_parts_are_those_of_the_whole_decomposition(spectrum):
    matrix = changed(spectrum)
    found, whole = leading(matrix, RANK), decompose(matrix)
    assert (found.s - whole.s[:RANK]).abs().max() < 1e-6 * whole.s[0]
    assert ((found.cut(RANK)[0] @ found.cut(RANK)[1]) - whole.cut(RANK)[0] @ whole.cut(RANK)[1]).abs().max() < 1e-5
    signs = found.u.gather(0, found.u.abs().argmax(0, keepdim=True))
    assert (signs > 0).all()
    torch.testing.assert_close(found.u[:, :2], whole.u[:, :2], rtol=0, atol=1e-4)


def test_draws_are_addressed_so_results_repeat_whatever_was_drawn_before():
    matrix = changed("slow")
    first = leading(matrix, RANK)
    torch.manual_seed(7)
    torch.randn(3)
    again = leading(matrix.clone(), RANK)
    assert all(torch.equal(getattr(first, name), getattr(again, name)) for name in "usv")


@pytest.mark.parametrize("scale", [1e-30, 1e-9, 1e15])
def test_small_and_large_changes_are_decomposed_alike(scale):
    matrix = changed("slow")
    found, plain = leading(matrix * scale, RANK), leading(matrix, RANK)
    torch.testing.assert_close(found.s.double() / scale, plain.s.double(), rtol=1e-5, atol=0)
    assert found.retained(RANK) == pytest.approx(plain.retained(RANK), rel=1e-6)


def test_no_change_has_values_of_zero_and_rows_that_can_train():
    for shape in (WIDE, TALL):
        found = leading(torch.zeros(shape), RANK)
        assert not found.s.any() and found.retained(1) == 1 and found.norm == 0
        assert torch.equal(found.v @ found.v.T, torch.eye(RANK)) and torch.equal(found.u.T @ found.u, torch.eye(RANK))


def test_exact_zeros_make_no_direction_twice():
    """Where all numbers outside of a corner are 0, what the subspace could grow by is rounding within the corner."""
    matrix = torch.zeros(WIDE)
    matrix[:5, :5] = normal((5, 5), 0, "corner") + 3 * torch.eye(5)
    parts, best = decompose(matrix, rank=RANK), torch.linalg.svdvals(matrix)
    torch.testing.assert_close(parts.s[:RANK], best[:RANK], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(parts.cut(5)[0] @ parts.cut(5)[1], matrix, rtol=0, atol=1e-5)


@pytest.mark.parametrize("rank", [SIDE // 2, SIDE, 500])
def test_a_rank_near_the_side_takes_the_whole_decomposition(rank):
    matrix = changed("noise")
    assert leading(matrix, rank) is None
    parts = decompose(matrix, rank=rank)
    assert len(parts.s) == SIDE and parts.squares is None
    assert torch.equal(parts.s, decompose(matrix).s)


def test_what_is_not_found_is_decomposed_whole(monkeypatch):
    matrix = changed("noise")
    assert decompose(matrix, rank=RANK).squares is not None
    for name, number in (("TOLERANCE", -1.0), ("SHARE", 0.1), ("ORTHOGONAL", 0.0)):
        with monkeypatch.context() as patch:
            patch.setattr(svd, name, number)
            assert leading(matrix, RANK) is None
            parts = decompose(matrix, rank=RANK)
        assert len(parts.s) == SIDE and parts.squares is None
    assert ORTHOGONAL < 1e-2 and SIDE > 2 * (RANK + 2 * BLOCK)


def test_a_product_is_decomposed_exactly_whatever_rank_is_needed():
    product = Product(normal((SIDE, 4), 0, "up"), normal((4, 320), 0, "down"))
    parts = decompose(product, rank=2)
    assert len(parts.s) == 4 and all(torch.equal(getattr(parts, n), getattr(decompose(product), n)) for n in "usv")
    high = Product(normal((SIDE, SIDE), 0, "up"), normal((SIDE, 320), 0, "down"))
    torch.testing.assert_close(decompose(high, rank=2).s[:2], decompose(high).s[:2], rtol=TOLERANCE, atol=0)
    assert len(decompose(high, compatibility="sd-scripts", rank=2).s) == SIDE  # as sd-scripts computes it


@pytest.mark.parametrize("spectrum", NAMES)
def test_the_largest_values_and_the_norm_tell_the_rank_that_all_would(spectrum):
    matrix = changed(spectrum)
    found, whole = leading(matrix, RANK), decompose(matrix)
    for method, parameters in (("sv_ratio", (1.5, 3.1, 30, 3e4)), ("sv_fro", (0.3, 0.7, 0.9, 0.99))):
        for parameter in parameters:
            ours, best = (needed_rank(parts.s, method, parameter, parts.squares) for parts in (found, whole))
            assert min(ours, RANK) == min(best, RANK), (method, parameter)
