"""Reads a pickle without Python's unpickler: opcodes run one at a time, in a loop, within limits.

A pickle is a program. Here it can build dicts, lists, tuples, numbers, strings and references to tensors; every other
class and function is an inert placeholder. Nothing it names is called, no opcode calls another (nesting uses no stack),
and memory is bounded by the number of steps and the bytes read: a memo index is a key, not a length.
"""

from __future__ import annotations

import codecs
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO

MAX_STEPS = 600_000  # SDXL takes 70,000; copied items of tuples and lists count too
MAX_BYTES = 32_000_000  # of all strings together
MAX_LINE = 10_000
MAX_NUMBER_BYTES = 10  # torch's mark of a legacy file has 80 bits, all others fit 64
MAX_SIDE = 1 << 48
MAX_AXES = 8
STORAGES = {
    "HalfStorage": "F16",
    "BFloat16Storage": "BF16",
    "FloatStorage": "F32",
    "DoubleStorage": "F64",
    "LongStorage": "I64",
    "IntStorage": "I32",
    "ShortStorage": "I16",
    "CharStorage": "I8",
    "ByteStorage": "U8",
    "BoolStorage": "BOOL",
}
REBUILD_TENSOR = ("_rebuild_tensor", "_rebuild_tensor_v2")
REBUILD_PARAMETER = ("_rebuild_parameter", "_rebuild_parameter_with_state")


class Damaged(ValueError):
    """The pickle is invalid or exceeds the limits."""


class Inert:
    """A placeholder for an object of an unknown class. It keeps its state and does nothing."""

    __slots__ = ("state",)

    def __init__(self) -> None:
        self.state: Any = None


