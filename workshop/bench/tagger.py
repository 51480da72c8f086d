"""How much of its model's own speed a tagger keeps while it opens images, prepares them and writes captions."""

import importlib.util
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

SIDE, LABELS = 448, 1000
PHOTO = (1216, 832)  # pixels of an image
BATCH = 4


def measure_tagger(quick: bool, say: Callable[[str], None]) -> dict[str, Any]:
    """Seconds per image of a model with the shape of WD ViT v3 and random weights: alone, and with all that tagging does.

    Both are measured in turns. {} without the package that writes such a model.
    """
    if importlib.util.find_spec("onnx") is None:
        return {}
    images = 6 * BATCH
    with tempfile.TemporaryDirectory(prefix="atelier-bench-") as name:
        folder = Path(name)
        say("creating a tagger and photos")
        _write_tagger(folder / "tagger", layers=2 if quick else 12)
        _write_photos(folder / "images", images)
        alone, whole = [], []
        for turn in range(3):
            say(f"tagging {images} images, {turn + 1} of 3")
            alone.append(_alone(folder, images))
            whole.append(_whole(folder, images, turn))
    shares = [model / tagging for model, tagging in zip(alone, whole, strict=True)]
    return {
        "images": images,
        "model_seconds_per_image": median(alone) / images,
        "tagging_seconds_per_image": median(whole) / images,
        "share_of_model_speed": median(shares),
    }


def tagger_rows(result: dict[str, Any]) -> list[tuple[str, str]]:
    if not result:
        return [("tagging", "not measured: pip install onnx")]
    model, tagging = result["model_seconds_per_image"], result["tagging_seconds_per_image"]
    share = f"{result['share_of_model_speed']:.0%} of its model's own speed"
    return [
        (f"tagging {result['images']} photos", f"{share} ({tagging:.2f} s per image, the model alone {model:.2f} s)")
    ]


def _alone(folder: Path, images: int) -> float:
    """Seconds of the model alone, on prepared images."""
    from core.formats.onnx.providers import onnxruntime
    from core.record import machine

    library = onnxruntime()
    options = library.SessionOptions()
    options.intra_op_num_threads = machine.threads()
    session = library.InferenceSession(str(folder / "tagger" / "model.onnx"), sess_options=options)
    batch = np.random.default_rng(0).random((BATCH, SIDE, SIDE, 3), dtype=np.float32)
    session.run(None, {"image": batch})
    begin = time.perf_counter()
    for _ in range(images // BATCH):
        session.run(None, {"image": batch})
    return time.perf_counter() - begin


def _whole(folder: Path, images: int, turn: int) -> float:
    """Seconds of the task from the first image to the last caption, its model loaded."""
    from core.captioning.captioners import run_captioner
    from core.captioning.tagger.tagging import tag
    from core.record.commands import NoCommands
    from core.record.context import JobContext
    from core.record.journal import Journal
    from core.record.run_folder import RunFolder
    from core.record.workspace import Workspace
    from core.settings.check import build
    from core.settings.job import JOBS

    job: Any = build(
        JOBS["tag"],
        {
            "dataset": {"folder": str(folder / "images")},
            "captioning": {"existing": "replace"},
            "tag": {"model_dir": str(folder / "tagger"), "thresh": 0.3 + 0.01 * turn, "batch_size": BATCH},
        },
    )
    begin: list[float] = []

    def timed(*given: Any) -> Iterator[Any]:
        for number, described in enumerate(tag(*given), 1):
            if number == BATCH:  # the first batch waits for the model to be loaded
                begin.append(time.perf_counter())
            yield described

    workspace = Workspace(folder / "outputs", folder / "models", folder / "presets")
    run_folder = RunFolder(folder / "job")
    journal = Journal(run_folder.path)
    try:
        run_captioner("tag", "Tag images", timed, job, JobContext(workspace, run_folder, journal, NoCommands()))
        return (time.perf_counter() - begin[0]) * images / (images - BATCH)
    finally:
        journal.close()


def _write_tagger(folder: Path, layers: int) -> None:
    """A vision transformer whose layers share their weights, and its table of tags."""
    import torch

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patches = torch.nn.Conv2d(3, 768, 16, 16)
            self.layer = torch.nn.TransformerEncoderLayer(768, 12, 3072, batch_first=True, norm_first=True)
            self.head = torch.nn.Linear(768, LABELS)
            torch.nn.init.constant_(self.head.bias, -3.0)  # most tags are not in most images

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            patches = self.patches(images.permute(0, 3, 1, 2) / 255).flatten(2).transpose(1, 2)
            for _ in range(layers):
                patches = self.layer(patches)
            return torch.sigmoid(self.head(patches.mean(1)))

    folder.mkdir(parents=True)
    torch.manual_seed(0)
    free = {"image": {0: "N"}, "output": {0: "N"}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter that needs no further package is called an old one
        torch.onnx.export(
            Model().eval(),
            (torch.zeros(1, SIDE, SIDE, 3),),
            str(folder / "model.onnx"),
            dynamo=False,
            input_names=["image"],
            output_names=["output"],
            dynamic_axes=free,
        )
    rows = [f"{number},tag_{number},{9 if number < 4 else 0},1" for number in range(LABELS)]
    (folder / "selected_tags.csv").write_text("\n".join(["tag_id,name,category,count", *rows]) + "\n")


def _write_photos(folder: Path, images: int) -> None:
    from PIL import Image

    folder.mkdir(parents=True)
    chance = np.random.default_rng(1)
    for number in range(images):
        small = Image.fromarray(chance.integers(0, 256, (52, 76, 3), np.uint8))
        small.resize(PHOTO, Image.Resampling.BICUBIC).save(folder / f"{number:03}.jpg", quality=92)
