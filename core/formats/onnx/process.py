"""Runs an ONNX model in a separate process: the calling side, which starts `runner.py` and exchanges batches with it."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from core.formats.onnx.providers import CPU
from core.formats.onnx.runner import IMAGES, VALUES
from core.record import machine
from core.record.cancel import CancelToken
from core.record.problems import ProblemsError, write_errors
from core.record.temporary import HeldFolder
from core.record.worker import Gone, Worker

LONGEST_SECONDS = 120.0  # to open a model, and for each image of a batch; on a slow CPU the largest needs 20
COMPILING_SECONDS = 600.0  # the same for providers that may compile the model first

Refused = Callable[[str, str], ProblemsError]  # (why, end of its code: "model" or "no-answer") -> the problem


class ModelGone(ProblemsError):
    """Raised when the process of a model has crashed, or was stopped because it did not answer."""


class ModelProcess:
    """An ONNX model loaded in a separate process, which is stopped if an answer takes too long.

    providers   onnxruntime's execution providers in order of preference; `provider` is the one in use
    device      of the job, such as "cuda:1"
    inputs      [name, type, shape] of each input      outputs   names of the outputs
    tags        the entry "tags" of the model's metadata; "" without one
    refused     builds the ProblemsError from (reason, last part of its code)
    """

    def __init__(self, model: Path, providers: Sequence[str], device: str, cancel: CancelToken, refused: Refused):
        self._cancel, self._refused = cancel, refused
        self._seconds = LONGEST_SECONDS if providers[0] == CPU else COMPILING_SECONDS
        self._images: np.ndarray | None = None
        self._folder = HeldFolder("onnx")
        self._path = self._folder.path
        self._worker = Worker([sys.executable, "-m", "core.formats.onnx.runner", str(self._path)], self._path)
        try:
            question = {"model": str(model.absolute()), "providers": list(providers), "device": device}
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
        """Stop the process, even if it hangs."""
        self._worker.end()
        self._images = None  # Windows keeps a mapped file
        self._folder.close()

    def allocate_batches(self, images: int, shape: Sequence[int]) -> None:
        """Allocate the shared file for batches of `images` images of `shape`. Raises ProblemsError if it does not fit on the disk.

        The file is written in full, because a disk that fills up later would crash this process.
        """
        kind = np.float16 if self.inputs[0][1] == "tensor(float16)" else np.float32
        image: np.ndarray = np.zeros(shape, kind)
        self._images = None
        file = self._path / IMAGES
        with write_errors("The images for the model cannot be written", str(file)):
            with open(file, "wb") as out:
                for _ in range(images):
                    out.write(image.data)
        self._images = np.memmap(file, image.dtype, "r+", shape=(images, *shape))

    def run(self, images: Sequence[np.ndarray], batch: int, outputs: Sequence[str]) -> list[tuple[str, list[int]]]:
        """Run the model on preprocessed images, repeating the last one up to `batch`; return (dtype, shape) of each requested output.

        images    of the shape given to `allocate_batches`, at most `batch`
        outputs   names of the outputs; `values` reads their numbers
        Raises ProblemsError, or ModelGone if the process crashed or hung.
        """
        assert self._images is not None
        np.stack(images, out=self._images[: len(images)], casting="same_kind")
        self._images[len(images) : batch] = self._images[len(images) - 1]
        shape = [batch, *self._images.shape[1:]]
        question = {"name": self.inputs[0][0], "outputs": [*outputs], "dtype": str(self._images.dtype), "shape": shape}
        answer = self._ask({"run": question}, "failed", self._seconds * batch)
        return [(dtype, shape) for dtype, shape in answer["outputs"]]

    def values(self, number: int = 0) -> np.ndarray:
        """Read one output of the last `run`, if it has floating-point numbers. `number` is its index among the requested outputs."""
        values: np.ndarray = np.load(self._path / VALUES.format(number), allow_pickle=False)
        return values

    def _ask(self, question: dict[str, Any], fails: str, seconds: float) -> dict[str, Any]:
        """Send a request to the process and return its answer. Raises ProblemsError for an error in the answer, or ModelGone if the
        process crashed or hung.

        question   {"open": arguments} or {"run": arguments}, as in `Runner.answer`
        fails      begins the message about an error
        seconds    time limit for the answer
        """
        answer = self._worker.ask(question, seconds, self._cancel)
        if isinstance(answer, Gone):
            why = f"gave no answer within {seconds:.0f} seconds" if answer.hung else f"crashed ({answer.exit_text})"
            raise ModelGone(self._refused(why, "no-answer").problems)
        if "error" in answer:
            raise self._refused(f"{fails}: {answer['error']}", "model")
        return answer


class UsesModelProcess:
    """Base of classes that own a model process in `_model`: a context manager that stops the process."""

    _model: ModelProcess

    def close(self) -> None:
        """Stop the process, even if it hangs."""
        self._model.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
