"""What extends the product, one line each: a module listed here registers methods, objectives ... when imported."""

from __future__ import annotations

from importlib import import_module

EXTENSIONS = (
    "core.diffusion.objectives",
    "core.methods.kinds.lora",
    "core.methods.kinds.full",
    "core.methods.kinds.embedding",
    "core.networks.kinds.lora",
)


def load() -> None:
    """Import everything listed. Cheap after the first time; without torch."""
    for name in EXTENSIONS:
        import_module(name)
