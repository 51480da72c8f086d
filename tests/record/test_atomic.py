"""Files written whole: through links, but never out of the open folders."""

import os
import tempfile

import pytest

from core.record import allowed, atomic


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
def test_a_link_stays_a_link_unless_it_leads_out_of_the_open_folders(tmp_path):
    inside, outside, link = tmp_path / "open" / "a", tmp_path / "b", tmp_path / "open" / "link"
    inside.parent.mkdir()
    for file in (inside, outside):
        file.write_text("old")
    link.symlink_to(inside)
    atomic.write_text(link, "new")
    assert link.is_symlink() and inside.read_text() == "new"
    allowed.keep_files_inside([tmp_path / "open"])
    try:
        link.unlink()
        link.symlink_to(outside)
        atomic.write_text(link, "new")
    finally:
        allowed.keep_files_inside(None)
    assert outside.read_text() == "old" and link.read_text() == "new" and not link.is_symlink()


@pytest.mark.skipif(os.name == "nt", reason="pipes of POSIX")
def test_a_pipe_is_never_replaced_by_a_file(tmp_path):
    pipe, link = tmp_path / "pipe", tmp_path / "link"
    os.mkfifo(pipe)
    link.symlink_to(pipe)
    with pytest.raises(OSError, match="pipe"):
        atomic.write_text(pipe, "new")
    atomic.write_text(link, "new")  # the link gives way, not what it leads to
    assert pipe.is_fifo() and link.read_text() == "new" and not link.is_symlink()


def test_a_folder_that_denies_writing_fails_at_once_on_windows(tmp_path, monkeypatch):
    tries = []

    class Windows:
        name = "nt"

        def __getattr__(self, name):
            return getattr(os, name)

        def open(self, *_):
            tries.append(1)
            raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tempfile, "_os", Windows())
    with pytest.raises(OSError):
        atomic.write_text(tmp_path / "a.txt", "new")
    assert len(tries) <= 1000 and not list(tmp_path.iterdir())


def test_a_new_file_that_a_virus_scanner_still_reads_is_written_once_it_is_done(tmp_path, monkeypatch):
    held = [2, 2]  # times that the file cannot be opened: to write it, to flush it

    def scanned(path, mode="r", *rest, opened=open):
        step = ("wb", "rb+").index(mode)
        held[step] -= 1
        if held[step] >= 0:
            raise PermissionError(13, "in use", str(path))
        return opened(path, mode, *rest)

    monkeypatch.setattr("core.record.regular.RETRY_SECONDS", 0)
    monkeypatch.setattr(atomic, "open", scanned, raising=False)
    monkeypatch.setattr(atomic.Path, "write_bytes", lambda path, data: scanned(path, "wb").write(data))
    atomic.write_text(tmp_path / "a", "x")
    assert (tmp_path / "a").read_text() == "x" and held == [-1, -1]


@pytest.mark.parametrize("name", ["a", "a/b/fox.png"])
def test_read_only_files_are_deleted_on_windows_too(tmp_path, monkeypatch, name):
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    (folder / "fox.png").touch()
    (folder / "fox.png").chmod(0o444)

    def unlink(path, *, dir_fd=None, real=os.unlink):
        if not os.stat(path, dir_fd=dir_fd).st_mode & 0o200:
            raise PermissionError(13, "Access is denied", path)
        real(path, dir_fd=dir_fd)

    monkeypatch.setattr(os, "unlink", unlink)
    monkeypatch.setattr(atomic, "WINDOWS", True)
    monkeypatch.setattr("core.record.regular.RETRY_SECONDS", 0)
    atomic.remove_any(tmp_path / name)
    assert not os.path.lexists(tmp_path / name)
