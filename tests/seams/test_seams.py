"""Each seam is proven by a toy that lives in this folder alone. They run in a process of their own, where one line of
`apart/conftest.py` registers each, as one line of core/extensions.py would."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
CASES = sorted(path.name for path in (HERE / "apart").glob("apart_*.py"))


@pytest.mark.slow(but=("apart_guide.py",))
@pytest.mark.parametrize("name", CASES)
def test_a_toy_works_like_what_is_built_in(name):
    words = ["-q", "-p", "no:cacheprovider", "-o", "python_files=apart_*.py", str(HERE / "apart" / name)]
    env = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST")} | {"ATELIER_SEAMS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *words], env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
