"""What is said about captions and how they are read before anything loads."""

import pytest

from core.settings.check import build
from core.settings.job import TrainJob
from core.settings.rules import training_problems


@pytest.mark.parametrize(
    ("family", "clip_skip", "told"),
    [("sd2", 2, True), ("sd2", 1, False), ("sd2", None, False), ("sd1", 2, False), ("auto", 2, False)],
)
def test_a_clip_skip_beside_that_of_sd_2_is_advised_against(family, clip_skip, told):
    """sd-scripts warns of it: its 23 layers are the original's 24 without the last."""
    job = build(TrainJob, {"model": {"family": family, "clip_skip": clip_skip}})
    found = [problem for problem in training_problems(job) if problem.where == "model.clip_skip"]
    assert [(problem.code, problem.level) for problem in found] == [("model.clip-skip-sd2", "advice")] * told
