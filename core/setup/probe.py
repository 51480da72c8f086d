"""Run by every Python that the launchers find: prints `version|fitness|path`, for example `3.11|ok|/usr/bin/python3.11`.

Fitness is `ok`, or why this Python cannot run Atelier: `old`, `new`, `32bit`, `freethreaded`, `pypy`, or `novenv` (Debian ships
Python without venv). Works on every Python since 2.7: an old one must answer.
"""

import sys

OLDEST, NEWEST = (3, 11), (3, 13)  # the same two numbers are in launch.py; a test compares them


def fitness():
    """Return "ok" if Atelier runs on this Python, else why not: "old", "new", "32bit", "freethreaded", "novenv" or an
    implementation's name."""
    version = sys.version_info[:2]
    if version < OLDEST:
        return "old"
    if version > NEWEST:
        return "new"
    if sys.maxsize <= 2**32:
        return "32bit"
    if sys.implementation.name != "cpython":
        return sys.implementation.name
    import sysconfig

    if sysconfig.get_config_var("Py_GIL_DISABLED"):
        return "freethreaded"
    from importlib.util import find_spec

    if find_spec("venv") is None or find_spec("ensurepip") is None:
        return "novenv"
    return "ok"


if __name__ == "__main__":
    sys.stdout.write("%d.%d|%s|%s\n" % (sys.version_info[0], sys.version_info[1], fitness(), sys.executable))
