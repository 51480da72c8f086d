"""Models read and written past the file cache, and what happens where a system or a drive does not allow it."""

import errno
import os
import random
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from safetensors.torch import save_file

from core.formats.tensors import chunks, reading
from core.formats.tensors.chunks import BLOCK_BYTES, ChunkedFile, is_cached
from core.formats.tensors.lazy import in_memory
from core.formats.tensors.reading import TensorFile
from core.formats.tensors.torch_file import write_torch_file
from core.formats.tensors.writer import write_safetensors
from core.record import atomic
from core.record.cancel import Cancelled, CancelToken
from core.record.problems import ProblemsError


def drive(monkeypatch, kind):
    """usual; macos: no O_DIRECT; windows: no calls with a place either; blocks: larger ones than are used here"""
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 2 * BLOCK_BYTES)
    monkeypatch.setattr(reading, "CHUNK_BYTES", 4 * BLOCK_BYTES)
    monkeypatch.setattr(reading, "is_cached", lambda handle: False)
    if kind in ("macos", "windows"):
        monkeypatch.delattr(os, "O_DIRECT", raising=False)
    if kind == "windows":
        monkeypatch.delattr(os, "pwrite", raising=False)
        monkeypatch.delattr(os, "preadv", raising=False)
    if kind == "blocks":
        import fcntl

        def refusing(call):
            def called(number, *arguments):
                if fcntl.fcntl(number, fcntl.F_GETFL) & os.O_DIRECT:
                    raise OSError(errno.EINVAL, "Invalid argument")
                return call(number, *arguments)

            return called

        monkeypatch.setattr(os, "pwrite", refusing(os.pwrite))
        monkeypatch.setattr(os, "preadv", refusing(os.preadv))


linux = pytest.mark.skipif(not hasattr(os, "O_DIRECT"), reason="the system has no O_DIRECT")
kinds = pytest.mark.parametrize("kind", ["usual", "macos", "windows", pytest.param("blocks", marks=linux)])


@kinds
def test_bytes_put_in_any_order_by_threads_are_in_their_places(tmp_path, monkeypatch, kind):
    drive(monkeypatch, kind)
    chance = random.Random(3)
    for number in range(5):
        sizes = [chance.choice([0, 1, 7, 511, BLOCK_BYTES, 9 * BLOCK_BYTES + 5]) for _ in range(30)] + [number]
        contents = [torch.frombuffer(bytearray(chance.randbytes(size) + b"x"), dtype=torch.uint8) for size in sizes]
        puts, place = [], 0
        for content in contents:
            puts.append((place, content))
            place += len(content)
        chance.shuffle(puts)
        with ChunkedFile(tmp_path / "file", place) as file, ThreadPoolExecutor(8) as workers:
            list(workers.map(lambda put: file.put(*put), puts))
        assert (tmp_path / "file").read_bytes() == b"".join(bytes(content.numpy()) for content in contents)


@kinds
@pytest.mark.parametrize("dtype", [None, torch.float32])
def test_tensors_at_any_place_are_read_by_threads(tmp_path, monkeypatch, kind, dtype):
    drive(monkeypatch, kind)
    sizes = {f"t{n}": size for n, size in enumerate([1, 3, 5000, 0, 2049, 40_000, 1])}
    tensors = {name: torch.arange(size).to(torch.float16) for name, size in sizes.items()}
    save_file(tensors, tmp_path / "model.safetensors", {"shift": "x" * 1234})
    with TensorFile(tmp_path / "model.safetensors", once=True) as file, ThreadPoolExecutor(8) as workers:
        for name, found in zip(sizes, workers.map(lambda name: file.read(name, dtype), sizes), strict=True):
            assert torch.equal(found, tensors[name].to(dtype)) and found.dtype == (dtype or torch.float16)
        pieces = [piece.clone() for piece in file.pieces(file.entries["t5"], torch.float16, 777)]
    assert torch.equal(torch.cat(pieces), tensors["t5"]) and {len(piece) for piece in pieces[:-1]} == {777}


def test_a_tensor_between_the_items_of_its_dtype_is_read(tmp_path, monkeypatch):
    drive(monkeypatch, "usual")
    path, wanted = tmp_path / "model.safetensors", torch.arange(5000.0)
    header = b'{"t":{"dtype":"F32","shape":[5000],"data_offsets":[0,20000]}}'
    path.write_bytes(len(header).to_bytes(8, "little") + header + wanted.numpy().tobytes())
    assert (8 + len(header)) % 4
    with TensorFile(path, once=True) as file:
        assert torch.equal(file.read("t"), wanted)


@kinds
def test_a_file_that_ends_too_early_is_reported(tmp_path, monkeypatch, kind):
    drive(monkeypatch, kind)
    path = tmp_path / "model.safetensors"
    save_file({"t": torch.arange(20_000.0)}, path)
    with TensorFile(path, once=True) as file:
        os.truncate(path, 50_001)
        with pytest.raises(ProblemsError) as caught:
            file.read("t")
    assert [problem.code for problem in caught.value.problems] == ["model.truncated"]


@pytest.mark.parametrize("write", [write_safetensors, write_torch_file], ids=["safetensors", "ckpt"])
@pytest.mark.parametrize("kind", ["full", "cancelled"])
def test_nothing_is_left_of_a_file_that_could_not_be_completed(tmp_path, monkeypatch, write, kind):
    drive(monkeypatch, "usual")
    token, written, call = CancelToken(), [], os.pwrite

    def pwrite(number, content, place):
        written.append(place)
        if kind == "full" and len(written) > 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        token.cancel() if kind == "cancelled" else None
        return call(number, content, place)

    monkeypatch.setattr(os, "pwrite", pwrite)
    tensors = {f"t{n}": in_memory(torch.zeros(10_000)) for n in range(20)}
    arguments = (tensors, {}, token) if write is write_safetensors else (tensors, token)
    with pytest.raises((OSError, Cancelled)) as caught, atomic.open_atomic(tmp_path / "model") as temporary:
        write(temporary, *arguments)
    assert not list(tmp_path.iterdir()) and isinstance(caught.value, OSError) == (kind == "full")


def test_a_file_that_was_just_written_is_in_the_cache(tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(bytes(100_000))
    with open(tmp_path / "file", "rb", buffering=0) as handle:
        assert is_cached(handle)

        def preadv(*_):
            raise BlockingIOError

        monkeypatch.setattr(os, "preadv", preadv, raising=False)
        assert is_cached(handle) == (not hasattr(os, "RWF_NOWAIT"))
        monkeypatch.setattr(os, "preadv", lambda *_: (_ for _ in ()).throw(OSError(errno.EOPNOTSUPP, "")))
        assert is_cached(handle)
