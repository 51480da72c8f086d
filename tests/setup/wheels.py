"""Small wheels made on the spot, so that environments can be built for real without a network."""

import zipfile
from pathlib import Path

TORCH = """
__version__ = "{version}"

class cuda:
    is_available = staticmethod(lambda: False)

class backends:
    class mps:
        is_available = staticmethod(lambda: False)
"""

REQUIREMENTS = """\
# stands for the real one
torch==2.13.0
xformers==0.0.35 ; sys_platform == "linux"
onnxruntime-gpu==1.31.1 ; sys_platform == "linux"
onnxruntime==1.31.1 ; sys_platform == "darwin"
paint==1.0
spandrel==0.4.2
"""


def write_wheel(folder: Path, name: str, version: str, source: str = "", requires: str = "") -> None:
    """A wheel whose one module holds `source`. requires: lines of its metadata"""
    module, info = name.replace("-", "_"), f"{name.replace('-', '_')}-{version}.dist-info"
    with zipfile.ZipFile(folder / f"{module}-{version}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{module}/__init__.py", source or f'__version__ = "{version}"\n')
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{requires}")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")


def write_wheels(folder: Path) -> None:
    """What REQUIREMENTS asks for, newer versions of some, and a torch that does not start."""
    folder.mkdir(parents=True)
    for version in ("2.13.0", "2.14.0"):
        write_wheel(folder, "torch", version, TORCH.format(version=version))
    write_wheel(folder, "torch", "2.99.0", 'raise ImportError("libcudart.so.13: cannot open shared object file")\n')
    write_wheel(folder, "spandrel", "0.4.2", requires="Requires-Dist: torchvision\n")  # of which there is no wheel
    for name, version in (
        ("xformers", "0.0.35"),
        ("xformers", "0.0.36"),
        ("paint", "1.0"),
        ("paint", "2.0"),
        ("check", "1.0"),
    ):
        write_wheel(folder, name, version)
    for name in ("onnxruntime", "onnxruntime-gpu"):
        write_wheel(folder, name, "1.31.1")
