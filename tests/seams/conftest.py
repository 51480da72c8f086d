"""The toys are registered in a process of their own (see test_seams.py), never in that of other tests."""

import os

APART = "ATELIER_SEAMS"
collect_ignore = [] if os.environ.get(APART) else ["apart"]
