"""A loaded tagger: its model in a separate process, on the GPU if possible, with checked inputs and outputs."""

from collections.abc import Sequence

import numpy as np

from core.captioning.tagger.folder import ModelFiles, read_labels
from core.captioning.tagger.labels import NO_LABEL
from core.captioning.tagger.tags import Label, Scored
from core.formats.onnx.file import MAX_INPUT, batch_too_large, outputs_too_many
from core.formats.onnx.process import ModelProcess, UsesModelProcess
from core.formats.onnx.providers import onnxruntime, providers_for
from core.record.context import JobContext
from core.record.problems import ProblemsError
from core.record.units import memory_text
from core.settings.captioning.tagger import FLOOR, TagSettings

ALWAYS_STORED = ("rating", "quality")  # the highest score of these counts, however low
DIGITS = 6  # of a stored score: 0.35 in float32 stays at least 0.35


class Tagger(UsesModelProcess):
    """A loaded tagger.

    wanted, provider   onnxruntime's execution provider: requested, and in use
    size               (width, height) of the model's input
    batch              its fixed batch size; None for any
    """

    def __init__(self, files: ModelFiles, settings: TagSettings, context: JobContext):
        self.files, self.profile = files, files.profile
        providers = providers_for(settings.provider, context.device, onnxruntime().get_available_providers())
        self._model = ModelProcess(files.model, providers, context.device, context.cancel, self._refused)
        self.provider, self.wanted = self._model.provider, providers[0]
        try:
            self._prepare(settings)
        except BaseException:
            self.close()
            raise

    def _prepare(self, settings: TagSettings) -> None:
        """Read the labels, check the model's input and output, allocate memory for a batch and try one image. Raises ProblemsError."""
        self.labels: list[Label] = read_labels(self.files, self._model.tags)
        self.always_stored = np.array([label.category in ALWAYS_STORED for label in self.labels])
        self.batch, self.size = self._input(settings.batch_size)
        self.output = self._output()
        self._model.allocate_batches(self.batch or settings.batch_size, self._shape)
        self._run_test_image()

    @property
    def _shape(self) -> tuple[int, int, int]:
        """Shape of one input image, by the profile's layout."""
        width, height = self.size
        return (height, width, 3) if self.profile.layout == "NHWC" else (3, height, width)

    def _input(self, batch_size: int) -> tuple[int | None, tuple[int, int]]:
        """Return (fixed batch size or None, (width, height)) of the model's input.

        Raises ProblemsError unless the input is one batch of RGB images of acceptable size.
        """
        inputs = self._model.inputs
        shape = inputs[0][2] if inputs else []
        if len(inputs) != 1 or len(shape) != 4 or inputs[0][1] not in ("tensor(float)", "tensor(float16)"):
            shapes = ", ".join(f"{kind} {shape}" for _, kind, shape in inputs)
            raise self._refused(f"does not take one batch of images; its inputs are {shapes[:200]}")
        sides = shape[1:3] if self.profile.layout == "NHWC" else shape[2:4]
        colors = shape[3] if self.profile.layout == "NHWC" else shape[1]
        if isinstance(colors, int) and colors != 3:
            raise self._refused(f"takes {shape}, but its profile says {self.profile.layout} with 3 colors")
        height, width = (side if isinstance(side, int) and side > 0 else self.profile.size for side in sides)
        if max(height, width) > 4096:
            raise self._refused(f"takes images of {width} x {height} pixels, more than 4096")
        batch = shape[0] if isinstance(shape[0], int) and shape[0] > 0 else None
        if why := batch_too_large((batch or 1, height, width, 3)):
            raise self._refused(why)
        if batch is None and batch_too_large((batch_size, height, width, 3)):
            what = (
                f"A batch of {batch_size} images of {width} x {height} pixels needs more than {memory_text(MAX_INPUT)}"
            )
            raise ProblemsError.one(what, "tag.batch_size", "lower the batch size", "tagger.batch")
        return batch, (width, height)

    def _output(self) -> str:
        """Return the name of the profile's output. Raises ProblemsError if the model lacks it."""
        names = self._model.outputs
        wanted = self.profile.output
        if isinstance(wanted, int) and 0 <= wanted < len(names):
            return str(names[wanted])
        if wanted not in names:
            raise self._refused(f"has no output {wanted}; its outputs are {', '.join(names)[:200]}")
        return str(wanted)

    def _run_test_image(self) -> None:
        """Run one white image, to detect a wrong label table or profile before any caption is written. Raises ProblemsError."""
        values = self.run([np.full(self._shape, 255 if self.profile.scale == "255" else 1, np.float32)])[0]
        if not np.isfinite(values).all():
            raise self._refused("returns NaN")
        if values.min() < -1e-3 or values.max() > 1 + 1e-3:
            raise self._refused(f"returns {values.max():.3g} as a score: its profile needs sigmoid")

    def run(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """Return the scores, float32 [N, outputs], of N prepared images, at most `batch`. Raises ProblemsError."""
        batch_size = self.batch or len(images)  # a fixed batch takes no fewer
        ((dtype, shape),) = self._model.run(images, batch_size, [self.output])
        if why := outputs_too_many(shape):
            raise self._refused(why)
        if not dtype.startswith("float") or len(shape) != 2 or shape[0] != batch_size:
            raise self._refused(f"returns {dtype} {shape} instead of a score for each label")
        values = self._model.values()
        sparse = self.profile.label_kind == "mapping"
        if len(self.labels) > values.shape[1] or (len(self.labels) < values.shape[1] and not sparse):
            table = self.profile.labels or "its metadata"
            raise self._refused(f"has {values.shape[1]:,} outputs, but {table} has {len(self.labels):,} labels")
        values = values[: len(images)].astype(np.float32)
        with np.errstate(over="ignore"):  # exp of a large logit: the score is 0
            return 1 / (1 + np.exp(-values)) if self.profile.sigmoid else values

    def scored(self, values: np.ndarray) -> list[Scored]:
        """Return the (label, score) pairs of one image, in the order of the label table.
        values: [outputs]; scores below FLOOR are left out, except of ratings and qualities"""
        values = values[: len(self.labels)]
        numbers = np.flatnonzero((values >= FLOOR) | self.always_stored)
        scores = ((self.labels[number], round(float(values[number]), DIGITS)) for number in numbers)
        return [(label, score) for label, score in scores if label is not NO_LABEL]

    def _refused(self, why: str, code: str = "model") -> ProblemsError:
        """Return the error that the model cannot be used. `why`: a verb phrase; `code`: end of the problem's code."""
        fix = "download it again, or choose another tagger; for your own model, check its profile.json"
        return ProblemsError.one(f"The tagger {self.files.title} {why}", str(self.files.model), fix, f"tagger.{code}")
