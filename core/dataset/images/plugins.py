"""Image decoders in optional packages: used if installed, named in messages if missing."""

import importlib
from dataclasses import dataclass

from core.dataset.sources.files import format_of
from core.record.image_formats import IMAGE_FORMATS, UNMARKED_FORMATS


@dataclass(frozen=True, slots=True)
class Plugin:
    """An optional package that decodes an image format.

    kind      displayed name
    format    Pillow's name
    package   name on PyPI
    module    module to import
    """

    kind: str
    format: str
    package: str
    module: str
    signatures: tuple[tuple[int, bytes], ...]  # (offset, bytes) that begin such files

    def matches(self, start: bytes) -> bool:
        """Return whether a file's first bytes are this format's magic bytes."""
        return any(start[at : at + len(mark)] == mark for at, mark in self.signatures)

    @property
    def missing(self) -> str:
        """Why such an image cannot be read here, as predicate of "the image ..."."""
        return f"is a {self.kind} image, which needs a decoder ({self.package})"


_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
PLUGINS = (
    Plugin("HEIC", "HEIF", "pillow-heif", "pillow_heif", tuple((4, b"ftyp" + brand) for brand in _BRANDS)),
    Plugin(
        "JPEG XL",
        "JXL",
        "pillow-jxl-plugin",
        "pillow_jxl",
        ((0, b"\xff\x0a"), (0, b"\0\0\0\x0cJXL \r\n\x87\n")),
    ),
)


def load_plugins() -> frozenset[str]:
    """Import the installed plugins and return their formats. Plugins that fail to load count as missing."""
    loaded = set()
    for plugin in PLUGINS:
        try:
            module = importlib.import_module(plugin.module)
            if plugin.format == "HEIF":  # the other registers itself
                module.register_heif_opener()
        except Exception:  # ImportError, OSError of a shared library, an AttributeError of a version that does not fit
            continue
        loaded.add(plugin.format)
    return frozenset(loaded)


LOADED = load_plugins()


def readable_formats(name: str) -> tuple[str, ...]:
    """Return the formats that a file of this name may have, by Pillow's names."""
    expected = format_of(name)
    unmarked = (expected,) if expected in UNMARKED_FORMATS else ()
    return (*IMAGE_FORMATS, *(plugin.format for plugin in PLUGINS if plugin.format in LOADED), *unmarked)


def plugin_for(start: bytes) -> Plugin | None:
    """Return the plugin, installed or not, for a file with these first bytes, or None."""
    return next((plugin for plugin in PLUGINS if plugin.matches(start)), None)
