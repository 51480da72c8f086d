"""The benchmark's training: what is called empty is empty, also the second time."""

from core.record.workspace import Workspace
from workshop.bench import run
from workshop.bench.measure import Measured


def test_caches_are_empty_for_the_first_training_of_each_benchmark(tmp_path, monkeypatch):
    found = []

    def train(values, outputs, device):
        kept = Workspace.of(outputs).cache / "latents.safetensors"
        found.append(kept.exists())
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_bytes(b"latents")
        return Measured(1.0, 2.0, 3.0, 4, 5.0, 6)

    monkeypatch.setattr(run, "measure_training", train)
    monkeypatch.setattr(run, "step_flops", lambda *sizes: 1e12)
    monkeypatch.setattr(run.workload, "make_model", lambda folder: folder)
    monkeypatch.setattr(run.workload, "make_images", lambda folder, size: folder)
    for _ in range(2):
        run.train_part(tmp_path, "cpu", {"bfloat16": 1e12}, True, lambda line: None)
    assert found == [False, True, False, True]
