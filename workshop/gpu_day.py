"""What a GPU says in ten minutes, most important first: `python -m workshop.gpu_day RESULTS`. Each part runs in a process of its
own with its own limit and leaves a file, so that one that fails or hangs takes nothing from the next.

`python -m workshop.gpu_day RESULTS --write` puts the numbers into docs/hardware.md."""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.record.atomic import write_text
from core.record.workspace import PROJECT
from workshop.bench.compare import compare_rows
from workshop.bench.generate import generate_rows
from workshop.bench.options import option_rows

BEGIN, END = "<!-- measured GPUs: python -m workshop.gpu_day -->", "<!-- end of measured GPUs -->"
HARDWARE = PROJECT / "docs" / "hardware.md"
# Tests that compute on a GPU if there is one.
GPU_TESTS = ("tests/generation/sample/test_noise.py", "tests/tools/loras/test_extract_lora.py")


@dataclass(frozen=True)
class Part:
    """A part of the measurements.

    name      of its results (NAME.json, NAME.txt)      seconds   its limit
    words     arguments of Python                       small     those for a CPU, where it only shows that the part works;
                                                                  empty for the same
    """

    name: str
    seconds: int
    words: tuple[str, ...]
    small: tuple[str, ...] = ()


def _bench(only: str) -> tuple[str, ...]:
    return ("webui.py", "bench", "--quick", "--only", only)


PARTS = (
    Part("check", 200, ("webui.py", "check")),
    Part("sdxl_options", 170, _bench("options:sdxl_lora"), _bench("options:starter_lora")),
    Part("sd15_options", 80, _bench("options:sd15_lora"), _bench("options:starter_lora")),
    Part("sdxl_baseline", 90, _bench("baseline:sdxl_lora"), _bench("baseline:starter_lora")),
    Part("generate", 40, _bench("generate")),
    Part("tests", 40, ("-m", "pytest", "-q", "-p", "no:cacheprovider", *GPU_TESTS)),
)


def run_day(results: Path, device: str) -> dict[str, str]:
    """{part: how it ended}"""
    results.mkdir(parents=True, exist_ok=True)
    ended = {}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as work:
        for part in PARTS:
            command = part.small or part.words if device == "cpu" else part.words
            ended[part.name] = _run(part, command, device, results, Path(work))
            print(f"{part.name}: {ended[part.name]}", flush=True)
    (results / "day.json").write_text(json.dumps({"device": device, "parts": ended}, indent=1), encoding="utf-8")
    return ended


def _run(part: Part, words: tuple[str, ...], device: str, results: Path, work: Path) -> str:
    """Run a part and return how it ended, in words."""
    command = [sys.executable, *words]
    if words[0] == "webui.py":  # one folder for all benchmarks: their models are written once
        outputs = work / ("check" if part.name == "check" else "bench")
        command += ["--device", device, "--outputs", str(outputs), "--json", str(results / f"{part.name}.json")]
    begun = time.monotonic()
    with (results / f"{part.name}.txt").open("w", encoding="utf-8") as log:
        try:
            done = subprocess.run(command, cwd=PROJECT, stdout=log, stderr=log, timeout=part.seconds, check=False)
        except subprocess.TimeoutExpired:
            return f"cut off after {part.seconds} s"
    return f"exit code {done.returncode} after {time.monotonic() - begun:.0f} s"


def section(results: Path) -> list[str]:
    """Lines of docs/hardware.md: what was measured, on which GPU, and which part has no numbers."""
    day = json.loads((results / "day.json").read_text(encoding="utf-8"))
    results_of = {name: _numbers(results / f"{name}.json") for name in day["parts"]}
    facts = next(
        (each["machine"] for each in results_of.values() if "machine" in each), {"device": day["device"], "torch": "?"}
    )
    lines = [f"### {facts['device']}, torch {facts['torch']}", "", "| what | measured |", "|---|---|"]
    if "counts" in results_of["check"]:
        counts = ", ".join(f"{number} {state}" for state, number in results_of["check"]["counts"].items() if number)
        lines.append(f"| [check](check.md) | {counts} |")
    for numbers in results_of.values():
        for key, rows_of in ROWS.items():
            if key in numbers:
                lines += [f"| {name} | {value} |" for name, value in rows_of(numbers[key])]
    lines += [
        f"| {name} | no numbers: {ended} |"
        for name, ended in day["parts"].items()
        if not results_of[name] and name != "tests"
    ]
    return [*lines, f"| tests on the GPU | {day['parts']['tests']} |"]


ROWS: dict[str, Callable[[Any], list[tuple[str, str]]]] = {
    "options": option_rows,
    "baseline": compare_rows,
    "generate": generate_rows,
}


def _numbers(file: Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def with_section(text: str, lines: list[str]) -> str:
    """The guide with these numbers first among those of GPUs; earlier ones of the same GPU and torch are replaced."""
    head, _, rest = text.partition(BEGIN)
    measured, _, tail = rest.partition(END)
    others = [f"### {each.strip()}" for each in measured.split("### ")[1:]]
    others = [each for each in others if each.splitlines()[0] != lines[0]]
    return "\n\n".join([f"{head}{BEGIN}", "\n".join(lines), *others, f"{END}{tail}"])


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path)
    parser.add_argument("--device", default="cuda")
    parser.add_argument(
        "--write", action="store_true", help="only put the numbers of these results into docs/hardware.md"
    )
    given = parser.parse_args(words)
    if given.write:
        write_text(HARDWARE, with_section(HARDWARE.read_text(encoding="utf-8"), section(given.results)))
        return 0
    ended = run_day(given.results, given.device)
    return 0 if all(how.startswith("exit code 0") for how in ended.values()) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
