"""JSON messages between the page's script and the server: parts with signatures, so that only changed parts are sent."""

import hashlib
import json
from functools import partial
from typing import Any

_compact = partial(json.dumps, ensure_ascii=False, separators=(",", ":"), default=str)


def with_signature(data: Any) -> dict[str, Any]:
    """Return {"sig": hash of `data`, "data": data}. A browser reports the signatures of the parts that it has."""
    text = json.dumps(data, ensure_ascii=False, sort_keys=True, default=str)
    return {"sig": hashlib.blake2s(text.encode("utf-8", "replace"), digest_size=6).hexdigest(), "data": data}


def to_json(parts: dict[str, Any]) -> str:
    """Return compact JSON; values of other types become their str(), and NaN and infinity null, since a browser would refuse the whole."""
    try:
        return _compact(parts, allow_nan=False)
    except ValueError:
        return _compact(json.loads(_compact(parts), parse_constant=lambda name: None))


def json_object(text: Any) -> dict[str, Any]:
    """Parse a JSON object from the page's script, or return one that is already parsed; {} for anything else."""
    try:
        value = json.loads(text) if isinstance(text, str) else text
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def to_count(value: Any) -> int:
    """Return an integer from a browser if it is in 0 ... 2**53 - 1, else 0."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53 else 0
