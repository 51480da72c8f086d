"""Every file of a person is read or refused in a sentence, within 2 s and 200 MB (metadata of a dataset: 300), whatever it holds.

A few of each family in each run; with --all hundreds of each.
"""

import random
import sys
from collections import Counter

import pytest

from tests.hostile.child import Reading, readings
from tests.hostile.families import FAMILIES

MODELS = ("safetensors", "pickles", "adapters", "networks in tools", "upscalers", "VAEs")
FEW = dict.fromkeys(FAMILIES, 3) | {"safetensors": 6, "pickles": 6, "adapters": 6, "command line": 0}
MANY = dict.fromkeys(FAMILIES, 620) | {"command line": 40}  # nine readers each; a check of a training takes a second
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="peaks of memory are read from /proc")


def judge(found: list[Reading]) -> None:
    faults = [str(each) for each in found if each.is_fault]
    assert not faults, f"{len(faults)} of {len(found)} readings:\n" + "\n".join(faults[:60])


@pytest.mark.parametrize("models", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["models", "others"])
def test_a_few_hostile_files_of_each_family_are_refused_in_a_sentence(models):
    families = [name for name in FAMILIES if (name in MODELS) is models]
    cases = [(name, case) for name in families for case in random.Random(name).sample(range(1, 120), FEW[name])]
    found = readings(cases)
    judge(found)
    ends = Counter(each.end for each in found)
    assert ends["refused"] and ends["read"], f"the files are hostile and not only that: {ends}"


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_every_hostile_file_is_refused_in_a_sentence(family):
    found = readings([(family, case) for case in range(MANY[family])], crashes=20)
    print(family, len(found), "readings,", Counter(each.end for each in found))
    judge(found)
