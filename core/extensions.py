"""What extends the product, one line each: a module listed here registers methods, objectives ... when imported."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

EXTENSIONS = (
    "core.builtin",
    "core.captioning.registered",
    "core.diffusion.objectives",
    "core.methods.kinds.lora",
    "core.methods.kinds.full",
    "core.methods.kinds.embedding",
    "core.networks.kinds.lora",
)


def later(module: str, name: str) -> Callable[..., Any]:
    """A function of a module that is imported when it is called: registering stays cheap and free of circles."""

    def call(*args: Any) -> Any:
        return getattr(import_module(module), name)(*args)

    return call


def load() -> None:
    """Import everything listed. Cheap after the first time; without torch."""
    for name in EXTENSIONS:
        import_module(name)
