"""A tagger that is loaded: onnxruntime's session with its contract checked, on the GPU where it can be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from core.captioning.tagger.folder import Found, read_labels
from core.captioning.tagger.labels import NOTHING
from core.captioning.tagger.onnx_file import MAX_INPUT, batch_too_large, outputs_too_many
from core.captioning.tagger.tags import Label, Scored
from core.record import machine
from core.record.context import JobContext
from core.record.problems import ProblemsError
from core.record.units import memory_words
from core.settings.tagger import FLOOR, TagSettings

CPU = "CPUExecutionProvider"
# What the setting calls it -> onnxruntime's names, the newest first.
PROVIDERS = {
    "cuda": ("CUDAExecutionProvider",),
    "rocm": ("MIGraphXExecutionProvider", "ROCMExecutionProvider"),
    "directml": ("DmlExecutionProvider",),
    "openvino": ("OpenVINOExecutionProvider",),
    "coreml": ("CoreMLExecutionProvider",),
    "cpu": (CPU,),
}
ALWAYS_KEPT = ("rating", "quality")  # the best of these counts, however low
DIGITS = 6  # of a kept score: 0.35 in float32 stays at least 0.35


def onnxruntime() -> Any:
    """The library. torch first where it computes on a GPU: its package holds the CUDA libraries of both."""
    try:
        import onnxruntime as library

        if set(library.get_available_providers()) & {*PROVIDERS["cuda"], *PROVIDERS["rocm"]}:
            import torch  # noqa: F401
    except Exception as error:  # a missing or broken library raises anything
        what = f"onnxruntime does not load ({str(error)[:200]})"
        raise ProblemsError.one(what, "", "run ./launch.sh update", "tagger.no-onnxruntime") from error
    return library


def providers_for(asked: str, device: str, available: Sequence[str]) -> list[str]:
    """Provider names to ask for, the CPU as the last. Raises ProblemsError for one that is not installed.

    device   of the job ("cuda:1"): automatic takes CUDA and ROCm only where torch has a GPU
    """
    names = PROVIDERS if asked == "auto" else {asked: PROVIDERS[asked]}
    on_gpu = device.startswith("cuda")
    for kind, candidates in names.items():
        found = next((name for name in candidates if name in available), None)
        if found is not None and (asked != "auto" or kind not in ("cuda", "rocm") or on_gpu):
            return [CPU] if found == CPU else [found, CPU]
    what = f"onnxruntime has no execution provider for '{asked}'; it has {', '.join(available)}"
    fix = "choose automatic, or install that build of onnxruntime"
    raise ProblemsError.one(what, "tag.provider", fix, "tagger.no-provider")


def _with_options(names: Sequence[str], device: str) -> list[Any]:
    number = device.partition(":")[2] or "0"
    of_gpu = (*PROVIDERS["cuda"], *PROVIDERS["rocm"], *PROVIDERS["directml"])
    # FP16 gives wrong scores with OpenVINO, which takes it by itself on a GPU
    own = {name: {"device_id": number} for name in of_gpu} | {"OpenVINOExecutionProvider": {"precision": "FP32"}}
    return [(name, own[name]) if name in own else name for name in names]


class Tagger:
    """A loaded model.

    wanted, provider   of onnxruntime: asked for, and taken
    size    (width, height) of its input       batch   images it takes at once; None for any number
    """

    def __init__(self, found: Found, asked: TagSettings, context: JobContext):
        library = onnxruntime()
        self.found, self.profile = found, found.profile
        wanted = providers_for(asked.provider, context.device, library.get_available_providers())
        self.session = self._open(library, wanted, context.device)
        self.provider = self.session.get_providers()[0]
        self.wanted = wanted[0]
        metadata = self.session.get_modelmeta().custom_metadata_map.get("tags", "")
        self.labels: list[Label] = read_labels(found, metadata)
        self.always = np.array([label.category in ALWAYS_KEPT for label in self.labels])
        self.batch, self.size = self._input(asked.batch_size)
        self.output = self._output()
        self.half = self.session.get_inputs()[0].type == "tensor(float16)"
        self._try()

    def _open(self, library: Any, names: Sequence[str], device: str) -> Any:
        options = library.SessionOptions()
        options.intra_op_num_threads = machine.threads()
        options.log_severity_level = 4  # what goes wrong is raised, or told by the provider that is left
        try:
            return library.InferenceSession(
                str(self.found.model), sess_options=options, providers=_with_options(names, device)
            )
        except Exception as error:  # onnxruntime has an exception class for each status
            raise self._refused(f"cannot be loaded: {_first_line(error)}") from error

    def _input(self, batch_size: int) -> tuple[int | None, tuple[int, int]]:
        inputs = self.session.get_inputs()
        shape = list(inputs[0].shape)
        if len(inputs) != 1 or len(shape) != 4 or inputs[0].type not in ("tensor(float)", "tensor(float16)"):
            shapes = ", ".join(f"{each.type} {each.shape}" for each in inputs)
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
                f"A batch of {batch_size} images of {width} x {height} pixels needs more than {memory_words(MAX_INPUT)}"
            )
            raise ProblemsError.one(what, "tag.batch_size", "lower the batch size", "tagger.batch")
        return batch, (width, height)

    def _output(self) -> str:
        names = [each.name for each in self.session.get_outputs()]
        wanted = self.profile.output
        if isinstance(wanted, int) and 0 <= wanted < len(names):
            return str(names[wanted])
        if wanted not in names:
            raise self._refused(f"has no output {wanted}; its outputs are {', '.join(names)[:200]}")
        return str(wanted)

    def _try(self) -> None:
        """One white image: a wrong table or profile is found before any caption is written."""
        width, height = self.size
        shape = (height, width, 3) if self.profile.layout == "NHWC" else (3, height, width)
        values = self.run([np.full(shape, 255 if self.profile.scale == "255" else 1, np.float32)])[0]
        if not np.isfinite(values).all():
            raise self._refused("returns NaN")
        if values.min() < -1e-3 or values.max() > 1 + 1e-3:
            raise self._refused(f"returns {values.max():.3g} as a score: its profile needs sigmoid")

    def run(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """Scores [N, labels] of prepared images, at most `batch`. Raises ProblemsError."""
        batch = np.stack(images)
        if self.batch is not None and len(images) < self.batch:  # a fixed batch takes no fewer
            batch = np.concatenate([batch, np.repeat(batch[-1:], self.batch - len(images), 0)])
        batch = batch.astype(np.float16) if self.half else batch
        try:
            (found,) = self.session.run([self.output], {self.session.get_inputs()[0].name: batch})
        except Exception as error:
            raise self._refused(f"failed: {_first_line(error)}") from error
        values = np.asarray(found)
        if why := outputs_too_many(values.shape):
            raise self._refused(why)
        if values.dtype.kind != "f" or values.ndim != 2 or len(values) != len(batch):
            raise self._refused(f"returns {values.dtype} {list(values.shape)} in place of a score for each label")
        sparse = self.profile.label_kind == "mapping"
        if len(self.labels) > values.shape[1] or (len(self.labels) < values.shape[1] and not sparse):
            table = self.profile.labels or "its metadata"
            raise self._refused(f"has {values.shape[1]:,} outputs, but {table} has {len(self.labels):,} labels")
        values = values[: len(images)].astype(np.float32)
        with np.errstate(over="ignore"):  # exp of a large logit: the score is 0
            return 1 / (1 + np.exp(-values)) if self.profile.sigmoid else values

    def scored(self, values: np.ndarray) -> list[Scored]:
        """The labels with a score worth keeping, in the order of the table."""
        values = values[: len(self.labels)]
        kept = np.flatnonzero((values >= FLOOR) | self.always)
        found = ((self.labels[number], round(float(values[number]), DIGITS)) for number in kept)
        return [(label, score) for label, score in found if label is not NOTHING]

    def _refused(self, why: str) -> ProblemsError:
        fix = "download it again, or choose another tagger; for a model of your own check its profile.json"
        return ProblemsError.one(f"The tagger {self.found.title} {why}", str(self.found.model), fix, "tagger.model")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def words_of(provider: str) -> str:
    return provider.removesuffix("ExecutionProvider")
