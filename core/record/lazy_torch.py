"""torch, imported at its first use: `from core.record.lazy_torch import Tensor, nn, torch`.

So one file can declare facts, which are read without the seconds that importing torch takes, and compute with torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any


class _Lazy:
    """Stands for a module, which is imported when an attribute is first read. All its attributes are then copied into this object, so that
    later accesses are as fast as direct ones and torch.compile sees the functions themselves."""

    def __init__(self, module: str):
        self._module = module

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # what looks at a module's globals imports nothing
            raise AttributeError(name)
        module = import_module(self._module)
        self.__dict__.update(vars(module))
        return getattr(module, name)


if TYPE_CHECKING:
    import torch as torch
    from torch import Tensor as Tensor
    from torch import nn as nn
else:
    torch, nn = _Lazy("torch"), _Lazy("torch.nn")
    Tensor = Any  # for annotations; isinstance takes torch.Tensor
