"""The one loop over requests: batches, what is there already, fewer images where memory ends, and progress."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from core.generation.making import BatchResult, Progress, each_image
from core.generation.plan.requests import Request
from core.record.cancel import Cancelled
from core.settings.check import build
from core.settings.job import GenerateJob
from tests.reports import Heard

JOB = build(GenerateJob, {"generate": {"steps": 3, "width": 64, "height": 64}})


def requests(count):
    return [Request(JOB.with_settings(generate={"seed": seed})) for seed in range(count)]


class Maker:
    """Makes numbers in place of images. fits: as many as fit into memory"""

    def __init__(self, together=4, fits=4):
        self.together, self.fits, self.tried, self.grouped = together, fits, [], 0

    def batches(self, requests, max_batch_size=None):
        self.grouped += 1
        size = max_batch_size or self.together
        yield from (list(requests[start : start + size]) for start in range(0, len(requests), size))

    def make_if_fits(self, batch, on_step):
        self.tried.append([request.seed for request in batch])
        if len(batch) > self.fits:
            return None
        on_step(3)
        return BatchResult(images=[[f"small {each.seed}" for each in batch], [each.seed for each in batch]])


def made(maker, count, existing=(), **more):
    heard = Heard()
    progress = Progress(heard, "image", count - len(existing), 3 * (count - len(existing)))
    found = list(each_image(requests(count), maker, progress, existing, **more))
    assert all(images == [f"small {number}", number] for number, images in found), "the image after each stage"
    return [number for number, _ in found], heard


def test_images_come_in_order_in_batches_and_progress_counts_them():
    maker = Maker(together=2)
    numbers, heard = made(maker, 5)
    assert numbers == [0, 1, 2, 3, 4] and maker.tried == [[0, 1], [2, 3], [4]]
    assert heard.stages[:2] == [("generating image 1 of 5", 0, 15), ("generating images 1 to 2 of 5", 6, 15)]
    assert heard.stages[-2:] == [("generating image 5 of 5", 15, 15)] * 2
    assert heard.steps[1] == (3, 3), "the step of the images that are made, and of how many"
    assert maker.grouped == 1, "which are alike is not asked again for each batch"


def test_what_is_there_is_made_only_along_with_others_of_its_batch():
    maker = Maker(together=2)
    numbers, heard = made(maker, 6, existing=[0, 2, 3])
    assert numbers == [1, 4, 5] and maker.tried == [[0, 1], [4, 5]]
    assert heard.stages[-1] == ("generating image 3 of 3", 9, 9)


@pytest.mark.parametrize(
    ("fewer", "tried"),
    [
        (None, [[0, 1, 2, 3], [0, 1], [0], [1], [2], [3], [4]]),
        (lambda batch_size: 1, [[0, 1, 2, 3], [0], [1], [2], [3], [4]]),
    ],
)
def test_what_does_not_fit_is_made_with_fewer_at_once_from_there_on(fewer, tried):
    maker = Maker(fits=1)
    numbers, _ = made(maker, 5, **({"smaller_batch": fewer} if fewer else {}))
    assert numbers == [0, 1, 2, 3, 4] and maker.tried == tried
    maker = Maker(together=4, fits=4)
    assert made(maker, 5, max_batch_size=3)[0] == [0, 1, 2, 3, 4] and maker.tried == [[0, 1, 2], [3, 4]]


def test_a_cancelled_job_makes_no_further_batch_and_the_batch_that_failed_is_known():
    heard, maker = Heard(), Maker(together=1)
    progress = Progress(heard, "image", 3, 9)
    with pytest.raises(Cancelled):
        for number, _ in each_image(requests(3), maker, progress):
            heard.generated(SimpleNamespace(name=number), number)
            if number == 1:
                heard.cancel.cancel()
    assert maker.tried == [[0], [1]] and list(progress.batch) == [1]
    assert (progress.images_done, progress.steps_done) == (2, 6)
