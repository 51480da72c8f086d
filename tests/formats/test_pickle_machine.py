"""A pickle is read step by step within limits; what other readers of pickles die of is refused or harmless."""

import collections
import io
import pickle
import time
import zipfile

import pytest
import torch

from core.formats.tensors.header import read_header
from core.formats.tensors.pickle_machine import Damaged, Inert, Machine
from core.formats.tensors.pickles import refuse_hostile
from tests.refusals import refused

START = b"\x80\x02"
DEEP = 1_000_000


def read(data: bytes):
    return Machine(io.BytesIO(data)).load()


@pytest.mark.parametrize("protocol", range(6))
def test_plain_values_are_those_of_pythons_own_reader(protocol):
    value = {
        "words": ["fox", "ф\n🦊", "", "a" * 300, b"", b"bytes" * 60],
        "numbers": (0, 1, -1, 255, 256, 65536, -(2**31), 2**40, -(2**63), 1.5, float("inf"), -0.0),
        "rest": [None, True, False, (), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), [], {}],
        1: {2.5: {None: "deep"}, True: "not 1"},
    }
    if protocol < 3:  # bytes are written as a call there, which is not made
        value["words"] = value["words"][:4]
    assert read(pickle.dumps(value, protocol)) == value


@pytest.mark.parametrize("protocol", range(6))
def test_shared_and_cyclic_values_are_what_they_were(protocol):
    shared = [1]
    cycle: list = [shared, shared]
    cycle.append(cycle)
    found = read(pickle.dumps(cycle, protocol))
    assert found[0] is found[1] and found[2] is found


@pytest.mark.parametrize("protocol", range(6))
def test_objects_of_classes_are_stand_ins_and_ordered_dicts_are_dicts(protocol):
    found = read(
        pickle.dumps([collections.OrderedDict(a=1), collections.Counter("aab"), {1, 2}, ValueError("x")], protocol)
    )
    assert found[0] == {"a": 1} and all(isinstance(each, Inert) for each in found[1:])


@pytest.mark.slow(only=("data1",))
@pytest.mark.parametrize(
    "data",
    [
        START + b"]" * DEEP + b"a" * (DEEP - 1) + b".",
        START + b")" + b"\x85" * DEEP + b".",
        START + b"(" * DEEP + b".",
        START + b"\x8b\xff\xff\xff\x7f1.",
        START + b"X\xff\xff\xff\xffabc.",
        START + b"\x8e" + b"\xff" * 8 + b".",
        START + b"I" + b"9" * 9000 + b"\n.",
        START + b"V" + b"a" * 20_000 + b"\n.",
        b"",
        START,
        START + b"\xff.",
        START + b"(.",
        START + b"e.",
        START + b"h\x05.",
        START + b"]K\x01K\x02s.",
        START + b"K\x01K\x02a.",
        START + b"K\x01)R.",
    ],
)
def test_what_goes_beyond_the_limits_is_refused(data):
    before = time.thread_time()
    with pytest.raises((Damaged, ValueError, IndexError)):
        read(data)
    assert time.thread_time() - before < 5


@pytest.mark.slow
def test_keys_that_hash_slowly_are_not_hashed():
    shared = START + b"})" + b"2\x86" * 300 + b"Ns."  # 2 ** 300 visits
    deep = START + b"})" + b"\x85" * 300_000 + b"Ns."  # as many C calls within each other
    numbers = b"".join(b"\x8a\x0a" + (n * (2**61 - 1)).to_bytes(10, "little") + b"N" for n in range(100_000))
    for data, count in ((shared, 1), (deep, 1), (START + b"}(" + numbers + b"u.", 100_000)):
        machine = Machine(io.BytesIO(data))
        assert len(machine.load()) == count and machine.odd_keys


def test_a_memo_index_costs_no_memory():
    assert read(START + b"Nr\xff\xff\xff\xff.") is None


def model(path, data: bytes):
    """A file of torch.save's form around a pickle."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/data.pkl", data)
        archive.writestr("model/byteorder", "little")
    return path


def test_a_state_dict_that_holds_itself_is_refused(tmp_path):
    path = model(tmp_path / "m.ckpt", START + b"}q\x00X\x0a\0\0\0state_dicth\x00s.")
    with refused("model.damaged", "state_dict"):
        read_header(path)


def test_dicts_that_hold_each_other_many_times_are_refused(tmp_path):
    level: dict = {}
    for _ in range(6):
        level = dict.fromkeys(map(str, range(200)), level)
    path = model(tmp_path / "m.ckpt", pickle.dumps(level, 2))
    with refused("model.damaged", "dicts"):
        read_header(path)


@pytest.mark.slow
def test_members_that_unpack_to_gigabytes_are_refused(tmp_path):
    for name in ("data.pkl", "byteorder"):
        path = tmp_path / f"{name}.ckpt"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("m/data.pkl", START + b"}.") if name != "data.pkl" else None
            archive.writestr(f"m/{name}", bytes(100_000_000))
        with refused("model.damaged", "too large"):
            read_header(path)


def test_a_repeated_storage_cannot_claim_more_than_the_file_means(tmp_path):
    path = tmp_path / "m.pt"
    torch.save({"w": torch.zeros(1).expand(10**9)}, path)
    with refused("model.bad-header", "more than the file has"):
        read_header(path)
    torch.save({"w": torch.zeros(1).expand(1000), "v": torch.arange(77).expand(1, -1)}, path)
    assert read_header(path)[0]["w"].shape == (1000,)


def test_a_state_of_torch_is_refused_where_its_reader_would_be_hurt(tmp_path):
    refuse_hostile(model(tmp_path / "good.pt", START + b"}."))
    path = model(tmp_path / "m.pt", START + b"})" + b"2\x86" * 300 + b"Ns.")
    with refused("model.damaged", "keys"):
        refuse_hostile(path)
