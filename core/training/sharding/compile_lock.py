"""Waits for the lock file that torch holds while it compiles an extension, and removes one that a killed process left behind: it would
silently block all later processes."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
from filelock import FileLock

if TYPE_CHECKING:
    from core.record.context import JobContext
    from core.settings.sharding import ShardingSettings

LOOK_SECONDS = 0.5
SAY_SECONDS = 5.0  # another process of this run may be compiling
LOCAL_DISKS = {"ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "zfs", "bcachefs", "tmpfs", "overlay"}
# Errors of a process that has ended, or of another user, who cannot own this lock.
GONE = (FileNotFoundError, ProcessLookupError, PermissionError)
FIRST_NAMESPACE = 0xEFFFFFFC  # the number of Linux's first process namespace (include/linux/proc_ns.h)


def wait_for_compilers(settings: ShardingSettings, context: JobContext) -> None:
    """Wait until no other process compiles DeepSpeed's extensions. A lock file left behind by a killed process is removed."""
    for lock in extension_locks(settings):
        if not lock.with_name(f"{lock.parent.name}.so").exists():
            context.stage(f"compiling {lock.parent.name} for DeepSpeed, which takes a minute or two once")
        wait_for_lock(lock, context)


def extension_locks(settings: ShardingSettings) -> list[Path]:
    """Return the paths of the lock files of the extensions that DeepSpeed compiles for these settings; they need not exist."""
    from torch.utils.cpp_extension import _get_build_directory

    on_disk = "nvme" in (settings.offload_optimizer_device, settings.offload_param_device)
    names = ["async_io"] if on_disk else []
    if settings.offload_optimizer_device == "nvme" or settings.fp16_master_weights_and_gradients:
        names.append("cpu_adam")
    return [Path(_get_build_directory(name, verbose=False)) / "lock" for name in names]


def wait_for_lock(lock: Path, context: JobContext) -> None:
    """Wait until the lock file is gone, with a warning after SAY_SECONDS; remove a lock that a killed compiler left behind. Raises
    Cancelled."""
    began, reported = time.monotonic(), False
    while lock.exists():
        context.check()
        if _remove_if_stale(lock):
            context.say(f"Removed {lock}, left behind by a killed compiler")
            return
        if not reported and time.monotonic() - began >= SAY_SECONDS:
            what = f"Waiting for another program that compiles {lock.parent.name} for DeepSpeed: it holds {lock}"
            context.say(what, "warning", "if no other program is running, delete that file to continue")
            reported = True
        time.sleep(LOOK_SECONDS)


def _remove_if_stale(lock: Path) -> bool:
    """Remove the lock file if its owner is gone; return whether it was removed. Only one process at a time checks and removes."""
    with FileLock(lock.with_name("atelier.lock")):
        if not is_stale(lock):
            return False
        lock.unlink(missing_ok=True)
        return True


def is_stale(lock: Path) -> bool:
    """Return whether no process has the lock file open or works in its folder, as torch's compilers do. False if that is unknown, as on a
    disk shared with other machines or containers."""
    if sys.platform != "linux":
        return False
    try:
        lock_status = lock.stat()
        if lock_status.st_uid != os.getuid() or not _is_local(lock) or any(_lock_users(lock.parent, lock_status)):
            return False
        return os.path.samestat(lock.stat(), lock_status)  # False if it was released and taken meanwhile
    except OSError:
        return False


def _is_local(path: Path) -> bool:
    """Return whether only processes visible to this one can write to the folder: it is on a local disk, and in a container on its
    overlay."""
    folder = path.resolve()
    mounts = [each for each in psutil.disk_partitions(all=True) if folder.is_relative_to(each.mountpoint)]
    kind = max(mounts, key=lambda each: len(each.mountpoint)).fstype if mounts else ""
    # In a container only its overlay is certainly not shared.
    first = os.stat("/proc/self/ns/pid").st_ino == FIRST_NAMESPACE
    return kind in LOCAL_DISKS if first else kind == "overlay"


def _lock_users(folder: Path, lock_status: os.stat_result) -> Iterator[bool]:
    """Yield for each process and each of its open files whether it is the lock file; also True for a process whose working directory is the
    lock's folder."""
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        with suppress(*GONE):
            if os.path.samefile(process / "cwd", folder):
                yield True
            for descriptor in os.scandir(process / "fd"):
                with suppress(*GONE):  # closed meanwhile
                    yield os.path.samestat(os.stat(descriptor.path), lock_status)
