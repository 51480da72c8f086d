"""The one guard of everything that answers a browser: what a person can mend is said as it is, and any other error as one that
"could not be done", with its cause on the terminal. The page stays as it was."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable
from typing import TypeVar

from core.record.problems import Problem, ProblemsError

FAILED = "page.failed"
MOST_TEXT = 200
T = TypeVar("T")
_logged: set[tuple[str, str]] = set()


def guarded(fn: Callable[[], T], about: str) -> T:
    """What `fn` returns. Raises ProblemsError for every error of its. about: a name for the terminal"""
    try:
        return fn()
    except ProblemsError:
        raise
    except Exception as error:
        cause = f"{type(error).__name__}: {error}"[:MOST_TEXT]
        if (about, cause) not in _logged:  # a tick fails each second
            _logged.add((about, cause))
            text = f"{about} failed:\n{''.join(traceback.format_exception(error))}"
            print(text.encode("ascii", "backslashreplace").decode(), file=sys.stderr)
        fix = "try again; the terminal has the details"
        raise ProblemsError([Problem(f"This could not be done ({cause})", "", fix, code=FAILED)]) from error
