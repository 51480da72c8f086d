"""What is said about captions and how they are read before anything loads."""

import pytest

from core import tasks
from core.record.image_formats import IMAGE_EXTENSIONS
from core.settings.check import build
from core.settings.dataset.captions import NOT_CAPTIONS
from core.settings.job import TrainJob
from core.settings.rules import training_problems
from tests.refusals import refused


@pytest.mark.parametrize(
    ("family", "clip_skip", "told"),
    [("sd2", 2, True), ("sd2", 1, False), ("sd2", None, False), ("sd1", 2, False), ("auto", 2, False)],
)
def test_a_clip_skip_beside_that_of_sd_2_is_advised_against(family, clip_skip, told):
    """sd-scripts warns of it: its 23 layers are the original's 24 without the last."""
    job = build(TrainJob, {"model": {"family": family, "clip_skip": clip_skip}})
    found = [problem for problem in training_problems(job) if problem.where == "model.clip_skip"]
    assert [(problem.code, problem.level) for problem in found] == [("model.clip-skip-sd2", "advice")] * told


@pytest.mark.parametrize("extension", [*sorted(IMAGE_EXTENSIONS), ".PNG", ".a.png", ".npz", ".json", ".safetensors"])
def test_no_caption_is_written_over_an_image_or_a_cache(extension):
    captions = {"caption_extension": extension}
    source = {"folder": "set", "caption_extension": extension}
    for name in ("train", "caption_names", "edit_captions", "tag"):
        for given in ({"captions": captions}, {"dataset": {"sources": [source]}}):
            with refused("settings.bad-value", extension):
                build(tasks.named(name).job, given)


def test_a_caption_may_have_any_extension_that_no_other_file_has():
    assert IMAGE_EXTENSIONS <= NOT_CAPTIONS
    for extension in ("auto", ".txt", ".caption", ".TXT", ".tags.txt", ".wd14_v3"):
        assert build(TrainJob, {"captions": {"caption_extension": extension}}).captions.caption_extension == extension
