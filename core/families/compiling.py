"""torch.compile for the blocks of a U-Net, for passes with gradients.

Blocks of the same width share compiled code, so compiling takes minutes rather than a quarter of an hour. The fused backward pass still
gets its gradients block by block, and gradient checkpointing stays outside of the compiled code. Samples and validation, which have
other sizes, are not compiled.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from core.record.problems import Problem, ProblemsError

if TYPE_CHECKING:
    from torch import nn

    from core.settings.memory import MemorySettings

BLOCKS = ("BasicTransformerBlock", "ResnetBlock2D")
VARIANTS = 16  # compiled forms of a block of one width, by image and batch size; usually there are two
WHERE = "memory.torch_compile"
PACKAGES = {"tvm": "tvm", "openxla": "torch_xla"}  # torch lists these backends even if they are not installed
OFF = "or turn torch.compile off: the result is the same"


def compile_problems(settings: MemorySettings, device: str) -> list[Problem]:
    """Return problems of the torch.compile settings on this device, without compiling anything."""
    name, where = settings.dynamo_backend, "memory.dynamo_backend"
    if not settings.torch_compile:
        return []
    if name == "cudagraphs":
        what = "The backend cudagraphs does not work with the U-Net's blocks, which share compiled code"
        return [Problem(what, where, "choose inductor", code="compile.cudagraphs")]
    import torch

    package = PACKAGES.get(name, "")
    if name not in torch._dynamo.list_backends(exclude_tags=()) or (package and find_spec(package) is None):
        what = f"The installed torch has no backend '{name}'"
        return [Problem(what, where, "choose inductor", code="compile.no-backend")]
    if name != "inductor":
        return []
    if device.startswith("mps"):
        what = "torch.compile does not support training on Apple GPUs"
        return [Problem(what, WHERE, "turn it off", code="compile.mps")]
    if device.startswith("cuda") and find_spec("triton") is None:
        package = "triton-windows" if sys.platform == "win32" else "triton"
        what = "torch.compile needs triton on a GPU, and triton is not installed"
        return [Problem(what, WHERE, f"install {package}, {OFF}", code="compile.no-triton")]
    if not _compiler_found(device):
        return [_no_compiler()]
    if not device.startswith("cpu"):
        return []
    what = "On a CPU torch.compile made steps several times slower"
    fix = "turn it off, or compare a few steps of both"
    return [Problem(what, WHERE, fix, "advice", code="compile.slow-on-cpu")]


def _compiler_found(device: str) -> bool:
    """Return whether a C++ compiler for torch.compile is installed; triton-windows has one of its own."""
    if sys.platform == "win32":
        return device.startswith("cuda") or shutil.which("cl") is not None  # triton-windows brings a compiler
    names = [os.environ.get("CXX"), os.environ.get("CC"), "g++", "clang++", "c++", "gcc", "clang"]
    return any(name and shutil.which(name) for name in names)


def _no_compiler() -> Problem:
    """Return the problem that no C++ compiler was found, with how to install one on this system."""
    fix = "install g++ (Debian, Ubuntu: build-essential)"
    if sys.platform == "win32":
        fix = "install Visual Studio's Build Tools and start from its command prompt"
    elif sys.platform == "darwin":
        fix = "run xcode-select --install"
    what = "torch.compile needs a C++ compiler, and none was found"
    return Problem(what, WHERE, f"{fix}, {OFF}", code="compile.no-compiler")


def try_compiling(backend: str, device: str) -> None:
    """Compile a small layer and compute its gradient. Raises ProblemsError with the compiler's message if that fails."""
    import torch

    layer = torch.nn.Linear(4, 4).to(device)
    try:
        torch.compile(layer, backend=backend)(torch.ones(2, 4, device=device)).sum().backward()
    except Exception as error:  # of dynamo, the compiler, triton, the loader
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        what = f"torch.compile does not work here: {lines[0][:300]}"
        fix = f"check that the C++ compiler and, on a GPU, triton fit this torch, {OFF}"
        raise ProblemsError.one(what, WHERE, fix, code="compile.failed") from error
    finally:
        torch._dynamo.reset()


class CompiledBlocks:
    """Compiles the U-Net's blocks at their first use, until `release`.

    kinds           class names of the blocks
    several_sizes   True if images have several sizes: one form for all is compiled, which is a little slower than one for each
    say             (message, fix) -> None, called once if the number of forms reaches its limit: further sizes run uncompiled
    """

    def __init__(
        self,
        unet: nn.Module,
        backend: str,
        say: Callable[[str, str], None],
        *,
        several_sizes: bool,
        kinds: Sequence[str] = BLOCKS,
    ):
        import torch

        self.graphs: Counter[str] = Counter()  # compiled so far, by kind of block
        self._say = say
        self._backend = torch._dynamo.lookup_backend(backend)
        self._blocks = [block for block in unet.modules() if type(block).__name__ in kinds]
        widths = defaultdict(set)
        for block in self._blocks:
            widths[type(block).__name__].add(tuple(tuple(weight.shape) for weight in block.parameters()))
        self._max_graphs = VARIANTS * max((len(shapes) for shapes in widths.values()), default=1)
        config = torch._dynamo.config
        self._previous_limits = (config.recompile_limit, config.accumulated_recompile_limit)
        config.recompile_limit = self._max_graphs
        config.accumulated_recompile_limit = max(config.accumulated_recompile_limit, self._max_graphs)
        # `dynamic` is never None: torch would then compile the second size for all sizes, so results would depend on which size
        # came first, and a resumed run would differ from an uninterrupted one.
        for kind in kinds:
            make = partial(self._compile, kind)
            for block in self._blocks:
                if type(block).__name__ == kind:
                    block.forward = _compiled_with_gradients(
                        block.forward, torch.compile(block.forward, backend=make, dynamic=several_sizes)
                    )

    def _compile(self, kind: str, graph: Any, inputs: Any) -> Any:
        """Compile a graph of a block of class `kind` for torch.compile; report once if the number of graphs reaches its limit."""
        self.graphs[kind] += 1
        if self.graphs[kind] == self._max_graphs:
            self._say(
                f"{self._max_graphs} variants of a block were compiled; images of further sizes run without torch.compile",
                "use fewer buckets (dataset.bucket_reso_steps), or turn torch.compile off",
            )
        return self._backend(graph, inputs)

    def release(self) -> None:
        """Restore the plain blocks and free the compiled code."""
        import torch

        for block in self._blocks:
            block.__dict__.pop("forward", None)
        self._blocks = []
        torch._dynamo.reset()
        torch._dynamo.config.recompile_limit, torch._dynamo.config.accumulated_recompile_limit = self._previous_limits


def _compiled_with_gradients(plain: Callable[..., Any], compiled: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that calls `compiled` while gradients are recorded, else `plain`."""
    import torch

    def forward(*args: Any, **kwargs: Any) -> Any:
        return (compiled if torch.is_grad_enabled() else plain)(*args, **kwargs)

    return forward
