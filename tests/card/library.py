"""A GPU that computes nothing, to see on a machine without one what a training does with it.

Tensors have a device, a type and a shape and no content (torch's FakeTensorMode); a small library tells torch that the
device is there. So a whole run is built and takes its steps, and what can be seen is that everything meets on one device,
how much memory is held there, and each place where the host would wait for the card. What kernels compute, how fast they
are and what they hold for themselves (cuDNN's and cuBLAS' workspaces) cannot be seen.
"""

import ctypes
import os
import shutil
import subprocess
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

COMPILER = shutil.which("g++")


def load_library() -> None:
    """Compile the library, if it was not since it changed, and load it: before torch, which asks once what there is."""
    source, found = Path(__file__).with_name("device.cpp"), find_spec("torch")
    assert COMPILER is not None and found is not None and found.origin is not None
    library = source.parent / "__pycache__" / f"device-{version('torch')}.so"
    if not library.exists() or library.stat().st_mtime < source.stat().st_mtime:
        library.parent.mkdir(exist_ok=True)
        torch, half = Path(found.origin).parent, library.with_suffix(f".{os.getpid()}")
        command = [COMPILER, "-O0", "-std=c++20", "-shared", "-fPIC", f"-I{torch / 'include'}", "-o", str(half)]
        command += [str(source), f"-L{torch / 'lib'}", f"-Wl,-rpath,{torch / 'lib'}", "-lc10", "-ltorch_cpu"]
        subprocess.run(command, check=True)
        half.replace(library)
    ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)
