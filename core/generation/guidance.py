"""Guidance for packages (docs/extending.md): `core.generation.sample.guidance`."""

from core.generation.sample.guidance import EMPTY, NEGATIVE, PERTURBED, POSITIVE, Guidance, Moment, Outputs

__all__ = ["EMPTY", "NEGATIVE", "PERTURBED", "POSITIVE", "Guidance", "Moment", "Outputs"]
