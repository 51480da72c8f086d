"""Reads title, description and subject of an XMP packet. Entity declarations are refused; size and depth are limited."""

from xml.parsers import expat

from core.record.problems import ProblemsError

MAX_BYTES, MAX_DEPTH = 4_000_000, 100
MOST_TEXTS = 1000  # keywords, or languages of a title
_DC, _RDF = "http://purl.org/dc/elements/1.1/", "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
_NAMES = {f"{_DC} {name}": name for name in ("title", "description", "subject")}
_ITEM, _LANGUAGE = f"{_RDF} li", "http://www.w3.org/XML/1998/namespace lang"
FIX = "write its caption by hand, or remove XMP from the fields"


def read_xmp(packet: bytes | str) -> dict[str, list[str]]:
    """Parse a packet into {"title", "description", "subject": texts}, the default language first. Raises ProblemsError."""
    if len(packet) > MAX_BYTES:
        raise _refused(f"is larger than {MAX_BYTES // 1_000_000} MB")
    if isinstance(packet, bytes):
        marked = packet[:2] in (b"\xfe\xff", b"\xff\xfe")
        packet = packet.decode("utf-16" if marked else "utf-8", errors="replace")
    reader = _Reader()
    try:
        reader.parser.Parse(packet.strip("\ufeff\0 \t\r\n"), True)
    except expat.ExpatError as error:
        raise _refused(f"is not valid XML ({error})") from error
    return reader.values


def _refused(why: str) -> ProblemsError:
    """Return the error that the XMP metadata is not read. `why`: a verb phrase."""
    return ProblemsError.one(f"The XMP metadata {why}", "", FIX, "source.bad-xmp")


class _Reader:
    """Expat handlers that collect `values`: {"title", "description" or "subject": texts}. They raise ProblemsError."""

    def __init__(self) -> None:
        """Connect the handlers to a new expat parser."""
        self.values: dict[str, list[str]] = {}
        self.parser = expat.ParserCreate(namespace_separator=" ")
        self.parser.buffer_text = True
        self.parser.StartDoctypeDeclHandler = self.doctype
        self.parser.StartElementHandler = self.start
        self.parser.CharacterDataHandler = self.data
        self.parser.EndElementHandler = self.end
        self.depth = 0
        self.name = ""  # of the property that is open
        self.default = False  # whether its open item is of the default language
        self.texts: list[str] = []

    def doctype(self, *_: object) -> None:
        """Refuse a document type declaration."""
        raise _refused("declares a document type, which may hide any amount of text")

    def start(self, element: str, attributes: dict[str, str]) -> None:
        """Open an element, and collect properties in its attributes."""
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise _refused(f"is nested deeper than {MAX_DEPTH} levels")
        for attribute, value in attributes.items():  # the short form: rdf:Description dc:title="..."
            self.add_text(_NAMES.get(attribute, ""), value)
        if element in _NAMES:
            self.name = _NAMES[element]
        if element in _NAMES or element == _ITEM:
            self.texts, self.default = [], attributes.get(_LANGUAGE) == "x-default"

    def data(self, text: str) -> None:
        """Collect the text of an open property."""
        if self.name:
            self.texts.append(text)

    def end(self, element: str) -> None:
        """Close an element, and add the text collected in it."""
        self.depth -= 1
        if element == _ITEM or element in _NAMES:
            self.add_text(self.name, "".join(self.texts))
            self.texts = []
        if element in _NAMES:
            self.name = ""

    def add_text(self, name: str, text: str) -> None:
        """Add a text to the property `name`, unless either is blank; first if it is of the default language."""
        if name and text.strip():
            texts = self.values.setdefault(name, [])
            if len(texts) == MOST_TEXTS:
                raise _refused(f"has more than {MOST_TEXTS:,} texts of one kind")
            texts.insert(0 if self.default and name != "subject" else len(texts), text.strip())
