"""Hashes of models, and the memo that saves reading them twice."""

import hashlib
import os
from types import SimpleNamespace

import pytest

from core.formats.hashes import HashMemo, _refuse_sparse, file_sha256, legacy_hash, model_hashes
from core.record.cancel import Cancelled, CancelToken
from core.record.problems import ProblemsError
from core.record.workspace import display_path
from tests.refusals import refused


def test_the_old_hash_reads_64_kib_at_1_mib(tmp_path):
    path = tmp_path / "model.ckpt"
    content = os.urandom(0x120000)
    path.write_bytes(content)
    assert legacy_hash(path) == hashlib.sha256(content[0x100000:0x110000]).hexdigest()[:8]
    path.write_bytes(b"small")
    assert legacy_hash(path) == "e3b0c442", "of a file under 1 MiB it is the hash of nothing"


def test_the_new_hash_is_sha256_of_the_file(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(os.urandom(5_000_000))
    assert file_sha256(path) == hashlib.sha256(path.read_bytes()).hexdigest()
    assert file_sha256(path, start=8) == hashlib.sha256(path.read_bytes()[8:]).hexdigest()


def test_hashing_can_be_cancelled(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"x")
    token = CancelToken()
    token.cancel()
    with pytest.raises(Cancelled):
        file_sha256(path, token)


def test_folders_and_missing_files_have_sd_scripts_words(tmp_path):
    assert model_hashes(tmp_path) == ("IsADirectory", "IsADirectory")
    assert model_hashes(tmp_path / "none") == ("NOFILE", "NOFILE")


def test_the_memo_remembers_until_the_file_changes_also_across_starts(tmp_path):
    path, memo_path, asked = tmp_path / "x", tmp_path / "memo.json", []
    path.write_bytes(b"one")

    def compute():
        asked.append(1)
        return file_sha256(path)

    first = HashMemo(memo_path).get("sha256", [path], compute)
    assert HashMemo(memo_path).get("sha256", [path], compute) == first and len(asked) == 1
    path.write_bytes(b"other")
    changed = HashMemo(memo_path).get("sha256", [path], compute)
    assert changed == hashlib.sha256(b"other").hexdigest() and len(asked) == 2
    assert HashMemo(memo_path).get("another purpose", [path], lambda: "y") == "y"


def test_a_damaged_memo_is_only_forgotten(tmp_path):
    (tmp_path / "memo.json").write_text("{ broken")
    path = tmp_path / "x"
    path.write_bytes(b"one")
    assert HashMemo(tmp_path / "memo.json").get("p", [path], lambda: "value") == "value"


@pytest.mark.parametrize(("claimed", "fits"), [(20 * 512_000, True), (20 * 512_000 + 1, False), (1 << 22, True)])
def test_a_file_may_claim_20_times_what_it_takes_and_small_ones_more(claimed, fits):
    """A file system may compress."""
    on_disk = SimpleNamespace(st_size=claimed, st_blocks=1000 if claimed > 1 << 22 else 1)
    if fits:
        _refuse_sparse("a.safetensors", on_disk)
        return
    with refused("file.incomplete"):
        _refuse_sparse("a.safetensors", on_disk)


@pytest.mark.skipif(os.name == "nt", reason="Windows' C runtime fills a file that is made longer with zeros")
def test_a_file_of_holes_is_refused_before_terabytes_of_nothing_are_read(tmp_path):
    hollow, small = tmp_path / "hollow.safetensors", tmp_path / "small.safetensors"
    for path, size in ((hollow, 1 << 40), (small, 1 << 20)):
        with open(path, "wb") as handle:
            handle.write(b"x" * 5000)
            handle.truncate(size)
    if not 0 < hollow.stat().st_blocks * 512 < 1 << 20:
        pytest.skip("this file system keeps no holes, or does not tell")
    with pytest.raises(ProblemsError) as caught:
        file_sha256(hollow)
    assert caught.value.codes == ["file.incomplete"] and caught.value.problems[0].where == display_path(hollow)
    assert "1,099.5 GB" in caught.value.problems[0].what
    assert len(file_sha256(small)) == 64
