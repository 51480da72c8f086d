"""The guidance kinds for packages (docs/extending.md): `core.generation.sample.guidances`."""

from core.generation.sample.guidances import GuidanceKind, register

__all__ = ["GuidanceKind", "register"]
