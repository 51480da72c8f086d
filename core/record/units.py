"""Formats numbers, sizes, durations and counts for display."""

import math
from collections.abc import Sequence


def count(number: int, noun: str, plural: str = "") -> str:
    """Format a number with its noun: "1 image", "10,000 images", "3 entries"; irregular ones by `plural` ("2 batches")."""
    if number == 1:
        return f"1 {noun}"
    return f"{number:,} {plural or (noun[:-1] + 'ies' if noun.endswith('ry') else noun + 's')}"


def listed(texts: Sequence[str]) -> str:
    """Join texts as in a sentence: "a", "a and b", "a, b and c"; "" without any."""
    return " and ".join(filter(None, [", ".join(texts[:-1]), *texts[-1:]]))


def first_of(texts: Sequence[str], most: int, separator: str = ", ") -> str:
    """Join the first `most` texts by `separator` and append the number of the others: "a, b and 3 more"."""
    more = len(texts) - most
    return separator.join(texts[:most]) + (f" and {more:,} more" if more > 0 else "")


def with_article(noun: str) -> str:
    """Return the noun with a or an: "a LoRA", "an SD 1.x model", "an ONNX file"."""
    return f"{'an' if noun[0] in 'AEIOaeio' or noun.startswith('SD') else 'a'} {noun}"


def period_text(period: int, noun: str) -> str:
    """Format a period: "every step", "every 50 steps"."""
    return f"every {noun}" if period == 1 else f"every {count(period, noun)}"


def number_text(value: int | float) -> str:
    """Format a number as people write it: 0.0001 as "1e-4", 16.0 as "16". Other values become their str()."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    if isinstance(value, float) and 0 < abs(value) < 1e-3:
        mantissa, exponent = (repr(value) if "e" in repr(value) else f"{value:e}").split("e")
        mantissa = mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa
        return f"{mantissa}e{int(exponent)}"
    return repr(value)


def loss_text(loss: float) -> str:
    """Format a loss with four decimals, below 0.01 and from 100,000 with three digits, nearly as the page's script does."""
    return f"{loss:.4f}" if 0.01 <= abs(loss) < 1e5 else f"{loss:.3g}"


def parameters_text(number: int) -> str:
    """Format a number of parameters: "860 M", "3.2 M", "42,000"."""
    return f"{number / 1e6:.0f} M" if number >= 1e8 else f"{number / 1e6:.1f} M" if number >= 1e6 else f"{number:,}"


def memory_text(size: float) -> str:
    """Format bytes of VRAM or RAM in units of 2**30 and 2**20, as GPUs are sold: "3.4 GB", "120 MB"."""
    return f"{size / 2**30:.1f} GB" if size >= 2**29 else f"{max(1, round(size / 2**20))} MB"


def size_text(size: float) -> str:
    """Format bytes of files and disks in powers of 1000, as file managers do: "512 bytes", "8.4 MB", "4.3 GB"."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if abs(size) < 999.5:
            return f"{size:.0f} {unit}" if unit == "bytes" or size >= 99.95 else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def progress_text(done: int, total: int, of_bytes: bool = False) -> str:
    """Format progress to append to a stage's text: " 3/20", or of bytes " 1.2 GB of 6.9 GB"; "" without a total."""
    if not total:
        return ""
    return f" {size_text(done)} of {size_text(total)}" if of_bytes else f" {done}/{total}"


def clock(seconds: float | None) -> str:
    """Format seconds as h:mm:ss, or m:ss below an hour; a dash for None, negative or not finite."""
    if seconds is None or not math.isfinite(seconds) or seconds < 0:
        return "–"
    hours, below_hour = divmod(round(seconds), 3600)
    return (
        f"{hours}:{below_hour // 60:02}:{below_hour % 60:02}" if hours else f"{below_hour // 60}:{below_hour % 60:02}"
    )
