"""What is said about the network's settings before anything loads."""

import re

import pytest

from core.record.problems import ProblemsError
from core.settings.blocks import block_sizes
from core.settings.check import build
from core.settings.job import TrainJob
from core.settings.rules import ineffective, training_problems
from core.settings.rules.network import block_problems, problems

TWENTY_FIVE, TWENTY_THREE = ",".join(["4"] * 25), ",".join(["4"] * 23)


def job(family="auto", optimizer=None, **network):
    return build(TrainJob, {"model": {"family": family}, "network": network, "optimizer": optimizer or {}})


def found(family="auto", **network):
    return {problem.where: problem for problem in problems(job(family, **network))}


def fact(found, name):
    return found[f"network.{name}"].code, found[f"network.{name}"].level


def test_the_defaults_are_fine():
    assert not found() and not found("sdxl")


@pytest.mark.parametrize("name", ["network_dropout", "rank_dropout", "module_dropout"])
def test_a_dropout_of_1_leaves_nothing_to_train_and_much_is_advised_against(name):
    whole, much = found(**{name: 1.0})[f"network.{name}"], found(**{name: 0.6})[f"network.{name}"]
    assert (whole.level, whole.code) == ("error", "network.dropout-all") and " 1" in whole.what
    assert (much.level, much.code) == ("advice", "network.dropout-high") and "0.6" in much.what
    assert not found(**{name: 0.3})
    with pytest.raises(ProblemsError, match="0 to 1") as caught:
        job(**{name: 1.5})
    assert caught.value.codes == ["settings.bad-value"]


@pytest.mark.parametrize("name", ["block_dims", "block_alphas", "conv_block_dims", "conv_block_alphas"])
def test_a_list_of_the_wrong_length_says_how_many_are_wanted(name):
    other = {"conv_rank": 4} if name == "conv_block_alphas" else {}
    problem = found(**{name: "4,4,4"}, **other)[f"network.{name}"]
    assert (problem.level, problem.code) == ("error", "network.block-count")
    assert "3 numbers" in problem.what and "25 (SD 1.x and SD 2.x) or 23 (SDXL)" in problem.what
    assert not found(**other, **{name: TWENTY_FIVE}) and not found("sd1", **other, **{name: TWENTY_FIVE})
    sdxl = found("sdxl", **other, **{name: TWENTY_FIVE})[f"network.{name}"]
    assert sdxl.code == "network.block-count" and "25 numbers" in sdxl.what
    assert "23 (SDXL)" in sdxl.what and "SD 1.x" not in sdxl.what


def test_the_family_that_the_model_shows_is_heard_too():
    network = job(block_dims=TWENTY_FIVE).network
    assert not list(block_problems(network, "sd2"))
    found = [(problem.code, problem.level) for problem in block_problems(network, "sdxl")]
    assert found == [("network.block-count", "error")]


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("4,x" + ",4" * 23, "settings.not-numbers"),
        ("4.5" + ",4" * 24, "network.block-not-a-rank"),
        ("-1" + ",4" * 24, "network.block-negative"),
    ],
)
def test_what_can_be_no_rank_is_named(text, code):
    found = [(problem.code, problem.where, problem.level) for problem in problems(job(block_dims=text))]
    assert found == [(code, "network.block_dims", "error")]


def test_lists_of_numbers_are_taken_from_json_as_they_are():
    assert job(block_dims=[4] * 25).network.block_dims == TWENTY_FIVE
    assert job(up_lr_weight=0.5).network.up_lr_weight == "0.5"
    assert job(base_weights=["a"], base_weights_multiplier=[1, 0.5]).network.base_weights_multiplier == "1,0.5"


@pytest.mark.parametrize("text", ["sine", "cosine+0.25", "zeros+1", "0,0,1" + ",1" * 9, "0.5"])
def test_rates_by_block_may_be_a_list_one_number_or_a_preset(text):
    assert not found("sd1", down_lr_weight=text, up_lr_weight=text)


def test_rates_by_block_that_cannot_be_read_are_errors_and_lists_of_another_length_advice():
    unread, below = found(down_lr_weight="sinus"), found(mid_lr_weight="-1")
    assert fact(unread, "down_lr_weight") == ("settings.not-numbers", "error")
    assert "'sinus'" in unread["network.down_lr_weight"].what
    assert fact(below, "mid_lr_weight") == ("network.block-negative", "error")
    short = found("sd1", down_lr_weight="1,1")
    assert fact(short, "down_lr_weight") == ("network.block-count", "advice")
    assert re.findall(r"\d+", short["network.down_lr_weight"].what) == ["2", "12", "1"]  # missing ones count as 1
    long = found("sdxl", up_lr_weight="1" + ",1" * 11)
    assert fact(long, "up_lr_weight") == ("network.block-count", "advice")
    assert re.findall(r"\d+", long["network.up_lr_weight"].what) == ["12", "9"]
    assert "ignored" in long["network.up_lr_weight"].what


