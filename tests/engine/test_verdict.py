"""What a comparison of checkpoints consists of: proposed prompts, weights of averages, what is said of the losses."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from core.engine.average import average_weights, power_of, save_average
from core.engine.proposed_prompts import ProposedPrompt, proposed_prompts, trigger_of
from core.engine.verdict import label_of, measured_sentence
from core.engine.view import RunView
from core.record.cancel import CancelToken
from core.record.run_folder import RunFolder
from core.record.workspace import PROJECT, Workspace
from tests.refusals import refused
from tests.tabs.made_runs import make_run

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
    assert trigger_of([None], CAPTIONS[:1]) == trigger_of([None], []) == trigger_of([], ["a", "b", "c"]) == ""


def test_power_function_averages_have_the_published_exponents_and_weigh_by_distance():
    for sigma, gamma in ((0.05, 16.97), (0.1, 6.94), (0.2, 1.826), (0.25, 0.720), (0.28, 0.169)):  # arXiv:2312.02696
        assert power_of(sigma) == pytest.approx(gamma, rel=2e-3)
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
    assert "40" in measured_sentence(best()) and "6 held-out images" in measured_sentence(best())
    near = measured_sentence(best(as_good=(20, 60)))
    assert "20, 40 and 60" in near and "one" in near
    assert measured_sentence(best(as_good=(20,), others=1)).count("20 and 40") == 1
    assert "2 more" in measured_sentence(best(as_good=(10, 20, 30, 50, 60), others=5))
    assert "images" in measured_sentence(None)


LAYER = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"


def lora(path, number):
    random = torch.Generator().manual_seed(number)
    tensors = {
        f"{LAYER}.lora_down.weight": torch.randn(4, 64, generator=random),
        f"{LAYER}.lora_up.weight": torch.randn(32, 4, generator=random),
        f"{LAYER}.alpha": torch.tensor(2.0),
    }
    save_file(tensors, path, {"ss_base_model_version": "sd_v1", "ss_network_module": "networks.lora"})
    return tensors


def test_an_average_has_the_mean_of_the_factors_and_is_a_checkpoint_of_the_run(tmp_path):
    workspace = Workspace(outputs=tmp_path / "outputs", models=PROJECT / "models")
    run = RunFolder(make_run(workspace.runs, "20260102-030405_fox", steps=40, saved=(20, 40)))
    names = [f"fox-step{step:08d}.safetensors" for step in (20, 40)]
    one, other = (lora(run.checkpoints / name, number) for number, name in enumerate(names))

    def facts():
        return RunView.read(run).snapshot(False)

    path = save_average(run, facts(), names, False, workspace, CancelToken())
    for name, value in load_file(path).items():
        assert torch.allclose(value, (one[name] + other[name]) / 2, atol=1e-6), name
    (added,) = [file for file in facts()["files"] if file["name"] not in names]
    assert (added["path"], added["step"]) == (str(path), 40)
    assert label_of(path.name, 40) == "average 20 to 40"
    power = save_average(run, facts(), names, True, workspace, CancelToken())
    weights = average_weights([20, 40], True)
    for name, value in load_file(power).items():
        assert torch.allclose(value, weights[0] * one[name] + weights[1] * other[name], atol=1e-6), name
    assert save_average(run, facts(), names, False, workspace, CancelToken()) not in (path, power)
    for too_few in ([], names[:1], [names[0], "gone.safetensors"]):
        with refused("average.too-few"):
            save_average(run, facts(), too_few, False, workspace, CancelToken())
