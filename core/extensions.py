"""What extends the product: one line per network kind. A module listed here registers itself when imported."""

from __future__ import annotations

from importlib import import_module

EXTENSIONS = ("core.networks.kinds.lora",)


def load() -> None:
    """Import everything listed. Cheap after the first time; without torch."""
    for name in EXTENSIONS:
        import_module(name)
