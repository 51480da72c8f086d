"""Cache of text states in RAM between jobs: a text is encoded once, and its encoders need not be loaded again."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from core.diffusion.text_states import TextStates


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
