"""Registers the toys, a line each, before anything of the product is imported; brings the small trainings along."""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
sys.path.insert(0, str(ROOT))

from core import extensions  # noqa: E402

extensions.EXTENSIONS += ("tests.seams.toys.gain", "tests.seams.toys.count", "tests.seams.toys.spell")

from tests.training.conftest import *  # noqa: E402, F403
