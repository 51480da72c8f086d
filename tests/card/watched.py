"""What a training does with the card: the modes its tensors live in. To be imported when the library is loaded."""

import traceback
import weakref
from contextlib import ExitStack, contextmanager
from unittest import mock

import bitsandbytes  # noqa: F401  while there is no card: it would look for its kernels
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.optim import optimizer as optimizers
from torch.utils import _foreach_utils
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

aten = torch.ops.aten
BLOCK = 512  # bytes: the least that torch's allocator hands out on a card
# torch's fused SGD, which says nothing of tensors without content, unlike its fused Adam: it writes in place.
torch.library.register_fake("aten::_fused_sgd_", lambda *_, **__: None)
# A CUDA build has a kernel for it; without one torch computes it in seven operations.
_KERNELS = torch.library.Library("aten", "IMPL")
_KERNELS.impl("silu_backward", lambda grad, x: torch.empty_like(x), "CUDA")
READ_BACK = (aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten.equal, aten.is_nonzero)


class Watched(TorchDispatchMode):
    """Counts what lies on the card, and notes what makes the host wait for it.

    waits   what and where, since they were last cleared       now, peak   bytes
    listener   called with each operation, its arguments and its result
    """

    def __init__(self, listener=None):
        super().__init__()
        self._listener = listener
        self.now = self.peak = 0
        self.waits = []
        self._bytes = {}
        self._pinned = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        packet = func.overloadpacket
        if packet is aten._pin_memory:
            pinned = args[0].clone()
            self._pinned.add(pinned.untyped_storage()._cdata)
            return pinned
        if packet is aten.is_pinned:
            return self._is_pinned(args[0])
        self._note(packet, args, kwargs)
        if packet is aten._local_scalar_dense and args[0].device.type == "cuda":
            return 0.0 if args[0].is_floating_point() else False if args[0].dtype == torch.bool else 0
        if packet is aten._local_scalar_dense and isinstance(args[0], FakeTensor) and args[0].constant is None:
            return 1.5 if args[0].is_floating_point() else 1  # what an optimizer counts on the host
        made = func(*args, **kwargs)
        if self._listener is not None:
            self._listener(func, args, kwargs, made)
        for thing in tree_iter(made):
            if getattr(thing, "constant", None) is not None:
                thing.constant = None  # torch would compute with a number it knows, on the card
            if isinstance(thing, torch.Tensor) and thing.device.type == "cuda":
                self._add(thing.untyped_storage())
        return made

    def _is_pinned(self, tensor):
        return tensor.untyped_storage()._cdata in self._pinned

    def _note(self, packet, args, kwargs):
        if packet is aten._to_copy and kwargs.get("device") is not None:
            self._note_copy(args[0], torch.device(kwargs["device"]), kwargs.get("non_blocking"))
        elif packet is aten.copy_:
            self._note_copy(args[1], args[0].device, args[2] if len(args) > 2 else kwargs.get("non_blocking"))
        elif packet in READ_BACK and args[0].device.type == "cuda":
            self._wait(str(packet))
        elif packet in (aten.index, aten.index_put_) and any(
            index is not None and index.dtype == torch.bool and index.device.type == "cuda" for index in args[1]
        ):
            self._wait(f"{packet} by a mask")

    def _note_copy(self, source, device, queued):
        if {source.device.type, device.type} != {"cpu", "cuda"}:
            return
        if not queued or (device.type == "cuda" and not self._is_pinned(source)):
            self._wait(f"copy {source.device} to {device} of {list(source.shape)}")

    def _wait(self, what):
        ours = [line for line in traceback.extract_stack() if "/core/" in line.filename.replace("\\", "/")]
        self.waits.append(f"{what} in {' < '.join(f'{line.name}:{line.lineno}' for line in reversed(ours[-4:]))}")

    def _add(self, storage):
        key = storage._cdata
        if key in self._bytes:
            return
        self._bytes[key] = -(-storage.nbytes() // BLOCK) * BLOCK
        self.now += self._bytes[key]
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._gone, key)

    def _gone(self, key):
        self.now -= self._bytes.pop(key, 0)


class _AtOnce:
    """In place of a pool of threads: modes hold for the thread that entered them."""

    def __init__(self, *_, **__):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def submit(self, call, *args):
        from concurrent.futures import Future

        done = Future()
        done.set_result(call(*args))
        return done

    def shutdown(self, **_):
        pass


def _without_content(part, dtype=None, device="cpu", cancel=None, wide=()):
    return {
        name: torch.empty(location.entry.shape, dtype=torch.float32 if name.startswith(wide) else dtype, device=device)
        for name, location in part.locations.items()
    }


_plain_to = torch.nn.Module.to


def _to(module, *where, **more):
    """`Module.to`, which cannot change the device of what has no content in place: with new parameters then."""
    try:
        return _plain_to(module, *where, **more)
    except RuntimeError:
        for owner in module.modules():
            for held in (owner._parameters, owner._buffers):
                for name, tensor in held.items():
                    if tensor is not None:
                        moved = tensor.detach().to(*where, **more)
                        held[name] = torch.nn.Parameter(moved, False) if held is owner._parameters else moved
        return module


@contextmanager
def card(gigabytes=24, capability=(8, 9), listener=None):
    """Inside, "cuda" is a device of this size and of a generation that has bf16; weights are read without content."""
    from core.families import loading

    watched, total = Watched(listener), gigabytes << 30
    answers = {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "get_device_name": lambda *_: "a card",
        "get_device_capability": lambda *_: capability,
        "is_bf16_supported": lambda *_, **__: True,
        "mem_get_info": lambda *_: (total - watched.now, total),
        "empty_cache": lambda: None,
        "synchronize": lambda *_: None,
        "reset_peak_memory_stats": lambda *_: None,
        "max_memory_reserved": lambda *_: watched.peak,
        "_lazy_init": lambda: None,
    }
    with ExitStack() as stack:
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        for name, answer in answers.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, answer))
        for module in (optimizers, _foreach_utils):  # torch takes all weights at once if they are of these classes
            classes = [*module._foreach_supported_types, FakeTensor]
            stack.enter_context(mock.patch.object(module, "_foreach_supported_types", classes))
        stack.enter_context(mock.patch("torch.cuda.amp.common.amp_definitely_not_available", lambda: False))
        stack.enter_context(mock.patch.object(loading, "ThreadPoolExecutor", _AtOnce))
        stack.enter_context(mock.patch.object(torch.nn.Module, "to", _to))
        stack.enter_context(mock.patch.object(loading, "read_part", _without_content))
        stack.enter_context(mock.patch("bitsandbytes.functional.create_dynamic_map", lambda *_, **__: torch.zeros(256)))
        stack.enter_context(watched)
        yield watched
