"""What the seams are worth, measured: what each toy registers, the files of the product that know it, and those that one step
runs through.

python -m tests.seams.count
"""

from __future__ import annotations

import sys
import tempfile
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).parents[2]
TOYS = sorted(path.stem for path in (Path(__file__).parent / "toys").glob("*.py") if not path.stem.endswith("_family"))


def registered() -> dict[str, set[str]]:
    """{kind of thing: names of all that are registered}."""
    from core import tasks
    from core.diffusion import objectives, samplers
    from core.families.locate import FAMILIES
    from core.generation.plan.hooks import HOOKS
    from core.generation.sample.guidances import GUIDANCES
    from core.networks import kinds
    from core.settings import methods

    found = {"task": tasks.tasks(), "network kind": kinds.kinds(), "method": methods.methods(), "family": FAMILIES}
    found |= {"objective": objectives.OBJECTIVES, "sampler": samplers.SAMPLERS}
    found |= {"guidance": GUIDANCES, "hook": HOOKS}
    return {what: set(names) for what, names in found.items()}


def measured(toy: str) -> tuple[list[str], list[str]]:
    """(what importing the toy registers, the files of the product that name its module)."""
    before = registered()
    import_module(f"tests.seams.toys.{toy}")
    new = [(what, name) for what, names in registered().items() for name in sorted(names - before[what])]
    files = (path for folder in ("core", "tabs") for path in (ROOT / folder).rglob("*.py"))
    knowing = [str(path.relative_to(ROOT)) for path in files if f"toys.{toy}" in path.read_text("utf-8")]
    return [f"{what} {name}" for what, name in new], knowing


def files_of_a_step() -> list[str]:
    """The files of the product with functions that run during the third step of a default LoRA training on the starter."""
    from core.record.cancel import CancelToken
    from core.record.commands import NoCommands
    from core.record.context import JobContext
    from core.record.journal import Journal
    from core.record.run_folder import RunFolder
    from core.record.workspace import Workspace
    from core.settings.presets.files import apply, dump, read
    from core.training.loop import train as loop
    from core.training.start import run_training

    seen: set[str] = set()
    update, done = loop.optimizer_update, 0

    def watched(run: object) -> None:
        nonlocal done
        done += 1
        if done != 3:
            return update(run)
        sys.setprofile(lambda frame, event, argument: seen.add(frame.f_code.co_filename))
        try:
            update(run)
        finally:
            sys.setprofile(None)
        return None

    loop.optimizer_update = watched
    with tempfile.TemporaryDirectory() as place:
        job = apply(read(ROOT / "presets" / "starter_lora.json"))
        schedule = job.schedule.model_copy(update={"max_train_steps": 3, "max_train_epochs": None, "seed": 1})
        samples = job.samples.model_copy(update={"sample_prompts": []})
        job = job.model_copy(update={"schedule": schedule, "samples": samples})
        workspace = Workspace(Path(place) / "outputs", ROOT / "models", ROOT / "presets")
        workspace.private.mkdir(parents=True)
        folder = RunFolder.create(workspace.runs, "count", dump(job))
        with Journal(folder.path) as journal:
            run_training(job, JobContext(workspace, folder, journal, NoCommands(), "cpu", CancelToken()))
    found = (Path(name) for name in seen)
    return sorted(str(path.relative_to(ROOT)) for path in found if path.is_relative_to(ROOT / "core"))


def main() -> None:
    for toy in TOYS:
        new, knowing = measured(toy)
        print(
            f"{toy}: registers {', '.join(new) or 'nothing'}; files of the product that know it: {', '.join(knowing) or 0}"
        )
    files = files_of_a_step()
    print(f"\nfiles that one default LoRA step runs through: {len(files)}")
    for name in files:
        print(f"  {name}")


if __name__ == "__main__":
    main()
