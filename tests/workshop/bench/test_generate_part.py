"""The part `generate` of the benchmark: that it measures, not how much."""

import pytest

from workshop.bench.run import known_part, run_bench, table


@pytest.mark.slow
def test_generation_is_measured_beside_diffusers(tmp_path, monkeypatch):
    monkeypatch.setattr("workshop.bench.generate.STEPS", 4)
    assert known_part("generate")
    found = run_bench(tmp_path, "cpu", quick=True, only="generate", say=lambda text: None)
    numbers = found["generate"]
    assert 0 < numbers["outside"] < 1 and numbers["of_diffusers"] > 0 and numbers["with_preview"] > 0
    assert "of diffusers' pipeline" in table(found)
