"""Runs the examples of the guides in docs/: marked blocks, in their order, in one folder for each guide.

What `images/...` means in a guide is made in a temporary folder. Blocks, by the words after the three back-ticks:
  text layout         a file a line: images with their size (320 x 200, then: turned, cut off, transparent), others with
                      their text. They are written.
  sh                  `python webui.py ...` is run and must succeed. Trainings and drawings get --check.
  sh trains           trained and drawn in truth, but for a few steps at 64 px
  text output         what the commands before it printed, in this order; "..." and line ends leave something out
  toml FILE           a dataset file of sd-scripts: written, and read without an error
  json FILE, python FILE   written
  text captions       settings :: caption -> the captions that come out, with | between those drawn by chance
"""

import ast
import re
import shlex
import sys
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from core.cli.main import main
from core.dataset.captions.pipeline import caption_preview
from core.imports.dataset_config import read_dataset_config
from core.record.problems import errors
from core.record.workspace import PROJECT
from core.settings.dataset.captions import CaptionSettings

DOCS = PROJECT / "docs"
ONLY_CHECKED = ("train", "generate", "class_images", "make_pairs")
DRAWS = 80
_BLOCK = re.compile(r"^```([^\n]+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SMALL = {  # in place of a guide's own values where it trains and draws
    "train": "--dataset.resolution 64 --schedule.max_train_steps 2 --schedule.seed 1 --logging.log_with none",
    "generate": "--generate.width 64 --generate.height 64 --generate.steps 2",
}
NOT_SMALL = ("--schedule.max_train_epochs",)
_OURS = re.compile(r"(?<![\w/.])(?=images/|models/mine\b)")


@dataclass(frozen=True)
class Block:
    kind: str  # "sh", "toml", "text layout" ...
    file: str
    lines: tuple[str, ...]


def blocks_of(guide: Path) -> list[Block]:
    found = []
    for words, body in _BLOCK.findall(guide.read_text("utf-8")):
        first, *rest = words.split()
        kind, file = (words, "") if first == "text" else (first, " ".join(rest))
        found.append(Block(kind, file, tuple(line.rstrip() for line in body.splitlines() if line.strip())))
    return found


class Guide:
    """The examples of one guide, run in `folder`. capsys: pytest's."""

    def __init__(self, name: str, folder: Path, capsys):
        self.blocks = blocks_of(DOCS / name)
        self.folder, self._capsys, self._printed = folder, capsys, ""
        self.ran = 0

    def run(self) -> None:
        kinds = {
            "text layout": self._layout,
            "sh": self._commands,
            "text output": self._output,
            "toml": self._dataset_file,
            "json": self._file,
            "python": self._file,
            "text captions": self._captions,
        }
        for block in self.blocks:
            kinds[block.kind](block)
            self.ran += 1

    def here(self, text: str) -> str:
        """With `images/` and `models/mine` in the temporary folder."""
        return _OURS.sub(f"{self.folder.as_posix()}/", text)

    def _layout(self, block: Block) -> None:
        for line in block.lines:
            name, _, content = re.sub(r" {2,}", "\t", line.strip()).partition("\t")
            path = self.folder / name
            assert name.startswith("images/") and content, line
            path.parent.mkdir(parents=True, exist_ok=True)
            size = re.match(r"(\d+) x (\d+)(?:, (.+))?$", content)
            if size:
                write_image(path, int(size[1]), int(size[2]), size[3])
            else:
                path.write_text(content, "utf-8")

    def _commands(self, block: Block) -> None:
        self._printed = ""
        for line in "\n".join(block.lines).replace("\\\n", " ").splitlines():
            python, page, *words = shlex.split(self.here(line))
            assert (python, page) == ("python", "webui.py"), line
            if block.file == "trains":
                words = made_small(words)
            more = ["--check"] if words[0] in ONLY_CHECKED and not {"trains", *words} & {block.file, "--check"} else []
            code = main([*words, *more, "--outputs", str(self.folder / "outputs")])
            printed = self._capsys.readouterr()
            assert code == 0, f"{line}\n{printed.out}{printed.err}"
            self._printed += (printed.out + printed.err).replace(f"{self.folder}/", "")

    def _output(self, block: Block) -> None:
        rest = self._printed
        for part in filter(None, (part.strip() for line in block.lines for part in line.split("..."))):
            _, found, rest = rest.partition(part)
            assert found, f"{part!r} is not printed, or not there:\n{self._printed}"

    def _file(self, block: Block) -> Path:
        path = self.folder / block.file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.here("\n".join(block.lines)) + "\n", "utf-8")
        return path

    def _dataset_file(self, block: Block) -> None:
        found = read_dataset_config(self._file(block))
        assert not errors(found.problems) and found.values, found.problems

    def _captions(self, block: Block) -> None:
        for line in block.lines:
            settings, _, rest = line.partition("::")
            caption, _, wanted = rest.partition("->")
            given = {name: ast.literal_eval(value) for name, value in re.findall(r"(\w+)=('[^']*'|\S+)", settings)}
            assert given, line
            text = caption.strip().replace("\\n", "\n")
            drawn = caption_preview(text, CaptionSettings(**given), 0, ("guide", "a.png"), DRAWS)
            assert {each.text for each in drawn} == {each.strip().strip('"') for each in wanted.split("|")}, line


def made_small(words: list[str]) -> list[str]:
    """The same command with the values of SMALL."""
    small = SMALL[words[0]].split()
    kept, skip = words[:1], False
    for word in words[1:]:
        if word.startswith("--"):
            skip = word in small or word in NOT_SMALL
        if not skip:
            kept.append(word)
    return [*kept, *small]


def write_image(path: Path, width: int, height: int, how: str | None = None) -> None:
    """An image of noise, seen at this size."""
    stored = (width, height) if how == "turned" else (height, width)
    pixels = np.random.default_rng(zlib.crc32(path.name.encode())).integers(0, 256, (*stored, 4), np.uint8)
    if how == "transparent":
        Image.fromarray(pixels).save(path)
        return
    exif = Image.Exif()
    if how == "turned":
        exif[0x0112] = 6  # a quarter turn
    Image.fromarray(pixels[..., :3]).save(path, exif=exif)
    if how == "cut off":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def forget_modules(*names: str) -> None:
    for name in names:
        sys.modules.pop(name, None)
