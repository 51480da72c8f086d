"""Registers the toys, a line each, before anything of the product is imported; brings the small trainings along."""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
sys.path.insert(0, str(ROOT))

from core import extensions  # noqa: E402

TOYS = (
    "gain",
    "biases",
    "control",
    "straight",
    "linear",
    "count",
    "spell",
    "dit",
    "pull",
    "controlled",
    "tiles",
    "lists",
)
extensions.EXTENSIONS += tuple(f"tests.seams.toys.{name}" for name in TOYS)

from tests.training.conftest import *  # noqa: E402, F403
