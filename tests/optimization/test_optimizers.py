import copy
import sys

import torch
from pytest import approx, mark, raises
from torch import nn

from core.optimization.averaging import evaluation_weights
from core.optimization.clipping import NonFiniteGuard, clip_grad_norm
from core.optimization.groups import Trainable, parameter_groups
from core.optimization.optimizers import build_optimizer
from core.record.problems import ProblemsError
from core.settings.optimization.optimizer import OptimizerSettings
from tests.refusals import refused


def parts_of(seed=0):
    """Large enough (16 x 400) that the 8-bit optimizer keeps 8-bit states, and a small one it keeps in 32."""
    draw = torch.Generator().manual_seed(seed)
    make = lambda *shape: nn.Parameter(torch.randn(*shape, generator=draw))  # noqa: E731
    return {"text_encoder": [make(16, 400)], "unet": [make(16, 400), make(16, 3)]}


def take_step(optimizer, parts, step):
    draw = torch.Generator().manual_seed(100 + step)
    for parameter in [*parts["text_encoder"], *parts["unet"]]:
        parameter.grad = torch.randn(parameter.shape, generator=draw)
    optimizer.step()


def values(parts):
    return [parameter.detach().clone() for parameter in [*parts["text_encoder"], *parts["unet"]]]


def test_groups_come_text_encoder_first_each_with_its_own_rate():
    parts = parts_of()
    settings = OptimizerSettings(learning_rate=1e-4, text_encoder_lr=5e-5)
    groups = parameter_groups(settings, dict(reversed(parts.items())))
    assert [(group["name"], group["lr"], len(group["params"])) for group in groups] == [
        ("text_encoder", 5e-5, 1),
        ("unet", 1e-4, 2),
    ]


def test_a_part_with_rate_0_is_left_out_and_asks_for_no_gradients():
    parts = parts_of()
    groups = parameter_groups(OptimizerSettings(text_encoder_lr=0.0), parts)
    assert [group["name"] for group in groups] == ["unet"]
    assert not parts["text_encoder"][0].requires_grad and parts["unet"][0].requires_grad


def test_a_run_in_which_nothing_would_train_is_refused():
    with refused("training.nothing-to-train"):
        parameter_groups(OptimizerSettings(learning_rate=0.0), parts_of())
    with refused("training.nothing-to-train"):
        parameter_groups(OptimizerSettings(unet_lr=0.0), {"text_encoder": [], "unet": parts_of()["unet"]})


def test_adamw_moves_weights_as_the_paper_says():
    parts = parts_of()
    settings = OptimizerSettings(learning_rate=1e-2, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.1)
    optimizer = build_optimizer(settings, parameter_groups(settings, parts))
    x = parts["unet"][0].detach().double()
    m = v = torch.zeros_like(x)
    for step in range(1, 4):
        take_step(optimizer, parts, step)
        g = parts["unet"][0].grad.double()
        m, v = 0.8 * m + 0.2 * g, 0.95 * v + 0.05 * g**2
        x = x - 1e-2 * 0.1 * x - 1e-2 * (m / (1 - 0.8**step)) / ((v / (1 - 0.95**step)).sqrt() + 1e-6)
        torch.testing.assert_close(parts["unet"][0].detach().double(), x, rtol=1e-5, atol=1e-6)


@mark.parametrize("name", ["AdamW", "AdamW8bit"])
def test_an_optimizer_trains_and_resumes_to_the_bit(name):
    settings = OptimizerSettings(optimizer_type=name, learning_rate=1e-2, text_encoder_lr=5e-3)
    parts = parts_of()
    start = values(parts)
    optimizer = build_optimizer(settings, parameter_groups(settings, parts))
    for step in range(3):
        take_step(optimizer, parts, step)
    assert all(not torch.equal(now, before) for now, before in zip(values(parts), start, strict=True))

    resumed_parts = copy.deepcopy(parts)
    resumed = build_optimizer(settings, parameter_groups(settings, resumed_parts))
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for step in range(3, 6):
        take_step(optimizer, parts, step)
        take_step(resumed, resumed_parts, step)
    assert all(torch.equal(one, other) for one, other in zip(values(parts), values(resumed_parts), strict=True))


def test_the_8_bit_optimizer_stays_near_the_full_one_and_keeps_bytes():
    results = []
    for name in ("AdamW", "AdamW8bit"):
        settings = OptimizerSettings(optimizer_type=name, learning_rate=1e-2)
        parts = parts_of()
        before = values(parts)
        optimizer = build_optimizer(settings, parameter_groups(settings, parts))
        for step in range(3):
            take_step(optimizer, parts, step)
        results.append([now - then for now, then in zip(values(parts), before, strict=True)])
    large, small = optimizer.state[parts["unet"][0]], optimizer.state[parts["unet"][1]]
    assert (large["state1"].dtype, small["state1"].dtype) == (torch.uint8, torch.float32)
    for full, eight in zip(*results, strict=True):
        assert float((full - eight).norm() / full.norm()) < 0.1  # blocks of 256 values share a scale of 8 bits


