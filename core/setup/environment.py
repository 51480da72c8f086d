"""Create and update `.venv`: a new one is built as `.venv-new`, tested, and then swapped in. `update` first updates the code by Git."""

from __future__ import annotations

import errno
import http.client
import os
import shutil
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from core.setup.choose import (
    TITLES,
    TORCH_INDEX,
    Build,
    MachineFacts,
    adapted_requirements,
    choose_build,
    on_default_index,
    packages_alone,
    pins_from,
)
from core.setup.facts import machine_facts
from core.setup.stamp import SCHEMA, digest, is_current, python_of, python_version, read_stamp, write_stamp

# Errors of drives without locks (some network mounts, Google Drive in Colab), as in core/record/lock.py.
NO_LOCKS = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOLCK}
INDEX_SECONDS = 6.0  # an index that has not responded by then is skipped
RENAME_TRIES, RENAME_PAUSE = 20, 0.05  # a virus scanner on Windows holds new files for a moment

# torch is the one package whose wheel can install but not run (a missing system library, an old driver).
TRY_OUT = """
import torch
cuda = torch.cuda.is_available()
device = torch.cuda.get_device_name(0) if cuda else "Apple GPU" if torch.backends.mps.is_available() else "CPU"
print(f"PyTorch {torch.__version__} works here on: {device}")
"""


class SetupError(Exception):
    """Setup cannot continue; the message is shown to the user."""


def say(message: str) -> None:
    """Print a message of the launcher to stderr: stdout belongs to the command being run."""
    print(f"Atelier: {message}", file=sys.stderr, flush=True)


def sync(root: Path, *, force: bool = False, probe: Callable[[str], bool] | None = None) -> None:
    """Make `.venv` match requirements.txt and this machine.

    force    check the machine even if `.venv` matches requirements.txt
    probe    (index url) -> whether it responds; replaced in tests
    raises   SetupError, with the old environment still in place
    """
    with lock(root):
        recover(root)
        if not force and is_current(str(root)):
            return
        facts = machine_facts()
        build = build_for(root, facts, probe or index_responds)
        stamp = stamp_for(root, build)
        new, current = root / ".venv-new", root / ".venv"
        if matches(read_stamp(str(current)), stamp):
            say("everything is up to date.")
            return
        for note in build.notes:
            say(note)
        # One that waits is put in place: it was ready, but the old one was in use.
        if not matches(read_stamp(str(new)), stamp):
            create(root, new, build)
            write_stamp(str(new), stamp)
        swap(root)


def build_for(root: Path, facts: MachineFacts, probe: Callable[[str], bool]) -> Build:
    """Return the build for this machine, from pip's default index if PyTorch's does not respond. Raises SetupError if none fits.
    probe: (index url) -> whether it responds"""
    requested = os.environ.get("ATELIER_BUILD") or None
    if requested and requested not in TITLES:
        raise SetupError(f"ATELIER_BUILD is '{requested}': use one of {', '.join(TITLES)}, or unset it.")
    index = os.environ.get("ATELIER_TORCH_INDEX") or TORCH_INDEX
    try:
        pins = pins_from((root / "requirements.txt").read_text(encoding="utf-8"))
    except KeyError as error:
        raise SetupError(f"requirements.txt has no line that pins {error.args[0]} (name==version).") from error
    build = choose_build(facts, pins, requested, index.rstrip("/") + "/")
    if build.problem:
        raise SetupError(build.problem)
    if build.index_url and not probe(build.index_url):
        say(f"{build.index_url} does not respond: installing PyTorch from pip's default index instead.")
        build = on_default_index(build, facts, pins)
    return build


def stamp_for(root: Path, build: Build) -> dict:
    """Return the stamp of an environment that is made now from this build: {"schema", "python": version, "requirements": digest of
    requirements.txt, "build": {"name", "index_url", "torch", "xformers", "onnxruntime"}}."""
    chosen = {key: getattr(build, key) for key in ("name", "index_url", "torch", "xformers", "onnxruntime")}
    return {
        "schema": SCHEMA,
        "python": python_version(),
        "requirements": digest(str(root / "requirements.txt")),
        "build": chosen,
    }


