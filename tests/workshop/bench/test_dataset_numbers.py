"""The dataset part of the benchmark measures what it says; how fast it is belongs to no test."""

import json

from workshop.bench import captions, datasets
from workshop.bench.run import table


def test_the_made_folder_is_read_with_all_its_captions_and_its_index_is_kept(tmp_path, capsys):
    datasets.make_many(tmp_path / "images", 40)
    made = [path.suffix for path in (tmp_path / "images").rglob("*.*")]
    assert {ending: made.count(ending) for ending in (".jpg", ".png", ".txt")} == {".jpg": 26, ".png": 14, ".txt": 40}
    datasets.main(["scan", str(tmp_path / "images"), str(tmp_path / "index.sqlite")])
    said = json.loads(capsys.readouterr().out)
    assert said["seconds"] > 0 and (tmp_path / "index.sqlite").is_file()


def test_the_planned_epoch_shows_every_image_in_batches(capsys):
    datasets.main(["plan", "300"])
    assert 300 / 4 <= json.loads(capsys.readouterr().out)["batches"] <= 300


def test_numbers_of_the_datasets_alone_make_a_table():
    numbers = {"images": 10, "scan_images_per_second": 5000.0, "reopen_seconds": 0.5, "memory_bytes": 3e6}
    numbers |= {"planned_images": 100, "plan_seconds": 0.25}
    facts = {"device": "CPU", "threads": 2, "bf16_in_hardware": False, "torch": "2"}
    text = table({"machine": facts, "datasets": numbers})
    assert "| scanning 10 images with captions | 5000 images/s |" in text and "GEMM" not in text


def test_captions_are_changed_and_restored_and_the_times_make_a_table(monkeypatch):
    monkeypatch.setattr(captions, "IMAGES", 200)
    numbers = captions.measure_captions(True, lambda text: None)
    assert numbers["images"] == 20 and all(value > 0 for value in numbers.values())
    facts = {"device": "CPU", "threads": 2, "bf16_in_hardware": False, "torch": "2"}
    assert "| changing 20 captions |" in table({"machine": facts, "captions": numbers})
