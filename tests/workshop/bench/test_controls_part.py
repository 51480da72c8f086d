"""The part `controls` of the benchmark: that it measures, not how much."""

from workshop.bench import controls
from workshop.bench.run import known_part, table


def test_control_images_are_read_both_ways_and_the_times_make_a_table(monkeypatch):
    assert known_part("controls")
    monkeypatch.setattr(controls, "SIDE", 128)
    monkeypatch.setattr(controls, "SIZES", (64,))
    numbers = controls.measure_controls(True, lambda text: None)
    assert [(each["kind"], each["size"]) for each in numbers["images"]] == [
        (k, 64) for k in ("lines", "depth", "a photo")
    ]
    assert all(value > 0 for each in numbers["images"] for name, value in each.items() if name.endswith("_ms"))
    lines, depth, photo = (each["cached_bytes"] for each in numbers["images"])
    assert lines < 64 * 64 and depth < 64 * 64 and photo < 3 * 64 * 64 * 1.01
    facts = {"device": "CPU", "threads": 2, "bf16_in_hardware": False, "torch": "2"}
    assert table({"machine": facts, "controls": numbers}).count("| lines of 128 px at 64 px |") == 1
