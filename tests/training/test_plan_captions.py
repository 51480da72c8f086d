"""The captions of a run are known ahead: what an epoch is said to need is what its steps use."""

from dataclasses import replace
from pathlib import Path

import pytest

from core.dataset.buckets.aspect_ratio import plan_buckets
from core.dataset.buckets.batches import Placed
from core.dataset.buckets.plan import Plan
from core.dataset.captions.files import Caption
from core.dataset.sources.image_info import ImageInfo
from core.settings.dataset.concepts import PLAIN
from core.settings.dataset.dataset import DatasetSettings
from core.settings.job import TrainJob

BUCKETS = plan_buckets(DatasetSettings(resolution=512))
EVERYTHING = {
    "shuffle_caption": True,
    "caption_dropout_rate": 0.2,
    "caption_tag_dropout_rate": 0.2,
    "token_warmup_step": 0.5,
    "enable_wildcard": True,
    "sidecars": "drawn",
    "trigger_word": "sks",
}


def placed(number: int, **captions) -> Placed:
    image = ImageInfo("f", f"{number}.png", Path(f"{number}.png"), 512, 512, 1, 1, 2, "fox")
    tags = f"{{a|b}}, c, d, e{number}\nf, g"
    caption = Caption(tags, "file", Path(f"{number}.txt"), sentence="A fox.", tags=tags)
    concept = replace(PLAIN, captions=PLAIN.captions.model_copy(update=captions))
    return Placed(image, BUCKETS.assign(512, 512), caption, concept)


def plan_of(images, total):
    job = TrainJob.model_validate({"dataset": {"folder": "f"}, "schedule": {"gradient_accumulation_steps": 2}})
    return Plan(images, job, 3, total)


@pytest.mark.parametrize("captions", [EVERYTHING, {"token_warmup_step": 8}, {"caption_dropout_every_n_epochs": 2}, {}])
def test_every_step_uses_captions_that_its_epoch_needs_and_no_others_are_needed(captions):
    images = [placed(number, **captions) for number in range(5)] + [placed(9)]
    plan = plan_of(images, 20)
    used: dict[int, set[str]] = {}
    for step in range(20):
        epoch, batches = plan.step_batches(step)
        drawn = {plan.caption(each, epoch, repeat, step) for batch in batches for each, repeat in batch.items}
        used.setdefault(epoch, set()).update(drawn)
    assert len(used) > 2
    for epoch, drawn in used.items():
        whole = plan.epochs.first_step(epoch + 1) <= 20
        assert drawn == set(plan.captions(epoch)) if whole else drawn <= set(plan.captions(epoch))


def test_a_warm_up_shows_more_tags_from_step_to_step():
    plan = plan_of([placed(0, token_warmup_step=0.5)], 8)
    each = plan.placed[0]
    assert [len(plan.caption(each, 0, 0, step).split(", ")) for step in (0, 1, 2, 3, 4)] == [1, 1, 2, 3, 4]
