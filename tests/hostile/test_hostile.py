"""Every file of a person is read or refused in a sentence, within 2 s and 200 MB (metadata of a dataset: 300), whatever it holds.

A few of each family in each run, in the process of the tests; with --all some twenty-five of each in another.
"""

import random
import sys
from collections import Counter

import pytest

from tests.hostile.child import Reading, readings, readings_here
from tests.hostile.families import FAMILIES

FEW = dict.fromkeys(FAMILIES, 1) | {"safetensors": 2, "pickles": 2, "adapters": 2}
# Read as checkpoints and model folders are, and a good one takes two seconds.
FEW |= {"checkpoints in tools": 0, "weights of folders": 0}
# A check of a training takes a second, and so does a whole model.
MANY = dict.fromkeys(FAMILIES, 25) | {"command line": 15, "checkpoints": 20, "model folders": 10}
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="peaks of memory are read from /proc")


def judge(found: list[Reading]) -> None:
    faults = [str(each) for each in found if each.is_fault]
    assert not faults, f"{len(faults)} of {len(found)} readings:\n" + "\n".join(faults[:60])


def test_a_few_hostile_files_of_each_family_are_refused_in_a_sentence():
    cases = [(name, case) for name in FAMILIES for case in random.Random(name).sample(range(1, 120), FEW[name])]
    found = readings_here(cases)
    judge(found)
    ends = Counter(each.end for each in found)
    assert ends["refused"] and ends["read"], f"the files are hostile and not only that: {ends}"


@pytest.mark.slow
def test_every_hostile_file_is_refused_in_a_sentence():
    found = readings([(family, case) for family in FAMILIES for case in range(MANY[family])], crashes=20)
    print(len(found), "readings,", Counter((each.family, each.end) for each in found))
    judge(found)
