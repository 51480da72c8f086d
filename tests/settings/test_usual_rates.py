"""Usual learning rates: what is advised against, and what is not."""

import pytest

from core.settings.base import declared
from core.settings.check import build
from core.settings.job import TrainJob
from core.settings.methods import methods
from core.settings.optimization.optimizers import catalog
from core.settings.optimization.usual_rates import short, unusual_rates, usual_rates
from core.settings.rules import training_problems

KINDS = ("lora", "dreambooth", "fine_tune", "embedding", "controlnet", "lllite")


def job(kind="lora", **groups):
    given = {"method": {"kind": kind}} | groups
    if kind == "embedding":
        given |= {"embedding": {"token_string": "mira", "init_word": "woman"}}
    return build(TrainJob, given)


def far(kind="lora", network=None, method=None, **optimizer):
    """{setting: "above" or "below"} of what is advised against; all of it reaches the checks as advice or a warning."""
    made = job(
        kind, optimizer=optimizer, network=network or {}, **({"method": {"kind": kind} | method} if method else {})
    )
    found = {each.where: each.direction for each in unusual_rates(made)}
    told = {each.where for each in training_problems(made) if each.level != "error"}
    assert set(found) <= told
    return found


RATE = "optimizer.learning_rate"


@pytest.mark.parametrize("name", ["AdamW", "AdamW8bit", "PagedAdamW8bit", "Adam", "RAdam"])
@pytest.mark.parametrize(("rate", "way"), [(1.0, "above"), (0.05, "above"), (0.01, "above"), (1e-9, "below")])
def test_a_lora_with_an_adamw_far_from_usual_is_advised_against(name, rate, way):
    assert far(optimizer_type=name, learning_rate=rate) == {RATE: way}
    both = far(optimizer_type=name, learning_rate=rate, network={"train_text_encoder": True})
    assert both == {RATE: way}


@pytest.mark.parametrize("rate", [5e-5, 1e-4, 2e-4, 5e-4, 1e-3])
def test_usual_rates_of_a_lora_need_no_word(rate):
    for network in ({}, {"train_text_encoder": True}, {"rank": 32, "alpha": 16.0}, {"rank": 128, "alpha": 1.0}):
        assert far(learning_rate=rate, network=network) == {}


@pytest.mark.parametrize("kind", KINDS)
def test_every_optimizer_of_every_method_has_a_rate_to_start_with_and_is_told_what_is_absurd(kind):
    """A factor of 1e-9 moves nothing and one of 1e6 ruins everything, whatever the optimizer."""
    for name in (name for name, entry in catalog().items() if entry.offered):
        arguments = {"relative_step": False} if name.lower() == "adafactor" else {}
        made = job(kind, optimizer={"optimizer_type": name, "optimizer_args": arguments})
        usual = usual_rates(made)
        assert usual.low <= usual.start <= usual.high, name
        start = float(short(usual.start))
        if kind in ("lora", "embedding"):
            assert far(kind, optimizer_type=name, optimizer_args=arguments, learning_rate=start) == {}, name
        assert usual.deviation(1e-12) == "below" and usual.deviation(usual.high * 1e3) == "above", name


def test_a_rate_of_another_method_is_told():
    assert far("dreambooth", learning_rate=1e-4)[RATE] == "above"
    assert far("fine_tune", learning_rate=1e-4)[RATE] == "above"
    assert far("embedding", learning_rate=1e-5)[RATE] == "below"
    for kind, rate in (("dreambooth", 2e-6), ("fine_tune", 5e-6), ("embedding", 5e-3), ("embedding", 5e-4)):
        assert far(kind, learning_rate=rate) == {}


def test_parts_and_blocks_are_told_at_their_own_setting():
    text = {"train_text_encoder": True}
    assert far(text_encoder_lr=0.1, network=text) == {"optimizer.text_encoder_lr": "above"}
    assert far(unet_lr=1e-8) == {"optimizer.unet_lr": "below"}
    assert far(text_encoder_lr=0.1) == {}  # it is not trained
    assert far("dreambooth", learning_rate=2e-6, text_encoder_lr=1e-3) == {"optimizer.text_encoder_lr": "above"}
    # block rates: a zero leaves a block out and is no small rate
    lists = ",".join(["0"] * 24 + ["1e-2"])
    assert far("fine_tune", learning_rate=5e-6, method={"block_lr": lists}) == {"method.block_lr": "above"}
    assert far("fine_tune", learning_rate=5e-6, method={"block_lr": lists.replace("1e-2", "5e-6")}) == {}
    assert far(network={"mid_lr_weight": "200"}) == {"network.mid_lr_weight": "above"}
    assert far(network={"mid_lr_weight": "2", "up_lr_weight": "cosine+.25"}) == {}


