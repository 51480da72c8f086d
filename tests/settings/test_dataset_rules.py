"""What is called without effect among the settings of images and captions truly has none, and the rest is not called so."""

from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.dataset.captions.files import Caption
from core.settings.check import build
from core.settings.dataset.captions import CaptionSettings
from core.settings.dataset.concepts import concepts_of
from core.settings.job import TrainJob
from core.settings.rules import ineffective, training_problems
from tests.dataset.training_captions import training_caption

OTHER = {"keep_tokens": 2, "caption_separator": ";", "token_warmup_min": 5, "sentence_share": 0.9}
CHOICES = {
    "shuffle_caption": [True],
    "caption_tag_dropout_rate": [0.5],
    "token_warmup_step": [10.0],
    "trigger_word": ["sks"],
    "keep_tokens_separator": ["|||"],
    "secondary_separator": [";;;"],
    "sidecars": ["drawn"],
    "caption_lines": ["all", "random"],
    "enable_wildcard": [True],
}
TEXTS = ["a, b; c, d", "a ||| b; c, d ||| e", "a;;;b, c", "one, two\nthree; four"]


@given(
    chosen=st.fixed_dictionaries({}, optional={name: st.sampled_from(values) for name, values in CHOICES.items()}),
    text=st.sampled_from(TEXTS),
    name=st.sampled_from(sorted(OTHER)),
    seed=st.integers(0, 50),
)
def test_a_caption_setting_called_without_effect_changes_no_caption(chosen, text, name, seed):
    job = build(TrainJob, {"captions": chosen, "dataset": {"folder": "x"}})
    if f"captions.{name}" not in ineffective(job):
        return
    caption = Caption(text, "file", Path("a.txt"), sentence="A sentence, of parts.", tags=text)
    changed = CaptionSettings(**{**chosen, name: OTHER[name]})
    step = Random(seed).randrange(20)
    before, after = (
        training_caption(caption, settings, seed, 0, ("a", "b"), 0, step=step, total_steps=20)
        for settings in (job.captions, changed)
    )
    assert before == after


@pytest.mark.parametrize("own", [{"role": "validation"}, {"validation_images": ["a.png"]}, {"validation_split": 0.1}])
def test_the_seed_of_validation_counts_wherever_images_are_held_out(own):
    off = {"validation": {"best_checkpoint": "off"}}
    job = build(TrainJob, off | {"dataset": {"sources": [{"folder": "x"}]}})
    assert "validation.validation_seed" in ineffective(job)
    job = build(TrainJob, off | {"dataset": {"sources": [{"folder": "x"} | own]}})
    assert "validation.validation_seed" not in ineffective(job)


@pytest.mark.parametrize("weighted", [True, False])
def test_the_mean_of_weighted_captions_counts_where_captions_have_weights(weighted):
    job = build(TrainJob, {"captions": {"weighted_captions": weighted}})
    assert ("captions.weighted_mean" in ineffective(job)) is not weighted


@pytest.mark.parametrize(("kind", "counts"), [("lora", True), ("dreambooth", False), ("embedding", False)])
def test_a_networks_strength_counts_where_there_is_a_network(kind, counts):
    job = build(TrainJob, {"method": {"kind": kind}, "dataset": {"folder": "x", "network_multiplier": 0}})
    assert ("dataset.network_multiplier" in ineffective(job)) is not counts
    found = [each.where for each in training_problems(job) if each.code == "dataset.network-multiplier-zero"]
    assert found == ["dataset.network_multiplier"] * counts


@pytest.mark.parametrize(("kind", "groups"), [("lora", 2), ("dreambooth", 1), ("fine_tune", 1), ("embedding", 1)])
def test_folders_of_two_network_strengths_share_batches_where_there_is_no_network(kind, groups):
    folders = [{"folder": "a"}, {"folder": "b", "network_multiplier": 0.5}]
    job = build(TrainJob, {"method": {"kind": kind}, "dataset": {"sources": folders}})
    assert len({each.batch_group for each in concepts_of(job)}) == groups
