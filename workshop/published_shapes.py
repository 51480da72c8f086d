"""Records the shapes of the published models' tensors (core/families/published_shapes.py), after a change of a shipped config."""

from __future__ import annotations

import gzip
import json

from core.families import family
from core.families.loading import make_empty
from core.families.published_shapes import FILE
from core.formats.models.text_keys import bare_name

FAMILIES = ("sd1", "sd2", "sdxl", "sdxl_refiner")


def shapes() -> dict[str, dict[str, dict[str, list[int]]]]:
    """{family: {part: {name: shape}}}, of modules built without memory."""
    found: dict[str, dict[str, dict[str, list[int]]]] = {}
    for name in FAMILIES:
        layout = family(name).layout
        for part in layout.published.parts:
            state = make_empty(part, layout.config(part), layout.kind(part)).state_dict()
            found.setdefault(name, {})[part] = {bare_name(key): list(tensor.shape) for key, tensor in state.items()}
    return found


if __name__ == "__main__":
    FILE.write_bytes(gzip.compress(json.dumps(shapes(), separators=(",", ":")).encode(), 9, mtime=0))
    print(f"wrote {FILE.name}")
