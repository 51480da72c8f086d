"""Does a ControlNet of the starter follow edges? Its dataset, and the measurement in docs/controlnet.md.

    python -m workshop.control_proof place FOLDER PROMPTS.txt OUT    places images made from PROMPTS.txt at random
    python -m workshop.control_proof ask PAIRS OUT.txt               prompts of held-out pairs, each with its control image
    python -m workshop.control_proof measure PAIRS NAME=FOLDER ...   a row of the table for each folder of generated images

PAIRS is a folder with `images/` and `edges/`. The starter makes nearly the same image for a prompt with every seed, so
images are mirrored, turned, made smaller and moved: only the edges tell where the subject is.
"""

import random
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from core.control.hints.edges import canny
from core.control.hints.plain import gray_levels

HELD_OUT, VALIDATED = 8, 2  # one subject in 8 is held out, 2 of these for validation
PLACES = {"train": 4, "valid": 1, "test": 2}  # of each image
SIZE, LINES_A_SUBJECT = 128, 6
TOLERANCE = 1  # pixels between a line and its line


def place(images: Path, prompts: Path, out: Path) -> None:
    """Write each image at random places with its caption: to `out`/train, or for every eighth subject to valid and test."""
    lines = [line.split(" --")[0] for line in prompts.read_text().splitlines()]
    subjects = [at // LINES_A_SUBJECT for at in range(len(lines))]
    kinds = list(range(max(subjects) + 1))
    random.Random(0).shuffle(kinds)
    held = kinds[: len(kinds) // HELD_OUT]
    for path in sorted(images.glob("*.png")):
        at = int(path.stem) - 1
        role = "train" if subjects[at] not in held else "valid" if subjects[at] in held[:VALIDATED] else "test"
        folder = out / role / "images"
        folder.mkdir(parents=True, exist_ok=True)
        for turn in range(PLACES[role]):
            stem = f"{path.stem}_{turn}"
            placed(Image.open(path).convert("RGB"), random.Random(stem)).save(folder / f"{stem}.png")
            (folder / f"{stem}.txt").write_text(lines[at])


def placed(image: Image.Image, dice: random.Random) -> Image.Image:
    """An image mirrored, turned, made smaller and moved, on a ground of its border's color."""
    values = np.asarray(image)
    border = np.concatenate([values[2], values[-3], values[:, 2], values[:, -3]])
    ground = tuple(int(each) for each in np.median(border, axis=0))
    if dice.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    side = round(SIZE * dice.uniform(0.55, 1.0))
    turned = image.resize((side, side), Image.Resampling.LANCZOS).rotate(
        dice.uniform(-25, 25), Image.Resampling.BICUBIC, fillcolor=ground
    )
    canvas = Image.new("RGB", (SIZE, SIZE), ground)
    canvas.paste(turned, (dice.randint(0, SIZE - side), dice.randint(0, SIZE - side)))
    return canvas


def ask(pairs: Path, out: Path) -> None:
    """Write a prompt line for each pair: caption, seed and control image."""
    lines = []
    for number, caption in enumerate(sorted((pairs / "images").glob("*.txt"))):
        lines.append(f"{caption.read_text()} --d {number} --cn {(pairs / 'edges' / caption.stem).resolve()}.png")
    out.write_text("\n".join(lines) + "\n")


def edges_of(path: Path) -> np.ndarray:
    return canny(gray_levels(np.asarray(Image.open(path).convert("RGB"))).astype(np.float32), 100, 200)


def near(lines: np.ndarray) -> np.ndarray:
    """The pixels at most TOLERANCE from a line."""
    reach, (height, width) = TOLERANCE, lines.shape
    wide, shifts = np.pad(lines, reach), range(2 * reach + 1)
    return np.any([wide[y : y + height, x : x + width] for y in shifts for x in shifts], axis=0)


def overlap(lines: np.ndarray, wanted: np.ndarray) -> float:
    """F1 score of an image's edges against those of its control image, 0 to 1."""
    if not lines.any() or not wanted.any():
        return 0.0
    precision, recall = near(wanted)[lines].mean(), near(lines)[wanted].mean()
    return float(2 * precision * recall / (precision + recall)) if precision + recall else 0.0


def measure(pairs: Path, folders: list[str]) -> None:
    """Print a table of how far generated images follow their own control image's edges and another subject's. folders:
    NAME=FOLDER"""
    wanted = [np.asarray(Image.open(path).convert("L")) > 127 for path in sorted((pairs / "edges").glob("*.png"))]
    print("| | own edges | edges of another subject | closer to its own |\n|---|---|---|---|")
    for name, _, folder in (each.partition("=") for each in folders):
        generated = [edges_of(path) for path in sorted(Path(folder).glob("*.png"))]
        scores = np.array([overlap(*pair) for pair in zip(generated, wanted, strict=True)])
        away = len(generated) // 2  # other subjects: the images are in the order of theirs
        other = np.array([overlap(lines, wanted[at - away]) for at, lines in enumerate(generated)])
        print(f"| {name} | {mean(scores)} | {mean(other)} | {np.mean(scores > other):.0%} |")


def mean(values: np.ndarray) -> str:
    return f"{values.mean():.3f} ± {values.std(ddof=1) / len(values) ** 0.5:.3f}"


if __name__ == "__main__":
    todo, first, *rest = sys.argv[1:]
    if todo == "place":
        place(Path(first), Path(rest[0]), Path(rest[1]))
    elif todo == "ask":
        ask(Path(first), Path(rest[0]))
    else:
        measure(Path(first), rest)
