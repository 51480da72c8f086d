"""Hooks for packages (docs/extending.md): `core.generation.plan.hooks`."""

from core.generation.plan.hooks import HookKind, Making, register

__all__ = ["HookKind", "Making", "register"]
