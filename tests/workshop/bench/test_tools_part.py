"""The part `tools` of the benchmark: that it measures, not how much."""

import pytest

from workshop.bench.run import known_part
from workshop.bench.tools import measure_merge, measure_svd, tool_rows


@pytest.mark.slow
def test_decompositions_and_merges_are_measured(tmp_path):
    assert known_part("tools")
    found = {"svd": measure_svd(32, lambda text: None), "merge": measure_merge(tmp_path, True, lambda text: None)}
    assert found["svd"]["largest_difference"] < 1e-5 and found["svd"]["factors_seconds"] < found["svd"]["whole_seconds"]
    assert found["merge"]["bytes"] > 2e9 and found["merge"]["peak_bytes"] < found["merge"]["bytes"]
    assert len(tool_rows(found)) == 2
