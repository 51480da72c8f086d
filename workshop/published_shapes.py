"""Records the shapes of the tensors of the published models and the starter (core/families/published_shapes.py), after a change of a
shipped config."""

import gzip
import json

from core.families import family
from core.families.part_shapes import make_empty
from core.families.published_shapes import FILE, STARTER
from core.formats.detect import read_json
from core.formats.models.text_keys import bare_name

FAMILIES = ("sd1", "sd2", "sdxl", "sdxl_refiner")


def shapes() -> dict[str, dict[str, dict[str, list[int]]]]:
    """{family, or "starter": {part: {name: shape}}}, of modules on the meta device."""
    by_family: dict[str, dict[str, dict[str, list[int]]]] = {}
    for name in (*FAMILIES, "starter"):
        layout = family(name if name in FAMILIES else "sd1").layout
        for part in layout.published.parts:
            config = layout.config(part) if name in FAMILIES else read_json(STARTER / part / "config.json") or {}
            state = make_empty(part, config, layout.kind(part)).state_dict()
            by_family.setdefault(name, {})[part] = {bare_name(key): list(tensor.shape) for key, tensor in state.items()}
    return by_family


if __name__ == "__main__":
    FILE.write_bytes(gzip.compress(json.dumps(shapes(), separators=(",", ":")).encode(), 9, mtime=0))
    print(f"wrote {FILE.name}")
