"""The separate process that runs an ONNX model, since an untrusted file may loop forever or crash the library.

The model is opened first, then batches are computed one by one. Input images are in a file that both processes map; each output is
written to a file of its own.
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
    """Answers the requests {"open": arguments} and {"run": arguments}; a failure is answered with {"error": message}."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._session: Any = None

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Answer one request: {"open": arguments of `_open`} or {"run": arguments of `_run`}. Returns their result, or {"error":
        message} for any error.
        """
        try:
            return self._open(**request["open"]) if "open" in request else self._run(**request["run"])
        except Exception as error:  # onnxruntime has an exception class for each status
            return {"error": (str(error).strip().splitlines() or [type(error).__name__])[0][:300]}

    def _open(self, model: str, providers: list[str], device: str, threads: int) -> dict[str, Any]:
        """Load the model; providers are names in order of preference.

        Returns {"providers": those in use, "threads": number of threads, "tags": text in the metadata or "", "inputs": [[name, type,
        shape]], "outputs": names}.
        """
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
        """Run the batch in the shared file, write each float output to a file, and return {"outputs": [[dtype, shape]]}.

        name           of the input
        outputs        names of the outputs to compute
        dtype, shape   of the batch
        """
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