def test_alpha_over_rank_moves_the_range():
    assert far(learning_rate=2e-3, network={"rank": 16, "alpha": 16.0}) == {}
    assert far(learning_rate=2e-3, network={"rank": 8, "alpha": 32.0}) == {RATE: "above"}
    assert far(learning_rate=5e-3, network={"rank": 16, "alpha": 1.0}) == {}
    assert far(learning_rate=5e-3) == {RATE: "above"}
    assert far(learning_rate=2e-5, network={"rank": 16, "alpha": 1.0}) == {RATE: "below"}


def test_lora_plus_and_the_batch_count():
    assert far(learning_rate=1e-4, loraplus_lr_ratio=16.0) == {}
    assert far(learning_rate=1e-3, loraplus_lr_ratio=500.0) == {"optimizer.loraplus_lr_ratio": "above"}
    scaled = job(optimizer={"learning_rate": 1e-3, "scale_lr": True}, dataset={"train_batch_size": 16})
    assert [each.rate for each in unusual_rates(scaled)] == [pytest.approx(0.016)]


def test_other_optimizers_have_other_rates():
    assert far(optimizer_type="Lion", learning_rate=2e-5) == {}
    assert far(optimizer_type="Lion", learning_rate=2e-3) == {RATE: "above"}
    assert far(optimizer_type="SGD", learning_rate=1e-4) == {RATE: "below"}
    assert far(optimizer_type="SGDNesterov", learning_rate=0.05) == {}
    assert far(optimizer_type="Prodigy", learning_rate=1.0) == {}
    assert far(optimizer_type="Prodigy", learning_rate=1e-4) == {RATE: "below"}
    assert far(optimizer_type="DAdaptAdam", learning_rate=50.0 / 10) == {}
    assert far(optimizer_type="DAdaptAdam", learning_rate=10.0) == {RATE: "above"}
    assert far(optimizer_type="Automagic", learning_rate=1e-6) == {}
    assert far(optimizer_type="Automagic3", learning_rate=0.5) == {RATE: "above"}
    assert far(optimizer_type="AdaFactor", learning_rate=0.5) == {}  # it finds its rate itself


@pytest.mark.parametrize(("rate", "level"), [(0.008, "advice"), (0.5, "warning"), (50.0, "error")])
def test_a_rate_is_warned_of_far_above_the_usual_and_an_error_where_it_must_be_a_slip(rate, level):
    found = {each.code: each for each in training_problems(job(optimizer={"learning_rate": rate}))}
    told = found["learning-rate.unusual"]
    assert told.level == level and told.where == RATE and "1e-4" in told.fix


@pytest.mark.parametrize(
    ("number", "text"), [(1e-4, "1e-4"), (5e-3, "0.005"), (2.5e-6, "2.5e-6"), (1.0, "1"), (3e3, "3e3")]
)
def test_rates_are_written_as_people_write_them(number, text):
    assert short(number) == text and float(text) == number


def test_all_methods_are_declared():
    labels = next(entry.labels for entry in declared(TrainJob) if entry.path == "method.kind")
    assert labels == {name: spec.title for name, spec in methods().items()}
    assert methods().keys() == set(KINDS) and all(spec.usual for spec in methods().values())


@pytest.mark.parametrize(("kind", "usual", "above", "below"), [("ia3", 5e-3, 1.0, 1e-4), ("full", 5e-6, 1e-3, 1e-8)])
def test_a_network_type_that_is_no_matter_of_two_matrices_has_rates_of_its_own(kind, usual, above, below):
    assert float(short(usual_rates(job(network={"kind": kind})).start)) == usual
    assert far(learning_rate=usual, network={"kind": kind}) == {}
    for rate, way in ((above, "above"), (below, "below")):
        assert far(learning_rate=rate, network={"kind": kind}) == {RATE: way}
