"""The rate of matrix products, also where one product takes a minute."""

from core.machine_check import computing


def test_a_processor_without_the_dtype_is_measured_with_small_products(monkeypatch):
    """A product takes as long as its size says: 44 s for [2048, 2048], as fp16 on such a processor."""
    sizes, clock, multiply = [], [0.0], computing.torch.mm
    monkeypatch.setattr(computing.time, "perf_counter", lambda: clock[0])

    def product(a, b):
        sizes.append(len(a))
        clock[0] += rate * len(a) ** 3 / 2048**3
        return multiply(a[:8, :8], b[:8, :8])

    monkeypatch.setattr(computing.torch, "mm", product)
    rate = 44.0
    assert round(computing.gemm_rate("float16", "cpu", 3) / (2 * 2048**3 / 44), 6) == 1.0
    assert set(sizes) == {512} and clock[0] < 2
    rate = 0.2
    assert round(computing.gemm_rate("float32", "cpu", 3) / (2 * 2048**3 / 0.2), 6) == 1.0
    assert sizes.count(2048) == 4
