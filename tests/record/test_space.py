"""What stands against a write is said in numbers that add up, whatever their size."""

import re

import pytest

from core.record import machine
from core.record.problems import ProblemsError
from core.record.space import RESERVE, require_space

UNITS = {"MB": 1e6, "GB": 1e9}


def numbers(text):
    return [float(count) * UNITS[unit] for count, unit in re.findall(r"([\d.]+) (MB|GB)", text)]


@pytest.mark.parametrize("needed", [0, 1, 999, 40_000_000, 999_600_000, 4_265_146_304, 10**13])
@pytest.mark.parametrize("short", [1, 5_000_000, RESERVE, 10**12])
def test_a_refusal_names_what_it_takes_the_reserve_and_what_is_free_and_they_add_up(
    tmp_path, monkeypatch, needed, short
):
    free = max(0, needed + RESERVE - short)
    monkeypatch.setattr(machine, "free_disk", lambda folder: free)
    with pytest.raises(ProblemsError) as caught:
        require_space(tmp_path, needed, "Unpacking", "free some")
    assert caught.value.codes == ["disk.space"]
    takes, reserve, left = numbers(caught.value.problems[0].what)
    assert reserve == RESERVE and takes + reserve > left
    assert takes == 0 if needed == 0 else takes >= 1e6
    assert abs(takes - needed) <= 0.05 * needed + 1e6 and left <= free


def test_what_fits_with_the_reserve_is_not_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "free_disk", lambda folder: 5_000_000 + RESERVE)
    require_space(tmp_path / "not there yet", 5_000_000, "Unpacking", "")