def test_a_missing_8_bit_library_is_said_with_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)  # importing it now raises
    settings = OptimizerSettings(optimizer_type="AdamW8bit")
    with raises(ProblemsError) as caught:
        build_optimizer(settings, parameter_groups(settings, parts_of()))
    assert "bitsandbytes" in str(caught.value) and "choose AdamW" in str(caught.value)


def test_clipping_scales_all_gradients_to_the_norm_asked_for_and_returns_the_old_one():
    one, other = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1))
    one.grad, other.grad = torch.tensor([3.0, 0.0]), torch.tensor([4.0])
    norm = clip_grad_norm([one, other, nn.Parameter(torch.zeros(5))], 1.0)  # the last has no gradient
    assert float(norm) == 5.0
    torch.testing.assert_close(torch.cat([one.grad, other.grad]), torch.tensor([0.6, 0.0, 0.8]), rtol=1e-5, atol=1e-6)


@mark.parametrize("max_norm", [0.0, 10.0])
def test_gradients_within_the_norm_or_without_a_limit_stay_as_they_are(max_norm):
    parameter = nn.Parameter(torch.zeros(2))
    parameter.grad = torch.tensor([3.0, 4.0])
    assert float(clip_grad_norm([parameter], max_norm)) == approx(5.0)
    assert parameter.grad.tolist() == [3.0, 4.0]


@mark.parametrize("name", ["AdamW", "AdamW8bit"])
@mark.parametrize("bad", ["loss", "gradient"])
def test_after_a_non_finite_number_no_step_moves_a_weight(name, bad):
    settings = OptimizerSettings(optimizer_type=name, learning_rate=1e-2)
    parts = parts_of()
    optimizer = build_optimizer(settings, parameter_groups(settings, parts))
    guard = NonFiniteGuard("cpu")
    trained = [*parts["text_encoder"], *parts["unet"]]

    def step(number):
        for parameter in trained:
            parameter.grad = torch.ones_like(parameter)
        if number == 1 and bad == "gradient":
            trained[0].grad[0, 0] = float("inf")
        loss = torch.tensor([0.5, float("nan") if number == 1 and bad == "loss" else 0.5])
        guard.watch(loss, clip_grad_norm(trained, 1.0))
        guard.step(optimizer)

    step(0)
    good = values(parts)
    assert not guard.tripped() and not torch.equal(good[0], parts_of()["text_encoder"][0])
    step(1)
    step(2)  # all is finite again, but the run must stop with the weights of the last good step
    assert guard.tripped()
    assert all(torch.equal(now, before) for now, before in zip(values(parts), good, strict=True))


def test_a_withheld_step_does_not_count_as_one():
    """The bias correction of AdamW counts steps; a state saved after a withheld one is that of the last good step."""
    settings = OptimizerSettings(learning_rate=1e-2)
    parts = parts_of()
    optimizer = build_optimizer(settings, parameter_groups(settings, parts))
    guard = NonFiniteGuard("cpu")
    for parameter in [*parts["text_encoder"], *parts["unet"]]:
        parameter.grad = torch.ones_like(parameter)
    guard.step(optimizer)
    state = copy.deepcopy(optimizer.state_dict()["state"])
    guard.watch(torch.tensor(float("nan")))
    guard.step(optimizer)
    after = optimizer.state_dict()["state"]
    assert all(torch.equal(after[i][key], state[i][key]) for i in state for key in state[i])


@mark.parametrize("name", ["SGDNesterov", "Adam", "AdaFactor", "Lion", "Prodigy", "AdamWScheduleFree", "PagedLion8bit"])
def test_after_a_non_finite_gradient_no_optimizer_moves_a_weight(name):
    arguments = {"relative_step": False} if name == "AdaFactor" else {}
    settings = OptimizerSettings(optimizer_type=name, learning_rate=1e-2, optimizer_args=arguments)
    parts = parts_of()
    optimizer = build_optimizer(settings, parameter_groups(settings, parts))
    guard = NonFiniteGuard("cpu")
    trained = [*parts["text_encoder"], *parts["unet"]]
    before = values(parts)
    for parameter in trained:
        parameter.grad = torch.full_like(parameter, float("nan"))
    guard.watch(clip_grad_norm(trained, 1.0))
    guard.step(optimizer)
    for parameter in trained:
        parameter.grad = torch.ones_like(parameter)
    guard.step(optimizer)
    assert guard.tripped()
    assert all(torch.equal(now, then) for now, then in zip(values(parts), before, strict=True))


