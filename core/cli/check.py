"""webui.py check: test what works on this machine and how fast, with fixes for what does not; JSON with --json FILE."""

import sys
from collections.abc import Sequence

from core.cli.jobs import StopOnSignal
from core.cli.main import DONE, FAILED, INTERRUPTED
from core.cli.options import COMMAND_OPTIONS, split_options, write_result
from core.machine_check.report import Line, exit_code, summary, table_lines
from core.machine_check.run import run_check
from core.record import machine
from core.record.cancel import Cancelled, CancelToken
from core.record.problems import raise_any


def run(argv: list[str]) -> int:
    """Run `webui.py check` with these arguments and return the exit code. Raises ProblemsError."""
    options = split_options(argv, COMMAND_OPTIONS["check"], job=False)
    raise_any(options.problems)
    device = options.values.get("device", "")
    if device:
        machine.check_device(device, exists=False)  # the check itself finds out whether the device exists
    token = CancelToken()
    try:
        with StopOnSignal(token, quiet=True):
            report = run_check(options.workspace(), device, token=token, listener=Printing())
    except Cancelled:
        print("Cancelled.", file=sys.stderr)
        return INTERRUPTED
    print(summary(report))
    if "json" in options.values:
        write_result(options.values["json"], report, "report")
    else:
        print(
            "For a bug report: ./launch.sh webui.py check --json check.json (Windows: launch.bat ...), and attach that file."
        )
    return FAILED if exit_code(report) else DONE


class Printing:
    """Callback of `run_check` that prints each line of the report once its item is done."""

    def __init__(self) -> None:
        self._printed = 0
        self._group = ""

    def __call__(self, lines: Sequence[Line], total: int) -> None:
        """Print the lines that are done and were not printed, in order. total: not used."""
        for line in lines[self._printed :]:
            if line.finding is None:
                return
            if line.item.group != self._group:
                self._group = line.item.group
                print(f"\n{self._group}")
            print("\n".join(table_lines(line)), flush=True)
            self._printed += 1