class InertKey:
    """A placeholder for a key that is neither number nor string: hashing a tuple visits all its items, each time."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Named:
    """A class or function named in the pickle."""

    module: str
    name: str


@dataclass(frozen=True, slots=True)
class Storage:
    key: str
    dtype: str
    count: int  # elements


@dataclass(frozen=True, slots=True)
class Tensor:
    storage: Storage
    offset: int  # elements
    shape: tuple[int, ...]
    strides: tuple[int, ...]


_MARK = object()
_FORMS = {form: struct.Struct(form) for form in ("<B", "<H", "<i", "<I", "<Q", ">d")}


class Machine:
    """Reads one pickle from the file's position and leaves the position behind it.

    storages  the storages in it, by key     odd_keys  whether a dict or set has keys that are not numbers or strings
    """

    def __init__(self, handle: BinaryIO, max_steps: int = MAX_STEPS, max_bytes: int = MAX_BYTES) -> None:
        self._read = handle.read
        self._readline = handle.readline
        self._steps, self._bytes = max_steps, max_bytes
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        self.storages: dict[str, Storage] = {}
        self.odd_keys = False

    def load(self) -> Any:
        """Run the pickle and return its object. Raises Damaged; on a broken stack also IndexError, struct.error,
        ValueError or TypeError."""
        read, actions = self._read, _ACTIONS
        while True:
            self._steps -= 1
            if self._steps < 0:
                raise Damaged("it has too many opcodes")
            code = read(1)
            if code == b".":
                return self.pop()
            action = actions.get(code)
            if action is None:
                raise Damaged("it is truncated" if not code else "it has an unknown opcode")
            action(self)

    # ---- reading

    def take(self, count: int) -> bytes:
        if count < 0 or count > self._bytes:
            raise Damaged("its strings are too long")
        self._bytes -= count
        data = self._read(count)
        if len(data) != count:
            raise Damaged("it is truncated")
        return data

    def number(self, form: str) -> Any:
        packed = _FORMS[form]
        return packed.unpack(self._read(packed.size))[0]

    def line(self) -> str:
        return self.line_bytes().decode("utf-8", "replace")

    def line_bytes(self) -> bytes:
        data = self._readline(MAX_LINE)
        if data[-1:] != b"\n":
            raise Damaged("a line is truncated or too long")
        self._bytes -= len(data)
        if self._bytes < 0:
            raise Damaged("its strings are too long")
        return data[:-1]

    def spend(self, count: int) -> None:
        """Count the steps of an opcode that does several."""
        self._steps -= count
        if self._steps < 0:
            raise Damaged("it has too many opcodes")

    # ---- the stack

    def push(self, value: Any) -> None:
        self._stack.append(value)

    def pop(self) -> Any:
        value = self._stack.pop()
        if value is _MARK:
            raise Damaged("its stack is broken")
        return value

    def pop_mark(self) -> list[Any]:
        """Remove the last mark and return the items above it."""
        stack, index = self._stack, len(self._stack) - 1
        while stack[index] is not _MARK:  # each item was pushed by one opcode and is visited once
            index -= 1
            if index < 0:
                raise Damaged("it has no mark")
        items = stack[index + 1 :]
        del stack[index:]
        return items

    def top(self) -> Any:
        if self._stack[-1] is _MARK:
            raise Damaged("its stack is broken")
        return self._stack[-1]

    def remember(self, key: int) -> None:
        if key < 0:
            raise Damaged("its memo is broken")
        self._memo[key] = self.top()

    def recall(self, key: int) -> None:
        if key not in self._memo:
            raise Damaged("its memo is broken")
        self.push(self._memo[key])

    # ---- objects

    def fill(self, items: list[Any]) -> None:
        """Add alternating keys and values to the dict on top of the stack."""
        target = self.top()
        if isinstance(target, dict):
            for index in range(0, len(items) - 1, 2):
                target[self.key(items[index])] = items[index + 1]
        elif not isinstance(target, Inert):
            raise Damaged("it sets an item of something that is not a dict")

    def key(self, value: Any) -> Any:
        if value is None or isinstance(value, (str, bytes, float, bool)):
            return value
        # Larger numbers could be chosen to share one hash, and a dict of those takes quadratic time.
        if isinstance(value, int) and -(1 << 63) <= value < 1 << 63:
            return value
        self.odd_keys = True
        return InertKey()

    def append(self, items: list[Any]) -> None:
        target = self.top()
        if isinstance(target, list):
            target += items
        elif not isinstance(target, Inert):
            raise Damaged("it appends to something that is not a list")

    def build(self) -> None:
        """Set the state of an inert object. A dict's state (`_metadata` of a state_dict) is not needed."""
        state = self.pop()
        if isinstance(self.top(), Inert):
            self.top().state = state

    def call(self, function: Any, arguments: Any) -> Any:
        """The result of a known call; an inert object for any other."""
        if not isinstance(function, Named):
            if isinstance(function, Inert):
                return Inert()
            raise Damaged("it calls something that is not a function")
        if not isinstance(arguments, tuple):
            raise Damaged("it calls a function without arguments")
        if (function.module, function.name) == ("collections", "OrderedDict"):
            return self._ordered(arguments)
        if function.module == "torch._utils":
            if function.name in REBUILD_TENSOR:
                return _tensor(arguments)
            if function.name in REBUILD_PARAMETER and arguments and isinstance(arguments[0], Tensor):
                return arguments[0]
        return Inert()

    def _ordered(self, arguments: tuple) -> dict[Any, Any]:
        """An OrderedDict: empty, or from the list of pairs that Python 2 wrote."""
        items: dict[Any, Any] = {}
        pairs = arguments[0] if arguments else ()
        if not isinstance(pairs, (list, tuple)):
            raise Damaged("its dict has no pairs")
        self.spend(len(pairs))
        for pair in pairs:
            if not isinstance(pair, (list, tuple)) or len(pair) != 2:
                raise Damaged("its dict has no pairs")
            items[self.key(pair[0])] = pair[1]
        return items

    def persistent(self, note: Any) -> None:
        """A storage by ("storage", storage class, key, device, element count, [view of another storage: unused since
        torch 0.4])."""
        if not isinstance(note, tuple) or not 5 <= len(note) <= 6:
            raise Damaged("it refers to an invalid storage")
        _, kind, key, _, count = note[:5]
        if not isinstance(key, (str, int)) or not _is_size(count):
            raise Damaged("it refers to an invalid storage")
        is_torch = isinstance(kind, Named) and kind.module in ("torch", "torch.storage")
        storage = Storage(str(key), STORAGES.get(kind.name, "") if is_torch else "", count)
        self.storages[storage.key] = storage
        self.push(storage)


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value <= MAX_SIDE


