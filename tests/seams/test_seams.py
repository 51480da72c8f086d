"""Each seam is proven by a toy that lives in this folder alone. They run in another process, where one line of
`apart/conftest.py` registers each, as one line of core/extensions.py would: the quick ones in one, and with --all the others
in one more."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
QUICK = ("captioner", "guide", "tool", "upscaler")  # the others train for minutes


def run(*words: str) -> None:
    words = ("-q", "-p", "no:cacheprovider", "-o", "python_files=apart_*.py", *words)
    env = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST")} | {"ATELIER_SEAMS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *words], env=env, capture_output=True, text=True, timeout=1200
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]


def test_toys_work_like_what_is_built_in():
    run(*(str(HERE / "apart" / f"apart_{name}.py") for name in QUICK))


@pytest.mark.slow
def test_the_other_toys_do_too():
    files = {path.stem.removeprefix("apart_"): str(path) for path in (HERE / "apart").glob("apart_*.py")}
    run("--all", *(files[name] for name in sorted(files.keys() - set(QUICK) | {"tool"})))
