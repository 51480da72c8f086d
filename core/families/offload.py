"""Offloading: weights stay in RAM and are moved to the device to compute, a whole part or layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from core.record.lazy_torch import Tensor, nn, torch


@contextmanager
def temporarily_on(modules: Sequence[nn.Module], device: str) -> Iterator[None]:
    """Context manager: the modules are on `device`; afterwards they return to their previous device."""
    with ExitStack() as stack:
        for module in modules:
            before = next(module.parameters()).device
            if before.type != torch.device(device).type:
                stack.callback(module.to, before)
                module.to(device)
        yield


@contextmanager
def layers_temporarily_on(models: Sequence[nn.Module], device: str) -> Iterator[None]:
    """Context manager: the models are on `device`, but each layer of a stack (`ModuleList`) only while it computes."""
    with ExitStack() as stack:
        for model in models:
            if next(model.parameters()).device.type == torch.device(device).type:
                continue
            stacks = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
            inside = {module for each in stacks for module in each.modules()}
            for module in model.modules():
                layer = _Layer(module, device)
                if module in inside:
                    for handle in layer.register_hooks(module):
                        stack.callback(handle.remove)
                else:
                    stack.callback(layer.to_ram)
                    layer.to_device()
        yield


@contextmanager
def vae_temporarily_on(vae: Any, device: str) -> Iterator[None]:
    """Context manager: the VAE is on `device` only while it encodes or decodes."""

    def on_device(method: Callable[..., Any]) -> Callable[..., Any]:
        def forward(x: Tensor, *args: Any, **kwargs: Any) -> Any:
            with temporarily_on([vae], device):
                return method(x.to(device), *args, **kwargs)

        return forward

    with replaced(vae, encode=on_device(vae.encode), decode=on_device(vae.decode)):
        yield


@contextmanager
def replaced(module: Any, **methods: Callable[..., Any]) -> Iterator[None]:
    """Context manager: the module has these methods in place of its own."""
    before = {name: vars(module).get(name) for name in methods}
    vars(module).update(methods)
    try:
        yield
    finally:
        for name, method in before.items():
            vars(module).pop(name)
            if method is not None:
                vars(module)[name] = method


def offload_permanently(model: nn.Module, device: str) -> None:
    """Offload a model whose weights are in RAM: from now on each layer's are on `device` only while it computes."""
    for module in model.modules():
        layer = _Layer(module, device)
        for _, _, tensor in layer.tensors if device.startswith("cuda") else ():
            tensor.data = tensor.data.pin_memory()  # so that copies are asynchronous
        layer.register_hooks(module)


class _Layer:
    """The weights and buffers of a module without its submodules, which can be moved to `device` and back to RAM.
    tensors: [(the module's dict of them, name, tensor in RAM)]"""

    def __init__(self, module: nn.Module, device: str):
        self._device = device
        dicts: list[dict[str, Any]] = [module._parameters, module._buffers]
        self.tensors = [
            (by_name, name, tensor) for by_name in dicts for name, tensor in by_name.items() if tensor is not None
        ]

    def register_hooks(self, module: nn.Module) -> Sequence[Any]:
        """Move the tensors to the device before each call of the module and drop them after it, by hooks; return the hooks' handles."""
        if not self.tensors:
            return ()
        before, after = module.register_forward_pre_hook, module.register_forward_hook
        return before(self.to_device), after(self.to_ram, always_call=True)

    def to_device(self, *_: Any) -> None:
        """Replace the module's tensors by copies on the device. Also a forward pre-hook."""
        for by_name, name, tensor in self.tensors:
            moved = tensor.to(self._device, non_blocking=True)
            by_name[name] = nn.Parameter(moved, requires_grad=False) if isinstance(tensor, nn.Parameter) else moved

    def to_ram(self, *_: Any) -> None:
        """Put the tensors in RAM back into the module. Also a forward hook."""
        for by_name, name, tensor in self.tensors:
            by_name[name] = tensor