def _tensor(arguments: tuple) -> Tensor:
    if len(arguments) < 4:
        raise Damaged("a tensor's entry is invalid")
    storage, offset, shape, strides = arguments[:4]
    sides = [*shape[: MAX_AXES + 1], *strides[: MAX_AXES + 1]] if _tuples(shape, strides) else [None]
    if not isinstance(storage, Storage) or not _is_size(offset) or not all(map(_is_size, sides)):
        raise Damaged("a tensor's entry is invalid")
    if len(shape) != len(strides) or len(shape) > MAX_AXES:
        raise Damaged("a tensor has too many axes")
    return Tensor(storage, offset, shape, strides)


def _tuples(*values: Any) -> bool:
    return all(isinstance(value, tuple) for value in values)


# ---- the opcodes (pickletools.opcodes)


def _integer(data: bytes) -> int:
    if len(data) > MAX_NUMBER_BYTES:
        raise Damaged("a number is too long")
    return int.from_bytes(data, "little", signed=True)


def _integer_line(text: str) -> int:
    if len(text) > 25:
        raise Damaged("a number is too long")
    return int(text.rstrip("L"), 0)


def _int(machine: Machine) -> None:
    text = machine.line()
    machine.push({"00": False, "01": True}[text] if text in ("00", "01") else _integer_line(text))


def _string_line(machine: Machine) -> None:
    text = machine.line()
    if len(text) < 2 or text[0] != text[-1] or text[0] not in "'\"":
        raise Damaged("a string has no quotes")
    machine.push(codecs.escape_decode(text[1:-1].encode())[0].decode("utf-8", "replace"))  # type: ignore[attr-defined]


def _text(form: str) -> Callable[[Machine], None]:
    return lambda machine: machine.push(machine.take(machine.number(form)).decode("utf-8", "replace"))


def _bytes(form: str) -> Callable[[Machine], None]:
    return lambda machine: machine.push(machine.take(machine.number(form)))


def _number(form: str) -> Callable[[Machine], None]:
    return lambda machine: machine.push(machine.number(form))


def _constant(value: Any) -> Callable[[Machine], None]:
    return lambda machine: machine.push(value)


def _fresh(make: Callable[[], Any]) -> Callable[[Machine], None]:
    return lambda machine: machine.push(make())


def _tuple_of(count: int) -> Callable[[Machine], None]:
    if count == 1:
        return lambda machine: machine.push((machine.pop(),))

    def action(machine: Machine) -> None:
        items = [machine.pop() for _ in range(count)]
        machine.push(tuple(items[::-1]))

    return action


def _dict_of_marked(machine: Machine) -> None:
    items = machine.pop_mark()
    machine.push({})
    machine.fill(items)


def _set_item(machine: Machine) -> None:
    value, key = machine.pop(), machine.pop()
    machine.fill([key, value])


def _append_one(machine: Machine) -> None:
    value = machine.pop()
    machine.append([value])


def _add_items(machine: Machine) -> None:
    for item in machine.pop_mark():  # of a set, which contains nothing that is needed
        machine.key(item)


def _frozen_set(machine: Machine) -> None:
    _add_items(machine)
    machine.push(Inert())


def _name(machine: Machine) -> None:
    module, name = machine.line(), machine.line()
    machine.push(Named(module, name))


def _stack_name(machine: Machine) -> None:
    name, module = machine.pop(), machine.pop()
    if not isinstance(name, str) or not isinstance(module, str):
        raise Damaged("it refers to an invalid class")
    machine.push(Named(module, name))


