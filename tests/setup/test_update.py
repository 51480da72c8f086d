"""`launch.sh update` on real Git repositories: the code moves forward as a whole, or stays."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from core.setup.environment import update

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="Git is not installed")

# Writes into the copy whose launcher it is, wherever it was called from.
SYNC = (
    "import sys, pathlib\n(pathlib.Path(__file__).parents[2] / 'synced').write_text(' '.join(sys.argv[1:]))\n"
    "sys.exit({code})\n"
)


def git(folder, *arguments):
    named = ["-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "init.defaultBranch=main"]
    run = subprocess.run(["git", "-C", folder, *named, *arguments], capture_output=True, text=True, check=True)
    return run.stdout.strip()


def publish(origin, text, sync_code=0):
    """One more commit in the origin. Its launcher answers `sync` with this code: its environment works, or does not."""
    (origin / "core" / "setup").mkdir(parents=True, exist_ok=True)
    (origin / "core" / "setup" / "launch.py").write_text(SYNC.format(code=sync_code))
    (origin / "page.txt").write_text(text)
    (origin / ".gitignore").write_text("/models/*\n/presets/user/\n/outputs/\nsynced\n")
    git(origin, "add", "-A")
    git(origin, "commit", "-qm", text)
    return git(origin, "rev-parse", "HEAD")


@pytest.fixture
def copies(tmp_path, monkeypatch):
    """(origin, a clone of it in which someone works)"""
    origin, mine = tmp_path / "origin", tmp_path / "my copy"
    origin.mkdir()
    git(origin, "init", "-q")
    publish(origin, "old")
    git(tmp_path, "clone", "-q", str(origin), str(mine))
    for file in ("models/a.safetensors", "presets/user/p.json", "outputs/runs/r"):
        (mine / file).parent.mkdir(parents=True, exist_ok=True)
        (mine / file).write_text("mine")
    monkeypatch.chdir(mine)
    return origin, mine


def mine_is_whole(mine):
    return all(
        (mine / file).read_text() == "mine"
        for file in ("models/a.safetensors", "presets/user/p.json", "outputs/runs/r")
    )


def test_an_update_brings_the_new_code_and_then_its_environment(copies, capfd):
    origin, mine = copies
    assert update(mine) == 0 and "start it again" not in capfd.readouterr().err  # there was nothing new
    new = publish(origin, "new")
    assert update(mine) == 0 and "start it again" in capfd.readouterr().err
    assert git(mine, "rev-parse", "HEAD") == new and (mine / "page.txt").read_text() == "new"
    assert (mine / "synced").read_text() == "sync", "the new launcher makes the environment, not the old one"
    assert mine_is_whole(mine)


def test_when_the_new_environment_fails_the_old_code_comes_back(copies, capfd):
    origin, mine = copies
    old = git(mine, "rev-parse", "HEAD")
    publish(origin, "new", sync_code=1)
    (mine / "notes.txt").write_text("not committed")
    assert update(mine) == 1
    assert git(mine, "rev-parse", "HEAD") == old and (mine / "page.txt").read_text() == "old"
    assert (mine / "notes.txt").read_text() == "not committed" and mine_is_whole(mine)
    assert "previous version of the code was restored" in capfd.readouterr().err


def test_a_copy_with_its_own_commits_is_not_merged_but_left(copies, capfd):
    origin, mine = copies
    publish(origin, "new")
    (mine / "page.txt").write_text("changed here")
    git(mine, "commit", "-qam", "mine")
    assert update(mine) == 1
    assert (mine / "page.txt").read_text() == "changed here" and not (mine / "synced").exists()
    assert "nothing was changed" in capfd.readouterr().err


def test_changes_that_are_not_committed_are_never_overwritten(copies):
    origin, mine = copies
    publish(origin, "new")
    (mine / "page.txt").write_text("changed here")
    assert update(mine) == 1
    assert (mine / "page.txt").read_text() == "changed here"


def test_without_git_it_tells_how_and_still_checks_the_environment(copies, capfd):
    _, mine = copies
    shutil.rmtree(mine / ".git")
    assert update(mine) == 0
    said = capfd.readouterr().err
    assert "zip" in said and "models" in said and "presets/user" in said
    assert (mine / "synced").read_text() == "sync"


def test_a_checkout_without_git_is_told_to_install_it(copies, capfd, monkeypatch):
    monkeypatch.setattr("core.setup.environment.shutil.which", lambda name: None)
    assert update(copies[1]) == 0
    said = capfd.readouterr().err
    assert "install it" in said and "zip" not in said


def test_the_launcher_calls_it(copies):
    origin, mine = copies
    publish(origin, "new")
    code = "import sys; from core.setup.start import run; sys.exit(run(sys.argv[1], ['update']))"
    assert subprocess.run([sys.executable, "-c", code, mine], cwd=ROOT, check=False).returncode == 0
    assert (mine / "page.txt").read_text() == "new" and (mine / "synced").read_text() == "sync"
