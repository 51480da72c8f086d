"""Settings of two numbers: where one number is enough."""

import pytest

from core.settings.base import declared
from core.settings.check import allowed, build
from core.tasks import tasks
from tests.refusals import problems_of


def pairs_of_numbers():
    """Return {path: (job, declaration)} of each setting that is a pair."""
    return {
        entry.path: (task.job, entry)
        for task in tasks().values()
        for entry in declared(task.job)
        if entry.kind == "pair"
    }


@pytest.mark.parametrize("path", sorted(pairs_of_numbers()))
def test_one_number_is_taken_wherever_the_message_says_one_number_or_two(path):
    job, entry = pairs_of_numbers()[path]
    for number in (64, 2, 0.5):  # one of them is within the limits
        found = problems_of(job, {entry.group: {entry.name: number}})
        if not found:
            break
    assert (not found) == allowed(entry).startswith("one number or two")


def test_one_number_is_a_square():
    crop = build(tasks()["crop"].job, {"crop": {"crop_size": 128}}).crop
    assert (
        crop.crop_size == (128, 128) == build(tasks()["crop"].job, {"crop": {"crop_size": [128, 128]}}).crop.crop_size
    )
    (found,) = problems_of(tasks()["crop"].job, {"crop": {"crop_size": 128.5}})
    assert found.fix == "use whole numbers"
