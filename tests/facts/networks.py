"""Network kinds on a tiny model: keys, sizes, initial weights, and the changes they make; optimizers and schedules on a few weights."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from core.methods.ema import WeightAverage
from core.networks.block_weights import block_weights, slot_of, weight_of
from core.networks.kinds import kind_of_keys
from core.networks.network import Network, attached
from core.optimization.averaging import evaluation_weights
from core.optimization.clipping import NonFiniteGuard, clip_grad_norm
from core.optimization.fused import FusedBackward, split_groups
from core.optimization.groups import Trainable, parameter_groups
from core.optimization.jumps import rate_jump, steps_of_job
from core.optimization.optimizers import build_optimizer, device_problems, groups_for, load_state, resolve, step_sizes
from core.optimization.rounding import STEP, draws, round_stochastically, widen_steps
from core.optimization.schedules import LrSchedule, Rates, curve
from core.settings.blocks import COUNTS, SIDES, block_rates, block_sizes, numbers, rate_numbers, side_count
from core.settings.check import build
from core.settings.job import TrainJob
from core.settings.layers import LayerChoice, rank_of_line
from core.settings.method import MethodSettings
from core.settings.network import NetworkSettings
from core.settings.optimization.optimizer import OptimizerSettings
from core.settings.optimization.schedule import ScheduleSettings
from tests.facts.store import Facts, digest, producer, refused
from tests.networks.test_kinds import CASES, Tiny, fresh, targets_of, trained


def model() -> Tiny:
    torch.manual_seed(0)
    return Tiny().requires_grad_(False)


INPUTS = torch.Generator().manual_seed(7)
IMAGE, WORDS = torch.randn(2, 16, 8, 8, generator=INPUTS), torch.randn(2, 3, 8, generator=INPUTS)


@producer
def kinds() -> Facts:
    """Each kind under each of its options: what a file of it holds, and what it changes."""
    for case in CASES:
        tiny = model()
        new, used = fresh(case, tiny), trained(case, tiny)
        keys = {key: [*tensor.shape] for key, tensor in used.saved().items()}
        by_part = {part: sum(each.numel() for each in weights) for part, weights in new.parameters_by_part().items()}
        found: dict[str, Any] = {"keys": [digest(keys), len(keys), list(keys)[:3]], "counts": by_part}
        found["initial"] = total(new.state_dict().values())
        with torch.no_grad(), attached(used):
            found["output"] = tiny(IMAGE, WORDS)
            used.set_multiplier(0.5, text_encoder=-1.0, of_layer=lambda name: 0.25 if "conv" in name else 1.0)
            found["weaker"] = tiny(IMAGE, WORDS)
        used.set_multiplier(0.7)
        merged = copy.deepcopy(tiny)
        again = refused(
            Network.from_tensors,
            {key: tensor.detach() for key, tensor in used.saved().items()},
            targets_of(merged),
            0.7,
        )
        found["loaded"] = again if isinstance(again, dict) else ""
        twin = Network.from_tensors(
            {key: tensor.detach() for key, tensor in used.saved().items()}, list(targets_of(merged)), 0.7
        )
        twin.merge_to()
        found["merged"] = [total(merged.parameters()), twin.unmatched]
        layers = sorted({key.split(".")[0] for key in keys})
        found["kinds"] = sorted({_kind(used, layer) for layer in layers})
        norms = used.apply_max_norm(0.5)
        found["norms"] = [int(norms.scaled), float(norms.mean), float(norms.largest)]
        yield case, found


def _kind(network: Network, layer: str) -> str:
    own = [key.split(".", 1)[1] for key in network.saved() if key.split(".")[0] == layer]
    kind = kind_of_keys(own, layer)
    return kind.name if kind else "none"


def total(tensors: Any) -> Tensor:
    return torch.cat([each.detach().reshape(-1).float() for each in tensors] or [torch.zeros(1)])


@producer
def options() -> Facts:
    """A LoRA with each general option of the network: sizes by block, layers, dropout, initialization."""
    for values in (
        {"initialization": "pissa"}, {"initialization": "orthogonal"}, {"initialization": "gaussian"}, {"rs_lora": True}, {"alpha": None},
        {"conv_rank": None}, {"train_text_encoder": False}, {"train_unet": False}, {"layers": ["attn2"]}, {"exclude_layers": ["conv"]},
        {"layer_dims": ["conv1=1", "to_k=3"]}, {"block_dims": ",".join(["4"] * 25)}, {"block_dims": ",".join("0123456789" * 3)[:49]},
        {"down_lr_weight": "cosine"}, {"up_lr_weight": "0"},
        {"network_dropout": 0.5}, {"rank_dropout": 0.5}, {"module_dropout": 0.5},
        {"rank_dropout": 0.5, "rank_dropout_scale": True},
        {"train_norm": True}, {"layers": ["full-lin"]}, {"layers": ["unet-convblock-only"]},
    ):  # fmt: skip
        yield str(values), refused(_with, values)


def _with(values: dict[str, Any]) -> Any:
    tiny = model()
    network = trained("lora", tiny, **values)
    found: list[Any] = [len(network.adapters), [[*each.shape] for each in network.parameters()][:6]]
    with torch.no_grad(), attached(network):
        found.append(tiny(IMAGE, WORDS))
        network.show(3, 1, [("a", "b.png", 0), ("a", "c.png", 1)])
        found.append(tiny(IMAGE, WORDS))
        network.hide()
    return [*found, total(network.state_dict().values())]


@producer
def blocks() -> Facts:
    """Numbers by block: texts, presets, rates, sizes, and layers that a choice takes."""
    yield (
        "tables",
        [COUNTS, SIDES, {f"{name} {count}": side_count(name, count) for name in SIDES for count in (17, 20, 25)}],
    )
    for text in ("1,2,3", "1, 0.5 ,", "x", "", "1 2", "0,,1"):
        yield f"numbers {text}", refused(numbers, text)
    for text in (
        "cosine",
        "sine",
        "linear",
        "reverse_linear",
        "zeros",
        "cosine+0.25",
        "linear+x",
        "1,2,3",
        "nonsense",
        "zeros+1",
    ):
        yield f"rates {text}", [refused(rate_numbers, text, count) for count in (12, 3)]
    for values in (
        {"down_lr_weight": "linear", "mid_lr_weight": "0.5", "up_lr_weight": "sine+0.1"}, {"down_lr_weight": "1,0"}, {},
        {"up_lr_weight": "0.05,0.2", "block_lr_zero_threshold": "0.1"},
        {"block_dims": ",".join(["4", "8"] * 12 + ["2"]), "block_alphas": None},
    ):  # fmt: skip
        settings = NetworkSettings.model_validate(values)
        yield (
            f"sizes {values}",
            [
                refused(block_rates, settings, 25),
                refused(block_sizes, settings, 25),
                refused(block_rates, settings, 20),
            ],
        )
    for line in ("attn2=8", "a=b=0", "=4", "x", "x=-1", "x=1025", "x=1024", "x=1.5"):
        yield f"line {line}", refused(rank_of_line, line)
    for values in (
        {"layers": ["attn-mlp"]},
        {"layers": ["("]},
        {"exclude_layers": ["x" * 501]},
        {"layer_dims": ["a=5000"]},
    ):
        yield (
            f"choice {str(values)[:40]}",
            refused(_chosen, values),
        )
    for text in (
        "1,0.5" + ",0" * 24,
        "INALL",
        "MIDD",
        "ALL",
        "x",
        "1",
        "1" + ",1" * 11,
        "1" + ",2" * 16,
        "OUTALL,1",
        "R,U",
    ):
        yield f"weights {text}", refused(_factors, text)


def _chosen(values: dict[str, Any]) -> int:
    return len(LayerChoice(NetworkSettings.model_validate(values)).chosen)


def _factors(text: str) -> Any:
    weights = block_weights(text)
    return [weights, [[slot_of(name), weight_of(weights, name)] for name in LAYERS]]


LAYERS = (
    "lora_te_text_model_encoder_layers_0_mlp_fc1",
    "lora_unet_down_blocks_1_attentions_0_proj_in",
    "lora_unet_mid_block_attentions_0_proj_in",
    "lora_unet_up_blocks_2_attentions_1_proj_out",
    "lora_unet_conv_in",
    "lora_unet_input_blocks_4_1_proj_in",
)


# -- schedules


SCHEDULES = (
    "constant", "constant_with_warmup", "cosine", "linear", "cosine_with_restarts", "polynomial", "inverse_sqrt", "cosine_with_min_lr",
    "warmup_stable_decay", "rex", "piecewise_constant",
)  # fmt: skip
OPTIONS: tuple[dict[str, Any], ...] = (
    {}, {"lr_warmup_steps": 4}, {"lr_warmup_steps": "25%", "lr_warmup_from_zero": False}, {"lr_scheduler_min_lr_ratio": 0.1},
    {"lr_scheduler_num_cycles": 3}, {"lr_scheduler_power": 2.0}, {"lr_decay_steps": 5, "lr_warmup_steps": 2}, {"lr_scheduler_steps": 6},
    {"lr_scheduler_steps": 6, "lr_scheduler_after": "restart", "lr_warmup_steps": 2}, {"lr_scheduler_timescale": 3}, {"rex_d": 0.8},
    {"lr_scheduler_args": {"lr_end": 5e-5, "num_cycles": 1.5, "min_lr": 1e-5, "decay_type": "linear", "step_rules": "1:3,0.5:8,0.1"}},
    {"lr_scheduler_args": {"decay_type": "1-sqrt", "warmup_type": "cosine"}, "lr_decay_steps": 6, "lr_warmup_steps": 3},
    {"lr_scheduler_args": {"warmup_type": "1-sqrt"}, "lr_warmup_steps": 5, "lr_scheduler_min_lr_ratio": 0.2},
)  # fmt: skip
STEPS = (0, 1, 2, 3, 5, 6, 8, 10, 11, 12)


@producer
def schedules() -> Facts:
    """Factors of the learning rate over a run of 12 steps, plain and as sd-scripts with two processes."""
    for name in SCHEDULES:
        for number, values in enumerate(OPTIONS):
            for compatibility in ("none", "kohya"):
                settings = ScheduleSettings(lr_scheduler=name, **values).model_copy(
                    update={"compatibility": compatibility}
                )
                schedule = LrSchedule(settings, 12, 2 if compatibility == "kohya" else 1)
                yield (
                    f"{name} {number} {compatibility}",
                    refused(_curve, schedule),
                )
    for name, arguments in (("StepLR", {"step_size": 3}), ("OneCycleLR", {"max_lr": 1e-3, "total_steps": 12}),
        ("ExponentialLR", {"gamma": 0.9}),
                            ("CyclicLR", {"base_lr": 1e-5, "max_lr": 1e-4, "step_size_up": 3}),
                            ("StepLR", {}), ("Nonsense", {})):  # fmt: skip
        schedule = LrSchedule(ScheduleSettings(lr_scheduler_type=name, lr_scheduler_args=arguments), 12)
        yield (
            f"torch {name} {arguments}",
            refused(_with_momentum, schedule),
        )
    for optimizer, arguments in (("AdaFactor", {"relative_step": True, "warmup_init": True}), ("AdaFactor", {"relative_step": True}),
                                 ("AdamWScheduleFree", {}), ("AdamW", {})):  # fmt: skip
        values = {"optimizer_type": optimizer, "optimizer_args": arguments, "scale_lr": True, "text_encoder_lr": 1e-5}
        job = build(
            TrainJob, {"optimizer": values, "network": {"train_text_encoder": True}, "dataset": {"train_batch_size": 2}}
        )
        yield (
            f"rates {optimizer} {arguments}",
            [Rates(job, 10).at(step, {"unet": 1e-4, "x": 1e-3}) for step in (0, 4, 9)] + [curve(job, 30, 4)],
        )
    for before, after in (
        ({"max_train_steps": 10}, {"max_train_steps": 20}),
        ({"max_train_steps": 10}, {"max_train_epochs": 9}),
    ):
        jobs = [build(TrainJob, {"schedule": {"lr_scheduler": "cosine", **values}}) for values in (before, after)]
        yield f"jump {before} {after}", [[rate_jump(jobs[0], 10, jobs[1], total, step) for total, step in ((20, 10), (20, 3), (12, 5))],
                                         steps_of_job(jobs[1], 7)]  # fmt: skip


def _curve(schedule: LrSchedule) -> list[float]:
    return [schedule.at(step, 1e-4, 2e-4) for step in STEPS]


def _with_momentum(schedule: LrSchedule) -> list[Any]:
    return [[schedule.at(step), schedule.momentum(step, 1e-4)] for step in STEPS]


# -- optimizers


def weights() -> dict[str, list[nn.Parameter]]:
    """Three weights with gradients, by part."""
    draw = torch.Generator().manual_seed(3)
    found: dict[str, list[nn.Parameter]] = {"unet": [], "text_encoder": []}
    for part, shape in (("unet", (4, 6)), ("unet", (6,)), ("text_encoder", (3, 2))):
        weight = nn.Parameter(torch.randn(shape, generator=draw))
        weight.grad = torch.randn(shape, generator=draw)
        found[part].append(weight)
    return found


def _all(parts: dict[str, list[nn.Parameter]]) -> Tensor:
    return total(each for group in parts.values() for each in group)


TRIED = (
    "AdamW",
    "Adam",
    "SGD",
    "AdaFactor",
    "Lion",
    "Prodigy",
    "DAdaptAdam",
    "AdamWScheduleFree",
    "SGDScheduleFree",
    "CAME",
    "RAdam",
    "Muon",
)


@producer
def optimizers() -> Facts:
    """Weights after three steps, groups and rates of optimizers."""
    for name in TRIED:
        parts = weights()
        values: dict[str, Any] = {"optimizer_type": name, "learning_rate": 1e-2}
        values |= {} if name in ("Prodigy", "DAdaptAdam") else {"text_encoder_lr": 5e-3}
        values |= {"optimizer_args": {"relative_step": False, "scale_parameter": False}} if name == "AdaFactor" else {}
        settings = OptimizerSettings(**values)
        optimizer = build_optimizer(settings, parameter_groups(settings, parts), 5)
        for step in range(3):
            for group in parts.values():
                for weight in group:
                    weight.grad = torch.cos(weight.detach() * (step + 2))
            optimizer.step()
        found = [_all(parts)]
        with evaluation_weights(optimizer):
            found.append(_all(parts))
        groups = [[group["name"], group["lr"], len(group["params"])] for group in optimizer.param_groups]
        yield name, [*found, groups, step_sizes(optimizer) if name != "Prodigy" else list(step_sizes(optimizer))]
    for values in ({}, {"unet_lr": 2e-4, "text_encoder_lr": 0.0}, {"text_encoder_lr": [1e-5, 3e-5], "loraplus_lr_ratio": 4.0},
                   {"loraplus_unet_lr_ratio": 8.0, "loraplus_text_encoder_lr_ratio": 2.0}, {"learning_rate": 0.0}):  # fmt: skip
        yield f"groups {values}", refused(_groups, values)
    for name in ("AdamW8bit", "AdamW", "PagedAdamW8bit", "nonsense", "Lion8bit"):
        found = device_problems(OptimizerSettings(optimizer_type=name), "mps")
        yield f"device {name}", [[each.code, each.where, each.fix] for each in found]
    yield "resumed", _resumed()
    yield (
        "matrices",
        [
            [group["use_muon"], len(group["params"])]
            for group in groups_for(resolve("Muon"), parameter_groups(OptimizerSettings(), weights()))
        ],
    )


def _resumed() -> Any:
    """Weights and options of an optimizer that goes on with the state of one of another rate."""
    parts, optimizers = [weights(), weights()], []
    for each, rate in zip(parts, (1e-2, 3e-3)):
        settings = OptimizerSettings(learning_rate=rate, weight_decay=rate, betas=(0.9, 1 - rate))
        optimizers.append(build_optimizer(settings, parameter_groups(settings, each)))
    optimizers[0].step()
    load_state(optimizers[1], optimizers[0].state_dict())
    optimizers[1].step()
    options = [
        [group[name] for name in ("lr", "initial_lr", "betas", "weight_decay")] for group in optimizers[1].param_groups
    ]
    return [_all(parts[1]), options]


def _groups(values: dict[str, Any]) -> Any:
    settings = OptimizerSettings.model_validate(values)
    one = [nn.Parameter(torch.zeros(2)) for _ in range(7)]
    parts = [
        Trainable("unet", [one[0]]), Trainable("text_encoder_2", [one[1]]),
        Trainable("text_encoder", [one[2]]), Trainable("unet", [one[3]], "plus"),
        Trainable("unet", [one[4]], name="unet_block1", factor=0.5),
        Trainable("other", [one[5]], rate=3e-3), Trainable("text_encoder", [one[6]], "plus"),
    ]  # fmt: skip
    groups = parameter_groups(settings, parts, 2.0)
    return [
        [[group["name"], group["lr"], len(group["params"])] for group in groups],
        [each.requires_grad for each in one],
    ]


@producer
def steps() -> Facts:
    """Clipping, non-finite values, rounding and the moving average."""
    for limit in (0.0, 0.5, 100.0):
        parts = weights()
        every = [each for group in parts.values() for each in group]
        norm = clip_grad_norm(every, limit)
        yield f"clip {limit}", [norm, total(each.grad for each in every)]
    for allowed, undo in ((0, False), (0, True), (2, None)):
        yield f"guard {allowed} {undo}", list(_guarded(allowed, undo))
    values = torch.linspace(-3, 3, 41)
    yield "rounded", [round_stochastically(values, draws(seed, torch.device("cpu"))) for seed in (1, 2)]
    for options in ({"stochastic": True}, {"stochastic": False}, {"stochastic": False, "kahan": True}):
        for by_parts in (True, False):
            weight = nn.Parameter(torch.linspace(1, 2, 24).to(torch.bfloat16))
            optimizer = torch.optim.SGD([{"name": "unet", "params": [weight]}], lr=1e-3)
            wide = widen_steps(optimizer, 4, by_parts=by_parts, **options)
            for step in range(5):
                weight.grad = torch.cos(torch.arange(24) + step).to(torch.bfloat16)
                wide()
            yield f"wide {options} {by_parts}", weight.detach().float()
    for settings in (
        {"ema_decay": 0.9},
        {"ema_decay": 0.9, "ema_warmup": False},
        {"ema_decay": 0.5, "ema_update_every": 2},
        {"ema_use": "samples"},
    ):
        weight = nn.Parameter(torch.ones(3))
        average = WeightAverage({"w": weight}, MethodSettings(ema=True, **settings))
        keeps = []
        for step in range(5):
            weight.data += step
            average.after_step()
            keeps.append(average.old_weight())
        with average.in_place():
            inside = weight.detach().clone()
        yield (
            f"ema {settings}",
            [
                keeps,
                average.average["w"].tolist(),
                inside.tolist(),
                weight.tolist(),
                [average.replaces(use) for use in ("files", "samples")],
            ],
        )


@producer
def within_the_backward_pass() -> Facts:
    """Weights and norms of steps that are taken within the backward pass, by tensor, by part and as one of few groups."""
    for number, options in enumerate(({"by_tensor": True}, {"by_tensor": False})):
        for limit in (0.0, 0.5):
            parts = weights()
            every = [each for group in parts.values() for each in group]
            groups = [{"name": name, "params": group} for name, group in parts.items()]
            optimizer = torch.optim.SGD(groups, lr=0.1)
            wide = widen_steps(optimizer, 4, stochastic=False, by_parts=True)
            guard = NonFiniteGuard("cpu")
            fused = FusedBackward(optimizer, wide, guard, limit, **options)
            norms = []
            for step in range(3):
                loss = sum((torch.cos(each * (step + 1)).sum() for each in every), torch.zeros(()))
                fused.begin(loss.detach() if step != 1 else torch.tensor(float("nan")))
                loss.backward()
                norms.append(float(fused.end()))
                guard.begin()
            fused.release()
            yield f"{number} {limit}", [norms, _all(parts), wide._optimizer.param_groups[0][STEP]]
    groups = parameter_groups(
        OptimizerSettings(), {"unet": [nn.Parameter(torch.zeros(each)) for each in (3, 10, 2, 7, 1)]}
    )
    for count in (1, 2, 3, 9):
        yield (
            f"split {count}",
            [[group["name"], [each.numel() for each in group["params"]]] for group in split_groups(groups, count)],
        )


def _guarded(allowed: int, undo: bool | None) -> Iterator[Any]:
    parts = weights()
    every = [each for group in parts.values() for each in group]
    optimizer = torch.optim.AdamW(every, lr=0.1)
    guard = NonFiniteGuard("cpu", allowed, undo)
    for step in range(6):
        for weight in every:
            weight.grad = torch.cos(weight.detach())
        guard.begin()
        guard.watch(torch.tensor(float("nan") if step in (1, 2, 4) else 1.0))
        guard.step(optimizer)
        yield [_all(parts), guard.tripped()]
