"""`.venv` made, found stale, replaced, and kept when its successor fails: real environments with invented packages."""

import errno
import os
import shutil
import subprocess
import sys
import threading
import time
from functools import cache
from types import SimpleNamespace

import pytest

from core.setup import environment, start
from core.setup.environment import SetupError, lock, sync, sync_tests
from core.setup.stamp import digest, is_current, python_of, read_stamp
from tests.setup.wheels import REQUIREMENTS, write_wheels

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="looks into bin/; Windows has Scripts")


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A project whose environment was made once; the tests work on copies of it."""
    folder = tmp_path_factory.mktemp("first") / "a project"
    folder.mkdir()
    (folder / "requirements.txt").write_text(REQUIREMENTS)
    (folder / "requirements-test.txt").write_text("check==1.0\n")
    write_wheels(folder.parent / "wheels")
    with pytest.MonkeyPatch.context() as patch:
        offline(patch, folder.parent / "wheels")
        sync(folder, probe=silent)
    return folder


def offline(patch, wheels):
    """pip finds only the invented wheels, and the build does not depend on this machine's GPU."""
    patch.setenv("PIP_NO_INDEX", "1")
    patch.setenv("PIP_FIND_LINKS", str(wheels))
    patch.setenv("PIP_CONFIG_FILE", "/dev/null")
    patch.setenv("ATELIER_BUILD", "cpu")


def silent(url):
    return False


@pytest.fixture(scope="module")
def empty(tmp_path_factory):
    """empty(): a new environment with nothing but pip. Making one takes seconds, so later ones are copies of it."""

    @cache
    def make():
        folder = tmp_path_factory.mktemp("empty") / ".venv-new"
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        return folder

    return make


@pytest.fixture
def project(first, empty, tmp_path, monkeypatch):
    offline(monkeypatch, first.parent / "wheels")
    monkeypatch.setattr(environment, "RENAME_TRIES", 2)
    real = environment.run_step

    def run_step(command, failed):
        if command[1:3] == ["-m", "venv"]:
            copy(empty(), command[-1])
        else:
            real(command, failed)

    monkeypatch.setattr(environment, "run_step", run_step)
    return copy(first, tmp_path / "a project")


def copy(source, target):
    """A copy that shares the installed files: pip replaces such files, it does not write into them."""

    def link(source, target, **more):
        (os.link if "site-packages" in str(source) else shutil.copy2)(source, target, **more)

    return shutil.copytree(source, target, symlinks=True, copy_function=link)


def ask(project, code):
    """What the project's own Python answers."""
    command = [python_of(str(project / ".venv")), "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def want(project, old, new):
    file = project / "requirements.txt"
    file.write_text(file.read_text().replace(old, new))


@pytest.mark.slow
def test_the_first_start_makes_an_environment_that_works_where_it_ends_up(first):
    assert ask(
        first, "import torch, paint, spandrel, sys; print(torch.__version__, paint.__version__, sys.prefix)"
    ) == (f"2.13.0 1.0 {first / '.venv'}")
    assert is_current(str(first))
    assert not (first / ".venv-new").exists() and not (first / ".venv-old").exists()
    pip = first / ".venv" / "bin" / "pip"  # a script: it was made as .venv-new/bin/pip
    assert subprocess.run([pip, "--version"], capture_output=True, text=True, check=True).stdout.startswith("pip ")
    activate = (first / ".venv" / "bin" / "activate").read_text()
    assert str(first / ".venv") in activate and ".venv-new" not in activate


def test_a_machine_without_a_card_gets_neither_xformers_nor_the_large_onnxruntime(first):
    names = ("xformers", "onnxruntime_gpu", "onnxruntime")
    found = ask(first, f"from importlib.util import find_spec; print(*[n for n in {names} if find_spec(n)])")
    assert found == "onnxruntime"
    assert read_stamp(str(first / ".venv"))["build"]["name"] in ("cpu", "apple")


@pytest.mark.slow
def test_an_environment_that_fits_is_left_alone_and_the_machine_is_not_looked_at(project, monkeypatch):
    monkeypatch.setattr(environment, "machine_facts", None)
    before = (project / ".venv" / "atelier.json").stat()
    sync(project, probe=silent)
    assert (project / ".venv" / "atelier.json").stat().st_mtime_ns == before.st_mtime_ns


@pytest.mark.slow
def test_line_endings_and_a_copied_folder_do_not_count_as_a_change(project):
    file = project / "requirements.txt"
    before = digest(str(file))
    file.write_bytes(file.read_bytes().replace(b"\n", b"\r\n"))
    assert digest(str(file)) == before and is_current(str(project))


@pytest.mark.slow
def test_changed_requirements_are_noticed_and_torch_and_xformers_move_as_a_pair(project, monkeypatch, capfd):
    monkeypatch.setenv("ATELIER_BUILD", "cu130")
    monkeypatch.setattr(environment, "machine_facts", lambda: environment.MachineFacts("Linux", "x86_64", glibc="2.36"))
    want(project, "torch==2.13.0", "torch==2.14.0")
    want(project, "xformers==0.0.35", "xformers==0.0.36")
    assert not is_current(str(project))
    sync(project, probe=lambda url: True)
    assert ask(project, "import torch, xformers; print(torch.__version__, xformers.__version__)") == "2.14.0 0.0.36"
    assert (
        "installing torch==2.14.0 and xformers==0.0.36 from https://download.pytorch.org/whl/cu130."
        in capfd.readouterr().err
    )
    assert is_current(str(project)) and not (project / ".venv-old").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [("paint==1.0", "paint==9.9", "did not finish"), ("torch==2.13.0", "torch==2.99.0", "does not start")],
)
def test_a_failed_update_leaves_the_old_environment_usable_and_is_said(project, capfd, old, new, sentence):
    want(project, old, new)
    with pytest.raises(SetupError, match=sentence):
        sync(project, probe=silent)
    assert ask(project, "import torch, paint; print(torch.__version__, paint.__version__)") == "2.13.0 1.0"
    assert read_stamp(str(project / ".venv")) is not None and read_stamp(str(project / ".venv-new")) is None