def matches(recorded: dict | None, wanted: dict) -> bool:
    """Return whether `recorded`, an environment's stamp, has every value of `wanted`. Further values (test packages) are ignored."""
    return recorded is not None and all(recorded.get(key) == value for key, value in wanted.items())


def index_responds(url: str) -> bool:
    """Return whether a wheel index responds for torch within INDEX_SECONDS. Runs in a thread, as a name lookup has no timeout."""
    answers: list[bool] = []

    def request() -> None:
        """Request torch's page of the index, and append whether that succeeded to `answers`."""
        try:
            with urllib.request.urlopen(f"{url}/torch/", timeout=INDEX_SECONDS):
                answers.append(True)
        except urllib.error.URLError as error:
            # A server responds, but this Python has no certificates (macOS, company proxies): pip brings its own.
            answers.append(isinstance(error.reason, ssl.SSLError))
        except (OSError, ValueError, http.client.HTTPException):
            answers.append(False)

    thread = threading.Thread(target=request, daemon=True)
    thread.start()
    thread.join(INDEX_SECONDS)
    return bool(answers and answers[0])


GIGABYTES = {"cpu": 2, "apple": 2, "rocm7.2": 16}  # of an environment, as in docs/install.md; CUDA: 8


def create(root: Path, target: Path, build: Build) -> None:
    """Create an environment in `target`, and remove what was written if that fails. Raises SetupError, also for too little disk space."""
    remove(target)
    needed, free = GIGABYTES.get(build.name, 8), shutil.disk_usage(root).free / 1e9
    if free < needed:
        less = "" if needed <= GIGABYTES["cpu"] else " ATELIER_BUILD=cpu needs 2 GB, but does not use the GPU."
        raise SetupError(
            f"PyTorch for {build.title} and the other packages need about {needed} GB in this folder, but {free:.1f} GB are free: "
            f"free some space or move this folder to another disk, then start again.{less}"
        )
    try:
        fill(root, target, build)
    except BaseException:
        shutil.rmtree(target, ignore_errors=True)
        say("the unfinished environment was removed.")
        raise


def fill(root: Path, target: Path, build: Build) -> None:
    """Create an environment in `target`, install torch and xformers, then the other packages, and import torch. Raises SetupError."""
    say(f"creating an environment with Python {python_version()} and PyTorch for {build.title}.")
    run_step([sys.executable, "-m", "venv", "--prompt", ".venv", str(target)], VENV_FAILED)
    text = (root / "requirements.txt").read_text(encoding="utf-8")
    requirements = target / "requirements.txt"
    requirements.write_text(adapted_requirements(text, build), encoding="utf-8")
    if build.index_url:
        packages = [line for line in (build.torch, build.xformers) if line]
        say(f"installing {' and '.join(packages)} from {build.index_url}.")
        pip(target, ["install", "--index-url", build.index_url, *packages])
    say("installing the packages in requirements.txt.")
    pip(target, ["install", "-r", str(requirements)])
    pip(target, ["install", "--no-deps", *packages_alone(text)])
    run_step([python_of(str(target)), "-c", TRY_OUT], TORCH_FAILED)


VENV_FAILED = "this Python could not create an environment. On Debian and Ubuntu: sudo apt install python3-venv. Then start again."
PIP_FAILED = "the installation did not finish (see above): check the network and the free disk space, then start again."
TORCH_FAILED = (
    "PyTorch was installed but does not start (see above). If there is no module named torch, pip installs into another folder: "
    "remove target, prefix, root and dry-run from its configuration (pip config list), then start again."
)
if os.name == "nt":
    PIP_FAILED += (
        " If a file with a very long name could not be written, move this folder to a shorter path (C:\\Atelier)."
    )
    TORCH_FAILED += " If a DLL is missing, install Microsoft's Visual C++ Redistributable (x64), then start again."


