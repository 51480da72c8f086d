"""Fixed HTML fragments: files in assets/, next to their styles and scripts."""

from pathlib import Path

ASSETS = Path(__file__).parent / "assets"


def piece(name: str) -> str:
    """Return the contents of assets/<name>.html."""
    return (ASSETS / f"{name}.html").read_text("utf-8")
