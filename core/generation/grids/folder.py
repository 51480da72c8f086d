"""The folder of a grid: its settings, the images of its cells, and why cells failed. Resuming generates the missing cells."""

from __future__ import annotations

import os
import re
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from core.record import atomic
from core.record.bounded_json import read_json_object
from core.record.problems import ProblemsError
from core.record.run_folder import RunFolder, outputs_unwritable, safe_name
from core.record.stamps import Stamp, stamp_of
from core.record.workspace import Workspace
from core.settings.check import build
from core.settings.job import GridJob
from core.settings.named import leads_out
from core.settings.presets.files import dump, parse

FILE, PNG, HTML = "grid.json", "grid.png", "grid.html"
FORMAT = 1
MAX_BYTES = 8_000_000
NAME = re.compile(r"x(\d{1,4})_y(\d{1,4})_z(\d{1,4})")
FIX = "delete the folder and make the grid again"

Index = tuple[int, int, int]


@dataclass(frozen=True)
class AxisTexts:
    """An axis as stored in grid.json.

    letter    "x", "y" or "z"
    setting   as in `Axis.setting`
    texts     labels of the values
    values    the values in JSON
    notes     a note for each value, such as the validation loss; "" for none
    """

    letter: str
    setting: str
    title: str
    texts: tuple[str, ...]
    values: tuple[Any, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class GridContent:
    """The content of grid.json.

    same      {cell: an equal cell before it, whose image it shares}
    failed    {cell: why it failed}
    state     "new", "running", "done", "stopped", "late" (time limit reached with missing cells) or "failed"
    steps     sampling steps of the last run
    seconds   duration of the last run
    run       folder name of the run whose checkpoints are compared; "" for other grids
    minutes   time limit of a run, 0 for none
    samples   {cell: file name of the run's sample that is its image}

    Cells are (x, y, z), indices from 0.
    """

    title: str
    axes: tuple[AxisTexts, ...]
    same: Mapping[Index, Index]
    failed: Mapping[Index, str]
    state: str
    steps: int
    seconds: float
    prompt: str
    run: str = ""
    minutes: float = 0.0
    samples: Mapping[Index, str] = field(default_factory=dict)

    def axis(self, letter: str) -> AxisTexts | None:
        """Return the axis with this letter, or None."""
        return next((axis for axis in self.axes if axis.letter == letter), None)

    @property
    def size(self) -> Index:
        """Number of columns, rows and tables."""
        x, y, z = (len(axis.texts) if (axis := self.axis(letter)) else 1 for letter in "xyz")
        return x, y, z

    def source(self, position: Index) -> Index:
        """Return the cell whose image is shown at a position: equal cells share one image."""
        return self.same.get(position, position)

    @property
    def cells(self) -> set[Index]:
        """The cells whose images are shown, without those that share another cell's image."""
        x, y, z = self.size
        return {self.source((column, row, table)) for column in range(x) for row in range(y) for table in range(z)}


def name_of(position: Sequence[int]) -> str:
    """Return the name of a cell (x, y, z), from 0: "x1_y2_z1", counted from 1."""
    x, y, z = position
    return f"x{x + 1}_y{y + 1}_z{z + 1}"


def position_of(name: str) -> Index | None:
    """Return the cell (x, y, z), from 0, with a name such as "x1_y2_z1"; None for other names."""
    match = NAME.fullmatch(name)
    return (int(match[1]) - 1, int(match[2]) - 1, int(match[3]) - 1) if match else None


def require_writable(workspace: Workspace) -> None:
    """Raise ProblemsError if the folder of grids cannot be written."""
    root = workspace.grids
    existing = next((folder for folder in (root, *root.parents) if folder.exists()), root)
    try:
        if not existing.is_dir():
            raise NotADirectoryError(20, "Not a directory")
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise outputs_unwritable(root, error) from None


class GridFolder:
    """The folder of one grid, outputs/grids/<time>_<name>/, and its files."""

    def __init__(self, path: Path):
        self.path = path

    name = property(lambda self: self.path.name)
    cells = property(lambda self: self.path / "cells")
    png = property(lambda self: self.path / PNG)
    html = property(lambda self: self.path / HTML)

    @classmethod
    def named(cls, name: str, workspace: Workspace) -> GridFolder:
        """Return the grid with a folder name. Raises ProblemsError if it does not exist."""
        folder = cls(workspace.grids / name)
        if leads_out(name) or "/" in name or "\\" in name or not os.path.isfile(folder.path / FILE):
            what = f"There is no grid '{name[:80]}'"
            fix = "use the name of a folder in outputs/grids"
            raise ProblemsError.one(what, "grid.folder", fix, "grid.no-such-grid")
        return folder

    @classmethod
    def create(
        cls,
        workspace: Workspace,
        job: GridJob,
        axes: Sequence[Mapping[str, Any]],
        same: Mapping[Index, Index],
        run: str = "",
    ) -> GridFolder:
        """Create the folder of a new grid with its grid.json. Raises ProblemsError if it cannot be written.

        job    with its seeds chosen (`with_seeds`)
        axes   from `Grid.stored_axes`
        same   {cell: an equal cell before it}
        run    folder name of the run whose checkpoints are compared; "" for none
        """
        root = workspace.grids
        stem = f"{time.strftime('%Y%m%d-%H%M%S')}_{safe_name(job.grid.name)}"
        for free in atomic.numbered(stem):
            path = root / free
            try:
                atomic.make_folders(root)
                path.mkdir()
                break
            except FileExistsError:
                continue
            except OSError as error:
                raise outputs_unwritable(root, error) from None
        folder = cls(path)
        content = {
            "format": FORMAT,
            "title": job.grid.name,
            "run": run,
            "job": dump(job.with_settings(grid={"folder": None}), task="grid"),
            "axes": [dict(axis) for axis in axes],
            "same": {name_of(position): name_of(other) for position, other in same.items()},
            "failed": {},
            "state": "new",
            "steps": 0,
            "seconds": 0.0,
        }
        try:
            folder._write(content)
        except ProblemsError:
            atomic.remove_folder(path)
            raise
        return folder

    def _read(self) -> dict[str, Any]:
        """Return the content of grid.json: the fields of `GridContent`, "format" and "job". Raises ProblemsError for a damaged file."""
        return read_json_object(self.path / FILE, FIX, max_bytes=MAX_BYTES)

    def _write(self, content: Mapping[str, Any]) -> None:
        """Write grid.json atomically. Raises ProblemsError if that fails."""
        try:
            atomic.write_json(self.path / FILE, content)
        except OSError as error:
            raise outputs_unwritable(self.path, error) from None

    def job(self) -> GridJob:
        """Return the settings with which the grid was started. Raises ProblemsError for a damaged file."""
        preset = parse(self._read().get("job"), self.name)
        return build(GridJob, preset.values, self.name)

    def content(self) -> GridContent:
        """Return the content of grid.json, cached until it changes. Raises ProblemsError for a damaged file."""
        try:
            status = os.stat(self.path / FILE)
        except OSError:
            return self._content()
        return _content(self.path, status.st_ino, stamp_of(status))

    def _content(self) -> GridContent:
        """Read and parse grid.json. Raises ProblemsError for a damaged file."""
        raw = self._read()
        try:
            return GridContent(
                title=str(raw["title"]),
                axes=tuple(_axis(axis) for axis in raw["axes"]),
                same=_positions(raw["same"]),
                failed={position: str(why) for name, why in raw["failed"].items() if (position := position_of(name))},
                state=str(raw["state"]),
                steps=int(raw["steps"]),
                seconds=float(raw["seconds"]),
                prompt=str(raw["job"]["generate"].get("prompt", "")),
                run=str(raw.get("run", "")),
                minutes=float(raw.get("minutes", 0.0)),
                samples={
                    position: str(name)
                    for cell, name in raw.get("samples", {}).items()
                    if (position := position_of(cell))
                },
            )
        except (KeyError, TypeError, ValueError, AttributeError):
            what = "The file of the grid is damaged"
            raise ProblemsError.one(what, str(self.path / FILE), FIX, "grid.damaged") from None

    def change(self, **values: Any) -> None:
        """Replace values of grid.json. Raises ProblemsError for a damaged or unwritable file.
        values: by the names of `GridContent`'s fields; failed as {cell: reason}, samples as {cell: file name}"""
        for name in values.keys() & {"failed", "samples"}:
            values[name] = {name_of(position): text for position, text in values[name].items()}
        self._write(self._read() | values)

    def cell(self, position: Index) -> Path:
        """Return the path of a cell's image."""
        return self.cells / f"{name_of(position)}.png"

    def samples(self, workspace: Workspace) -> dict[Index, Path]:
        """Return {cell: path} of the run's samples that are used as images of cells and exist."""
        content = self.content()
        folder = RunFolder(workspace.runs / Path(content.run).name).samples
        named = content.samples.items() if content.run else ()
        paths = {content.source(position): folder / Path(name).name for position, name in named}
        return {position: path for position, path in paths.items() if path.is_file()}

    def generated(self) -> set[Index]:
        """Return the cells whose images exist. Images are written atomically, so each is complete."""
        if not self.cells.is_dir():
            return set()
        return {position for path in self.cells.glob("x*.png") if (position := position_of(path.stem)) is not None}


@lru_cache(maxsize=500)
def _content(path: Path, inode: int, stamp: Stamp) -> GridContent:
    """Parse grid.json in the folder `path`, cached.
    inode, stamp: change with the file; the inode even for two changes in the same moment"""
    return GridFolder(path)._content()


def _positions(raw: Mapping[str, str]) -> dict[Index, Index]:
    """Convert {name of a cell: name of a cell} to cells. Invalid names are dropped."""
    pairs = ((position_of(name), position_of(other)) for name, other in raw.items())
    return {position: other for position, other in pairs if position is not None and other is not None}


def _axis(raw: Mapping[str, Any]) -> AxisTexts:
    """Parse an axis of grid.json, as `Grid.stored_axes` wrote it. Raises ValueError, KeyError or TypeError for a damaged one."""
    letter, values = raw["letter"], raw["values"]
    if letter not in ("x", "y", "z") or not values:
        raise ValueError(letter)
    return AxisTexts(
        letter,
        str(raw["setting"]),
        str(raw["title"]),
        tuple(str(value["text"]) for value in values),
        tuple(value.get("value") for value in values),
        tuple(str(value.get("note", "")) for value in values),
    )


def list_grids(workspace: Workspace) -> list[GridFolder]:
    """Return all grids, newest first; [] if there are none."""
    if not workspace.grids.is_dir():
        return []
    folders = [GridFolder(path) for path in workspace.grids.iterdir() if (path / FILE).is_file()]
    return sorted(folders, key=lambda folder: folder.name, reverse=True)
