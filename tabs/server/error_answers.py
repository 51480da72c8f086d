"""Turns errors of handlers into problems: a ProblemsError is kept; any other exception becomes the problem FAILED, with a traceback in the
terminal."""

import sys
import traceback
from collections.abc import Callable
from typing import TypeVar

from core.record.problems import Problem, ProblemsError, unwritten

FAILED = "page.failed"
MAX_CAUSE = 200  # characters of the exception in the problem
T = TypeVar("T")
_logged: set[tuple[str, str]] = set()


def errors_as_problems(fn: Callable[[], T], about: str) -> T:
    """Return `fn()`; every exception is raised as ProblemsError. about: name of the handler, for the terminal."""
    try:
        return fn()
    except ProblemsError:
        raise
    except PermissionError as error:
        raise unwritten(error, "A file cannot be changed", str(error.filename or "")) from error
    except Exception as error:
        cause = f"{type(error).__name__}: {error}"[:MAX_CAUSE]
        if (about, cause) not in _logged:  # a tick fails each second
            _logged.add((about, cause))
            text = f"{about} failed:\n{''.join(traceback.format_exception(error))}"
            print(text.encode("ascii", "backslashreplace").decode(), file=sys.stderr)
        fix = "try again; the terminal has the details"
        raise ProblemsError([Problem(f"This could not be done ({cause})", "", fix, code=FAILED)]) from error
