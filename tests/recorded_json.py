"""Values of the references that are stored as compressed JSON."""

import json
import lzma
from pathlib import Path
from typing import Any


def recorded_json(name: str) -> Any:
    """Return the content of tests/vectors/NAME.json.xz."""
    return json.loads(lzma.decompress((Path(__file__).parent / "vectors" / f"{name}.json.xz").read_bytes()))
