"""Headers of model files, whole and broken."""

import json
import struct

import pytest
import torch
from safetensors.torch import save_file

from core.formats.tensors import header
from core.formats.tensors.header import read_header, sniff
from core.formats.tensors.reading import TensorFile
from core.record.problems import ProblemsError


@pytest.fixture
def model(tmp_path):
    tensors = {
        "a": torch.arange(6.0).reshape(2, 3),
        "b.half": torch.ones(4, dtype=torch.bfloat16),
        "n": torch.tensor(7),
    }
    path = tmp_path / "model.safetensors"
    save_file(tensors, path, metadata={"note": "Füchse"})
    return path, tensors


def problem_of(path):
    """(code, what) of the one problem with this file."""
    with pytest.raises(ProblemsError) as caught:
        read_header(path)
    (problem,) = caught.value.problems
    assert str(path) == problem.where and problem.fix
    return problem.code, problem.what


def test_names_types_and_shapes_are_read_without_the_weights(model):
    path, _ = model
    entries, metadata = read_header(path)
    assert metadata == {"note": "Füchse"}
    assert {name: (entry.dtype, entry.shape) for name, entry in entries.items()} == {
        "a": ("F32", (2, 3)),
        "b.half": ("BF16", (4,)),
        "n": ("I64", ()),
    }


def test_tensors_are_read_bit_for_bit_and_can_be_converted(model):
    path, tensors = model
    with TensorFile(path) as file:
        for name, tensor in tensors.items():
            assert torch.equal(file.read(name), tensor) and file.read(name).dtype == tensor.dtype
        assert torch.equal(file.read("a", torch.float16), tensors["a"].half())
        assert file.read("n", torch.float16).dtype == torch.int64, "integers keep their type"


def test_tensors_own_their_memory_so_the_file_can_be_replaced(model):
    path, tensors = model
    with TensorFile(path) as file:
        first, converted = file.read("a"), file.read("a", torch.float64)
        file.read("b.half", torch.float32)  # the same buffer is used again
    path.write_bytes(b"")
    assert torch.equal(first, tensors["a"]) and torch.equal(converted, tensors["a"].double())


def test_the_name_of_a_file_does_not_decide_what_it_is(tmp_path, model):
    for name, content in (("x.ckpt", model[0].read_bytes()),):
        (tmp_path / name).write_bytes(content)
        assert sniff(tmp_path / name) == "safetensors"
        assert set(read_header(tmp_path / name)[0]) == {"a", "b.half", "n"}
    torch.save({"w": torch.zeros(2)}, tmp_path / "y.safetensors")
    assert sniff(tmp_path / "y.safetensors") == "zip"
    assert read_header(tmp_path / "y.safetensors")[0]["w"].shape == (2,)


def test_a_file_cut_short_says_how_many_bytes_are_missing(model):
    path, _ = model
    whole = path.read_bytes()
    path.write_bytes(whole[:-3])
    code, what = problem_of(path)
    assert code == "model.truncated" and f"{len(whole) - 3:,} of {len(whole):,} bytes" in what
    path.write_bytes(whole[:20])
    assert problem_of(path)[0] == "model.truncated"


FORMS = {  # how a header may be written -> whether it is read in one pass
    "compact": (dict(separators=(",", ":")), True),
    "with spaces": ({}, True),
    "in lines": (dict(indent=1), False),
    "other order": (dict(sort_keys=True), False),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "metadata", [{}, {"__metadata__": {}}, {"__metadata__": {"a": '{"x": "},{"}', "\\": "\n\u20ac"}}]
)
def test_a_header_says_the_same_in_every_form_of_json(tmp_path, monkeypatch, form, metadata):
    how, one_pass = FORMS[form]
    entries = {
        "b": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
        "é": {"dtype": "I64", "shape": [], "data_offsets": [24, 32]},
    }
    text = json.dumps(metadata | entries, ensure_ascii=False, **how).encode() + b"  "
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(32))
    found = read_header(path)
    assert {name: (entry.shape, entry.start - 8 - len(text)) for name, entry in found[0].items()} == {
        "b": ((2, 3), 0),
        "é": ((), 24),
    }
    assert found[1] == metadata.get("__metadata__", {})
    assert (header._usual_listing(path, text, 8 + len(text)) is not None) == one_pass
    monkeypatch.setattr(header, "MOST_USUAL_BYTES", 0)
    assert read_header(path) == found


@pytest.mark.parametrize(
    "text",
    [
        *(
            '{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},}',
            '{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}}',
        ),
        *(
            '{"a":{"dtype":"F32","shape":[01],"data_offsets":[0,4]}}',
            '{"a":{"dtype":"F32","shape":[1,],"data_offsets":[0,4]}}',
        ),
        *(
            '{"a":{"dtype":"F32","shape":[١],"data_offsets":[0,4]}}',
            '{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"__metadata__":7}',
        ),
        *(
            '{"__metadata__":{"a":1},}',
            '{"__metadata__":{"a" "b"},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
            "{}}",
        ),
    ],
)
def test_a_listing_that_is_no_json_is_refused_in_one_pass_too(tmp_path, text):
    path, data = tmp_path / "x.safetensors", text.encode()
    path.write_bytes(struct.pack("<Q", len(data)) + data + bytes(4))
    assert header._usual_listing(path, data, 8 + len(data)) is None and problem_of(path)[0] in (
        "file.not-json",
        "model.bad-header",
    )


def test_a_name_that_is_listed_twice_is_refused(tmp_path):
    """JSON readers keep one of them, and not all the same."""
    lines = [json.dumps({"dtype": "F32", "shape": [1], "data_offsets": [at, at + 4]}) for at in (0, 4)]
    text = f'{{"a": {lines[0]}, "a": {lines[1]}}}'
    (tmp_path / "twice.safetensors").write_bytes(struct.pack("<Q", len(text)) + text.encode() + bytes(8))
    code, what = problem_of(tmp_path / "twice.safetensors")
    assert code == "file.not-json" and "'a'" in what


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 20]},
        {"dtype": "F32", "shape": [-2, -3], "data_offsets": [0, 24]},
        {"dtype": "F99", "shape": [6], "data_offsets": [0, 24]},
        {"dtype": "F32", "shape": [6], "data_offsets": [-24, 0]},
        {"dtype": "F32", "shape": [6]},
        7,
    ],
)
def test_a_header_that_contradicts_itself_is_damaged(tmp_path, entry):
    text = json.dumps({"a": entry}).encode()
    path = tmp_path / "bad.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(24))
    assert problem_of(path)[0] == "model.bad-header"


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"", "model.empty-file"),
        (b"<!DOCTYPE html><html>Log in", "model.page-file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "model.pointer-file"),
        (b"just text that is long enough to be read", "model.unknown-file"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "model.unknown-file"),
        (b"\x80\x02not really a pickle", "model.damaged"),
        (b"PK\x03\x04not really a zip", "zip.damaged"),
    ],
)
def test_what_is_no_model_is_named(tmp_path, content, code):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    assert problem_of(path)[0] == code


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    assert problem_of(tmp_path / "none.safetensors")[0] == "file.missing"
    assert problem_of(tmp_path)[0] == "file.is-folder"
