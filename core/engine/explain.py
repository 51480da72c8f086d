"""Converts exceptions to error messages with a fix."""

import errno
from collections.abc import Callable
from dataclasses import dataclass

from core.record.memory import is_out_of_memory
from core.record.problems import IN_USE, ProblemsError, unwritten

POISON = (
    "device-side assert",
    "illegal memory access",
    "unspecified launch failure",
    "misaligned address",
    "illegal instruction",
)
# gloo's messages when a process of the group has ended
GONE = ("connection closed by peer", "connection reset by peer", "broken pipe")


@dataclass(frozen=True)
class Explanation:
    """Why a job failed.

    what, fix        as in `Problem`
    poisoned         CUDA is unusable for the rest of this process
    invalid_request  the settings or files were wrong (ProblemsError)
    known            False for an unexpected exception, described only by its type and text
    code             stable identifier; may be empty
    """

    what: str
    fix: str = ""
    poisoned: bool = False
    invalid_request: bool = False
    known: bool = True
    code: str = ""


NO_MEMORY = "memory.out"


def explain(error: BaseException, advice: Callable[[], str] = str) -> Explanation:
    """Return the explanation of the exception that ended a job.
    advice: () -> advice on settings that save memory; called only if memory ran out"""
    text = str(error)
    if isinstance(error, ProblemsError):
        first = error.problems[0]
        more = f" (and {len(error.problems) - 1} more)" if len(error.problems) > 1 else ""
        where = f" ({first.where})" if first.where else ""
        return Explanation(f"{first.what}{where}{more}", first.fix, invalid_request=True, code=first.code)
    if isinstance(error, RuntimeError) and any(pattern in text.lower() for pattern in POISON):
        return Explanation(
            "The GPU reported an error that only a restart clears",
            "Atelier restarts; then resume the run from its last training state",
            poisoned=True,
        )
    if is_out_of_memory(error):
        return Explanation(
            "The device ran out of memory",
            advice() or "turn on gradient checkpointing, lower the batch size or the resolution, or use bf16",
            code=NO_MEMORY,
        )
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        (full,) = unwritten(error, "", "", then="resume the run; files saved earlier are complete").problems
        return Explanation(full.what, full.fix)
    if isinstance(error, PermissionError) or (isinstance(error, OSError) and error.errno == errno.EROFS):
        what = f"A file or folder cannot be written: {error.filename or error.strerror}"
        return Explanation(what, f"{IN_USE}check its permissions, or choose another folder")
    if isinstance(error, FileNotFoundError):
        return Explanation(f"A file is missing: {error.filename}", "restore it, then resume the run")
    if lost_another_process(error):
        return Explanation(
            "Another process of this training ended without an error message; the system may have killed it "
            "for lack of memory",
            "see processes.txt in the run's logs; resume the run with fewer processes or settings that use less memory",
        )
    return Explanation(
        f"An unexpected error occurred: {type(error).__name__}: {text[:300]}",
        "see the run's log file for details",
        known=False,
    )


def lost_another_process(error: BaseException) -> bool:
    """Whether `error` is gloo's report that another process of the group has ended."""
    return isinstance(error, RuntimeError) and any(pattern in str(error).lower() for pattern in GONE)
