"""Each module of producers yields what is recorded of it."""

import pytest

from core.record.problems import Problem
from tests.facts.store import changes, modules, plain, produced, recorded

SHOWN = 40


@pytest.mark.parametrize("module", modules())
def test_results_are_as_recorded(module):
    changed = list(changes(recorded(module), produced(module)))
    more = f"\n... and {len(changed) - SHOWN} more" if len(changed) > SHOWN else ""
    again = f"\nmeant so? python -m tests.facts.write {module}"
    assert not changed, f"{len(changed)} values changed:\n" + "\n".join(changed[:SHOWN]) + more + again


@pytest.mark.parametrize(
    ("before", "now", "lines"),
    [
        ({"a": 1.0}, {"a": 1.000001}, []),
        ({"a": 1.0}, {"a": 1.001}, ["a: 1.0 recorded, 1.001 now"]),
        ({"a": [1, 2]}, {"a": [1, 3]}, ["a[1]: 2 recorded, 3 now"]),
        ({"a": [1, 2]}, {"a": [2]}, ["a: 2 recorded, 1 now; gone: [1], new: []"]),
        ({"a": {"b": 1}}, {"a": {"c": 1}}, ["a / b: gone, was 1", "a / c: new, 1"]),
        ({"a": 1}, {"a": True}, ["a: 1 recorded, true now"]),
        ({"a": ["tensor float32 2", 1.0, 0.5]}, {"a": ["tensor float32 2", 1.0, 0.50005]}, []),
    ],
)
def test_a_change_is_told_with_its_place(before, now, lines):
    assert list(changes(before, now)) == lines


def test_problems_are_recorded_without_their_wording():
    wrong = Problem("The rank is 5000, above 1,024", "network.rank", "use 1 to 1024", code="network.rank")
    assert plain(wrong) == ["network.rank", "network.rank", "error", "", "5000 1,024 1 1024"]
