"""What a comparison of checkpoints consists of: proposed prompts, weights of averages, what is said of the losses."""

from __future__ import annotations

import math

import pytest

from core.engine.average import average_weights, power_of
from core.engine.proposed_prompts import ProposedPrompt, proposed_prompts, trigger_of
from core.engine.verdict import _prompts, candidates, measured_sentence, no_gain_text, trigger_word
from core.record.events import sample_titles
from core.record.run_folder import RunFolder
from core.record.workspace import PROJECT, Workspace
from core.settings.check import build
from core.settings.job import TrainJob

CAPTIONS = [
    "a fox in the snow, zkw style",
    "a bee <lora:x:1>, zkw style",
    "zkw style, an owl --d 3",
    "an ant, zkw style",
]
KINDS = ["sample prompt", "held-out caption", "trigger word alone", "new context", "without the trigger word"]


def test_prompts_are_proposed_one_of_each_kind_first_and_contexts_are_new_to_the_dataset():
    prompts = proposed_prompts(["a fox", "an owl"], [CAPTIONS[1], CAPTIONS[2]], CAPTIONS, "zkw")
    assert [prompt.shows for prompt in prompts[:5]] == KINDS
    assert prompts[0].text == "a fox" and prompts[2].text == "zkw"
    texts = [prompt.text for prompt in prompts]
    assert len(set(texts)) == len(texts) == 2 + 2 + 1 + 3 + 2
    contexts = [prompt.text for prompt in prompts if prompt.shows == "new context"]
    assert all(text.startswith("zkw, ") for text in contexts) and not any("snow" in text for text in contexts)
    assert not any("zkw" in prompt.text for prompt in prompts if prompt.shows == KINDS[4])
    assert not any("<" in text or "--" in text for text in texts), "a caption is no option and no LoRA tag"
    without = proposed_prompts([], [], ["a boat on a lake"], "")
    assert {prompt.shows for prompt in without} == {KINDS[4]} and not any("boat" in prompt.text for prompt in without)
    assert proposed_prompts(["same"], ["same"], [], "same")[0] == ProposedPrompt("same", KINDS[0])
    assert len(proposed_prompts([], ["word " * 1000], [], "")[0].text) <= 300


def test_the_trigger_is_what_is_set_else_the_tag_that_most_captions_share():
    assert trigger_of([None, " ", "zkw"], CAPTIONS) == "zkw"
    assert trigger_of([None], CAPTIONS) == "zkw style"
    most = ["foxes in snow, fox", "late, fox, red", "fox, late", "late, fox", "late, fox"]
    assert trigger_of([None], most) == "fox", "the first caption has it; most have another one too"
    assert trigger_of([None], CAPTIONS[:1]) == trigger_of([None], []) == trigger_of([], ["a", "b", "c"]) == ""


def test_brackets_of_a_trigger_word_are_text_in_the_prompts_of_a_comparison(tmp_path):
    space = Workspace(tmp_path / "outputs", tmp_path / "models", PROJECT / "presets")
    job = build(TrainJob, {"captions": {"trigger_word": "fox_(animal)"}})
    texts = [each.text for _, each in _prompts(job, RunFolder(tmp_path), space)]
    assert r"fox_\(animal\)" in texts and "fox_(animal)" not in texts


@pytest.mark.parametrize(
    ("kind", "folder", "trigger"),
    [
        ("embedding", {}, "zkw"),
        ("lora", {}, ""),
        ("lora", {"identifier": "ndc", "class_word": "dog"}, "ndc dog"),
        ("dreambooth", {"class_tokens": "ndc dog"}, "ndc dog"),
        ("dreambooth", {"class_tokens": "a dog", "role": "regularization"}, ""),
        ("dreambooth", {"class_tokens": "a dog", "enabled": False}, ""),
    ],
)
def test_the_token_of_textual_inversion_is_no_trigger_word_of_another_method(kind, folder, trigger):
    """It stays in the form when the method is changed."""
    embedding, dataset = {"token_string": "zkw", "init_word": "dog"}, {"sources": [{"folder": "a", **folder}]}
    groups = {"method": {"kind": kind}, "embedding": embedding, "dataset": dataset}
    assert trigger_word(build(TrainJob, groups), []) == trigger
    groups |= {"captions": {"trigger_word": "ndc"}}
    assert trigger_word(build(TrainJob, groups), []) == "ndc"


