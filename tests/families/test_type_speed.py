"""The faster number type of a CPU is measured once and remembered."""

import json

import pytest
import torch

from core.families import type_speed
from core.families.precision import choose_precision
from core.settings.memory import MemorySettings

LARGE = 800 << 20


@pytest.fixture
def measured(tmp_path, monkeypatch):
    """Pretended measurements, the latest first; how many were asked for. Nothing is remembered between tests."""
    monkeypatch.setenv("ATELIER_KEYS", str(tmp_path / "own" / "keys.json"))
    asked: list[dict[str, float]] = []

    def measure(fp32: float, bf16: float) -> None:
        monkeypatch.setattr(type_speed, "measure", lambda: asked.append({"fp32": fp32, "bf16": bf16}) or asked[-1])

    def again() -> bool:
        type_speed._bf16_pays.cache_clear()  # as in a new process
        return type_speed.bf16_pays()

    yield measure, again, asked
    type_speed._bf16_pays.cache_clear()


@pytest.mark.parametrize(
    ("fp32", "bf16", "pays", "name"),
    [(1.0, 0.5, True, "bf16"), (1.0, 1.04, True, "bf16"), (1.0, 1.1, False, "no"), (0.02, 0.9, False, "no")],
)
def test_a_large_model_takes_the_faster_type_and_at_equal_speed_the_smaller_one(measured, fp32, bf16, pays, name):
    measure, again, _ = measured
    measure(fp32, bf16)
    assert again() is pays and choose_precision(MemorySettings(), "cpu", LARGE).name == name


def test_it_is_measured_once_for_a_machine_and_a_version_of_torch(measured, monkeypatch):
    measure, again, asked = measured
    measure(1.0, 0.5)
    assert again() and again() and len(asked) == 1
    measure(1.0, 2.0)
    assert again() and len(asked) == 1, "another process reads what the first one measured"
    monkeypatch.setattr(type_speed, "_torch_version", lambda: "99")
    assert not again() and len(asked) == 2
    monkeypatch.undo()


def test_a_damaged_or_closed_file_costs_a_measurement_and_nothing_else(measured):
    measure, again, asked = measured
    measure(1.0, 0.5)
    again()
    (key,) = json.loads(type_speed.speeds_file().read_text("utf-8"))
    for content in ("{", "[]", json.dumps({key: 3}), json.dumps({key: {"fp32": "1", "bf16": None}, "other": {}})):
        type_speed.speeds_file().write_text(content, "utf-8")
        assert again()
    assert len(asked) == 5
    assert "other" in json.loads(type_speed.speeds_file().read_text("utf-8")), "what another machine wrote stays"
    type_speed.speeds_file().unlink()
    type_speed.speeds_file().mkdir()
    assert again() and len(asked) == 6


@pytest.mark.slow
def test_both_types_are_really_timed_and_the_number_of_threads_stays(monkeypatch):
    monkeypatch.setattr(type_speed, "ROUNDS", 1)
    before = torch.get_num_threads()
    found = type_speed.measure()
    assert set(found) == {"fp32", "bf16"} and all(0 < seconds < 60 for seconds in found.values())
    assert torch.get_num_threads() == before
