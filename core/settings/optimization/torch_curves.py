"""torch's learning rate schedulers that a job can use, with their arguments."""

import difflib
from collections.abc import Mapping
from functools import cache
from typing import Any

from core.record.problems import Problem
from core.settings.optimization.optimizers import Argument, argument_problems, arguments_in, data, module_problem

WHERE = "schedule.lr_scheduler_type"
PREFIX = "torch.optim.lr_scheduler."


@cache
def offered() -> dict[str, dict[str, Argument]]:
    """Return {class name: {argument's name: argument}} of torch's schedulers that depend on the step only."""
    return {item["path"].removeprefix(PREFIX): arguments_in(item) for item in data()["schedules"]}


def type_problems(name: str, arguments: Mapping[str, Any]) -> list[Problem]:
    """Return problems of `lr_scheduler_type` (a class name or path) and its arguments, checked without torch."""
    bare = name.strip().removeprefix(PREFIX)
    known = offered().get(bare)
    if known is not None:
        return argument_problems(arguments, known, bare, "schedule.lr_scheduler_args")
    near = difflib.get_close_matches(bare.rsplit(".", 1)[-1], offered(), n=1, cutoff=0.5)
    problem = module_problem(name, "scheduler", WHERE, near[0] if near else "")
    return [problem] if problem is not None else []
