"""The text encoder cache: hidden states of captions, the most recently used in memory, the others on disk.

An entry's key covers everything that the states depend on (caption, encoder weights, clip skip, token length, dtype), so an
edited caption or another model never gets a stale entry. The captions at the start of a run are kept on disk for the next run;
later shuffled variants are written only when memory runs short.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import KW_ONLY, dataclass
from itertools import islice
from pathlib import Path

from core.dataset.caches.store import TEXTS, Store, entries, prune
from core.diffusion.text_states import TextStates, stack_texts

EncodeText = Callable[[Sequence[str]], TextStates]

# Fixed batch size, the last batch padded: another shape changes the last bits of the result, and a resumed run encodes
# other captions together than an uninterrupted one.
ENCODED_AT_ONCE = 8
DISK_BYTES = 8 << 30


@dataclass(eq=False)
class TextCache(Store):
    """Hidden states of captions, for the text encoders of a model and their settings.

    encoder_id   hash of the encoders' weights
    room_bytes   limit in memory
    disk_bytes   limit of the folder
    at_once      number of captions encoded together

    A failed write does not end the run: captions that are not cached are encoded again when needed, and `warn` is called once.
    """

    encoder_id: str
    _: KW_ONLY
    clip_skip: int | None = None
    max_token_length: int = 75
    dtype: str = "fp32"
    room_bytes: int = 1 << 30
    disk_bytes: int = DISK_BYTES
    at_once: int = ENCODED_AT_ONCE

    row = TEXTS

    def __post_init__(self) -> None:
        self._waiting: dict[str, None] = {}  # for `get` to encode
        self._first_expected: frozenset[str] | None = None  # of the first `expect`: written for later runs
        self._held: OrderedDict[str, TextStates] = OrderedDict()  # least recently used first
        self._held_bytes = 0
        self._on_disk: set[str] = set()
        self._disk_used: int | None = None  # counted when first written to
        self._first_ensured = False
        self._ensured: Sequence[str] | None = None
        self._needed: set[str] = set()

    def ensure(self, captions: Sequence[str], encode: EncodeText) -> int:
        """Encode the captions that are not cached, so that `get` needs no encoder; return their number.

        For the same list object as in the last call, which must not have changed, nothing is done; of another list, only captions
        that the last one lacked are looked up. The first call also writes the captions to disk for later runs.
        """
        if captions is self._ensured:
            return 0
        unique, ensured = dict.fromkeys(captions), set(self._ensured or ())
        self._needed, self._ensured = set(unique), None
        missing = [caption for caption in unique if caption not in ensured and not self._load(caption)]
        self.report_damaged()
        for caption, states in self._encoded(missing, encode):
            if not self._first_ensured:
                self._write(caption, states)
            self._hold(caption, states)
        self._first_ensured, self._ensured = True, captions
        self._prune()
        return len(missing)

    @property
    def waiting(self) -> int:
        """Number of expected captions that `get` has yet to encode."""
        return len(self._waiting)

    def missing(self, captions: Sequence[str]) -> list[str]:
        """Return the captions that are not cached, each once. Files are only tested for existence, not read."""
        cached = self._held.keys() | self._on_disk
        return [each for each in dict.fromkeys(captions) if each not in cached and not self._file(each).is_file()]

    def expect(self, captions: Sequence[str]) -> None:
        """Set the captions that `get` encodes on demand: its batches are filled up with those not yet cached. Replaces `ensure`.

        Captions of the first call are also written to disk when encoded; they stay expected even if a later call omits them.
        """
        self._first_expected = frozenset(captions) if self._first_expected is None else self._first_expected
        still_waiting = [caption for caption in self._waiting if caption in self._first_expected]
        self._needed, self._waiting = set(captions), dict.fromkeys([*self.missing(captions), *still_waiting])

    def get(self, captions: Sequence[str], encode: EncodeText | None = None) -> TextStates:
        """Return the hidden states of the captions, in order, on the CPU.

        Captions neither in memory nor on disk are encoded by `encode`; raises KeyError for them if `encode` is None.
        """
        states_of: dict[str, TextStates] = {}
        missing: list[str] = []
        for caption in dict.fromkeys(captions):
            if self._load(caption):
                states_of[caption] = self._held[caption]
                self._waiting.pop(caption, None)
            else:
                missing.append(caption)
        self.report_damaged(once=True)
        if missing and encode is None:
            raise KeyError(f"not cached: {missing[0]!r}")
        for caption, states in self._encoded(self._filled(missing), encode):
            states_of[caption] = states
            self._waiting.pop(caption, None)
            if self._first_expected and caption in self._first_expected:
                self._write(caption, states)
            self._hold(caption, states)
        if missing and not self._waiting:
            self._prune()
        return stack_texts([states_of[caption] for caption in captions])

    def _filled(self, missing: Sequence[str]) -> Sequence[str]:
        """Return `missing`, filled up to whole batches with other captions that wait to be encoded."""
        others = (caption for caption in self._waiting if caption not in missing)
        return [*missing, *islice(others, -len(missing) % self.at_once)]

    def _encoded(self, captions: Sequence[str], encode: EncodeText | None) -> Iterator[tuple[str, TextStates]]:
        """Yield each caption with its states; a batch is encoded when its first caption is requested."""
        for start in range(0, len(captions), self.at_once):
            part = captions[start : start + self.at_once]
            assert encode is not None
            yield from zip(part, self._encode(part, encode), strict=True)

    def _encode(self, captions: Sequence[str], encode: EncodeText) -> Iterable[TextStates]:
        """Return the states of each caption on the CPU, encoded in one batch padded to `at_once` captions."""
        filled = [*captions, *[captions[-1]] * (self.at_once - len(captions))]
        states = encode(filled).each(lambda tensor: tensor.detach().cpu())
        return (states.each(lambda tensor, row=index: tensor[row].clone()) for index in range(len(captions)))  # type: ignore[misc]

    def _file(self, caption: str) -> Path:
        """Return the path of a caption's cache entry."""
        return self.path_of(self.encoder_id, self.clip_skip or 1, self.max_token_length, self.dtype, caption)

    # -- memory

    def _load(self, caption: str) -> bool:
        """Load an entry into memory if it is only on disk, and mark it as most recently used; return whether it is cached."""
        if caption in self._held:
            self._held.move_to_end(caption)
            return True
        tensors = self.read_entry(self._file(caption), {"context": (None, None)})
        if tensors is None:
            self._on_disk.discard(caption)
            return False
        self._on_disk.add(caption)
        self._hold(caption, TextStates.of(tensors))
        return True

    def _hold(self, caption: str, states: TextStates) -> None:
        """Hold the states in memory. Beyond `room_bytes`, drop the least recently used ones, after writing those still needed."""
        self._held[caption] = states
        self._held_bytes += _bytes(states)
        while self._held_bytes > self.room_bytes and len(self._held) > 1:
            old, gone = self._held.popitem(last=False)
            self._held_bytes -= _bytes(gone)
            if old not in self._on_disk and old in self._needed:
                self._write(old, gone)

    # -- disk

    def _write(self, caption: str, states: TextStates) -> None:
        """Write the states, unless they are on disk or an earlier write failed; call `warn` for the first failure."""
        if caption in self._on_disk or self.unwritten is not None:
            return
        if self._disk_used is None:
            self._disk_used = sum(entry.bytes for entry in entries(self.folder))
        self._disk_used += self.try_write(self._file(caption), states.tensors)
        if self.unwritten is None:
            self._on_disk.add(caption)
        elif self.warn:
            self.warn(self.not_cached(self.unwritten))

    def _prune(self) -> None:
        """If the folder exceeds its limit, delete the least recently used entries that are not needed now."""
        if self._disk_used is not None and self._disk_used > self.disk_bytes:
            self._disk_used -= prune(self.folder, self.disk_bytes, {self._file(each).stem for each in self._needed})


def _bytes(states: TextStates) -> int:
    """Return the size of the states in bytes."""
    return sum(tensor.nbytes for tensor in states.tensors.values())
