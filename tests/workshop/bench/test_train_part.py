"""The benchmark's trainings: what is called empty is empty, also the second time."""

import pkgutil

import pytest

from core.record.workspace import Workspace
from workshop.bench import run, start
from workshop.bench.measure import Measured
from workshop.bench.run import known_part, table


def test_caches_are_empty_for_the_first_training_of_each_benchmark(tmp_path, monkeypatch):
    found = []

    def train(values, outputs, device):
        kept = Workspace.of(outputs).cache / "latents.safetensors"
        found.append(kept.exists())
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_bytes(b"latents")
        return Measured(1.0, 2.0, 3.0, 4, 6)

    monkeypatch.setattr(run, "measure_training", train)
    monkeypatch.setattr(run, "step_flops", lambda *sizes: 1e12)
    monkeypatch.setattr(run, "make_model", lambda folder: folder)
    monkeypatch.setattr(run.workload, "make_images", lambda folder, size: folder)
    for _ in range(2):
        run.train_part(run.Bench(tmp_path, "cpu", True, lambda line: None, "", {"bfloat16": 1e12}))
    assert found == [False, True, False, True]


def test_images_that_were_never_seen_are_unknown_at_each_start_and_full_caches_are_full(tmp_path, monkeypatch):
    assert known_part("start")
    found, place = [], Workspace.of(tmp_path / "outputs")
    known = (place.cache / "latents.safetensors", place.private / "index.sqlite")

    def train(values, outputs, device, program):
        found.append(([file.exists() for file in known], program is not None))
        for file in known:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
        return Measured(1.0, 2.0, float(len(found)), 4, 6)

    monkeypatch.setattr(start, "measure_training", train)
    monkeypatch.setattr(start, "make_model", lambda folder: folder)
    monkeypatch.setattr(start.workload, "make_images", lambda folder, size, count: folder)
    numbers = start.measure_start(tmp_path, "cpu", False, lambda line: None)
    assert found == [([False] * 2, False), ([False] * 2, True), ([True] * 2, False)] * 2 * start.ROUNDS
    assert [each["seconds"] for each in numbers] == [4, 5, 6, 13, 14, 15]
    facts = {"device": "CPU", "threads": 2, "bf16_in_hardware": False, "torch": "2"}
    assert table({"machine": facts, "start": numbers}).count("first step") == 6


@pytest.mark.parametrize("name", start.ENCODERS_FIT)
def test_everything_is_encoded_first_by_a_switch_that_is_still_there(name):
    assert callable(pkgutil.resolve_name(name))
