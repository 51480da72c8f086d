"""A file copied into another program's folder: whole or absent, never over another, and every refusal in words."""

from __future__ import annotations

import errno
import os
import random
import shutil
import sys
import tempfile
from pathlib import Path

import pytest

from core.formats import copies
from core.formats.copies import copy_into
from core.record import atomic, machine
from core.record.cancel import Cancelled, CancelToken
from core.record.problems import ProblemsError
from core.record.space import RESERVE

NAME = "mira.safetensors"


@pytest.fixture
def source(tmp_path, monkeypatch):
    """A file of several chunks."""
    monkeypatch.setattr(copies, "CHUNK_BYTES", 1000)
    monkeypatch.setattr(copies, "SYNC_BYTES", 3000)
    path = tmp_path / "checkpoints" / NAME
    path.parent.mkdir()
    path.write_bytes(random.Random(7).randbytes(10_500))
    return path


@pytest.fixture
def loras(tmp_path):
    folder = tmp_path / "loras"
    folder.mkdir()
    return folder


def diffusers(folder: Path) -> Path:
    """A model in the form of a folder."""
    for name, data in (("model_index.json", b"{}"), ("unet/config.json", b"{}"), ("unet/weights.bin", b"x" * 2500)):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def told(error: pytest.ExceptionInfo[ProblemsError], where: Path) -> str:
    """The problem's code; where and fix must be given too."""
    problem = error.value.problems[0]
    assert problem.where == str(where) and problem.fix
    return problem.code


# -- what is copied


def test_the_copy_is_the_same_and_progress_rises_to_the_end(source, loras):
    shares: list[float] = []
    copied = copy_into(source, loras, report=lambda share, text: shares.append(share))
    assert copied.new and copied.path == loras / NAME and copied.path.read_bytes() == source.read_bytes()
    assert names(loras) == [NAME] and len(shares) == 11 and shares == sorted(shares) and shares[-1] == 1.0


def test_an_empty_file_is_copied(loras, tmp_path):
    (tmp_path / NAME).write_bytes(b"")
    assert copy_into(tmp_path / NAME, loras).path.stat().st_size == 0


def test_the_same_content_is_not_copied_twice(source, loras):
    first = copy_into(source, loras)
    before = first.path.stat().st_mtime_ns
    again = copy_into(source, loras)
    assert not again.new and again.path == first.path and first.path.stat().st_mtime_ns == before
    assert names(loras) == [NAME]


def test_into_its_own_folder_it_is_there_already(source):
    assert copy_into(source, source.parent).path == source and names(source.parent) == [NAME]


@pytest.mark.parametrize("place", [0, 5000, 10_499])
def test_another_content_of_the_same_name_and_size_is_left_alone(source, loras, place):
    other = bytearray(source.read_bytes())
    other[place] ^= 1
    (loras / NAME).write_bytes(other)
    copied = copy_into(source, loras)
    assert copied.new and copied.path.name == "mira-2.safetensors" and (loras / NAME).read_bytes() == other
    assert copied.path.read_bytes() == source.read_bytes()
    assert copy_into(source, loras).path == copied.path  # found under the name that it got
    (loras / "mira-2.safetensors").write_bytes(b"mine")
    assert copy_into(source, loras).path.name == "mira-3.safetensors"


@pytest.mark.parametrize("seed", range(5))
def test_no_file_that_was_there_ever_changes(loras, tmp_path, seed):
    chance, kept = random.Random(seed), {}
    for _ in range(12):
        path = tmp_path / chance.choice(("a.safetensors", "b.pt", "b.v2.pt"))
        path.write_bytes(bytes([chance.randrange(3)]))
        copied = copy_into(path, loras)
        assert copied.path.read_bytes() == path.read_bytes() and copied.path.suffix == path.suffix
        assert copied.new == (copied.path not in kept)
        kept[copied.path] = path.read_bytes()
        assert {each: each.read_bytes() for each in loras.iterdir()} == kept


@pytest.mark.skipif(sys.platform == "win32", reason="no such files there")
def test_what_is_no_file_and_has_the_name_is_left_alone(source, loras):
    os.mkfifo(loras / NAME)  # to open it would wait forever
    os.symlink("nowhere", loras / "mira-2.safetensors")
    (loras / "mira-3.safetensors").mkdir()
    assert copy_into(source, loras).path.name == "mira-4.safetensors"
    assert os.readlink(loras / "mira-2.safetensors") == "nowhere"


def test_a_model_in_a_folder_is_copied_whole(tmp_path, loras):
    model = diffusers(tmp_path / "mira-v1.5")
    shares: list[float] = []
    copied = copy_into(model, loras, report=lambda share, text: shares.append(share))
    assert copied.new and copied.path == loras / "mira-v1.5" and shares[-1] == 1.0
    assert (copied.path / "unet" / "weights.bin").read_bytes() == b"x" * 2500 and names(copied.path) == names(model)
    if os.name != "nt":  # other users can read them, as the original
        modes = {path.stat().st_mode & 0o777 for path in (copied.path, *copied.path.rglob("*"))}
        assert modes == {0o777 & ~atomic.UMASK, 0o666 & ~atomic.UMASK}
    assert not copy_into(model, loras).new
    (copied.path / "unet" / "weights.bin").write_bytes(b"y" * 2500)
    assert copy_into(model, loras).path.name == "mira-v1.5-2" and len(names(loras)) == 2


# -- what is refused


def test_a_folder_that_is_not_there_is_refused_and_not_made(source, tmp_path):
    for folder in (tmp_path / "none", source / "loras"):
        with pytest.raises(ProblemsError) as error:
            copy_into(source, folder)
        assert told(error, folder) == "copy.missing-folder" and not folder.exists()


