"""What the product is extended by: one line for each network kind. A module named here registers what it offers when it is imported."""

from __future__ import annotations

from importlib import import_module

EXTENSIONS = ("core.networks.kinds.lora",)


def load() -> None:
    """Import everything listed. Cheap after the first time; without torch."""
    for name in EXTENSIONS:
        import_module(name)
