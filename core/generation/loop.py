"""The sampling loop for packages (docs/extending.md): `core.generation.sample.loop`."""

from core.generation.sample.loop import Ask, Hook, Stage

__all__ = ["Ask", "Hook", "Stage"]
