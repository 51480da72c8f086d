"""Pickled models are read without running them."""

import collections
import os
import pickle
import struct
import zipfile

import pytest
import torch

from core.formats.tensors.header import read_header
from core.formats.tensors.lazy import in_memory
from core.formats.tensors.pickles import load_state_file
from core.formats.tensors.reading import TensorFile
from core.formats.tensors.writer import save_pickle, write_pickle
from tests.refusals import refused


def contents():
    base = torch.arange(24.0).reshape(4, 6)
    return collections.OrderedDict(
        {
            "w": torch.randn(3, 5, generator=torch.Generator().manual_seed(1)),
            "half": torch.randn(2, 2).half(),
            "bf16": torch.randn(7).bfloat16(),
            "counter": torch.arange(77).reshape(1, 77),
            "transposed": base.T,
            "slice": base[1:3, 2:4],
            "shared": base,
            "number": torch.tensor(2.5),
            "none": torch.zeros(0, 4),
            "parameter": torch.nn.Parameter(torch.ones(2)),
        }
    )


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_every_tensor_equals_what_torch_reads(tmp_path, zipped):
    path = tmp_path / "model.ckpt"
    torch.save(
        {"state_dict": contents(), "global_step": 875000, "epoch": 3}, path, _use_new_zipfile_serialization=zipped
    )
    expected = torch.load(path, weights_only=True)["state_dict"]
    entries, metadata = read_header(path)
    assert metadata == {"global_step": "875000", "epoch": "3"}
    assert set(entries) == set(expected)
    with TensorFile(path) as file:
        for name, tensor in expected.items():
            ours = file.read(name)
            assert ours.dtype == tensor.dtype and torch.equal(ours, tensor), name
            assert ours.is_contiguous(), name
        assert torch.equal(file.read("transposed", torch.float16), expected["transposed"].half())


def test_wrapping_in_state_dict_is_taken_off_however_deep(tmp_path):
    torch.save({"state_dict": {"state_dict": {"w": torch.zeros(1)}}}, tmp_path / "m.pt")
    assert list(read_header(tmp_path / "m.pt")[0]) == ["w"]


def test_an_embedding_of_a1111_shows_its_vectors(tmp_path):
    vectors = torch.nn.ParameterDict({"*": torch.zeros(2, 768)})
    torch.save({"string_to_token": {"*": 265}, "string_to_param": vectors, "name": "fox"}, tmp_path / "fox.pt")
    assert list(read_header(tmp_path / "fox.pt")[0]) == ["string_to_param.*"]


class Callback:
    """As a training checkpoint carries them: its class is unknown to whoever reads the file."""

    def __init__(self):
        self.best = {"score": 1.0}


class Bomb:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (self.mark,)


def test_checkpoints_with_training_objects_are_read_though_torch_refuses(tmp_path):
    path = tmp_path / "lightning.ckpt"
    torch.save({"state_dict": {"w": torch.ones(3)}, "callbacks": {"best": Callback()}}, path)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)
    with TensorFile(path) as file:
        assert torch.equal(file.read("w"), torch.ones(3))


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_hostile_pickle_runs_nothing(tmp_path, zipped):
    mark = tmp_path / "it ran"
    path = tmp_path / "evil.ckpt"
    torch.save({"w": torch.ones(3), "x": Bomb(str(mark))}, path, _use_new_zipfile_serialization=zipped)
    with TensorFile(path) as file:
        assert torch.equal(file.read("w"), torch.ones(3))
    assert not mark.exists()
    pickle.loads(pickle.dumps(Bomb(str(mark))))  # the same object through plain pickle does run
    assert mark.exists()


def test_a_training_state_of_a_large_dataset_is_read(tmp_path):
    """Its table has 18 opcodes for each image: at 33,000 images as many as any other file may have."""
    images = [[["fox", f"{number:06d}.png"], [0.5, 3.0, 1.5]] for number in range(40_000)]
    save_pickle({"watch": {"images": images}, "weights": torch.ones(2)}, tmp_path / "training.pt")
    assert load_state_file(tmp_path / "training.pt")["watch"]["images"] == images


def test_a_tensor_that_reaches_outside_its_storage_is_refused(tmp_path):
    path, broken = tmp_path / "m.pt", tmp_path / "broken.pt"
    torch.save({"w": torch.arange(100.0)}, path)
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(broken, "w") as new:
        for info in old.infolist():
            data = old.read(info)
            new.writestr(info.filename, data[:40] if info.filename.endswith("data/0") else data)
    with refused("model.damaged"):
        read_header(broken)


def test_a_legacy_file_cut_short_is_said_to_be(tmp_path):
    path = tmp_path / "m.pt"
    torch.save({"w": torch.zeros(1000)}, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[:-100])
    with refused("model.truncated"):
        read_header(path)


def test_a_zip_of_something_else_is_said_to_hold_no_model(tmp_path):
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        archive.writestr("fox.png", b"x" * 50)
    with refused("model.zip-without-model"):
        read_header(tmp_path / "images.zip")


def test_a_storage_count_of_a_legacy_file_is_eight_bytes_little_endian(tmp_path):
    """The one number of that form that is not pickled: a canary for the reading of places."""
    path = tmp_path / "m.pt"
    torch.save({"w": torch.arange(5.0)}, path, _use_new_zipfile_serialization=False)
    entry = read_header(path)[0]["w"]
    assert struct.unpack("<q", path.read_bytes()[entry.start - 8 : entry.start]) == (5,)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float8_e4m3fn], ids=str)
@pytest.mark.parametrize(
    ("wrap", "plain", "around"),
    [(None, None, None), ("state_dict", None, {}), ("state_dict", {"epoch": 3}, {"epoch": 3})],
)
def test_tensors_are_written_bare_or_with_numbers_beside_them(tmp_path, dtype, wrap, plain, around):
    values = torch.arange(6.0).view(2, 3).to(dtype)
    write_pickle(tmp_path / "a.ckpt", {"w": in_memory(values)}, wrap, plain)
    found = torch.load(tmp_path / "a.ckpt", weights_only=True)
    if wrap:
        assert {name: value for name, value in found.items() if name != wrap} == around
        found = found[wrap]
    assert list(found) == ["w"] and found["w"].dtype == dtype and torch.equal(found["w"].float(), values.float())