def pip(environment: Path, arguments: list[str]) -> None:
    """Run the pip of an environment. Raises SetupError."""
    run_step(
        [python_of(str(environment)), "-m", "pip", "--disable-pip-version-check", "--no-input", *arguments], PIP_FAILED
    )


# Variables with which pip would install elsewhere or nothing, or a Python would import packages from elsewhere.
ELSEWHERE = ("PYTHONPATH", "PYTHONHOME", "PIP_TARGET", "PIP_PREFIX", "PIP_ROOT", "PIP_PYTHON", "PIP_DRY_RUN")


def run_step(command: list[str], message: str) -> None:
    """Run a command of the installation with its output on stderr. Raises SetupError with `message` if it fails."""
    environment = {key: value for key, value in os.environ.items() if key not in ELSEWHERE}
    quiet = {"PIP_USER": "0", "PIP_REQUIRE_VIRTUALENV": "0", "PYTHONUTF8": "1"}
    try:
        code = subprocess.run(command, env=environment | quiet, stdout=sys.stderr, check=False).returncode
    except OSError as error:
        raise SetupError(f"{message} ({error})") from error
    if code:
        raise SetupError(message)


def swap(root: Path) -> None:
    """Replace `.venv` by `.venv-new` and delete the old one. Raises SetupError and keeps the old one if a folder is in use."""
    new, current, old = root / ".venv-new", root / ".venv", root / ".venv-old"
    remove(old)
    if current.exists() and not rename(current, old):
        raise SetupError(
            "the old environment is in use, so it was not replaced: close the running Atelier and start again. "
            "The new one is ready and will be used then."
        )
    if not rename(new, current):
        if old.exists():
            rename(old, current)
        raise SetupError(
            "the new environment could not be put in place: close programs that use this folder and start again."
        )
    point_scripts_to(current, str(new))
    shutil.rmtree(old, ignore_errors=True)


def recover(root: Path) -> None:
    """Restore `.venv` from `.venv-old` after a swap that was interrupted between its two renames."""
    current, old = root / ".venv", root / ".venv-old"
    if old.exists() and not current.exists():
        rename(old, current)


def rename(source: Path, target: Path) -> bool:
    """Rename a folder, retrying for about a second. Returns whether that succeeded."""
    for _ in range(RENAME_TRIES):
        try:
            source.rename(target)
            return True
        except OSError:
            time.sleep(RENAME_PAUSE)
    return False


def remove(folder: Path) -> None:
    """Delete a folder, a link or a file if it exists. Raises SetupError if it cannot be removed."""
    if folder.is_symlink() or folder.is_file():
        folder.unlink()
    shutil.rmtree(folder, ignore_errors=True)
    if folder.exists():
        raise SetupError(f"{folder.name} could not be removed: close programs that use it and start again.")


def point_scripts_to(environment: Path, old_path: str) -> None:
    """Replace the path `old_path`, where an environment was created, in its scripts. Windows' .exe scripts are left, as none is used."""
    for script in (environment / ("Scripts" if os.name == "nt" else "bin")).iterdir():
        if script.is_symlink() or not script.is_file() or script.stat().st_size > 100_000:
            continue
        before = script.read_bytes()
        after = before.replace(old_path.encode(), str(environment).encode())
        if after != before and b"\0" not in before:
            script.write_bytes(after)


def sync_tests(root: Path) -> None:
    """Install the packages of requirements-test.txt into `.venv`, unless these are installed. Raises SetupError."""
    environment, requirements = root / ".venv", root / "requirements-test.txt"
    stamp = read_stamp(str(environment)) or {}
    if stamp.get("tests") == digest(str(requirements)):
        return
    say("installing the packages in requirements-test.txt.")
    pip(environment, ["install", "-r", str(requirements)])
    write_stamp(str(environment), stamp | {"tests": digest(str(requirements))})


