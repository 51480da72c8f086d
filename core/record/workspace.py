"""The folders that Atelier uses (project, outputs, models, presets), and checks of paths."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from pathlib import Path, PureWindowsPath
from typing import Any
from urllib.parse import unquote

PROJECT = Path(__file__).resolve().parents[2]
STARTER = PROJECT / "models" / "starter"  # the model that is shipped, with training images
CAPTIONERS = "captioners"  # in the models folder: what writes captions
PREPROCESSORS = "preprocessors"  # there too: what makes control images
PERSONAL = ("images", "grids")  # folders that each person has alone
# Without width, or marks of the direction of writing, which Windows' dialog of a file's properties copies with its path
INVISIBLE = "\u200b\u200c\u200d\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2060\u2066\u2067\u2068\u2069\ufeff"
LONGEST_PASTED = 10_000  # characters


@dataclass(frozen=True)
class Workspace:
    """The folders of one server. Relative paths in settings are relative to the project folder.

    person   login of the person whose page or job this is, where people have a page each; "" for the owner
    allowed  further folders that a shared page may use (--allow)
    """

    outputs: Path = PROJECT / "outputs"
    models: Path = PROJECT / "models"
    presets: Path = PROJECT / "presets"
    person: str = ""
    allowed: tuple[Path, ...] = ()

    @classmethod
    def of(cls, outputs=None, models=None, presets=None) -> Workspace:
        """Return the workspace with these folders, relative to the working directory; for None the project's."""
        options = {"outputs": outputs, "models": models, "presets": presets}
        folders: dict[str, Any] = {name: open_home(folder).resolve() for name, folder in options.items() if folder}
        return cls(**folders)

    @property
    def private(self) -> Path:
        return self.outputs / ".atelier"

    @property
    def cache(self) -> Path:
        return self.private / "cache"

    @property
    def thumbs(self) -> Path:
        return self.private / "thumbs"

    @property
    def trash(self) -> Path:
        return self.private / "trash"

    @property
    def captioners(self) -> Path:
        """Folder of captioner models, which lists of other models leave out."""
        return self.models / CAPTIONERS

    @property
    def preprocessors(self) -> Path:
        """Folder of ONNX models that make control images, which lists of other models leave out."""
        return self.models / PREPROCESSORS

    @property
    def captions(self) -> Path:
        """Folder with the history of caption files."""
        return self.private / "captions"

    @property
    def runs(self) -> Path:
        return self.outputs / "runs"

    @property
    def personal(self) -> Path:
        """Folder of this person's images and grids, which other people cannot access."""
        return self.outputs / "people" / self.person if self.person else self.outputs

    @property
    def personal_private(self) -> Path:
        """Folder of this person's form, stars, styles and prompts, which other people cannot access."""
        return self.private / "people" / self.person if self.person else self.private

    @property
    def images(self) -> Path:
        return self.personal / "images"

    @property
    def grids(self) -> Path:
        return self.personal / "grids"

    def is_other_persons(self, path: str | os.PathLike) -> bool:
        """Whether `path`, with links followed, is in another person's personal folder; always False for the owner."""
        if not self.person:
            return False
        owner = replace(self, person="")
        closed = [owner.outputs / "people", owner.private / "people", *(owner.personal / name for name in PERSONAL)]
        return lies_below(path, closed) and not lies_below(path, [self.personal, self.personal_private])

    @property
    def inputs(self) -> Path:
        """Folder with initial images, masks and region maps that were dropped or painted on the page."""
        return self.outputs / "inputs"

    @property
    def datasets(self) -> Path:
        return self.outputs / "datasets"


def open_home(text: str | os.PathLike) -> Path:
    """Return a path with `~` expanded; an unknown `~name` stays as written."""
    path = Path(text)
    try:
        return path.expanduser()
    except RuntimeError:
        return path


def pasted_path(text: str) -> str:
    """Return a path without what copying puts around it: spaces, invisible characters, quotation marks, file:// with its %20.

    The result of a result is itself, so that a path that was checked stays the same when its job is read again.
    """
    before = ""
    while text != before and len(text) <= LONGEST_PASTED:
        before, text = text, text.strip().strip(INVISIBLE).strip()
        if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'":
            text = text[1:-1]
        elif text[:6].lower() == "file:/":
            path = re.sub("^//(localhost)?(?=/)", "", unquote(text[5:]), flags=re.IGNORECASE)
            text = path[1:] if re.match("/[A-Za-z]:", path) else path
    return text


def resolve_path(text: str | os.PathLike) -> Path:
    """Return the path of a setting with `~` expanded; a relative one is below the project folder."""
    path = open_home(text)
    return path if path.is_absolute() else PROJECT / path


def is_foreign(text: str | os.PathLike) -> bool:
    """Whether `text` would be read as a relative name although it is none: an address such as smb://nas/a, or an absolute Windows path on
    another system."""
    path = os.fspath(text)
    if re.match(r"[A-Za-z][\w+.-]+://", path):
        return True
    return os.name != "nt" and not path.startswith("/") and PureWindowsPath(path).is_absolute()


def typed_path(text: str | None) -> Path | None:
    """Return the absolute path of a setting; None if it is empty."""
    return Path(os.path.abspath(resolve_path(text))) if text else None


def real_path(path: str | os.PathLike) -> Path:
    """Return the path with links followed; unlike `Path.resolve` before Python 3.13, a loop of links raises no RuntimeError."""
    return Path(os.path.realpath(path))


def lies_below(path: str | os.PathLike, folders: Iterable[Path]) -> bool:
    """Whether `path` is one of `folders` or inside one, after following links. Case is ignored, as a disk may ignore it."""
    inner, *outer = (os.path.normcase(real_path(each)).casefold() + os.sep for each in (path, *folders))
    return any(inner.startswith(each) for each in outer)


CURRENT_WORKSPACE: ContextVar[Workspace | None] = ContextVar("workspace of this job or request", default=None)


@contextmanager
def in_workspace(workspace: Workspace | None) -> Iterator[None]:
    """Context that sets the workspace of the current job or request."""
    token = CURRENT_WORKSPACE.set(workspace)
    try:
        yield
    finally:
        CURRENT_WORKSPACE.reset(token)


def is_closed(path: str | os.PathLike) -> bool:
    """Whether `path`, with links followed, is in another person's personal folder, seen from the current job or request."""
    space = CURRENT_WORKSPACE.get()
    return space is not None and space.is_other_persons(path)


def is_share(path: str | os.PathLike) -> bool:
    r"""Whether `path` is written as a network path (\\server\share, //server/share).

    Windows authenticates as soon as such a path is accessed, so this is checked before any access.
    """
    text = os.fspath(path).replace("\\", "/")
    return text.startswith("//") and not _LONG.match(text)


_LONG = re.compile("//[?]/[A-Za-z]:")  # Windows' form for long paths of local drives


def last_part(path: str) -> str:
    r"""Return the last component of a path of any operating system: "fox" of "D:\sets\fox\"."""
    return path.replace("\\", "/").rstrip("/").rpartition("/")[2]


def display_path(path: str | os.PathLike) -> str:
    """Return a path for display: relative to the project folder if inside, else as given."""
    path = Path(path)
    if is_share(path) and not is_share(PROJECT):
        return str(path)
    try:
        return real_path(path).relative_to(PROJECT).as_posix()
    except ValueError:
        return str(path)
