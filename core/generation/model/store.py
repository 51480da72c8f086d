"""Keeps loaded models in memory between jobs: in named slots, up to a budget of bytes, leased to one thread at a time.

Training loads its own modules and first asks the store to release its models, so that both are never on the device
together.
"""

import gc
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from core.diffusion.text_states import TextStates
from core.families.components import Components
from core.record import machine
from core.record.cancel import Cancelled
from core.record.lazy_torch import Tensor, torch
from core.record.memory import is_out_of_memory
from core.record.problems import ProblemsError
from core.record.stamps import stamp

Content = TypeVar("Content")
# A base model has three slots: denoiser and tokenizers, VAE, text encoders.
Slot = Literal["base", "VAE", "text encoders", "refiner", "upscaler", "captioner", "ControlNet", "other"]
Fingerprint = tuple[tuple[str, int, int], ...]
SHARE = 0.5  # of the device's memory, for loaded models


def fingerprint(path: Path | None) -> Fingerprint:
    """Return (path, bytes, mtime in ns) of a file and a config next to it, or of each file in a folder; () for None.

    It changes when weights or the config change.
    """
    if path is None:
        return ()
    listed = [path, path.with_suffix(".yaml")] if path.is_file() else sorted(path.rglob("*"))
    files = [file for file in listed if file.is_file()]
    return tuple((file.as_posix(), *stamp(file)) for file in files)


@dataclass(eq=False)
class LoadedModel:
    """A model in memory.

    key       what it was loaded from and how; another key means another model
    content   a module, a list of modules, or Components
    bytes     size of its weights
    uses      number of current leases
    """

    slot: Slot
    key: Any
    name: str
    content: Any
    bytes: int = 0
    uses: int = 0


class ModelStore:
    """Loaded models by slot and key, and a cache of text encoder states, which stay when models are unloaded.
    budget: bytes beyond which the least recently used models are unloaded; None: a fraction of the device's memory"""

    def __init__(self, budget: int | None = None):
        self.budget, self.texts = budget, TextStateCache()
        self._lock = threading.RLock()  # a job leases several slots
        self._entries: list[LoadedModel] = []  # the most recently used last

    def loaded(self) -> list[LoadedModel]:
        """Return the models in memory, the most recently used last."""
        return list(self._entries)

    @contextmanager
    def lease(
        self, slot: Slot, key: Any, load: Callable[[], Content], *, name: str = "", size: int = 0, device: str = "cpu"
    ) -> Iterator[Content]:
        """Context with a model: the loaded one with this slot and key, else the result of `load`. Leases of other threads wait.

        name     title of the model
        size     bytes that it will need; 0 (unknown): idle models in its slot are unloaded first
        device   device whose memory determines the budget

        After an exception the model is dropped, since its state is unknown, but not after Cancelled and ProblemsError: a cancelled
        job ends between units of work, and a refused one (a damaged LoRA, an image of NaN values) has undone its changes.
        """
        with self._lock:
            entry = next((each for each in self._entries if (each.slot, each.key) == (slot, key)), None)
            loaded = entry or self._load(slot, key, load, name, size, device)
            self._entries.remove(loaded)
            self._entries.append(loaded)
            loaded.uses += 1
            try:
                yield loaded.content
            except (Cancelled, ProblemsError):
                raise
            except BaseException:
                self._drop([loaded])
                raise
            finally:
                loaded.uses -= 1

    def release(self, wait: bool = True) -> bool:
        """Free all models that this thread does not lease, and return True.
        wait: wait for leases of other threads; otherwise return False if there are any"""
        if not self._lock.acquire(blocking=wait):
            return False
        try:
            self._drop([held for held in self._entries if not held.uses])
            return True
        finally:
            self._lock.release()

    def _load(self, slot: Slot, key: Any, load: Callable[[], Any], name: str, size: int, device: str) -> LoadedModel:
        """Load a model into a slot, within the budget. If memory runs out, drop all idle models and try once more.
        size: bytes that it will need; 0 (unknown): the slot's idle models are dropped first"""
        if size:
            self._make_room(size, device)
        else:  # unload first: two models stay in memory together only if both are known to fit
            self._drop([loaded for loaded in self._entries if loaded.slot == slot and not loaded.uses])
        try:
            content = load()
        except Exception as error:
            idle = [loaded for loaded in self._entries if not loaded.uses]
            if not is_out_of_memory(error) or not idle:
                raise
            self._drop(idle)
            content = load()
        loaded = LoadedModel(slot, key, name, content, weight_bytes(content))
        self._entries.append(loaded)
        loaded.uses += 1
        self._make_room(0, device)
        loaded.uses -= 1
        return loaded

    def _make_room(self, size: int, device: str) -> None:
        """Drop the least recently used idle models until `size` more bytes are within the budget."""
        budget = int(SHARE * machine.memory(device)[1]) if self.budget is None else self.budget
        idle: list[LoadedModel] = []
        for loaded in self._entries:
            if sum(each.bytes for each in self._entries if each not in idle) + size <= budget:
                break
            idle += [] if loaded.uses else [loaded]
        self._drop(idle)

    def _drop(self, models: list[LoadedModel]) -> None:
        """Remove models and free their memory."""
        if not models:
            return
        for loaded in models:
            self._entries.remove(loaded)
            loaded.content = None
        gc.collect()
        empty_device_cache()


