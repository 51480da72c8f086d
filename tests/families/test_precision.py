"""The number type follows the machine where it may, and the person where they say."""

import pytest
import torch

from core.families import precision
from core.families.precision import choose_precision, use_threads
from core.settings.memory import MemorySettings

LARGE, SMALL = 800 << 20, 14 << 20


@pytest.mark.parametrize(
    ("device", "fast", "bytes_", "trains", "wanted"),
    [
        ("cpu", True, SMALL, True, "no"),
        ("cpu", True, LARGE, True, "bf16"),
        ("cpu", False, LARGE, True, "no"),
        ("cuda", True, LARGE, True, "bf16"),
        ("cuda", False, LARGE, True, "fp16"),
        ("cuda:1", True, LARGE, False, "fp16"),
        ("mps", False, LARGE, True, "no"),
    ],
)
def test_auto_follows_the_machine(monkeypatch, device, fast, bytes_, trains, wanted):
    monkeypatch.setattr(precision.machine, "bf16_is_fast", lambda device: fast)  # asked of a GPU; a CPU is measured
    found = choose_precision(MemorySettings(), device, bytes_, trains=trains, bf16_pays=lambda: fast)
    assert found.name == wanted


def test_what_is_asked_for_is_taken():
    assert choose_precision(MemorySettings(mixed_precision="no"), "cuda", LARGE).compute is torch.float32
    assert choose_precision(MemorySettings(mixed_precision="bf16"), "cpu", 0).compute is torch.bfloat16


def test_losses_are_scaled_only_while_fp16_trains():
    half = MemorySettings(mixed_precision="fp16")
    assert choose_precision(half, "cpu", 0).scaled and not choose_precision(half, "cpu", 0, trains=False).scaled


def test_a_small_model_computes_on_one_thread_and_a_large_one_on_all(monkeypatch):
    set_to = []
    monkeypatch.setattr(torch, "set_num_threads", set_to.append)
    monkeypatch.setattr(precision.machine, "threads", lambda: 8)
    assert [use_threads("cpu", SMALL), use_threads("cpu", LARGE), use_threads("cuda", SMALL)] == set_to == [1, 8, 8]
