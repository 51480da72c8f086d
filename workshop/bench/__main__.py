"""`python -m workshop.bench ...`: the same as `python webui.py bench ...`."""

import sys

from core.cli.main import main

sys.exit(main(["bench", *sys.argv[1:]]))
