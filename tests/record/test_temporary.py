"""Temporary folders of killed processes."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from core.record import temporary
from core.record.temporary import LOCK, HeldFolder, remove_leftover_folders

ROOT = Path(__file__).parents[2]


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(temporary, "NEW_SECONDS", -1)
    return tmp_path


def test_the_folder_of_a_killed_process_goes_at_the_next_start_and_those_in_use_stay(place, tmp_path):
    code = (
        "import os, signal; from core.record.temporary import HeldFolder; HeldFolder('onnx'); os.kill(os.getpid(), 9)"
    )
    code = code.replace("HeldFolder('onnx')", "kept = HeldFolder('onnx'); (kept.path / 'images').write_bytes(b'x')")
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=os.environ | {"TMPDIR": str(tmp_path)}, check=False)
    [left] = place.glob("atelier-onnx-*")
    assert (left / "images").is_file()
    (place / "atelier-of-somebody").mkdir()  # without a lock: not one of these
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / LOCK).touch()
    (place / "atelier-link").symlink_to(tmp_path / "mine")
    held = HeldFolder("onnx")
    assert not left.exists() and held.path.is_dir()
    remove_leftover_folders()
    assert held.path.is_dir() and (tmp_path / "mine" / LOCK).exists() and (place / "atelier-of-somebody").is_dir()
    held.close()
    assert not held.path.exists()


def test_a_folder_whose_lock_is_new_stays(place, monkeypatch):
    monkeypatch.setattr(temporary, "NEW_SECONDS", 60)
    folder = place / "atelier-onnx-x"
    folder.mkdir()
    (folder / LOCK).touch()
    remove_leftover_folders()
    assert folder.is_dir()