@pytest.mark.slow
def test_after_a_failed_update_the_start_goes_on_with_the_old_environment(project, monkeypatch, capsys):
    want(project, "paint==1.0", "paint==9.9")
    monkeypatch.setattr(environment, "create", fail)
    monkeypatch.setattr(environment, "index_responds", silent)
    assert start.set_up(str(project))
    assert "previous environment" in capsys.readouterr().err
    assert not start.set_up(str(project), force=True), "an update that was asked for must fail aloud"


def fail(*arguments):
    raise SetupError("no network")


def test_the_first_start_that_fails_does_not_start(project, monkeypatch, capsys):
    shutil.rmtree(project / ".venv")
    monkeypatch.setattr(environment, "create", fail)
    monkeypatch.setattr(environment, "index_responds", silent)
    assert not start.set_up(str(project))
    assert "no network" in capsys.readouterr().err


GPU = environment.Build("cu130", "CUDA 13.0", "https://example.org", "torch==2.13.0", None, "onnxruntime==1.31.1")


def test_a_disk_with_too_little_space_is_refused_before_anything_is_installed(tmp_path, monkeypatch):
    monkeypatch.setattr(environment.shutil, "disk_usage", lambda path: SimpleNamespace(free=3_100_000_000))
    monkeypatch.setattr(environment, "run_step", fail)
    new = tmp_path / ".venv-new"
    new.mkdir()
    with pytest.raises(SetupError, match=r"need about 8 GB in this folder, but 3\.1 GB are free.*ATELIER_BUILD=cpu"):
        environment.create(tmp_path, new, GPU)
    assert not new.exists(), "what an earlier start left"


def test_what_a_failed_installation_left_is_removed(tmp_path, monkeypatch, capsys):
    def run_step(command, failed):
        if "venv" not in command:
            raise SetupError(failed)
        (tmp_path / ".venv-new").mkdir()
        (tmp_path / ".venv-new" / "large").write_bytes(b"x")

    monkeypatch.setattr(environment.shutil, "disk_usage", lambda path: SimpleNamespace(free=30_000_000_000))
    monkeypatch.setattr(environment, "run_step", run_step)
    (tmp_path / "requirements.txt").write_text("torch==2.13.0\n")
    with pytest.raises(SetupError, match="did not finish"):
        environment.create(tmp_path, tmp_path / ".venv-new", GPU)
    assert not (tmp_path / ".venv-new").exists() and "unfinished environment was removed" in capsys.readouterr().err


def test_an_unfinished_environment_is_not_taken_for_a_whole_one(project):
    (project / ".venv" / "atelier.json").unlink()
    assert not is_current(str(project)) and read_stamp(str(project / ".venv")) is None


@pytest.mark.slow
def test_one_that_is_in_use_stays_and_its_successor_waits_ready(project, monkeypatch):
    want(project, "paint==1.0", "paint==2.0")
    real = environment.rename
    monkeypatch.setattr(environment, "rename", lambda source, target: source.name != ".venv" and real(source, target))
    with pytest.raises(SetupError, match="is in use"):
        sync(project, probe=silent)
    assert ask(project, "import paint; print(paint.__version__)") == "1.0"
    monkeypatch.setattr(environment, "rename", real)
    monkeypatch.setattr(environment, "create", fail)  # it must not be built a second time
    sync(project, probe=silent)
    assert ask(project, "import paint; print(paint.__version__)") == "2.0"


