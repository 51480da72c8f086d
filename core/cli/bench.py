"""webui.py bench: benchmark this machine and print a table; JSON with --json FILE."""

import sys

from core.cli.main import DONE
from core.cli.options import COMMAND_OPTIONS, split_options, write_result
from core.record.problems import Problem, raise_any
from workshop.bench.run import CASE, PARTS, known_part, run_bench, table


def run(argv: list[str]) -> int:
    """Run `webui.py bench` with these arguments and return the exit code. Raises ProblemsError."""
    options = split_options(argv, COMMAND_OPTIONS["bench"], job=False)
    problems = list(options.problems)
    only = options.values.get("only")
    if only is not None and not known_part(only):
        fix = f"use one of {', '.join(PARTS)}, or a single case such as {CASE}sd15_lora"
        problems.append(Problem(f"There is no part '{only}'", "command line", fix, code="cli.unknown-part"))
    raise_any(problems)
    result = run_bench(
        options.workspace().outputs,
        options.device(),
        quick=bool(options.values.get("quick")),
        only=only,
        say=lambda text: print(text, file=sys.stderr, flush=True),
    )
    print(table(result))
    if "json" in options.values:
        write_result(options.values["json"], result, "numbers")
    return DONE
