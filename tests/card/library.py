"""A GPU that computes nothing, to see on a machine without one what a training does with it.

Tensors have a device, a type and a shape and no content (torch's FakeTensorMode); a small library tells torch that the
device is there. So a whole run is built and takes its steps, and what can be seen is that everything meets on one device,
how much memory is held there, and each place where the host would wait for the card. What kernels compute, how fast they
are and what they hold for themselves (cuDNN's and cuBLAS' workspaces) cannot be seen.
"""

import ctypes
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

COMPILER = shutil.which("g++")


def load_library(folder: Path) -> None:
    """Compile the library into a folder, if it is not there, and load it: before torch, which asks once what there is."""
    library, found = folder / "device.so", find_spec("torch")
    assert COMPILER is not None and found is not None and found.origin is not None
    if not library.exists():
        torch = Path(found.origin).parent
        command = [COMPILER, "-O0", "-std=c++20", "-shared", "-fPIC", f"-I{torch / 'include'}", "-o", str(library)]
        command += [str(Path(__file__).with_name("device.cpp")), f"-L{torch / 'lib'}", f"-Wl,-rpath,{torch / 'lib'}"]
        subprocess.run([*command, "-lc10", "-ltorch_cpu"], check=True)
    ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)
