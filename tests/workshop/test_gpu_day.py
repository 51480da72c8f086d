"""The day with a GPU: a part that fails or hangs takes nothing from the next, and the numbers reach the guide."""

import json

import pytest

from workshop import gpu_day
from workshop.bench.options import CONTEXTS, OPTIONS, measure_options
from workshop.gpu_day import HARDWARE, PARTS, Part, run_day, section, with_section

MACHINE = {"device": "NVIDIA H100, 80 GB", "torch": "2.11"}
NUMBERS = {"seconds_per_step": 0.45, "peak_bytes": 5 << 30, "reserved_bytes": 6 << 30, "forecast_bytes": 7 << 30}


def test_a_part_that_fails_or_hangs_takes_nothing_from_the_next(tmp_path, monkeypatch):
    parts = (
        Part("hangs", 2, ("-I", "-S", "-c", "import time; print('begun', flush=True); time.sleep(60)")),
        Part("fails", 30, ("-c", "raise SystemExit(3)")),
        Part("works", 30, ("-c", "raise SystemExit(4)"), ("-c", "print('small')")),
    )
    monkeypatch.setattr(gpu_day, "PARTS", parts)
    ended = run_day(tmp_path / "results", "cpu")
    assert ended["hangs"] == "cut off after 2 s" and ended["fails"].startswith("exit code 3")
    assert ended["works"].startswith("exit code 0")
    assert (tmp_path / "results" / "hangs.txt").read_text() == "begun\n"
    assert json.loads((tmp_path / "results" / "day.json").read_text())["parts"] == ended


def test_numbers_stand_in_the_guide_and_replace_those_of_the_same_gpu(tmp_path):
    day = {
        "device": "cuda",
        "parts": {part.name: "exit code 0 after 9 s" for part in PARTS} | {"generate": "cut off after 40 s"},
    }
    options = {"what": "SDXL LoRA", "options": {"bf16": NUMBERS, "fp8": {"error": "out of memory: tried"}}}
    files = {
        "day": day,
        "check": {"counts": {"ok": 24, "failed": 0}},
        "sdxl_options": {"machine": MACHINE, "options": options},
    }
    for name, content in files.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    lines = section(tmp_path)
    assert lines[0] == "### NVIDIA H100, 80 GB, torch 2.11"
    assert (
        "| bf16 | 0.450 s per step, 6.0 GB (forecast 7.0 GB) |" in lines and "| fp8 | out of memory: tried |" in lines
    )
    assert "| [check](check.md) | 24 ok |" in lines and "| generate | no numbers: cut off after 40 s |" in lines
    guide = HARDWARE.read_text("utf-8")
    once = with_section(guide, lines)
    other = with_section(once, ["### Another, torch 2.11", "", "| a | b |"])
    assert with_section(once, lines) == once and once.count("NVIDIA H100") == 1
    assert with_section(other, lines).count("###") == guide.count("###") + 2
    assert guide.partition(gpu_day.BEGIN)[0] == other.partition(gpu_day.BEGIN)[0]


@pytest.mark.slow
def test_each_option_trains_or_says_why_not(tmp_path, monkeypatch):
    names = ("bf16, gradient checkpointing, AdamW", "no gradient checkpointing", *CONTEXTS)
    quick = {name: OPTIONS[name] for name in names}
    wrong = {"no such optimizer": {"optimizer": {"optimizer_type": "nowhere.Nothing"}}}
    monkeypatch.setattr("workshop.bench.options.OPTIONS", quick | wrong)
    found = measure_options(tmp_path, "cpu", "starter_lora", print)["options"]
    assert all(found[name]["seconds_per_step"] > 0 and found[name]["forecast_bytes"] > 1e8 for name in quick)
    assert "Nothing" in found["no such optimizer"]["error"]
