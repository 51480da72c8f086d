"""Reads a pickle without Python's unpickler: runs its opcodes one at a time, within limits.

A pickle is a program. Here it can build dicts, lists, tuples, numbers, strings and references to tensors; every other class and
function becomes an inert placeholder. Nothing that the pickle names is called, opcodes never recurse, and memory is bounded by the
number of steps and the bytes read (the memo is a dict, so a large memo index allocates nothing). `pickletools` lists the opcodes and
reads their arguments.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pickletools import opcodes
from typing import Any, BinaryIO

MAX_STEPS = 600_000  # SDXL takes 70,000; copied items of tuples and lists count too
MAX_BYTES = 32_000_000  # of all strings together
MAX_LINE = 10_000
MAX_BITS = 80  # of torch's mark of a legacy file; all other numbers fit 64
LONGEST_NUMBER = 8  # bytes
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
    """Raised for a pickle that is invalid or exceeds the limits."""


class Inert:
    """A placeholder for an object of an unknown class. It holds the object's state and does nothing."""

    __slots__ = ("state",)

    def __init__(self) -> None:
        self.state: Any = None


class InertKey:
    """A placeholder for a dict key that is not None, a number, text or bytes; hashing a nested tuple could take very long."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Named:
    """A class or function that the pickle names by module and name; never imported."""

    module: str
    name: str


@dataclass(frozen=True, slots=True)
class Storage:
    """A storage that the pickle refers to: its key, safetensors' name of the dtype ("" if unknown), number of elements."""

    key: str
    dtype: str
    count: int  # elements


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor as a view of a storage; offset and strides in elements."""

    storage: Storage
    offset: int  # elements
    shape: tuple[int, ...]
    strides: tuple[int, ...]


_MARK = object()


class Machine:
    """Reads one pickle from the current position of `handle` and leaves the position behind it.

    max_steps   limit of opcodes and copied items       max_bytes   limit of all strings together
    storages    the storages in the pickle by key       odd_keys    whether a dict or set has keys other than None, numbers, text, bytes
    """

    def __init__(self, handle: BinaryIO, max_steps: int = MAX_STEPS, max_bytes: int = MAX_BYTES) -> None:
        self._handle, self._steps, self._bytes = handle, max_steps, max_bytes
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        self.storages: dict[str, Storage] = {}
        self.odd_keys = False

    def load(self) -> Any:
        """Run the pickle and return the object it builds.

        Raises Damaged; also IndexError, ValueError or TypeError for a broken stack or argument.
        """
        read = self._handle.read
        while True:
            self.spend(1)
            code = read(1)
            if code == b".":
                return self.pop()
            if code not in _OPCODES:
                raise Damaged("it is truncated" if not code else "it has an unknown opcode")
            argument, action = _OPCODES[code]
            action(self) if argument is None else action(self, argument(self))

    def spend(self, count: int) -> None:
        """Count `count` steps. Raises Damaged beyond the limit."""
        self._steps -= count
        if self._steps < 0:
            raise Damaged("it has too many opcodes")

    # ---- what `pickletools` reads arguments from

    def read(self, count: int) -> bytes:
        """Read exactly `count` bytes of an opcode's argument. Raises Damaged at the end of the file or beyond the limit."""
        if count > LONGEST_NUMBER:  # shorter ones are limited by the number of steps
            self._spend_bytes(count)
        data = self._handle.read(count)
        if len(data) != count:
            raise Damaged("it is truncated")
        return data

    def readline(self) -> bytes:
        """Read a line of an opcode's argument. Raises Damaged if it is truncated or too long."""
        data = self._handle.readline(MAX_LINE)
        if data[-1:] != b"\n":
            raise Damaged("a line is truncated or too long")
        self._spend_bytes(len(data))
        return data

    def _spend_bytes(self, count: int) -> None:
        self._bytes -= count
        if self._bytes < 0:
            raise Damaged("its strings are too long")

    # ---- the stack

    def push(self, value: Any) -> None:
        self._stack.append(value)

    def push_argument(self, value: Any) -> None:
        """Push the number, text or bytes that an opcode carries. Raises Damaged for a number of more than MAX_BITS."""
        if isinstance(value, int) and value.bit_length() > MAX_BITS:
            raise Damaged("a number is too long")
        if isinstance(value, str) and not value.isascii():
            value = value.encode("utf-8", "replace").decode()  # without halves of surrogates
        self.push(value)

    def pop(self) -> Any:
        """Remove and return the top of the stack. Raises Damaged if it is a mark."""
        value = self._stack.pop()
        if value is _MARK:
            raise Damaged("its stack is broken")
        return value

    def pop_mark(self) -> list[Any]:
        """Remove the items above the last mark and the mark itself; return the items. Raises Damaged without a mark."""
        stack, index = self._stack, len(self._stack) - 1
        while stack[index] is not _MARK:  # each item was pushed by one opcode and is visited once
            index -= 1
            if index < 0:
                raise Damaged("it has no mark")
        items = stack[index + 1 :]
        del stack[index:]
        return items

    def top(self) -> Any:
        """Return the top of the stack. Raises Damaged if it is a mark."""
        if self._stack[-1] is _MARK:
            raise Damaged("its stack is broken")
        return self._stack[-1]

    def remember(self, key: int) -> None:
        """Store the top of the stack in the memo under `key`. Raises Damaged for a negative key."""
        if key < 0:
            raise Damaged("its memo is broken")
        self._memo[key] = self.top()

    def recall(self, key: int) -> None:
        """Push a value from the memo. Raises Damaged for an unknown key."""
        if key not in self._memo:
            raise Damaged("its memo is broken")
        self.push(self._memo[key])

    # ---- objects

    def fill(self, items: list[Any]) -> None:
        """Add `items`, keys and values in turn, to the dict on top of the stack; an inert object ignores them. Raises Damaged for anything
        else."""
        target = self.top()
        if isinstance(target, dict):
            for index in range(0, len(items) - 1, 2):
                target[self.key(items[index])] = items[index + 1]
        elif not isinstance(target, Inert):
            raise Damaged("it sets an item of something that is not a dict")

    def key(self, value: Any) -> Any:
        """Return `value` if it is a safe dict key (None, text, bytes, a number of up to 64 bits), else an InertKey and set `odd_keys`."""
        if value is None or isinstance(value, (str, bytes, float, bool)):
            return value
        # Larger numbers could be chosen to share one hash, and a dict of those takes quadratic time.
        if isinstance(value, int) and -(1 << 63) <= value < 1 << 63:
            return value
        self.odd_keys = True
        return InertKey()

    def append(self, items: list[Any]) -> None:
        """Append `items` to the list on top of the stack; an inert object ignores them. Raises Damaged for anything else."""
        target = self.top()
        if isinstance(target, list):
            target += items
        elif not isinstance(target, Inert):
            raise Damaged("it appends to something that is not a list")

    def build(self) -> None:
        """Pop a state and assign it to the inert object below. A dict's state (`_metadata` of a state_dict) is dropped."""
        state = self.pop()
        if isinstance(self.top(), Inert):
            self.top().state = state

    def call(self, function: Any, arguments: Any) -> Any:
        """Return the result of a known call (OrderedDict, torch's rebuild functions); an inert object for any other.

        function    a Named, or an inert object
        arguments   tuple
        Raises Damaged for other types.
        """
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
        """Return the dict of an OrderedDict call: empty, or from the list of (key, value) pairs that Python 2 wrote. Raises Damaged for
        other arguments."""
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
        """Push the storage that a persistent id refers to. Raises Damaged if the id is invalid.
        note: ("storage", storage class, key, device, number of elements[, view: unused since torch 0.4])"""
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
    """Return whether `value` is an integer from 0 to MAX_SIDE."""
    return type(value) is int and 0 <= value <= MAX_SIDE


