"""An ONNX model that is loaded in a process of its own (`runner.py`), from this side."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from core.formats.onnx.providers import CPU
from core.formats.onnx.runner import IMAGES, VALUES
from core.record import machine
from core.record.cancel import CancelToken
from core.record.problems import ProblemsError, unwritten
from core.record.temporary import HeldFolder
from core.record.worker import Gone, Worker

LONGEST_SECONDS = 120.0  # to open a model, and for each image of a batch; on a slow CPU the largest needs 20
COMPILING_SECONDS = 600.0  # the same where the provider may compile the model first

Refused = Callable[[str, str], ProblemsError]  # (why, end of its code: "model" or "no-answer") -> the problem


class ModelGone(ProblemsError):
    """The process of a model has ended, or was ended as it gave no answer."""


class ModelProcess:
    """A loaded model. Its process is ended where one answer takes longer than `_seconds` for each image.

    wanted    providers of onnxruntime in the order of preference; `provider` is the one that was taken
    inputs    [name, type, shape] of each       outputs   their names        tags   a text in its metadata
    """

    def __init__(self, model: Path, wanted: Sequence[str], device: str, cancel: CancelToken, refused: Refused):
        self._cancel, self._refused = cancel, refused
        self._seconds = LONGEST_SECONDS if wanted[0] == CPU else COMPILING_SECONDS
        self._images: np.ndarray | None = None
        self._folder = HeldFolder("onnx")
        self._place = self._folder.path
        self._worker = Worker([sys.executable, "-m", "core.formats.onnx.runner", str(self._place)], self._place)
        try:
            question = {"model": str(model.absolute()), "providers": list(wanted), "device": device}
            facts = self._ask({"open": question | {"threads": machine.threads()}}, "cannot be loaded", self._seconds)
        except BaseException:
            self.close()
            raise
        self.facts = facts
        self.provider: str = facts["providers"][0]
        self.inputs: list[list[Any]] = facts["inputs"]
        self.outputs: list[str] = facts["outputs"]
        self.tags: str = facts["tags"]

    def close(self) -> None:
        """End its process, whatever the model does."""
        self._worker.end()
        self._images = None  # Windows keeps a mapped file
        self._folder.close()

    def room(self, images: int, shape: Sequence[int]) -> None:
        """Make room for a batch: in full, as a disk that fills up later would end this process."""
        kind = np.float16 if self.inputs[0][1] == "tensor(float16)" else np.float32
        one: np.ndarray = np.zeros(shape, kind)
        self._images = None
        file = self._place / IMAGES
        try:
            with open(file, "wb") as out:
                for _ in range(images):
                    out.write(one.data)
        except OSError as error:
            raise unwritten(error, "The images for the model cannot be written", str(file)) from error
        self._images = np.memmap(file, one.dtype, "r+", shape=(images, *shape))

    def run(self, images: Sequence[np.ndarray], many: int, outputs: Sequence[str]) -> list[tuple[str, list[int]]]:
        """Give it prepared images, filled up to `many` with the last one. Returns dtype and shape of each of these outputs."""
        assert self._images is not None
        np.stack(images, out=self._images[: len(images)], casting="same_kind")
        self._images[len(images) : many] = self._images[len(images) - 1]
        shape = [many, *self._images.shape[1:]]
        question = {"name": self.inputs[0][0], "outputs": [*outputs], "dtype": str(self._images.dtype), "shape": shape}
        found = self._ask({"run": question}, "failed", self._seconds * many)
        return [(dtype, shape) for dtype, shape in found["outputs"]]

    def values(self, number: int = 0) -> np.ndarray:
        """The floats that it returned last, of the output of this number among those that it was asked for."""
        values: np.ndarray = np.load(self._place / VALUES.format(number), allow_pickle=False)
        return values

    def _ask(self, question: dict[str, Any], fails: str, seconds: float) -> dict[str, Any]:
        answer = self._worker.ask(question, seconds, self._cancel)
        if isinstance(answer, Gone):
            why = f"gave no answer within {seconds:.0f} seconds" if answer.hung else f"crashed ({answer.code_words})"
            raise ModelGone(self._refused(why, "no-answer").problems)
        if "error" in answer:
            raise self._refused(f"{fails}: {answer['error']}", "model")
        return answer


class OfProcess:
    """What uses a model as a context manager: its process ends with it."""

    _model: ModelProcess

    def close(self) -> None:
        """End the process, whatever the model does."""
        self._model.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
