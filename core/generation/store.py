"""Keeps one model in memory between generate jobs, leased to one job at a time.

Training builds its own modules and first asks the store to release its model, so both are never on the device together.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.families.components import Components
from core.record.cancel import Cancelled
from core.record.problems import ProblemsError

if TYPE_CHECKING:
    import torch

    from core.settings.model import ModelSettings

# (settings, path, vae path or None, dtype, VAE's dtype, device) -> components; see core.generation.run.load_model
Load = Callable[..., Any]
Fingerprint = tuple[tuple[str, int, int], ...]


def fingerprint(path: Path | None) -> Fingerprint:
    """(name, bytes, mtime in ns) of a file, or of every file of a folder: changes when the weights change."""
    if path is None:
        return ()
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    found = []
    for file in files:
        facts = file.stat()
        found.append((file.as_posix(), facts.st_size, facts.st_mtime_ns))
    return tuple(found)


class ModelStore:
    """Holds at most one loaded model. `load` is called as load(settings, path, vae_path, dtype, vae_dtype, device)."""

    def __init__(self, load: Load):
        self._load = load
        self._lock = threading.Lock()
        self._key: Any = None
        self._components: Components | None = None

    @property
    def holds(self) -> str | None:
        """The path of the model in memory, None if there is none."""
        return self._key[0] if self._key is not None else None

    @contextmanager
    def lease(
        self,
        settings: ModelSettings,
        path: Path,
        vae_path: Path | None,
        dtype: torch.dtype,
        vae_dtype: torch.dtype,
        device: torch.device | str,
    ) -> Iterator[Any]:
        """The model's components inside the block; a second lease waits for the first to end.

        The same files, dtypes and device return the modules already in memory. After an exception they are
        dropped, since their state is unknown. A cancelled job ends between units of work, and a refused one (a
        damaged LoRA, an image of NaN values) has undone its changes, so in those cases the model is kept.
        """
        with self._lock:
            files = (str(path), fingerprint(path), fingerprint(vae_path))
            key = (*files, settings.family, settings.prediction, str(dtype), str(vae_dtype), str(device))
            if key != self._key:
                self._drop()  # first, so that two models are never in memory together
                self._components = self._load(settings, path, vae_path, dtype, vae_dtype, device)
                self._key = key
            try:
                yield self._components
            except (Cancelled, ProblemsError):
                raise
            except BaseException:
                self._drop()
                raise

    def release(self) -> None:
        """Free the model's memory. Waits for an active lease."""
        with self._lock:
            self._drop()

    def _drop(self) -> None:
        if self._components is None:
            return
        self._components = None
        self._key = None
        gc.collect()
        empty_device_cache()


def empty_device_cache() -> None:
    """Return freed blocks of the accelerator to the system."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    elif torch.backends.mps.is_available():
        torch.mps.empty_cache()
