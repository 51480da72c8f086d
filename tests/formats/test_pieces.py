"""Tensors read and written in pieces, by several threads."""

import hashlib
import json
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from safetensors.torch import load_file, save_file

from core.formats.models.checkpoint import TensorLocation
from core.formats.tensors import chunks
from core.formats.tensors.header import read_header
from core.formats.tensors.lazy import LazyTensor, OpenFiles, in_memory, in_pieces, stacked
from core.formats.tensors.writer import NO_HASH, WEIGHTS_HASH, library_order, write_safetensors
from core.record.cancel import Cancelled, CancelToken

SHAPE = (6, 10)


def values(seed=0, dtype=torch.float32):
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.fixture(params=["safetensors", "row-major", "transposed"])
def location(request, tmp_path):
    """A tensor in a file; pickles may hold one with other strides."""
    if request.param == "safetensors":
        path = tmp_path / "model.safetensors"
        save_file({"w": values()}, path)
    else:
        path = tmp_path / "model.ckpt"
        torch.save({"w": values() if request.param == "row-major" else values().T.contiguous().T}, path)
    return TensorLocation(path, "w", read_header(path)[0]["w"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(
    "made",
    [
        lambda tensor: tensor,
        lambda tensor: tensor.in_shape(60, 1),
        lambda tensor: tensor.transposed(),
        lambda tensor: stacked([tensor, tensor]),
        lambda tensor: tensor.observed(lambda value: None),
    ],
    ids=["plain", "shaped", "transposed", "stacked", "seen"],
)
def test_the_pieces_of_a_tensor_are_the_whole_in_order(location, made, dtype):
    with OpenFiles() as files:
        tensor = made(files.lazy(location)).cast(dtype)
        pieces = [piece.clone() for piece in tensor.pieces(numbers=20)]
        whole = tensor.read()
    assert {piece.dtype for piece in pieces} == {dtype} and whole.shape == tensor.shape
    assert torch.equal(torch.cat(pieces), whole.flatten())


def test_a_file_is_read_in_pieces_of_the_size_asked_for_by_many_threads_at_once(location):
    with OpenFiles() as files, ThreadPoolExecutor(8) as workers:
        tensor = files.lazy(location)
        found = list(workers.map(lambda _: [piece.clone() for piece in tensor.pieces(numbers=25)], range(64)))
    assert [len(piece) for piece in found[0]] == [25, 25, 10]
    assert all(torch.equal(torch.cat(pieces), values().flatten()) for pieces in found)


def test_what_looks_at_a_tensor_sees_each_piece_that_is_written(location, tmp_path):
    seen = []
    with OpenFiles() as files:
        tensor = files.lazy(location).observed(lambda piece: seen.append(piece.clone()))
        write_safetensors(tmp_path / "copy.safetensors", {"w": tensor}, {})
    assert torch.equal(torch.cat(seen), values().flatten())


@pytest.mark.parametrize("hashed", [False, True])
def test_tensors_written_by_several_threads_are_those_of_one_file(tmp_path, monkeypatch, hashed):
    monkeypatch.setattr(chunks, "CHUNK_BYTES", chunks.BLOCK_BYTES)
    tensors = {f"layer.{n}": values(n, (torch.float32, torch.float16, torch.bfloat16)[n % 3]) for n in range(40)}
    tensors |= {"empty": torch.empty(0), "number": torch.tensor(7)}
    path, written = tmp_path / "model.safetensors", []
    tensors["large"] = torch.arange(5000.0)  # over several chunks
    lazy = {name: in_memory(tensor) for name, tensor in tensors.items()}
    write_safetensors(path, lazy, {WEIGHTS_HASH: NO_HASH} if hashed else {}, wrote=written.append)
    found = load_file(path)
    assert found.keys() == tensors.keys() and all(torch.equal(found[name], tensors[name]) for name in tensors)
    assert sorted(written) == sorted(tensor.byte_count for tensor in lazy.values())
    assert (read_header(path)[1].get(WEIGHTS_HASH, NO_HASH) != NO_HASH) == hashed


@pytest.mark.parametrize("hashed", [False, True])
@pytest.mark.parametrize("order", ["widest", "library"])
def test_the_bytes_are_the_header_and_the_tensors_in_order(tmp_path, order, hashed):
    tensors = {"z": values(0, torch.float16), "b": torch.arange(3), "y": values(1), "a": values(2, torch.bfloat16)}
    names = {"widest": ["b", "y", "z", "a"], "library": ["b", "y", "a", "z"]}[order]
    content, listing = b"", {}
    for name in names:
        begin, content = len(content), content + tensors[name].flatten().view(torch.uint8).numpy().tobytes()
        dtype = {"z": "F16", "b": "I64", "y": "F32", "a": "BF16"}[name]
        listing[name] = {"dtype": dtype, "shape": list(tensors[name].shape), "data_offsets": [begin, len(content)]}
    digest = {WEIGHTS_HASH: hashlib.sha256(content).hexdigest()} if hashed else {}
    texts = {"format": "pt", "title": "Füchse"} if order == "widest" else {"title": "Füchse"}
    header = json.dumps({"__metadata__": texts | digest, **listing}, ensure_ascii=False, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    more = {} if order == "widest" else {"order": library_order, "format": None}
    metadata = {"title": "Füchse"} | ({WEIGHTS_HASH: NO_HASH} if hashed else {})
    lazy = {name: in_memory(tensor) for name, tensor in tensors.items()}
    write_safetensors(tmp_path / "model.safetensors", lazy, metadata, **more)
    assert (tmp_path / "model.safetensors").read_bytes() == len(header).to_bytes(8, "little") + header + content


def test_several_tensors_are_read_at_a_time_each_computed_by_one_thread_and_torch_keeps_its_own(tmp_path):
    meeting, threads, before = threading.Barrier(2, timeout=60), [], torch.get_num_threads()

    def fetch(dtype):
        meeting.wait()  # both are here at once, or this fails
        threads.append(torch.get_num_threads())
        return torch.ones(3)

    lazy = LazyTensor("float32", (3,), fetch)
    write_safetensors(tmp_path / "model.safetensors", {"one": lazy, "other": lazy}, {})
    assert threads == [1, 1] and torch.get_num_threads() == before


def test_a_cancelled_writing_stops_within_a_tensor(tmp_path):
    token, made = CancelToken(), []

    def endless(dtype, numbers):
        for number in range(10**9):
            made.append(number)
            yield torch.zeros(1)

    def fetch(dtype):
        token.cancel()
        return torch.ones(3)

    tensors = {"long": in_pieces(torch.float32, (10**9,), endless), "short": LazyTensor("float32", (3,), fetch)}
    with pytest.raises(Cancelled):
        write_safetensors(tmp_path / "model.safetensors", tensors, {}, token)
    assert len(made) < 10**9


def test_an_error_in_one_tensor_ends_the_others_and_is_the_one_reported(tmp_path):
    def endless(dtype, numbers):
        while True:
            yield torch.zeros(1)

    def fetch(dtype):
        raise OSError(28, "No space left on device")

    tensors = {"long": in_pieces(torch.float32, (10**9,), endless), "short": LazyTensor("float32", (3,), fetch)}
    with pytest.raises(OSError, match="No space left"):
        write_safetensors(tmp_path / "model.safetensors", tensors, {})


def test_models_of_a_file_and_of_a_folder_are_cut_at_the_same_places(location):
    with OpenFiles() as files:
        one = files.lazy(location)
        ways = [one, stacked([one.in_shape(60)]), one.in_shape(60, 1), one.in_shape(10, 6).transposed()]
        assert {tuple(map(len, tensor.pieces(numbers=25))) for tensor in ways} == {(25, 25, 10)}
    assert list(in_memory(torch.empty(0)).pieces()) == []