def _tensor(arguments: tuple) -> Tensor:
    """Return the tensor of a call of torch's rebuild function. Raises Damaged for invalid arguments."""
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


# ---- the opcodes


def _ignore(machine: Machine, argument: int) -> None:
    """Do nothing: the protocol version or the length of a frame."""


def _tuple_of(count: int) -> Callable[[Machine], None]:
    """Return the action of TUPLE1, TUPLE2 or TUPLE3: replace the top `count` items by a tuple of them."""
    if count == 1:
        return lambda machine: machine.push((machine.pop(),))

    def action(machine: Machine) -> None:
        items = [machine.pop() for _ in range(count)]
        machine.push(tuple(items[::-1]))

    return action


def _dict_of_marked(machine: Machine) -> None:
    """DICT: replace the keys and values above the mark by a dict of them."""
    items = machine.pop_mark()
    machine.push({})
    machine.fill(items)


def _set_item(machine: Machine) -> None:
    """SETITEM: add the key and value on top of the stack to the dict below."""
    value, key = machine.pop(), machine.pop()
    machine.fill([key, value])


def _append_one(machine: Machine) -> None:
    """APPEND: add the top of the stack to the list below."""
    value = machine.pop()
    machine.append([value])


def _add_items(machine: Machine) -> None:
    """ADDITEMS: drop the items above the mark; unusual ones set `odd_keys` (`Machine.key`)."""
    for item in machine.pop_mark():  # of a set, which contains nothing that is needed
        machine.key(item)


