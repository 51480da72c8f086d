"""What is said about the network's settings before anything loads."""

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


def test_the_defaults_are_fine():
    assert not found() and not found("sdxl")


@pytest.mark.parametrize("name", ["network_dropout", "rank_dropout", "module_dropout"])
def test_a_dropout_of_1_leaves_nothing_to_train_and_much_is_advised_against(name):
    whole, much = found(**{name: 1.0})[f"network.{name}"], found(**{name: 0.6})[f"network.{name}"]
    assert whole.level == "error" and "nothing to train" in whole.what
    assert much.level == "advice"
    assert not found(**{name: 0.3})
    with pytest.raises(ProblemsError, match="0 to 1"):
        job(**{name: 1.5})


@pytest.mark.parametrize("name", ["block_dims", "block_alphas", "conv_block_dims", "conv_block_alphas"])
def test_a_list_of_the_wrong_length_says_how_many_are_wanted(name):
    other = {"conv_rank": 4} if name == "conv_block_alphas" else {}
    problem = found(**{name: "4,4,4"}, **other)[f"network.{name}"]
    assert problem.level == "error" and "3 numbers; it takes 25 (SD 1.x and 2.x) or 23 (SDXL)" in problem.what
    assert not found(**other, **{name: TWENTY_FIVE}) and not found("sd1", **other, **{name: TWENTY_FIVE})
    assert "it takes 23 (SDXL)" in found("sdxl", **other, **{name: TWENTY_FIVE})[f"network.{name}"].what


def test_the_family_that_the_model_shows_is_heard_too():
    network = job(block_dims=TWENTY_FIVE).network
    assert not list(block_problems(network, "sd2"))
    assert [problem.level for problem in block_problems(network, "sdxl")] == ["error"]


@pytest.mark.parametrize(
    ("text", "words"),
    [("4,x" + ",4" * 23, "no list of numbers"), ("4.5" + ",4" * 24, "can be no rank"), ("-1" + ",4" * 24, "below 0")],
)
def test_what_can_be_no_rank_is_named(text, words):
    assert words in " ".join(problem.what for problem in problems(job(block_dims=text)))


def test_lists_of_numbers_are_taken_from_json_as_they_are():
    assert job(block_dims=[4] * 25).network.block_dims == TWENTY_FIVE
    assert job(up_lr_weight=0.5).network.up_lr_weight == "0.5"
    assert job(base_weights=["a"], base_weights_multiplier=[1, 0.5]).network.base_weights_multiplier == "1,0.5"


@pytest.mark.parametrize("text", ["sine", "cosine+0.25", "zeros+1", "0,0,1" + ",1" * 9, "0.5"])
def test_rates_by_block_may_be_a_list_one_number_or_a_preset(text):
    assert not found("sd1", down_lr_weight=text, up_lr_weight=text)


def test_rates_by_block_that_cannot_be_read_are_errors_and_lists_of_another_length_advice():
    assert found(down_lr_weight="sinus")["network.down_lr_weight"].level == "error"
    assert found(mid_lr_weight="-1")["network.mid_lr_weight"].level == "error"
    short = found("sd1", down_lr_weight="1,1")["network.down_lr_weight"]
    assert (short.level, "2 factors of 12; those that are missing count 1" in short.what) == ("advice", True)
    long = found("sdxl", up_lr_weight="1" + ",1" * 11)["network.up_lr_weight"]
    assert (long.level, "those beyond are not read" in long.what) == ("advice", True)


def test_alphas_without_what_they_belong_to_are_told():
    assert found(conv_block_alphas=TWENTY_FIVE)["network.conv_block_alphas"].level == "error"


def test_ranks_from_a_file_need_a_file_and_strengths_their_loras():
    assert found(dim_from_weights=True)["network.dim_from_weights"].level == "error"
    assert found(base_weights=["a"], base_weights_multiplier="1,2")["network.base_weights_multiplier"].level == "error"
    assert found(base_weights=["a"], base_weights_multiplier="x")["network.base_weights_multiplier"].level == "error"
    assert not found(base_weights=["a", "b"], base_weights_multiplier="0.5")


def test_a_text_encoder_that_rests_is_advised_against():
    resting = job(train_text_encoder=True, optimizer={"text_encoder_lr": 0.0})
    assert [problem.where for problem in problems(resting)] == ["network.train_text_encoder"]


@pytest.mark.parametrize(("name", "level"), [("DAdaptAdan", "advice"), ("Prodigy", "error"), ("AdamW", None)])
def test_rates_by_block_are_told_to_optimizers_that_find_one(name, level):
    where = "network.down_lr_weight, mid_lr_weight, up_lr_weight"
    told = [
        each for each in problems(job(optimizer={"optimizer_type": name}, mid_lr_weight="0.5")) if each.where == where
    ]
    assert [each.level for each in told] == ([level] if level else [])


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
        assert any("loraplus" in problem.where for problem in training_problems(plus)), name


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
    with pytest.raises(ProblemsError, match="Alpha is -1"):
        build(TrainJob, {"network": {"alpha": -1}})
