"""The numbers of the glossary's examples are those that the program computes."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from core.dataset.buckets.aspect_ratio import SIDE_STEP, fit_to_bucket, plan_buckets
from core.dataset.buckets.batches import Placed
from core.dataset.buckets.plan import Epochs
from core.dataset.buckets.validation_split import held_out
from core.dataset.captions.files import Caption
from core.dataset.sources.image_info import ImageInfo
from core.families.token_count import count_tokens
from core.settings.dataset.captions import CaptionSettings
from core.settings.dataset.concepts import concepts
from core.settings.dataset.dataset import DatasetSettings
from core.settings.dataset.images import ImageSettings
from core.settings.dataset.source import Source
from core.settings.dataset.validation import ValidationSettings
from tests.docs.guide import DOCS

SQUARE, WIDE = (512, 512), (640, 384)


def folder(number, *, repeats=1, role="train", size=SQUARE, others=()):
    """Settings and images of one folder; `others` are further ones."""
    return [(number, repeats, role, size), *others]


def epochs_of(folders, batch_size=1, accumulation=1):
    dataset = DatasetSettings(
        train_batch_size=batch_size,
        sources=[Source(folder=f"{place}", role=role) for place, (_, _, role, _) in enumerate(folders)],
    )
    known = concepts(dataset, CaptionSettings(), ValidationSettings())
    placed = []
    for concept, (number, repeats, _, size) in zip(known, folders, strict=True):
        for name in range(number):
            image = ImageInfo(
                f"{concept.number}",
                f"{name}.png",
                Path("a.png"),
                size[0],
                size[1],
                1,
                1,
                repeats,
                concept=concept.number,
            )
            placed.append(Placed(image, fit_to_bucket(size, size), Caption("", "none", Path("a.txt")), concept))
    return Epochs(placed, dataset, accumulation)


def steps(number, repeats, batch_size, passes):
    epochs = epochs_of(folder(number, repeats=repeats), batch_size)
    return epochs.steps_in(0), epochs.first_step(passes)


def accumulated(batch_size, accumulation, number):
    epochs = epochs_of(folder(number), batch_size, accumulation)
    first = epochs.groups(0, 0)[0]
    return sum(len(batch) for batch in first), epochs.steps_in(0)


def regularized(number, pool):
    epochs = epochs_of(folder(number, others=folder(pool, role="regularization")))
    shown: set = set()
    passes = 0
    while len(shown) < pool:
        shown |= {each.key for each, _ in epochs.views_of(passes) if each.concept.role == "regularization"}
        passes += 1
    return epochs.views, passes


def held(share, number):
    known = concepts(DatasetSettings(folder="a"), CaptionSettings(), ValidationSettings(validation_split=share))
    images = [ImageInfo("a", f"{name}.png", Path(f"{name}.png"), 1, 1, 1, 1) for name in range(number)]
    return len(held_out(images, known, lambda members: {each.key: str(each.key) for each in members}, 0))


def scale(rank, alpha):
    import torch

    from core.networks.kinds.lora import LoraAdapter

    return LoraAdapter.fresh("a", torch.nn.Linear(rank, rank), rank, alpha, 0).scale


def bucket(resolution, width, height):
    placement = plan_buckets(ImageSettings(resolution=resolution)).assign(width, height)
    return placement and placement.bucket


# what the glossary says, with its numbers in brackets -> those that follow from the first ones
SAID: dict[str, Callable[..., Any]] = {
    r"(\d+) images with (\d+) repeats in batches of (\d+) make (\d+) steps an epoch, and (\d+) epochs (\d+) steps": (
        lambda a, b, c, d, e, f: (steps(a, b, c, e), (d, f))
    ),
    r"batches of (\d+) and an accumulation of (\d+) a step trains from (\d+) images; (\d+) images\s+then make (\d+) steps": (
        lambda a, b, c, d, e: (accumulated(a, b, d), (c, e))
    ),
    r"(\d+) images of one size and (\d+) of another in batches of (\d+) make (\d+) steps": (
        lambda a, b, c, d: (epochs_of(folder(a, others=folder(b, size=WIDE)), c).steps_in(0), d)
    ),
    r"has at most as many pixels as its square: (\d+) is (\d+) pixels": (
        lambda a, b: (plan_buckets(ImageSettings(resolution=a)).area, b)
    ),
    r"At (\d+) an image of (\d+) x (\d+) goes to (\d+) x (\d+), a square one to (\d+) x (\d+)": (
        lambda a, b, c, d, e, f, g: ((bucket(a, b, c), bucket(a, 900, 900)), ((d, e), (f, g)))
    ),
    r"with (\d+) images and (\d+) of them, (\d+) views an epoch, and all have been shown after (\d+) epochs": (
        lambda a, b, c, d: (regularized(a, b), (c, d))
    ),
    r"A split of (0\.\d+) of (\d+) images holds out (\d+)": lambda a, b, c: (held(a, b), c),
    r"(\d+) x (\d+) pixels are (\d+) x (\d+) of them": (lambda a, b, c, d: ((a // SIDE_STEP, b // SIDE_STEP), (c, d))),
    r"Rank (\d+) and alpha (\d+) act with (0\.\d+)": lambda a, b, c: (scale(a, b), c),
    r"It reads (\d+) at once": lambda a: (CaptionSettings().max_token_length, a),
}


@pytest.mark.parametrize("said", SAID)
def test_a_number_of_the_glossary_is_the_true_one(said):
    text = (DOCS / "glossary.md").read_text("utf-8")
    (found,) = re.findall(said, text)
    found = (found,) if isinstance(found, str) else found
    true, told = SAID[said](*(float(each) if "." in each else int(each) for each in found))
    assert true == told


def test_the_tokens_of_the_glossary_are_counted():
    (line,) = re.findall(r"- \*\*Token\*\*.*", (DOCS / "glossary.md").read_text("utf-8"))
    counted = re.findall(r'"([^"]+)"(?: has)? (\d+)', line)
    assert len(counted) == 3
    assert [(words, count_tokens(words)) for words, _ in counted] == [(words, int(number)) for words, number in counted]