def test_a_file_in_place_of_the_folder_is_refused(source, tmp_path):
    (tmp_path / "loras.txt").write_text("mine")
    with pytest.raises(ProblemsError) as error:
        copy_into(source, tmp_path / "loras.txt")
    assert told(error, tmp_path / "loras.txt") == "copy.not-a-folder" and (tmp_path / "loras.txt").read_text() == "mine"


def test_a_folder_that_takes_no_files_is_refused_before_anything_is_read(source, loras, monkeypatch):
    def refuse(**_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    with pytest.raises(ProblemsError) as error:
        copy_into(source, loras)
    assert told(error, loras) == "file.unwritable" and "Permission denied" in str(error.value)
    assert names(loras) == []


def test_a_file_that_is_gone_is_told(source, loras):
    source.unlink()
    with pytest.raises(ProblemsError) as error:
        copy_into(source, loras)
    assert told(error, source) == "file.missing" and names(loras) == []


def test_a_disk_with_too_little_space_is_told_before_anything_is_written(source, loras, monkeypatch):
    monkeypatch.setattr(machine, "free_disk", lambda folder: RESERVE + 10_499)
    with pytest.raises(ProblemsError) as error:
        copy_into(source, loras)
    assert error.value.codes == ["disk.space"] and NAME in error.value.problems[0].what
    assert names(loras) == []
    monkeypatch.setattr(machine, "free_disk", lambda folder: RESERVE + 10_500)
    assert copy_into(source, loras).new


@pytest.mark.parametrize(
    ("number", "code"), [(errno.ENOSPC, "disk.full"), (errno.EFBIG, "copy.too-large"), (errno.EIO, "file.unwritable")]
)
def test_a_write_that_fails_on_the_way_leaves_nothing(source, loras, monkeypatch, number, code):
    calls = []

    def fail(path):
        calls.append(path)
        if len(calls) == 2:
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr(atomic, "sync_file", fail)
    with pytest.raises(ProblemsError) as error:
        copy_into(source, loras)
    assert told(error, loras) == code and names(loras) == []


@pytest.mark.skipif(sys.platform == "win32", reason="an open file keeps its folder there")
@pytest.mark.parametrize("share", [0.05, 0.99])
def test_a_folder_that_vanishes_meanwhile_is_told_and_not_made_anew(source, loras, share):
    def vanish(now, text):
        if now >= share:
            shutil.rmtree(loras, ignore_errors=True)

    with pytest.raises(ProblemsError) as error:
        copy_into(source, loras, report=vanish)
    assert told(error, loras) == "copy.folder-gone" and not loras.exists()


def test_a_file_that_changes_meanwhile_is_not_kept_half_old_half_new(source, loras):
    def change(share, text):
        source.write_bytes(source.read_bytes() + b"more") if share == 1.0 else None

    with pytest.raises(ProblemsError) as error:
        copy_into(source, loras, report=change)
    assert told(error, source) == "copy.changed" and names(loras) == []


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_a_cancel_leaves_nothing_half_written(source, loras, share):
    token = CancelToken()
    (loras / "other.safetensors").write_text("mine")
    if not share:
        token.cancel()
    with pytest.raises(Cancelled):
        copy_into(source, loras, token, lambda now, text: token.cancel() if now > share else None)
    assert names(loras) == ["other.safetensors"]


def test_while_it_is_written_no_program_takes_it_for_a_model(source, loras):
    seen: set[str] = set()
    copy_into(source, loras, report=lambda share, text: seen.update(names(loras)))
    assert len(seen) == 1 and not seen.pop().endswith((".safetensors", ".pt", ".ckpt", ".bin"))


def test_what_a_kill_left_is_taken_away_and_nothing_else(source, loras):
    for name in (".atelier-old.part", ".atelier-now.part", ".tmp-x.safetensors", "big.part"):
        (loras / name).write_text("half")
        os.utime(loras / name, (1, 1)) if name != ".atelier-now.part" else None
    copy_into(source, loras)
    assert names(loras) == [".atelier-now.part", ".tmp-x.safetensors", "big.part", NAME]


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_a_link_in_a_folder_leads_no_other_file_along(tmp_path, loras):
    model = diffusers(tmp_path / "model")
    (tmp_path / "secret").write_text("secret")
    os.symlink(tmp_path / "secret", model / "unet" / "extra.bin")
    with pytest.raises(ProblemsError) as error:
        copy_into(model, loras)
    assert told(error, model / "unet" / "extra.bin") == "copy.link" and names(loras) == []


def test_a_folder_is_not_copied_into_itself(tmp_path):
    model = diffusers(tmp_path / "model")
    for folder in (model, model / "unet"):
        with pytest.raises(ProblemsError) as error:
            copy_into(model, folder)
        assert told(error, folder) == "copy.into-itself"
    assert names(model) == ["model_index.json", "unet"]


# -- the last step


@pytest.mark.parametrize("links", [True, False], ids=["hard links", "a drive without hard links"])
def test_a_name_that_is_taken_in_the_last_moment_is_not_replaced(source, loras, monkeypatch, links):
    if not links:

        def refuse(*_):
            raise OSError(errno.EPERM, "Operation not permitted")

        monkeypatch.setattr(os, "link", refuse)

    def take(share, text):
        (loras / NAME).write_text("mine") if share == 1.0 else None

    copied = copy_into(source, loras, report=take)
    assert (loras / NAME).read_text() == "mine" and copied.path.name == "mira-2.safetensors"
    assert copied.path.read_bytes() == source.read_bytes() and names(loras) == ["mira-2.safetensors", NAME]
