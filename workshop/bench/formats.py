"""How long the conversion of a whole model takes next to a copy of its bytes, and how much memory it needs."""

import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from core.machine_check.random_model import make_model
from core.record import atomic
from core.record.space import folder_bytes
from workshop.bench.measure import measure_tool, webui

FORMS = {"safetensors": "file.safetensors", "diffusers_safetensors": "folder", "ckpt": "file.ckpt"}


def measure_formats(folder: Path, quick: bool, say: Callable[[str], None]) -> dict[str, Any]:
    """Seconds and peak memory of conversions of a model with random weights and SDXL's architecture in fp16 (quick: SD 1.5's):
    from a folder to a file, from that to a folder and to a .ckpt. Each is a process, as on the command line, and is compared
    with a copy of the same file; both read from the disk and end when their bytes are on it."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="formats-", dir=folder) as name:
        root = Path(name)
        say(f"creating a model of random weights with {'SD 1.5' if quick else 'SDXL'}'s architecture")
        model = make_model(root, "sd1" if quick else "sdxl")
        first = _conversion(model, root / FORMS["safetensors"], "safetensors", root / "outputs")  # its copy follows
        atomic.remove_folder(model)
        source = root / FORMS["safetensors"]
        result: dict[str, Any] = {"bytes": source.stat().st_size, "family": "SD 1.5" if quick else "SDXL"}
        first["copy_seconds"] = copy_seconds(source, root / "copy")
        result["folder to safetensors"] = first
        for form in ("diffusers_safetensors", "ckpt", "safetensors"):
            say(f"converting the file: {form}")
            copied, target = copy_seconds(source, root / "copy"), root / f"new-{FORMS[form]}"
            measured = _conversion(source, target, form, root / "outputs") | {"copy_seconds": copied}
            result[f"safetensors to {form}"] = measured
            (atomic.remove_folder if target.is_dir() else atomic.remove)(target)
    return result


def _conversion(source: Path, target: Path, form: str, outputs: Path) -> dict[str, float]:
    command = webui(outputs, "cpu", "convert_model", str(source), "--convert_model.save_model_as", form)
    forget(source)
    measured = measure_tool([*command, "--convert_model.output", str(target)])
    written = folder_bytes(target) if target.is_dir() else target.stat().st_size
    return measured | {"bytes": float(written)}


def copy_seconds(source: Path, target: Path) -> float:
    """Seconds of a copy of the file, until it is on the disk."""
    forget(source)
    begin = time.perf_counter()
    shutil.copyfile(source, target)
    atomic.sync_file(target)
    seconds = time.perf_counter() - begin
    atomic.remove(target)
    return seconds


def forget(path: Path) -> None:
    """Ask the system to drop what it keeps of these files in memory, where it can."""
    for file in [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]:
        if hasattr(os, "posix_fadvise"):
            atomic.sync_file(file)
            with open(file, "rb") as handle:
                os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def format_rows(result: dict[str, Any]) -> list[tuple[str, str]]:
    size = result["bytes"]
    rows = [("model converted", f"{result['family']} architecture, fp16, {size / 1e9:.2f} GB")]
    for name, each in result.items():
        if isinstance(each, dict):
            copied, peak = each["copy_seconds"], each["peak_bytes"]
            time_taken = f"{each['seconds']:.1f} s, {each['seconds'] / copied:.2f} times the {copied:.1f} s of a copy"
            rows.append((name, f"{time_taken}; peak memory {peak / 1e9:.2f} GB, {peak / size:.2f} times the file"))
    return rows
