"""Values of the references that are stored as compressed JSON."""

import gzip
import json
from pathlib import Path
from typing import Any


def recorded_json(name: str) -> Any:
    """Return the content of tests/vectors/NAME.json.gz."""
    return json.loads(gzip.decompress((Path(__file__).parent / "vectors" / f"{name}.json.gz").read_bytes()))
