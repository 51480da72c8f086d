"""Control images of a training: cached where latents are, the same as decoded ones, and prepared by the prepare job."""

from dataclasses import replace

import numpy as np
import pytest

from core.dataset.caches import partners as control_caches
from core.dataset.images.masks import load_control
from core.dataset.images.views import draw_view
from core.record.cancel import CancelToken
from core.record.commands import CommandReader
from core.record.context import JobContext
from core.record.journal import Journal
from core.record.run_folder import RunFolder
from core.settings.job import PrepareJob
from core.training.building.inputs import read_inputs
from core.training.building.latents import control_source
from core.training.memory.plan import facts_of, memory_plan
from core.training.start import prepare_caches

VIEWS = {"flips": {"flip_aug": True}, "colors": {"color_aug": True}, "crops": {"random_crop": True}}


@pytest.fixture
def placed_in(workspace):
    """placed_in(work) -> what `work` says of a context of its own."""

    def run(work):
        folder = RunFolder.create(workspace.runs, "own", {})
        with Journal(folder.path) as journal:
            reader = CommandReader(folder.path)
            return work(JobContext(workspace, folder, journal, reader, "cpu", CancelToken()))

    workspace.cache.unlink()  # of all tests
    return run


@pytest.mark.slow(
    only=(
        "disk-flips-True",
        "device-flips-False",
        "off-flips-False",
    )
)
@pytest.mark.parametrize(
    ("where", "views", "kept"),
    [
        ("auto", "flips", True),
        ("disk", "flips", True),
        ("memory", "flips", False),
        ("device", "flips", False),
        ("off", "flips", False),
        ("auto", "colors", True),
        ("auto", "crops", False),
    ],
)
def test_control_images_are_cached_where_latents_are(where, views, kept, placed_in, groups, make_job, workspace):
    """Those of images with random crops are not; changed colors are the image's alone."""
    job = make_job(**groups("controlnet", dataset=VIEWS[views], memory={"cache_latents": where}))

    def compared(context):
        inputs = read_inputs(job, context)
        source, items = control_source(inputs), inputs.plan.placed
        drawn = [(placed, draw_view(placed, 1, epoch, 0)) for placed in items for epoch in range(3)]
        assert views != "flips" or {view.flip for _, view in drawn} == {True, False}
        assert all(np.array_equal(source(*each), load_control(*each)) for each in drawn)
        return source is load_control, len(items)

    decodes, count = placed_in(compared)
    assert decodes == (where == "off" or views == "crops")
    assert len(list((workspace.cache / "controls").rglob("*.safetensors"))) == kept * count


@pytest.mark.slow
def test_prepared_control_images_train_without_their_files_being_decoded(
    placed_in, groups, train, make_job, workspace, monkeypatch
):
    asked = groups("lllite", dataset={"flip_aug": True})
    decoded = train(**groups("lllite", dataset={"flip_aug": True}, memory={"cache_latents": "off"}))
    assert decoded.start() == "done" and not (workspace.cache / "controls").exists()
    job = make_job(**asked)
    prepare = PrepareJob(**{name: getattr(job, name) for name in type(job).model_fields})
    placed_in(lambda context: prepare_caches(prepare, context))
    assert list((workspace.cache / "controls").rglob("*.safetensors"))
    for name in ("control_pixels", "load_control"):
        monkeypatch.setattr(control_caches, name, lambda *_: pytest.fail("it was prepared"))
    cached = train(**asked)
    assert cached.start() == "done" and cached.losses() == decoded.losses()


@pytest.mark.slow
def test_the_forecast_counts_control_images_held_in_ram_on_a_cpu(groups, make_job, workspace):
    def counted(where, images, device="cpu"):
        job = make_job(**groups("lllite", memory={"cache_latents": where, "mixed_precision": "bf16"}))
        facts = replace(facts_of(job, workspace, device), images=images, device=device)
        plain = job.with_settings(method={"kind": "lora"})
        return memory_plan(job, facts).cache - memory_plan(plain, facts).cache

    own = 64 * 64 * 3 // 6
    assert abs(counted("auto", 100) - 100 * own) < 100
    assert counted("auto", 1_000_000) == control_caches.MEMORY_BYTES
    assert counted("memory", 2_000_000) == control_caches.UNWRITTEN_BYTES
    assert counted("off", 100) == counted("auto", 100, "cuda") == 0
