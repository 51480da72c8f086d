"""Small trainings on the starter, for the kinds of networks."""

from tests.training.conftest import *  # noqa: F403
