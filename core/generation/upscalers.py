"""The upscalers of hires fix for packages (docs/extending.md): `core.generation.plan.upscalers`."""

from core.generation.plan.upscalers import Upscaler, register

__all__ = ["Upscaler", "register"]