def test_a_successor_that_cannot_be_put_in_place_gives_the_place_back(project, monkeypatch):
    real = environment.rename
    monkeypatch.setattr(
        environment, "rename", lambda source, target: source.name != ".venv-new" and real(source, target)
    )
    with pytest.raises(SetupError, match="could not be put in place"):
        environment.swap(project)
    assert ask(project, "import paint; print(paint.__version__)") == "1.0"


def test_a_stop_between_the_two_renames_is_mended_at_the_next_start(project):
    (project / ".venv").rename(project / ".venv-old")
    sync(project, probe=silent)
    assert is_current(str(project)) and not (project / ".venv-old").exists()


def test_models_presets_and_outputs_are_not_touched_by_an_update(project, monkeypatch):
    mine = [
        project / "models" / "a.safetensors",
        project / "presets" / "user" / "p.json",
        project / "outputs" / "runs" / "r",
    ]
    for file in mine:
        file.parent.mkdir(parents=True)
        file.write_text("mine")
    shutil.copytree(project / ".venv", project / ".venv-new", symlinks=True)
    environment.swap(project)
    assert [file.read_text() for file in mine] == ["mine"] * 3


@pytest.mark.slow
def test_what_the_tests_need_is_added_once(project, monkeypatch):
    sync_tests(project)
    assert ask(project, "import check; print(check.__version__)") == "1.0"
    assert is_current(str(project)), "the tests' packages do not make the environment stale"
    monkeypatch.setattr(environment, "pip", fail)
    sync_tests(project)
    (project / "requirements-test.txt").write_text("check==1.0\npaint==1.0\n")
    with pytest.raises(SetupError):
        sync_tests(project)


def test_an_update_that_finds_nothing_new_says_so_and_builds_nothing(project, monkeypatch, capsys):
    monkeypatch.setattr(environment, "create", fail)
    sync(project, force=True, probe=silent)
    assert "up to date" in capsys.readouterr().err


def test_a_silent_index_is_said_aloud_and_the_default_one_taken(project, monkeypatch, capsys):
    monkeypatch.setattr(environment, "machine_facts", lambda: environment.MachineFacts("Linux", "x86_64", glibc="2.36"))
    made = []
    monkeypatch.setattr(environment, "create", lambda root, target, build: made.append(build) or fail())
    want(project, "paint==1.0", "paint==2.0")
    with pytest.raises(SetupError):
        sync(project, probe=silent)
    assert made[0].index_url is None
    assert "https://download.pytorch.org/whl/cpu does not respond: installing PyTorch from pip's default" in (
        capsys.readouterr().err
    )


def test_variables_that_lead_pip_elsewhere_do_not_reach_it(monkeypatch):
    names = ("PYTHONPATH", "PIP_TARGET", "PIP_PREFIX", "PIP_ROOT", "PIP_DRY_RUN")
    for name in names:
        monkeypatch.setenv(name, "/elsewhere")
    code = f"import os, sys; sys.exit(bool(set(os.environ) & set({names})))"
    environment.run_step([sys.executable, "-c", code], "reached")


def test_an_unsupported_machine_is_told_before_anything_is_made(project, monkeypatch):
    monkeypatch.delenv("ATELIER_BUILD")
    monkeypatch.setattr(
        environment, "machine_facts", lambda: environment.MachineFacts("Darwin", "x86_64", macos="15.0")
    )
    with pytest.raises(SetupError, match="Intel"):
        sync(project, force=True, probe=silent)
    assert not (project / ".venv-new").exists()


@pytest.mark.parametrize(
    ("variable", "value", "sentence"),
    [("ATELIER_BUILD", "cuda", "use one of cu130, cu126, rocm7.2, cpu")],
)
def test_a_build_that_does_not_exist_is_refused_with_the_choices(project, monkeypatch, variable, value, sentence):
    monkeypatch.setenv(variable, value)
    with pytest.raises(SetupError, match=sentence):
        sync(project, probe=silent)


def test_requirements_without_a_pin_for_torch_are_named(project):
    want(project, "torch==2.13.0", "torch")
    with pytest.raises(SetupError, match="pins torch"):
        sync(project, probe=silent)


def test_a_second_launcher_waits_for_the_first(tmp_path, capsys):
    order = []

    def second():
        with lock(tmp_path):
            order.append("second")

    with lock(tmp_path):
        waiting = threading.Thread(target=second)
        waiting.start()
        said, end = "", time.monotonic() + 60
        while "waiting for it" not in said and time.monotonic() < end:
            time.sleep(0.02)
            said += capsys.readouterr().err
        order.append("first")
    waiting.join(60)
    assert order == ["first", "second"]
    assert "waiting for it" in said


def test_a_drive_without_locks_keeps_nobody_waiting(tmp_path, monkeypatch):
    def no_locks(descriptor, operation):
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", no_locks)
    with lock(tmp_path):
        pass


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path):
    with pytest.raises(SetupError, match="cannot be written to"), lock(tmp_path / "missing"):
        pass
