"""What the page's script and the server write to each other: parts with the signatures by which a browser says what it holds."""

from __future__ import annotations

import hashlib
import json
from typing import Any


def signed(data: Any) -> dict[str, Any]:
    """A part of a message with the signature by which a browser says that it holds it."""
    text = json.dumps(data, ensure_ascii=False, sort_keys=True, default=str)
    return {"sig": hashlib.blake2s(text.encode("utf-8", "replace"), digest_size=6).hexdigest(), "data": data}


def packed(parts: dict[str, Any]) -> str:
    return json.dumps(parts, ensure_ascii=False, separators=(",", ":"), default=str)


def unpack(text: Any) -> dict[str, Any]:
    """A message of the page's script as a dict; whatever else arrives counts as empty."""
    try:
        value = json.loads(text) if isinstance(text, str) else text
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def whole(value: Any) -> int:
    """A whole number from a browser, 0 where it is none."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53 else 0