def test_alphas_without_what_they_belong_to_are_told():
    alone = found(conv_block_alphas=TWENTY_FIVE)
    assert fact(alone, "conv_block_alphas") == ("network.conv-alphas-without-ranks", "error")


def test_ranks_from_a_file_need_a_file_and_strengths_their_loras():
    assert fact(found(dim_from_weights=True), "dim_from_weights") == ("network.dim-without-weights", "error")
    name = "base_weights_multiplier"
    more = found(base_weights=["a"], base_weights_multiplier="1,2")
    assert fact(more, name) == ("network.merge-multiplier-count", "error")
    assert re.findall(r"\d+", more[f"network.{name}"].what) == ["2", "1"]
    assert fact(found(base_weights=["a"], base_weights_multiplier="x"), name) == ("settings.not-numbers", "error")
    assert not found(base_weights=["a", "b"], base_weights_multiplier="0.5")


def test_a_text_encoder_that_rests_is_advised_against():
    resting = job(train_text_encoder=True, optimizer={"text_encoder_lr": 0.0})
    found = [(problem.code, problem.where, problem.level) for problem in problems(resting)]
    assert found == [("network.text-encoder-rate-zero", "network.train_text_encoder", "advice")]


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("DAdaptAdan", [("learning-rate.ratio-only", "advice")]),
        ("Prodigy", [("learning-rate.one-for-all", "error")]),
        ("AdamW", []),
    ],
)
def test_rates_by_block_are_told_to_optimizers_that_find_one(name, told):
    where = "network.down_lr_weight, mid_lr_weight, up_lr_weight"
    found = problems(job(optimizer={"optimizer_type": name}, mid_lr_weight="0.5"))
    assert [(each.code, each.level) for each in found if each.where == where] == told


def test_settings_without_effect_are_named():
    now = ineffective(job())
    for name in (
        "conv_alpha",
        "block_lr_zero_threshold",
        "dim_from_weights",
        "base_weights_multiplier",
    ):
        assert f"network.{name}" in now, name
    by_file = ineffective(job(network_weights="a", dim_from_weights=True))
    assert {"network.rank", "network.alpha", "network.block_dims"} <= by_file.keys()
    by_block = ineffective(job(conv_rank=4, conv_block_dims=TWENTY_FIVE, conv_block_alphas=TWENTY_FIVE))
    assert {"network.conv_rank", "network.conv_alpha"} <= by_block.keys()
    assert "network.conv_alpha" not in ineffective(job(conv_block_dims=TWENTY_FIVE))
    assert "network.down_lr_weight" in ineffective(job(train_unet=False, train_text_encoder=True))


def test_several_rates_by_lora_plus_are_told_to_optimizers_that_find_one():
    for name in ("Prodigy", "DAdaptAdam"):
        plus = job(optimizer={"optimizer_type": name, "learning_rate": 1.0, "loraplus_lr_ratio": 16.0})
        found = [each.code for each in training_problems(plus) if "loraplus" in each.where]
        assert "learning-rate.one-for-all" in found, name


@pytest.mark.parametrize(
    ("given", "plain", "wide"),
    [
        ({"rank": 8, "alpha": 0}, (8, 8), None),
        ({"alpha": 0.5}, (16, 0.5), None),
        ({"rank": 8, "alpha": 0, "block_dims": ",".join(["2"] * 25)}, (2, 2), None),
        ({"conv_rank": 4, "conv_alpha": 0}, (16, 16), (4, 4)),
    ],
)
def test_an_alpha_of_0_is_the_rank_that_a_layer_has_as_in_sd_scripts(given, plain, wide):
    """Also where ranks differ by block: its modules take their own rank."""
    one, other = (sizes[1] for sizes in block_sizes(build(TrainJob, {"network": given}).network, 25))
    assert (one.rank, one.alpha) == plain
    assert wide is None or (other.rank, other.alpha) == wide


def test_an_alpha_below_0_is_refused():
    with pytest.raises(ProblemsError, match=r" is -1\b") as caught:
        build(TrainJob, {"network": {"alpha": -1}})
    assert [(each.code, each.where) for each in caught.value.problems] == [("settings.bad-value", "network.alpha")]
