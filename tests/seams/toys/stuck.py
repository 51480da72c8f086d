"""A toy tool that hears no stop: it is in a library, which holds Python's lock or lets it go."""

import hashlib
import sys
from itertools import repeat

from core.record.context import JobContext, Outcome
from core.settings.base import Settings, setting
from core.tasks import register, tool


class StuckSettings(Settings):
    """Computes for minutes."""

    holds: bool = setting(False, title="Hold the lock", help="Whether no thread of Python runs meanwhile.")


def compute(asked: StuckSettings, context: JobContext) -> Outcome:
    print("computing", file=sys.stderr, flush=True)
    if asked.holds:
        any(repeat(0))
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)
    return Outcome(lines=["done"])


register(tool("stuck", StuckSettings, compute, title="Compute", about="hear no stop"))
