"""A job that has ended holds no model: the next one has the memory, also after a failure."""

import gc

import pytest

from core.engine.execute import execute
from core.record.run_folder import RunFolder
from core.settings.presets.files import dump


def models_in_memory() -> int:
    gc.collect()
    return sum(
        type(thing).__name__ in ("UNet2DConditionModel", "CLIPTextModel", "AutoencoderKL") for thing in gc.get_objects()
    )


@pytest.mark.slow
@pytest.mark.parametrize("fails", [False, True], ids=["done", "failed"])
def test_nothing_of_a_training_stays(workspace, make_job, monkeypatch, fails):
    import core.training.loop.passes as passes

    job = make_job(
        schedule={"max_train_steps": 2, "seed": 1},
        network={"rank": 2, "train_text_encoder": True},
        samples={"sample_prompts": ["a fox"], "sample_steps": 1},
    )
    if fails:
        monkeypatch.setattr(
            passes, "training_loss", lambda *given, **named: (_ for _ in ()).throw(RuntimeError("broken"))
        )
    before = models_in_memory()
    state, _ = execute("train", job, RunFolder.create(workspace.runs, "m", dump(job)), workspace, "cpu")
    assert state == ("failed" if fails else "done")
    assert models_in_memory() == before