@mark.parametrize("dampening", [0.0, 0.5])
def test_a_momentum_may_begin_late_as_of_layers_that_were_dropped_out_and_after_a_withheld_step(dampening):
    parts, guard = parts_of(), NonFiniteGuard("cpu", allowed=1)
    arguments = {"momentum": 0.9, "dampening": dampening}
    settings = OptimizerSettings(optimizer_type="SGD", learning_rate=0.1, optimizer_args=arguments)
    optimizer = build_optimizer(settings, parameter_groups(settings, parts))
    early, late = parts["unet"]
    for step in range(3):
        guard.begin()
        early.grad, late.grad = torch.ones_like(early), torch.ones_like(late) if step else None
        guard.watch(torch.tensor(float("inf") if step == 0 and not dampening else 1.0))
        guard.step(optimizer)
    momenta = [optimizer.state[weight]["momentum_buffer"].unique().tolist() for weight in (early, late)]
    twice, damped = 0.9 * 1 + 1, 0.9 * 0.5 + 0.5
    assert momenta == [[approx(0.9 * (0.9 + 0.5) + 0.5)], [approx(damped)]] if dampening else [[approx(twice)]] * 2


@mark.parametrize("scaled", [True, False])
def test_adafactor_moves_weights_as_the_papers_formulas_say(scaled):
    """Shazeer and Stern 2018, arXiv:1804.04235: factored second moment, update clipped to RMS 1, rate times max(eps2, RMS)."""
    arguments = {"relative_step": False, "scale_parameter": scaled}
    settings = OptimizerSettings(optimizer_type="AdaFactor", learning_rate=1e-2, optimizer_args=arguments)
    parts = {
        "unet": [nn.Parameter(torch.randn(16, 40, generator=torch.Generator().manual_seed(1)))],
        "text_encoder": [],
    }
    optimizer = build_optimizer(settings, parameter_groups(settings, parts))
    (weight,) = parts["unet"]
    x = weight.detach().double()
    rows, columns = torch.zeros(16).double(), torch.zeros(40).double()
    for step in range(1, 4):
        weight.grad = torch.randn(16, 40, generator=torch.Generator().manual_seed(100 + step))
        optimizer.step()
        g = weight.grad.double()
        beta = 1 - step**-0.8
        squares = g**2 + 1e-30
        rows = beta * rows + (1 - beta) * squares.mean(1)
        columns = beta * columns + (1 - beta) * squares.mean(0)
        update = g / (rows[:, None] * columns[None, :] / rows.mean()).sqrt()
        update /= max(1.0, float(update.square().mean().sqrt()))
        rate = 1e-2 * (max(1e-3, float(x.square().mean().sqrt())) if scaled else 1)
        x = x - rate * update
        torch.testing.assert_close(weight.detach().double(), x, rtol=1e-5, atol=1e-6)


def test_one_step_equals_that_of_the_library_itself():
    import transformers

    for name, make in (
        ("AdamW", lambda weights: torch.optim.AdamW(weights, lr=1e-3, weight_decay=0.01, fused=True)),
        ("AdaFactor", lambda weights: transformers.Adafactor(weights, lr=1e-3, relative_step=False)),
        ("SGDNesterov", lambda weights: torch.optim.SGD(weights, lr=1e-3, momentum=0.9, nesterov=True, fused=True)),
    ):
        arguments = {"relative_step": False} if name == "AdaFactor" else {}
        settings = OptimizerSettings(optimizer_type=name, learning_rate=1e-3, optimizer_args=arguments)
        ours, theirs = parts_of(), parts_of()
        take_step(build_optimizer(settings, parameter_groups(settings, ours)), ours, 0)
        take_step(make([*theirs["text_encoder"], *theirs["unet"]]), theirs, 0)
        assert all(torch.equal(a, b) for a, b in zip(values(ours), values(theirs), strict=True)), name


def test_a_negative_rate_moves_the_other_way():
    ways = []
    for rate in (1e-3, -1e-3):
        settings = OptimizerSettings(learning_rate=rate, weight_decay=0.0)
        parts = parts_of()
        before = values(parts)
        take_step(build_optimizer(settings, parameter_groups(settings, parts)), parts, 0)
        ways.append([now - then for now, then in zip(values(parts), before, strict=True)])
    for there, back in zip(*ways, strict=True):
        torch.testing.assert_close(there, -back, rtol=0, atol=1e-6)


