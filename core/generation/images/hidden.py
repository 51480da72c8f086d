"""Reads settings in the lowest bits of an image's pixels, where NovelAI and the stealth extensions of A1111 and ComfyUI write them.

The bits of alpha, or of red, green and blue, column by column: a signature of 15 bytes, the number of bits as 4 bytes, the text.
"""

import zlib
from contextlib import suppress
from typing import Any

# Signature with the text in alpha, and in the colors; followed by "info" or "comp", which is gzip
SIGNATURES = (b"stealth_png", b"stealth_rgb")
SIGNATURE, HEADER = 15, 19  # bytes
LONGEST = 2_000_000  # bytes of a text
GZIP = 31  # zlib's window bits


def hidden_text(image: Any) -> str:
    """Return the text in the pixels of a PNG: A1111's, or NovelAI's chunks as a JSON object; "" without any."""
    import numpy as np

    if image.format != "PNG" or image.mode not in ("RGB", "RGBA"):
        return ""
    pixels = np.asarray(image)
    for signature, channels in zip(SIGNATURES, (pixels[..., 3:], pixels[..., :3]), strict=True):
        columns = channels.transpose(1, 0, 2)
        header = _first_bytes(columns, HEADER)
        if header.startswith(signature):
            size = min(int.from_bytes(header[SIGNATURE:]) // 8, LONGEST)
            data = _first_bytes(columns, HEADER + size)[HEADER:]
            with suppress(zlib.error):
                compressed = header[:SIGNATURE].endswith(b"comp")
                text = zlib.decompressobj(GZIP).decompress(data, LONGEST) if compressed else data
                return text.decode(errors="replace")
    return ""


def _first_bytes(columns: Any, count: int) -> bytes:
    """Return the first `count` bytes in the lowest bits, or fewer if there are fewer. columns: uint8 [width, height, channels]"""
    import numpy as np

    needed = -(-8 * count // max(columns[:1].size, 1))
    return np.packbits(columns[:needed].ravel()[: 8 * count] & 1).tobytes()
