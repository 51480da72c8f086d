"""`python -m core.setup.in_place`: install the packages into the running Python instead of `.venv`.

For Colab and containers, which have torch installed and are discarded after use.
"""

from __future__ import annotations

import importlib.metadata
import os
import sys
import tempfile
from pathlib import Path

from core.setup.choose import Build, adapted_requirements, packages_alone
from core.setup.environment import (
    PIP_FAILED,
    TORCH_FAILED,
    TRY_OUT,
    SetupError,
    build_for,
    index_responds,
    run_step,
    say,
)
from core.setup.facts import machine_facts


def install(root: Path) -> None:
    """Install this machine's build and requirements.txt into the running Python. Raises SetupError."""
    build = build_for(root, machine_facts(), index_responds)
    for note in build.notes:
        say(note)
    text = (root / "requirements.txt").read_text(encoding="utf-8")
    steps, lines = plan(installed_torch(), build, text)
    with tempfile.TemporaryDirectory() as folder:
        requirements = Path(folder) / "requirements.txt"
        requirements.write_text(lines, encoding="utf-8")
        for step in [*steps, ["-r", str(requirements)], ["--no-deps", *packages_alone(text)]]:
            say(f"installing {' '.join(step)}")
            run_step([sys.executable, "-m", "pip", "--disable-pip-version-check", "install", *step], PIP_FAILED)
    run_step([sys.executable, "-c", TRY_OUT], TORCH_FAILED)


def installed_torch() -> str | None:
    """Return the version of the installed torch, such as "2.13.0+cu126"; None if it is missing."""
    try:
        return importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        return None


def plan(installed: str | None, build: Build, requirements: str) -> tuple[list[list[str]], str]:
    """Return (pip arguments of the steps that install torch and xformers, text of the requirements file for the last step).

    installed   version of the installed torch, None if it is missing. If it is the pinned version, torch is kept, whatever CUDA it
                was built for, because it was built for that machine
    """
    if installed and f"torch=={installed.split('+')[0]}" == build.torch:
        if build.index_url and build.xformers and installed.endswith(f"+{build.name}"):
            return [["--index-url", build.index_url, build.xformers]], adapted_requirements(requirements, build)
        with_installed = Build(build.name, build.title, None, f"torch=={installed}", None, build.onnxruntime)
        return [], adapted_requirements(requirements, with_installed)
    packages = [line for line in (build.torch, build.xformers) if line]
    steps = [["--index-url", build.index_url, *packages]] if build.index_url else []
    return steps, adapted_requirements(requirements, build)


if __name__ == "__main__":
    try:
        install(Path(os.path.abspath(__file__)).parents[2])
    except SetupError as error:
        say(str(error))
        sys.exit(1)
