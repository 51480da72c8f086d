"""First file that the launchers run: checks Python's version, then calls start.py.

Compatible with Python 2.7, so that an old Python prints a message instead of a syntax error.
"""

import os
import sys

OLDEST, NEWEST = (3, 11), (3, 13)
ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def main():
    """Refuse an unsupported Python, or run the launcher's command; return the exit code."""
    if not OLDEST <= sys.version_info[:2] <= NEWEST:
        sys.stderr.write(
            "Atelier needs Python 3.11, 3.12 or 3.13, but this is %d.%d (%s): install Python 3.11 and start again.\n"
            % (sys.version_info[0], sys.version_info[1], sys.executable)
        )
        return 1
    sys.path[0] = ROOT  # it was core/setup, whose files must not shadow the standard library
    from core.setup.start import run

    return run(ROOT, sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
