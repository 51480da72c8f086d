"""What the product is extended by, a line each: tasks, network kinds. A module named here registers what it offers when it is imported."""

from __future__ import annotations

from importlib import import_module

EXTENSIONS = ("core.builtin", "core.networks.kinds.lora")


def load() -> None:
    """Import everything listed. Cheap after the first time; without torch."""
    for name in EXTENSIONS:
        import_module(name)
