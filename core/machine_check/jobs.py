"""Items that run whole jobs: generate a sample, train and load a LoRA, resume a run."""

import time
from pathlib import Path
from typing import Any

from core.machine_check.item import FAILED, OK, CheckContext, Finding
from core.machine_check.trainings import TOLERANCE, check_workspace, job_context, recorded, starter
from core.record.lazy_torch import torch
from core.record.workspace import STARTER
from core.settings.check import build
from core.settings.job import GenerateJob, TrainJob

TONES = 8  # the sample is compared as this number of rows and columns of mean gray values
# In gray levels of 255. Measured on a CPU: 0.4 between bf16 and fp32. Another prompt or seed is off by more than 40.
SAMPLE_OFF = 12.0
PROVED_STEPS = 4


def generate(context: CheckContext, **changes: Any) -> Path:
    """Generate one image with the starter model and return its path. `changes`: further settings of the group `generate`."""
    from core.generation.model.store import make_store
    from core.generation.run import run_generate

    values = {
        "model": {"base_model": str(STARTER)},
        "generate": {"prompt": "a fox", "steps": 8, "seed": 3, "width": 128, "height": 128, **changes},
    }
    job = build(GenerateJob, values)
    store = make_store()
    try:
        return run_generate(job, check_workspace(context), store=store, device=context.device)[0]
    finally:
        store.release()


def tones(path: Path) -> list[float]:
    """Return the mean gray values, 0 to 255, of an image divided into TONES x TONES fields, row by row."""
    from PIL import Image

    with Image.open(path) as image:
        small = image.convert("L").resize((TONES, TONES), Image.Resampling.BOX)
    return [float(gray) for gray in small.tobytes()]


def sample_tones(context: CheckContext) -> tuple[float, list[float]]:
    """Generate the sample image and return (seconds it took, its `tones`)."""
    begun = time.perf_counter()
    path = generate(context)
    return time.perf_counter() - begun, tones(path)


def distance(first: list[float], second: list[float]) -> float:
    """Return the largest absolute difference of two images' `tones`."""
    return max(abs(a - b) for a, b in zip(first, second, strict=True))


def sample(context: CheckContext) -> Finding:
    """Compare a generated image with the recorded one."""
    seconds, image_tones = sample_tones(context)
    error = distance(image_tones, recorded()["sample"])
    summary = f"a 128 px image in {seconds:.1f} s including loading, within {error:.1f} of 255 of the recorded one"
    finding = Finding(OK, summary, facts={"seconds": seconds, "difference": error, "tones": image_tones})
    if max(image_tones) == min(image_tones):
        return finding.failed("the image has a single color: NaN values become black", "choose fp32, and report this")
    if not error <= SAMPLE_OFF:
        return finding.failed(f"the image differs from the recorded one by up to {error:.0f} of 255", "report this")
    return finding


def save_and_load(context: CheckContext) -> Finding:
    """Train two steps as a job does, and check that the saved LoRA is finite and changes an image."""
    from core.engine.execute import execute
    from core.networks.adapter_file import load_lora

    job = build(TrainJob, starter({"schedule": {"max_train_steps": 2}, "optimizer": {"learning_rate": 0.05}}))
    training = job_context(context, job)
    begun = time.perf_counter()
    state, explanation = execute("train", job, training.folder, training.workspace, context.device)
    seconds = time.perf_counter() - begun
    if state != "done":
        details = training.folder.logs / "error.txt"
        trace = details.read_text("utf-8") if details.is_file() else ""
        what = explanation.what if explanation else f"the training ended with the state '{state}'"
        return Finding(FAILED, "", what, (explanation and explanation.fix) or "report this", traceback=trace)
    file = next(training.folder.checkpoints.glob("*.safetensors"))
    tensors = load_lora(file).tensors
    facts: dict[str, Any] = {"seconds": seconds, "tensors": len(tensors), "bytes": file.stat().st_size}
    if not all(bool(torch.isfinite(each).all()) for each in tensors.values()):
        reason = "the saved LoRA contains NaN or infinite values"
        return Finding(FAILED, "", reason, "choose fp32, and report this", facts)
    facts["change"] = distance(tones(generate(context, loras=[{"file": str(file)}])), tones(generate(context)))
    if facts["change"] < 1:
        return Finding(FAILED, "", "the saved LoRA has no effect on images", "report this", facts)
    return Finding(OK, f"a LoRA of {len(tensors)} tensors trained, saved and read back in {seconds:.1f} s", facts=facts)


def resume(context: CheckContext) -> Finding:
    """Compare a run of four steps with one that is stopped after two and resumed."""
    from core.training.prove import prove

    job = build(TrainJob, starter())
    begun = time.perf_counter()
    proof = prove(job, check_workspace(context), context.device, PROVED_STEPS)
    facts: dict[str, Any] = {
        "seconds": time.perf_counter() - begun,
        "equal": proof.equal,
        "losses_apart": proof.losses_apart,
    }
    facts["different"] = list(proof.different)[:20]
    if proof.equal:
        return Finding(OK, "a resumed run equals an uninterrupted one bit for bit", facts=facts)
    if not context.device.startswith("cpu") and proof.losses_apart <= TOLERANCE["fp32"]:
        summary = f"the losses of a resumed run match an uninterrupted one within {proof.losses_apart:.0e}"
        reason = "some GPU kernels sum in varying order, so two runs differ in the last digits"
        return Finding(OK, summary, reason, facts=facts)
    names = ", ".join(proof.different[:5]) or "its losses"
    return Finding(FAILED, "", f"a resumed run differs from an uninterrupted one: {names}", "report this", facts)