def test_power_function_averages_have_the_published_exponents_and_weigh_by_distance():
    for sigma, gamma in ((0.05, 16.97), (0.1, 6.94), (0.2, 1.826), (0.25, 0.720), (0.28, 0.169)):  # arXiv:2312.02696
        assert power_of(sigma) == pytest.approx(gamma, rel=5e-3)
    assert average_weights([10, 20, 30, 40], False) == [0.25] * 4
    gamma, steps = power_of(0.2), [10, 20, 30, 40]
    even = average_weights(steps, True)
    assert even == pytest.approx([step**gamma / sum(each**gamma for each in steps) for step in steps])
    apart = average_weights([10, 20, 40], True)
    assert apart[2] / apart[0] == pytest.approx(4**gamma * 2) and sum(apart) == pytest.approx(1)
    assert average_weights([7], True) == [1.0]


def best(**facts):
    from core.record.best import Best

    known = {"file": "checkpoints/a", "step": 40, "loss": 0.1, "measured_on": "held_out", "images": 6, "others": 3}
    return Best(**known | facts).to_dict()


def test_the_sentence_names_the_best_step_or_those_that_cannot_be_told_apart():
    assert "too short" in measured_sentence(None, too_short=True) and "too short" not in measured_sentence(None)
    assert "40" in measured_sentence(best()) and "6 held-out images" in measured_sentence(best())
    near = measured_sentence(best(as_good=(20, 60)))
    assert "20, 40 and 60" in near and "one" in near
    assert measured_sentence(best(as_good=(20,), others=2)).count("20 and 40") == 1
    assert "20" not in measured_sentence(best(as_good=(20,), others=1))  # none is clearly worse
    assert "2 more" in measured_sentence(best(as_good=(10, 20, 30, 50, 60), others=6))
    assert "images" in measured_sentence(None)
    points = [{"step": 20, "loss": 0.2}, {"step": 40, "loss": math.nan}]
    diverged = measured_sentence(None, measured=points)
    assert "step 40" in diverged and "step 20" not in diverged and "images" not in diverged
    assert measured_sentence(best(), measured=points) == f"{measured_sentence(best())} {diverged}"


@pytest.mark.parametrize(
    ("groups", "at_base"),
    [
        ({}, True),
        ({"network": {"network_weights": "a.safetensors"}}, False),
        ({"network": {"base_weights": ["a.safetensors"]}}, False),
        ({"resume": {"resume": "run"}}, False),
        ({"method": {"kind": "fine_tune"}, "network": {"network_weights": "a.safetensors"}}, True),
        ({"method": {"kind": "controlnet"}}, True),
        ({"method": {"kind": "controlnet"}, "controlnet": {"controlnet_model_name_or_path": "a"}}, False),
        ({"method": {"kind": "lllite"}, "lllite": {"weights": "a"}}, False),
        ({"method": {"kind": "embedding"}, "embedding": {"token_string": "zkw"}}, False),
    ],
)
def test_step_0_is_the_base_model_only_for_what_starts_as_it(groups, at_base):
    job = build(TrainJob, groups)
    assert job.starts_at_base is at_base
    assert sample_titles([0, 20], job.starts_at_base)[0] == ("base model" if at_base else "step 0")
    facts = {"files": [], "measured": [{"step": 0, "loss": 0.2}]}
    assert candidates([""], facts, job.starts_at_base)[0]["loss"] == (0.2 if at_base else None)


def test_an_answer_says_that_no_checkpoint_is_better_than_what_the_training_started_from():
    points = [
        {"step": step, "loss": loss, "images": 4, "measured_on": "held_out"}
        for step, loss in ((0, 0.148), (60, 0.1487))
    ]
    facts = {"best": points[1], "measured": points, "files": [{"name": "a", "step": 60}]}
    assert no_gain_text(facts, False).endswith("no better than what the training started from.")
    assert "the base model" in no_gain_text(facts, True)
    points[0]["loss"] = 0.15
    assert no_gain_text(facts, False) == "" == no_gain_text(facts | {"measured": points[1:]}, False)
