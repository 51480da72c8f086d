"""File extensions of images: the readable ones with their formats, and known ones that cannot be read."""

# Extensions of images and their formats, by Pillow's names. An allowlist: other decoders run external programs (EPS) or
# take minutes (PDF), and a file's content, not its name, selects the decoder. (JPEG includes the MPO of phones.)
_FORMATS = {
    "PNG": ".png .apng",
    "JPEG": ".jpg .jpeg .jpe .jfif .jif .jfi .pjpeg .pjp .mpo",
    "WEBP": ".webp",
    "BMP": ".bmp",
    "DIB": ".dib",
    "GIF": ".gif",
    "TIFF": ".tif .tiff",
    "AVIF": ".avif .avifs",
    "JPEG2000": ".jp2 .j2k .jpf .jpx .j2c .jpc",
    "PPM": ".ppm .pgm .pbm .pnm .pfm",
    "ICO": ".ico",
    "PCX": ".pcx",
    "QOI": ".qoi",
    "TGA": ".tga .icb .vda .vst",
}
PLUGIN_EXTENSIONS = {".heic": "HEIF", ".heif": "HEIF", ".hif": "HEIF", ".jxl": "JXL"}  # read by optional packages
FORMAT_OF = {ending: format for format, endings in _FORMATS.items() for ending in endings.split()} | PLUGIN_EXTENSIONS
UNMARKED_FORMATS = ("TGA",)  # without magic bytes: read only where the extension says so
IMAGE_FORMATS = tuple(format for format in _FORMATS if format not in UNMARKED_FORMATS)
IMAGE_EXTENSIONS = frozenset(FORMAT_OF)
SAME_FORMATS = {"MPO": "JPEG", "DIB": "BMP"}  # formats that count as another
# Images of programs and cameras that are not read here; a scan names them.
UNREAD_IMAGES = frozenset(
    ".psd .psb .xcf .kra .clip .ora .sai .sai2 .afphoto .procreate .svg .svgz .eps .ai .cdr .raw .cr2 .cr3 .crw .nef .nrw .arw .srf .sr2"
    " .dng .orf .rw2 .raf .pef .srw .x3f .exr .hdr .dds .sgi .rgb .rgba .bw .cur .icns .pam .jxr .wdp .hdp .xbm .xpm .wmf .emf .fits .flif"
    " .bpg .heics .mp4 .webm .mov .mkv .avi".split()
)
