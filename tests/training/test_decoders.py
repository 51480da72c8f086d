"""How many threads decode images."""

import pytest

from core.training.building import latents


@pytest.mark.parametrize(
    ("device", "cores", "threads"),
    [("cpu", 16, 2), ("cuda", 1, 2), ("cuda:0", 2, 2), ("cuda", 3, 3), ("cuda", 8, 8), ("cuda", 9, 8), ("mps", 4, 4)],
)
def test_a_gpu_has_a_thread_for_each_core_from_2_to_8_and_the_cpu_2(monkeypatch, device, cores, threads):
    monkeypatch.setattr(latents.machine, "cores", lambda: cores)
    assert latents.decode_threads(device) == threads
