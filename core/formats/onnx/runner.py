"""The process that runs an ONNX model: an untrusted file may loop forever, or crash the library.

It opens the file first, then computes one batch after the other. The images are in a file that both processes map;
outputs are written to others.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np

from core.formats.onnx.file import MAX_INPUT
from core.formats.onnx.providers import onnxruntime, with_options
from core.record.worker import serve_requests

IMAGES, VALUES = "images.bin", "values-{}.npy"  # a file for each output


class Runner:
    """Answers {"open"} and {"run"} requests; failures are answered as {"error"}."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._session: Any = None

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        try:
            return self._open(**request["open"]) if "open" in request else self._run(**request["run"])
        except Exception as error:  # onnxruntime has an exception class for each status
            return {"error": (str(error).strip().splitlines() or [type(error).__name__])[0][:300]}

    def _open(self, model: str, providers: list[str], device: str, threads: int) -> dict[str, Any]:
        """The model's inputs and outputs: name, type and shape of each; and its provider."""
        library = onnxruntime(providers)
        options = library.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 4  # failures are raised, or visible in the remaining provider
        session = library.InferenceSession(model, sess_options=options, providers=with_options(providers, device))
        self._session = session
        return {
            "providers": session.get_providers(),
            "threads": session.get_session_options().intra_op_num_threads,
            "tags": session.get_modelmeta().custom_metadata_map.get("tags", ""),
            "inputs": [[each.name, each.type, each.shape] for each in session.get_inputs()],
            "outputs": [each.name for each in session.get_outputs()],
        }

    def _run(self, name: str, outputs: list[str], dtype: str, shape: list[int]) -> dict[str, Any]:
        batch = np.asarray(np.memmap(self._folder / IMAGES, dtype, "r", shape=tuple(shape)))
        facts, size = [], 0
        for number, output in enumerate(self._session.run(outputs, {name: batch})):
            values = np.asarray(output)
            size += values.nbytes
            if values.dtype.kind == "f" and size <= MAX_INPUT:
                np.save(self._folder / VALUES.format(number), values)
            facts.append([str(values.dtype), list(values.shape)])
        return {"outputs": facts}


if __name__ == "__main__":
    serve_requests(Runner(Path(sys.argv[1])).answer)
