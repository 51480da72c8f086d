"""Hooks for packages (docs/extending.md): `core.generation.plan.hooks`."""

from core.generation.plan.hooks import HookInputs, HookKind, register

Making = HookInputs  # the name in packages written earlier

__all__ = ["HookInputs", "HookKind", "Making", "register"]