def _instance(machine: Machine) -> None:
    function = Named(machine.line(), machine.line())
    machine.push(machine.call(function, tuple(machine.pop_mark())))


def _object(machine: Machine) -> None:
    items = machine.pop_mark()
    if not items:
        raise Damaged("it creates an object without a class")
    machine.push(machine.call(items[0], tuple(items[1:])))


def _call(machine: Machine) -> None:
    arguments, function = machine.pop(), machine.pop()
    machine.push(machine.call(function, arguments))


def _call_named(machine: Machine) -> None:
    machine.pop()  # keyword arguments, which none of the known functions takes
    _call(machine)


def _pop(machine: Machine) -> None:
    machine._stack.pop()


def _pop_to_mark(machine: Machine) -> None:
    machine.pop_mark()


_ACTIONS: dict[bytes, Callable[[Machine], None]] = {
    b"\x80": lambda machine: machine.number("<B"),  # protocol
    b"\x95": lambda machine: machine.number("<Q"),  # length of a frame: only a hint for reading ahead
    b"(": lambda machine: machine.push(_MARK),
    b"0": _pop,
    b"1": _pop_to_mark,
    b"2": lambda machine: machine.push(machine.top()),
    # constants and numbers
    b"N": _constant(None),
    b"\x88": _constant(True),
    b"\x89": _constant(False),
    b"I": _int,
    b"L": lambda machine: machine.push(_integer_line(machine.line())),
    b"J": _number("<i"),
    b"K": _number("<B"),
    b"M": _number("<H"),
    b"\x8a": lambda machine: machine.push(_integer(machine.take(machine.number("<B")))),
    b"\x8b": lambda machine: machine.push(_integer(machine.take(machine.number("<i")))),
    b"F": lambda machine: machine.push(float(machine.line())),
    b"G": _number(">d"),
    # strings
    b"S": _string_line,
    b"T": _text("<i"),
    b"U": _text("<B"),
    b"V": lambda machine: machine.push(machine.line_bytes().decode("raw-unicode-escape", "replace")),
    b"X": _text("<I"),
    b"\x8c": _text("<B"),
    b"\x8d": _text("<Q"),
    b"B": _bytes("<I"),
    b"C": _bytes("<B"),
    b"\x8e": _bytes("<Q"),
    b"\x96": _bytes("<Q"),
    # containers
    b"]": _fresh(list),
    b"a": _append_one,
    b"e": lambda machine: machine.append(machine.pop_mark()),
    b"l": lambda machine: machine.push(machine.pop_mark()),
    b")": _constant(()),
    b"t": lambda machine: machine.push(tuple(machine.pop_mark())),
    b"\x85": _tuple_of(1),
    b"\x86": _tuple_of(2),
    b"\x87": _tuple_of(3),
    b"}": _fresh(dict),
    b"d": _dict_of_marked,
    b"s": _set_item,
    b"u": lambda machine: machine.fill(machine.pop_mark()),
    b"\x8f": _fresh(Inert),
    b"\x90": _add_items,
    b"\x91": _frozen_set,
    # the memo
    b"p": lambda machine: machine.remember(_integer_line(machine.line())),
    b"q": lambda machine: machine.remember(machine.number("<B")),
    b"r": lambda machine: machine.remember(machine.number("<I")),
    b"\x94": lambda machine: machine.remember(len(machine._memo)),
    b"g": lambda machine: machine.recall(_integer_line(machine.line())),
    b"h": lambda machine: machine.recall(machine.number("<B")),
    b"j": lambda machine: machine.recall(machine.number("<I")),
    # classes and objects
    b"c": _name,
    b"\x93": _stack_name,
    b"i": _instance,
    b"o": _object,
    b"R": _call,
    b"\x81": _call,
    b"\x92": _call_named,
    b"b": lambda machine: machine.build(),
    b"Q": lambda machine: machine.persistent(machine.pop()),
}
