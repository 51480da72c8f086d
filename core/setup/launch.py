"""The first Python that runs: checks its own version, then hands over to start.py.

Written so that Python 2.7 can read it: an old Python must answer with a sentence, not with a syntax error.
"""

import os
import sys

OLDEST, NEWEST = (3, 11), (3, 13)
ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def main():
    if not OLDEST <= sys.version_info[:2] <= NEWEST:
        sys.stderr.write(
            "Atelier needs Python 3.11, 3.12 or 3.13, and this is %d.%d (%s): install Python 3.11 and start again.\n"
            % (sys.version_info[0], sys.version_info[1], sys.executable)
        )
        return 1
    sys.path[0] = ROOT  # it was core/setup, whose file names must not hide modules of the standard library
    from core.setup.start import run

    return run(ROOT, sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