def weight_bytes(content: Any) -> int:
    """Return the bytes of the weights and buffers of a module, a list of modules, or Components; 0 for other objects."""
    if isinstance(content, Components):
        return weight_bytes([content.denoiser, content.vae, *content.text_encoders])
    if isinstance(content, (list, tuple)):
        return sum(map(weight_bytes, content))
    tensors: Iterable[Tensor] = (*content.parameters(), *content.buffers()) if hasattr(content, "parameters") else ()
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def empty_device_cache() -> None:
    """Return the freed memory that torch caches on the accelerator to the system."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    elif torch.backends.mps.is_available():
        torch.mps.empty_cache()


def make_store() -> ModelStore:
    """Create the store that generate jobs share."""
    return ModelStore()


class TextStateCache:
    """Cache of text encoder states. max_bytes: bytes beyond which the least recently used entries are dropped"""

    def __init__(self, max_bytes: int = 1 << 30):
        self.max_bytes = max_bytes
        self._entries: OrderedDict[Any, TextStates] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def bytes(self) -> int:
        """Bytes of all cached states."""
        tensors = [tensor for states in self._entries.values() for tensor in states.tensors.values()]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def get(self, key: Any, encode: Callable[[], TextStates]) -> TextStates:
        """Return the states of a key on the CPU. encode: computes them if they are not cached"""
        with self._lock:
            states = self._entries.get(key)
            if states is None:
                states = encode().each(lambda tensor: tensor.detach().cpu())
                self._entries[key] = states
            self._entries.move_to_end(key)
            while self.bytes > self.max_bytes and len(self._entries) > 1:
                self._entries.popitem(last=False)
            return states


@dataclass(frozen=True)
class ModelTextCache:
    """The cached text encoder states of one model.

    device    device that states are returned on
    model     key of the model: digest, dtype and device of its text encoders, its embeddings
    changes   returns a key of what changes the text encoders at the moment, such as LoRAs; called for each text
    """

    cache: TextStateCache = field(default_factory=TextStateCache)
    device: str = "cpu"
    model: Any = None
    changes: Callable[[], Any] = tuple

    def get(self, text: Any, encode: Callable[[], TextStates]) -> TextStates:
        """Return the states for a key on `device`. text: the text and how it is encoded; encode: computes them if they are not cached"""
        states = self.cache.get((self.model, self.changes(), text), encode)
        return states.each(lambda tensor: tensor.to(self.device))
