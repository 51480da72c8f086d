"""What packages import of the upscalers of hires fix (docs/extending.md): `core.generation.plan.upscalers`."""

from core.generation.plan.upscalers import Upscaler, register

__all__ = ["Upscaler", "register"]