def sync_deepspeed(root: Path) -> None:
    """Install DeepSpeed into `.venv` on Linux, unless it is installed. Raises SetupError.

    Its operators are not built here: DeepSpeed compiles each at its first use.
    """
    environment, requirements = root / ".venv", root / "requirements-deepspeed.txt"
    stamp = read_stamp(str(environment)) or {}
    if sys.platform != "linux" or not requirements.exists() or stamp.get("deepspeed") == digest(str(requirements)):
        return
    say("installing the packages in requirements-deepspeed.txt.")
    os.environ["DS_BUILD_OPS"] = "0"
    wheel = next(line for line in requirements.read_text(encoding="utf-8").splitlines() if line.startswith("wheel=="))
    pip(environment, ["install", wheel])
    pip(environment, ["install", "--no-build-isolation", "-r", str(requirements)])
    write_stamp(str(environment), (read_stamp(str(environment)) or {}) | {"deepspeed": digest(str(requirements))})


@contextmanager
def lock(root: Path) -> Iterator[None]:
    """Context that holds the lock on the environment; while another launcher holds it, print a message and wait. Raises SetupError."""
    try:
        handle = open(root / ".venv.lock", "a+b")
    except OSError as error:
        raise SetupError(
            f"this folder cannot be written to ({error.strerror}): {root}. Move Atelier to a folder you can write to."
        ) from error
    with handle:
        if not try_lock(handle.fileno()):
            say("another start is installing: waiting for it to finish.")
            while not try_lock(handle.fileno()):
                time.sleep(0.5)
        yield  # closing the file gives the lock back, also after a crash


def try_lock(descriptor: int) -> bool:
    """Try to lock an open file, without waiting; return False while another process holds it. True on a drive without file locks."""
    try:
        if sys.platform == "win32":
            import msvcrt

            os.lseek(descriptor, 0, os.SEEK_SET)
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno in NO_LOCKS
    return True


# -- ./launch.sh update

GIT_MISSING = "this copy is updated by Git, which was not found: install it and start the update again. Now checking the environment."
WITHOUT_GIT = (
    "this copy is not a Git checkout, so update it by hand: unpack the new zip into a new folder, move your models, "
    "outputs and presets/user there, and start it. Now checking the environment of this copy."
)


def update(root: Path) -> int:
    """Update the code with Git, then the environment; return the exit code. If either fails, both stay as they were.

    Models, presets/user and outputs are not touched.
    """
    before = None
    if has_git(root):
        before = git(root, "rev-parse", "HEAD").stdout.strip()
        pulled = git(root, "pull", "--ff-only", show=True)
        if pulled.returncode:
            say("the update failed (see above) and nothing was changed: fix what Git reports and try again.")
            return 1
    else:
        say(GIT_MISSING if (root / ".git").exists() else WITHOUT_GIT)
    # A new process, because the launcher itself may have been replaced.
    code = subprocess.run([sys.executable, str(root / "core" / "setup" / "launch.py"), "sync"], check=False).returncode
    if code and before:
        # --keep moves the code back and fails rather than lose uncommitted changes.
        if git(root, "reset", "--keep", before).returncode == 0:
            say("the update failed, so the previous version of the code was restored.")
    elif before and git(root, "rev-parse", "HEAD").stdout.strip() != before:
        say("updated. If Atelier is running, start it again: a running page would mix both versions.")
    return code


def has_git(root: Path) -> bool:
    """Return whether `root` is a Git checkout and git is installed."""
    return (root / ".git").exists() and shutil.which("git") is not None


def git(root: Path, *arguments: str, show: bool = False) -> subprocess.CompletedProcess:
    """Run git in `root`. `show`: print its output to stderr instead of capturing it."""
    output = {"stdout": sys.stderr} if show else {"capture_output": True}
    return subprocess.run(["git", "-C", str(root), *arguments], text=True, check=False, **output)  # type: ignore[call-overload]
