"""The part `tools` of the benchmark: that it measures, not how much."""

import pytest

from workshop.bench.run import known_part
from workshop.bench.tools import measure_extract, measure_merge, measure_resize, measure_svd, tool_rows


@pytest.mark.slow
def test_decompositions_and_merges_are_measured(tmp_path):
    assert known_part("tools")
    found = {"svd": measure_svd(32, lambda text: None), "extract": measure_extract(True, lambda text: None)}
    found |= {"resize": measure_resize(tmp_path, True, print), "merge": measure_merge(tmp_path, True, print)}
    assert found["svd"]["largest_difference"] < 1e-5 and found["svd"]["factors_seconds"] < found["svd"]["whole_seconds"]
    assert found["merge"]["bytes"] > 2e9 and found["merge"]["peak_bytes"] < found["merge"]["bytes"]
    assert found["extract"]["seconds"] > 0 and found["extract"]["kept"] > 0.9995
    assert found["resize"]["bytes"] > 5e7 and found["resize"]["peak_bytes"] > 1e8
    assert len(tool_rows(found)) == 4
