"""Device operations of a LoRA's training step, by group: counted on a GPU that computes nothing (tests/card), which needs
Linux and a C++ compiler."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from workshop.bench.measure import run_process


def measure_operations(folder: Path, quick: bool, say: Callable[[str], None]) -> dict[str, Any]:
    """{case: {"total", "operations": {group: count}, "waits"}}; quick: of SD 1.5 alone."""
    say("counting device operations")
    command = [sys.executable, "-m", "tests.card.steps", str(folder / "operations"), *(["sd15"] if quick else [])]
    printed = run_process(command, "the count").printed
    cases = [json.loads(line) for line in printed.splitlines() if line.startswith("{")]
    return {case.pop("name"): case for case in cases}


def operation_rows(counted: dict[str, Any]) -> list[tuple[str, str]]:
    rows = []
    for name, case in counted.items():
        groups = ", ".join(f"{group} {count:,}" for group, count in case["operations"].items())
        rows.append((name, f"{case['total']:,} operations per step: {groups}"))
    return rows
