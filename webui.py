"""Atelier: `python webui.py` opens the page; `python webui.py train PRESET ...` runs a job without it. See --help."""

import os
import sys

if sys.version_info < (3, 11):
    sys.exit(
        "Atelier needs Python 3.11, 3.12 or 3.13; this is "
        + sys.version.split()[0]
        + ". Start it with launch.sh or launch.bat."
    )

# Before any library loads: use large memory pages for large tensors (on Linux small ones cost a large optimizer half of its
# time), and disable telemetry.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")


def _other_python() -> None:
    """If packages are not installed in this Python, replace the process by the Python of `.venv`, or exit with a message."""
    from importlib.util import find_spec

    from core.setup.stamp import python_of, read_stamp

    if all(map(find_spec, ("gradio", "psutil", "pydantic", "torch"))):
        return
    folder = os.path.join(os.path.dirname(os.path.abspath(__file__)), ".venv")
    installed = read_stamp(folder) is not None
    if installed and os.path.realpath(sys.prefix) == os.path.realpath(folder):
        sys.exit(
            "Packages are missing in .venv: delete that folder, then start launch.sh (Windows: launch.bat) to install them."
        )
    if not installed:
        words = " ".join(["webui.py", *sys.argv[1:]])
        sys.exit(
            f"Atelier's packages are not installed in this Python. Start with: ./launch.sh {words} (Windows: launch.bat)"
        )
    from core.setup.start import replace_by

    sys.exit(replace_by([python_of(folder), *sys.argv]))


if __name__ == "__main__":
    _other_python()
    from core.cli.signals import interrupt_on_signals

    try:
        with interrupt_on_signals():
            from core.cli.main import main

            code = main(sys.argv[1:])
    except KeyboardInterrupt:  # even while the first modules load
        code = 130
    sys.exit(code)
