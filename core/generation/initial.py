"""Reading images for packages (docs/extending.md): `core.generation.plan.initial`, `core.generation.sample.canvas`."""

from core.generation.plan.initial import opened
from core.generation.sample.canvas import fitted, pixels_of

__all__ = ["fitted", "opened", "pixels_of"]
