"""`launch.sh update`: updates the code with Git, then the environment. If either fails, both stay as they were."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from core.setup.environment import say

WITHOUT_GIT = (
    "this copy is not a Git checkout, so update it by hand: unpack the new zip into a new folder, move your models, "
    "outputs and presets/user there, and start it. Now checking the environment of this copy."
)


def update(root: Path) -> int:
    """0 on success, else the exit code; models, presets/user and outputs are never touched."""
    before = None
    if has_git(root):
        before = git(root, "rev-parse", "HEAD").stdout.strip()
        pulled = git(root, "pull", "--ff-only", show=True)
        if pulled.returncode:
            say("the update failed (see above) and nothing was changed: fix what Git reports and try again.")
            return 1
    else:
        say(WITHOUT_GIT)
    # A new process, because the launcher itself may have been replaced.
    code = subprocess.run([sys.executable, str(root / "core" / "setup" / "launch.py"), "sync"], check=False).returncode
    if code and before:
        # --keep moves the code back and fails rather than lose uncommitted changes.
        if git(root, "reset", "--keep", before).returncode == 0:
            say("the update failed, so the previous version of the code was restored.")
    return code


def has_git(root: Path) -> bool:
    return (root / ".git").exists() and shutil.which("git") is not None


def git(root: Path, *arguments: str, show: bool = False) -> subprocess.CompletedProcess:
    output = {"stdout": sys.stderr} if show else {"capture_output": True}
    return subprocess.run(["git", "-C", str(root), *arguments], text=True, check=False, **output)  # type: ignore[call-overload]