def test_lora_plus_gives_the_up_matrices_their_own_group():
    weights = [nn.Parameter(torch.zeros(2)) for _ in range(6)]
    trainables = [
        Trainable("unet", weights[:1]),
        Trainable("unet", weights[1:2], role="plus"),
        Trainable("text_encoder", weights[2:3]),
        Trainable("text_encoder", weights[3:4], role="plus"),
        Trainable("text_encoder_2", weights[4:5]),
        Trainable("text_encoder_2", weights[5:], role="plus"),
    ]

    def rates(**given):
        groups = parameter_groups(OptimizerSettings(learning_rate=1e-4, **given), trainables)
        return {group["name"]: (approx(group["lr"]), len(group["params"])) for group in groups}

    assert rates() == {"text_encoder": (1e-4, 2), "text_encoder_2": (1e-4, 2), "unet": (1e-4, 2)}
    assert rates(loraplus_lr_ratio=16, loraplus_text_encoder_lr_ratio=1, text_encoder_lr=(1e-5, 2e-5)) == {
        "text_encoder": (1e-5, 2),
        "text_encoder_2": (2e-5, 2),
        "unet": (1e-4, 1),
        "unet plus": (1.6e-3, 1),
    }
    assert list(rates(loraplus_unet_lr_ratio=4)) == ["text_encoder", "text_encoder_2", "unet", "unet plus"]
    assert rates(text_encoder_lr=(0.0, 1e-5)) == {"text_encoder_2": (1e-5, 2), "unet": (1e-4, 2)}
    assert not weights[2].requires_grad and weights[4].requires_grad


def test_blocks_have_rates_of_their_own_and_a_factor_of_0_leaves_one_out():
    weights = [nn.Parameter(torch.zeros(2)) for _ in range(4)]
    trainables = [
        Trainable("unet", weights[:1], name="unet_block0", factor=0.5),
        Trainable("unet", weights[1:2], name="unet_block1", factor=0.0),
        Trainable("unet", weights[2:3], name="unet_block2", rate=3e-4),
        Trainable("embedding", weights[3:]),
    ]
    groups = parameter_groups(OptimizerSettings(learning_rate=1e-4, unet_lr=2e-4), trainables, scale=2.0)
    assert [(group["name"], group["lr"]) for group in groups] == [
        ("unet_block0", approx(2e-4)),
        ("unet_block2", approx(6e-4)),
        ("embedding", approx(2e-4)),
    ]
    assert not weights[1].requires_grad
    trained = [weight for group in groups for weight in group["params"]]
    for weight in weights:
        weight.grad = torch.ones(2)
    assert float(clip_grad_norm(trained, 0.0)) == approx(6**0.5), "what is left out is not in the norm"


@mark.parametrize(
    "name", ["AdamWScheduleFree", "RAdamScheduleFree", "SGDScheduleFree", "prodigyplus.ProdigyPlusScheduleFree"]
)
def test_the_averaged_weights_are_there_inside_and_the_training_ones_come_back_to_the_bit(name):
    settings = OptimizerSettings(optimizer_type=name, learning_rate=1e-1)
    ends = []
    for visits in (False, True):
        parts = parts_of()
        optimizer = build_optimizer(settings, parameter_groups(settings, parts))
        for step in range(12):
            take_step(optimizer, parts, step)
            trainable = values(parts)
            if visits:
                with evaluation_weights(optimizer):
                    inside = values(parts)
                assert not all(torch.equal(a, b) for a, b in zip(inside, trainable, strict=True)) or step < 8
                assert all(torch.equal(a, b) for a, b in zip(values(parts), trainable, strict=True))
        ends.append(values(parts))
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True)), "saving and sampling change nothing"


def test_what_was_trained_comes_back_also_when_saving_fails():
    settings = OptimizerSettings(optimizer_type="AdamWScheduleFree", learning_rate=1e-1)
    parts = parts_of()
    optimizer = build_optimizer(settings, parameter_groups(settings, parts))
    for step in range(3):
        take_step(optimizer, parts, step)
    trainable = values(parts)
    with raises(OSError), evaluation_weights(optimizer):
        raise OSError("the disk is full")
    assert all(torch.equal(a, b) for a, b in zip(values(parts), trainable, strict=True))
    take_step(optimizer, parts, 3)  # and it trains on: a schedule-free one refuses that outside its training mode


def test_a_refusal_of_the_library_is_a_problem_with_its_words():
    settings = OptimizerSettings(optimizer_type="SGDNesterov", optimizer_args={"dampening": 0.5})
    with refused("optimizer.refused", "Nesterov momentum requires"):
        build_optimizer(settings, parameter_groups(settings, parts_of()))
