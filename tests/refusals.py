"""What a test says of a refusal: the code of the problem and the facts that it names, not its wording."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from core.record.problems import Problem, ProblemsError
from core.settings.base import Settings
from core.settings.check import build


@contextmanager
def refused(code: str, *facts: object) -> Iterator[pytest.ExceptionInfo[ProblemsError]]:
    """The block raises a ProblemsError with this code, whose text contains each of the facts."""
    with pytest.raises(ProblemsError) as caught:
        yield caught
    assert code in caught.value.codes, f"{caught.value.codes} without {code}"
    missing = [fact for fact in facts if str(fact) not in str(caught.value)]
    assert not missing, f"{missing} not in: {caught.value}"


def problems_of(model: type[Settings], values: dict[str, Any], where: str = "") -> list[Problem]:
    """The problems that `build` raises; none where it builds the job."""
    try:
        build(model, values, where)
    except ProblemsError as error:
        return error.problems
    return []
