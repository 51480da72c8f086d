"""The benchmark's trainings: what is called empty is empty, also the second time."""

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
    monkeypatch.setattr(run.workload, "make_model", lambda folder: folder)
    monkeypatch.setattr(run.workload, "make_images", lambda folder, size: folder)
    for _ in range(2):
        run.train_part(tmp_path, "cpu", {"bfloat16": 1e12}, True, lambda line: None)
    assert found == [False, True, False, True]


def test_images_that_were_never_seen_are_unknown_at_each_start_and_full_caches_are_full(tmp_path, monkeypatch):
    assert known_part("start")
    found, place = [], Workspace.of(tmp_path / "outputs")
    known = (place.cache / "latents.safetensors", place.private / "index.sqlite")

    def filled(*_):
        for file in known:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()

    def train(values, outputs, device):
        found.append([file.exists() for file in known])
        filled()
        return Measured(1.0, 2.0, float(len(found)), 4, 6)

    monkeypatch.setattr(start, "measure_training", train)
    monkeypatch.setattr(start, "fill_caches", filled)
    monkeypatch.setattr(start.workload, "make_model", lambda folder: folder)
    monkeypatch.setattr(start.workload, "make_images", lambda folder, size, count: folder)
    numbers = start.measure_start(tmp_path, "cpu", False, lambda line: None)
    warm, cold = [[True, True]] * start.ROUNDS, [[False, False]] * start.ROUNDS
    assert found == [*warm, *cold] * 2 and [each["seconds"] for each in numbers] == [2, 5, 8, 11]
    facts = {"device": "CPU", "threads": 2, "bf16_in_hardware": False, "torch": "2"}
    assert table({"machine": facts, "start": numbers}).count("first step") == 4