def _frozen_set(machine: Machine) -> None:
    """FROZENSET: replace the items above the mark by an inert object."""
    _add_items(machine)
    machine.push(Inert())


def _split_name(argument: str) -> Named:
    """Parse "module name" into the class or function it names."""
    module, _, name = argument.partition(" ")
    return Named(module, name)


def _stack_name(machine: Machine) -> None:
    """STACK_GLOBAL: replace module and name on the stack by the class or function they name. Raises Damaged unless both are text."""
    name, module = machine.pop(), machine.pop()
    if not isinstance(name, str) or not isinstance(module, str):
        raise Damaged("it refers to an invalid class")
    machine.push(Named(module, name))


def _instance(machine: Machine, argument: str) -> None:
    """INST: call the class "module name" with the items above the mark."""
    machine.push(machine.call(_split_name(argument), tuple(machine.pop_mark())))


def _object(machine: Machine) -> None:
    """OBJ: call the first item above the mark with the others. Raises Damaged without an item."""
    items = machine.pop_mark()
    if not items:
        raise Damaged("it creates an object without a class")
    machine.push(machine.call(items[0], tuple(items[1:])))


def _call(machine: Machine) -> None:
    """REDUCE and NEWOBJ: replace a function and its arguments by the result of `Machine.call`."""
    arguments, function = machine.pop(), machine.pop()
    machine.push(machine.call(function, arguments))


def _call_named(machine: Machine) -> None:
    """NEWOBJ_EX: as `_call`, ignoring keyword arguments."""
    machine.pop()  # keyword arguments, which none of the known functions takes
    _call(machine)


_VALUES = """INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING
UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8"""
_ACTIONS: dict[str, Callable[..., object]] = {
    **dict.fromkeys(_VALUES.split(), Machine.push_argument),
    **dict.fromkeys(("PROTO", "FRAME"), _ignore),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), Machine.remember),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), Machine.recall),
    "MEMOIZE": lambda machine: machine.remember(len(machine._memo)),
    "MARK": lambda machine: machine.push(_MARK),
    "POP": lambda machine: machine._stack.pop(),
    "POP_MARK": Machine.pop_mark,
    "DUP": lambda machine: machine.push(machine.top()),
    # constants
    "NONE": lambda machine: machine.push(None),
    "NEWTRUE": lambda machine: machine.push(True),
    "NEWFALSE": lambda machine: machine.push(False),
    "EMPTY_TUPLE": lambda machine: machine.push(()),
    # containers
    "EMPTY_LIST": lambda machine: machine.push([]),
    "APPEND": _append_one,
    "APPENDS": lambda machine: machine.append(machine.pop_mark()),
    "LIST": lambda machine: machine.push(machine.pop_mark()),
    "TUPLE": lambda machine: machine.push(tuple(machine.pop_mark())),
    "TUPLE1": _tuple_of(1),
    "TUPLE2": _tuple_of(2),
    "TUPLE3": _tuple_of(3),
    "EMPTY_DICT": lambda machine: machine.push({}),
    "DICT": _dict_of_marked,
    "SETITEM": _set_item,
    "SETITEMS": lambda machine: machine.fill(machine.pop_mark()),
    "EMPTY_SET": lambda machine: machine.push(Inert()),
    "ADDITEMS": _add_items,
    "FROZENSET": _frozen_set,
    # classes and objects
    "GLOBAL": lambda machine, argument: machine.push(_split_name(argument)),
    "STACK_GLOBAL": _stack_name,
    "INST": _instance,
    "OBJ": _object,
    "REDUCE": _call,
    "NEWOBJ": _call,
    "NEWOBJ_EX": _call_named,
    "BUILD": Machine.build,
    "BINPERSID": lambda machine: machine.persistent(machine.pop()),
}
# {code: (what reads its argument, if it has one; its action)}; others are refused
_OPCODES: dict[bytes, tuple[Callable[[Any], Any] | None, Callable[..., object]]] = {
    each.code.encode("latin-1"): (each.arg.reader if each.arg is not None else None, _ACTIONS[each.name])
    for each in opcodes
    if each.name in _ACTIONS
}
