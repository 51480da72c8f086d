"""A compiler's lock is waited for in plain words, and removed when its owner is gone."""

import os
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest

from core.record.cancel import Cancelled
from core.record.commands import NoCommands
from core.record.context import JobContext
from core.record.journal import Journal
from core.record.run_folder import RunFolder
from core.settings.sharding import ShardingSettings
from core.training.sharding import compile_lock
from core.training.sharding.compile_lock import extension_locks, is_stale, wait_for_compilers, wait_for_lock

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="DeepSpeed runs on Linux only")
HOLD = "import os, sys; os.chdir('/'); os.open(sys.argv[1], os.O_CREAT | os.O_EXCL); print('held', flush=True); sys.stdin.read()"
WORK = "import os, sys; os.chdir(os.path.dirname(sys.argv[1])); open(sys.argv[1], 'x').close(); print('held', flush=True); sys.stdin.read()"
DISK = ShardingSettings(
    deepspeed=True, zero_stage=3, offload_optimizer_device="nvme", offload_optimizer_nvme_path="/fast"
)


@pytest.fixture
def context(workspace):
    folder = RunFolder.create(workspace.runs, "t", {})
    with Journal(folder.path) as journal:
        context = JobContext(workspace, folder, journal, NoCommands(), "cpu", store=[])
        journal.listen(context.store.append)
        yield context


@pytest.fixture
def lock(tmp_path, monkeypatch):
    """Of cpu_adam, where torch looks for it."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "extensions"))
    monkeypatch.setattr(compile_lock, "_is_local", lambda path: True)
    monkeypatch.setattr(compile_lock, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(compile_lock, "SAY_SECONDS", 0.0)
    return next(each for each in extension_locks(DISK) if each.parent.name == "cpu_adam")


def said(context):
    return [(line["text"], line["fix"]) for line in context.store if line["kind"] == "log"]


def holder(lock, code=HOLD):
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    return process


@pytest.mark.parametrize("code", [HOLD, WORK], ids=["the owner", "its compiler"])
def test_a_lock_counts_until_its_owner_and_compiler_are_gone(lock, context, code):
    with holder(lock, code) as process:
        assert not is_stale(lock)
        process.kill()
    assert is_stale(lock)
    wait_for_compilers(DISK, context)
    assert not lock.exists()
    ((text, fix),) = said(context)
    assert str(lock) in text and not fix


def test_a_file_that_the_owner_closes_meanwhile_does_not_hide_the_lock(lock, monkeypatch):
    """/proc lists a file that is gone by the time it is looked at."""

    def scandir(path, real=os.scandir):
        return [SimpleNamespace(path=f"{path}/99999"), *real(path)] if str(path).endswith("/fd") else real(path)

    with holder(lock) as process:
        monkeypatch.setattr(compile_lock.os, "scandir", scandir)
        assert not is_stale(lock)
        process.kill()
    assert is_stale(lock)


def test_a_lock_in_use_is_waited_for_and_named(lock, context):
    with holder(lock) as process:
        end = threading.Timer(0.4, lambda: (lock.unlink(), process.kill()))
        end.start()
        wait_for_lock(lock, context)
        end.join()
    ((what, fix),) = said(context)
    assert str(lock) in what and "compiles cpu_adam" in what and "delete that file" in fix


def test_where_nothing_can_be_told_the_lock_stays_and_a_stop_is_heard(lock, context, monkeypatch):
    monkeypatch.setattr(compile_lock, "_is_local", lambda path: False)
    lock.write_text("")
    threading.Timer(0.3, context.token.cancel).start()
    with pytest.raises(Cancelled):
        wait_for_lock(lock, context)
    assert lock.exists() and "delete that file" in said(context)[0][1]


def test_what_deepspeed_compiles_follows_from_the_settings(lock):
    def names(**changes):
        return [each.parent.name for each in extension_locks(DISK.model_copy(update=changes))]

    assert names() == ["async_io", "cpu_adam"]
    assert names(offload_optimizer_device="cpu") == []
    assert names(offload_optimizer_device="cpu", offload_param_device="nvme") == ["async_io"]
    assert names(offload_optimizer_device="cpu", fp16_master_weights_and_gradients=True) == ["cpu_adam"]
