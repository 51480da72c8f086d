"""Keeps models in memory between jobs: in named slots, up to a budget of bytes, for one job at a time.

Training builds its own modules and first asks the store to release its models, so both are never on the device together.
"""

from __future__ import annotations

import gc
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from core.diffusion.text_states import TextStates
from core.families.components import Components
from core.record import machine
from core.record.cancel import Cancelled
from core.record.memory import is_out_of_memory
from core.record.problems import ProblemsError

if TYPE_CHECKING:
    from torch import Tensor

Thing = TypeVar("Thing")
# What a model is for. A base model is in three: what denoises with the tokenizers, the VAE, and the text encoders.
Slot = Literal["base", "VAE", "text encoders", "refiner", "upscaler", "captioner", "ControlNet", "other"]
Fingerprint = tuple[tuple[str, int, int], ...]
SHARE = 0.5  # of the device's memory that loaded models may take


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


@dataclass(eq=False)
class Held:
    """A model in memory. thing: a module, a list of them, or Components; uses: leases of it now"""

    slot: Slot
    key: Any
    name: str
    thing: Any
    bytes: int = 0
    uses: int = 0


class ModelStore:
    """Models by slot and key, and text states, which stay when models are unloaded.

    budget   bytes beyond which the least recently used are unloaded; None: a share of the device's memory
    """

    def __init__(self, budget: int | None = None):
        self.budget, self.texts = budget, KeptTexts()
        self._lock = threading.RLock()  # a job leases several slots
        self._held: list[Held] = []  # the most recently used last

    def loaded(self) -> list[Held]:
        """What is in memory, the most recently used last."""
        return list(self._held)

    @contextmanager
    def lease(
        self, slot: Slot, key: Any, load: Callable[[], Thing], *, name: str = "", size: int = 0, device: str = "cpu"
    ) -> Iterator[Thing]:
        """What `load` returned for this key, inside the block; a lease of another thread waits until it ends.

        name, size   what to show, and the bytes that it will take: 0 if unknown, and then nothing else stays in its slot
        device       whose memory the budget is a share of

        After an exception it is dropped, since its state is unknown. A cancelled job ends between units of work, and a
        refused one (a damaged LoRA, an image of NaN values) has undone its changes, so in those cases it is kept.
        """
        with self._lock:
            held = self._find(slot, key) or self._load(slot, key, load, name, size, device)
            self._held.remove(held)
            self._held.append(held)
            held.uses += 1
            try:
                yield held.thing
            except (Cancelled, ProblemsError):
                raise
            except BaseException:
                self._drop([held])
                raise
            finally:
                held.uses -= 1

    def release(self, wait: bool = True) -> bool:
        """Free all models that are not leased by this thread. wait: for the leases of others; else False if there is one"""
        if not self._lock.acquire(blocking=wait):
            return False
        try:
            self._drop([held for held in self._held if not held.uses])
            return True
        finally:
            self._lock.release()

    def _find(self, slot: Slot, key: Any) -> Held | None:
        return next((held for held in self._held if (held.slot, held.key) == (slot, key)), None)

    def _load(self, slot: Slot, key: Any, load: Callable[[], Any], name: str, size: int, device: str) -> Held:
        if size:
            self._make_room(size, device)
        else:  # unload first: two models share the memory only if both are known to fit
            self._drop([held for held in self._held if held.slot == slot and not held.uses])
        try:
            thing = load()
        except Exception as error:
            idle = [held for held in self._held if not held.uses]
            if not is_out_of_memory(error) or not idle:
                raise
            self._drop(idle)
            thing = load()
        held = Held(slot, key, name, thing, weight_bytes(thing))
        self._held.append(held)
        held.uses += 1
        self._make_room(0, device)
        held.uses -= 1
        return held

    def _make_room(self, size: int, device: str) -> None:
        """Drop the least recently used until `size` bytes more are within the budget."""
        budget = int(SHARE * machine.memory(device)[1]) if self.budget is None else self.budget
        leaving: list[Held] = []
        for held in self._held:
            if sum(each.bytes for each in self._held if each not in leaving) + size <= budget:
                break
            leaving += [] if held.uses else [held]
        self._drop(leaving)

    def _drop(self, leaving: list[Held]) -> None:
        if not leaving:
            return
        for held in leaving:
            self._held.remove(held)
            held.thing = None
        gc.collect()
        empty_device_cache()


def weight_bytes(thing: Any) -> int:
    """Bytes of the weights and buffers of a module, of several, or of a model's parts."""
    if isinstance(thing, Components):
        return weight_bytes([thing.denoiser, thing.vae, *thing.text_encoders])
    if isinstance(thing, (list, tuple)):
        return sum(map(weight_bytes, thing))
    tensors: Iterable[Tensor] = (*thing.parameters(), *thing.buffers()) if hasattr(thing, "parameters") else ()
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def empty_device_cache() -> None:
    """Return freed blocks of the accelerator to the system."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    elif torch.backends.mps.is_available():
        torch.mps.empty_cache()


def make_store() -> ModelStore:
    """The store that the engine keeps between generate jobs."""
    return ModelStore()


class KeptTexts:
    """Text states by key, the most recently used last. room: bytes beyond which the least recently used are dropped"""

    def __init__(self, room: int = 1 << 30):
        self.room = room
        self._held: OrderedDict[Any, TextStates] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def bytes(self) -> int:
        tensors = [tensor for states in self._held.values() for tensor in states.tensors.values()]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def get(self, key: Any, encode: Callable[[], TextStates]) -> TextStates:
        """The states of a key, on the CPU; `encode` is called if they are not cached."""
        with self._lock:
            found = self._held.get(key)
            if found is None:
                found = encode().each(lambda tensor: tensor.detach().cpu())
                self._held[key] = found
            self._held.move_to_end(key)
            while self.bytes > self.room and len(self._held) > 1:
                self._held.popitem(last=False)
            return found


@dataclass(frozen=True)
class ModelTexts:
    """The text states of one model.

    device   that its denoiser is on
    model    what states depend on besides the text and its reading: digest, dtype and device of the encoders, embeddings
    changes  called for each text: what changes the encoders now, such as LoRAs
    """

    kept: KeptTexts = field(default_factory=KeptTexts)
    device: str = "cpu"
    model: Any = None
    changes: Callable[[], Any] = tuple

    def get(self, text: Any, encode: Callable[[], TextStates]) -> TextStates:
        states = self.kept.get((self.model, self.changes(), text), encode)
        return states.each(lambda tensor: tensor.to(self.device))
