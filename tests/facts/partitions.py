"""Steps, states and weights of DeepSpeed's stepper around an engine that computes nothing."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import product
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch import nn

from core.optimization.clipping import NonFiniteGuard
from core.settings.check import build
from core.settings.job import TrainJob
from core.settings.sharding import ShardingSettings
from core.training.sharding import stepper as sharding
from core.training.sharding.shards import Shards, SharedWeights
from core.training.sharding.stepper import LossScale, ShardedStepper, config_of, cpu_adam_if_needed
from tests.facts.store import Facts, folder, producer, refused


class Engine:
    """DeepSpeed's engine and optimizer in one: it notes what it is told."""

    def __init__(self, heard: list[Any], norm: float = 1.5, overflow: bool = False) -> None:
        self._heard, self._global_grad_norm, self.overflow = heard, norm, overflow
        self.single_partition_of_fp32_groups = [torch.arange(3.0), torch.arange(4.0)]
        self.fp32_partitioned_groups_flat = [torch.arange(2.0), torch.arange(5.0)]
        self.persistent_parameters: list[Any] = []

    def __call__(self, work: Any) -> torch.Tensor:
        return work()

    def backward(self, loss: torch.Tensor, scale_wrt_gas: bool) -> None:
        self._heard.append(["backward", float(loss), scale_wrt_gas])

    def _swappable_optimizer_subgroup(self, number: int) -> bool:
        return number == 1

    def __getattr__(self, name: str) -> Any:
        return lambda *given: self._heard.append(
            [name, *(each for each in given if isinstance(each, bool | int | float))]
        )


def made(
    heard: list[Any], engine: Engine, *, scaled: bool = False, shares: bool = False, **more: Any
) -> ShardedStepper:
    """A stepper without a model."""
    one = object.__new__(ShardedStepper)
    weights = [nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(4))]
    optimizer = torch.optim.AdamW(weights, lr=0.1)
    group = SimpleNamespace(
        count=2,
        rank=0,
        first=more.pop("first", True),
        sum_tensors=lambda tensors: [each.mul_(2) for each in tensors],
        broadcast=lambda value: heard.append(list(value)),
        gather=lambda value: [None, value],
        close=lambda: None,
    )
    vars(one).update(
        _engine=engine,
        _zero=engine,
        _scale=LossScale() if scaled else None,
        _guard=NonFiniteGuard("cpu"),
        _processes=group,
        _device="cpu",
        _counts_overflows=more.pop("pauses", True),
        _settings=ShardingSettings(deepspeed=True, zero_stage=3 if shares else 2, **more.pop("settings", {})),
        optimizer=optimizer,
        _shards=(SharedWeights if shares else Shards)(engine, optimizer),
        _parameters=weights,
        _half_precision=more.pop("half", True),
        _process_group=SimpleNamespace(close=partial(heard.append, "left")),
        average=more.pop("average", None),
    )
    assert not more
    return one


@producer
def steps() -> Facts:
    """Losses, scales, norms and steps that are skipped."""
    for scaled, pauses, overflow, norm, loss in product(
        (False, True), (False, True), (False, True), (1.5, float("nan")), (1.0, float("inf"))
    ):
        heard: list[Any] = []
        one = made(heard, Engine(heard, norm, overflow), scaled=scaled, pauses=pauses)
        one.begin()
        losses = one.backward(lambda: torch.tensor([1.0, 3.0]), 4, not overflow)
        found = one.step(torch.tensor(loss))
        one._guarded_step(partial(heard.append, "stepped"))()
        scale = one._scale and [one._scale.factor, one._scale.good]
        yield (
            f"{scaled} {pauses} {overflow} {norm} {loss}",
            [heard, losses, str(float(found)), one._guard.tripped(), one.overflow_steps, scale],
        )
    heard = []
    yield "norms", [made(heard, Engine(heard), shares=shares).weight_norm() for shares in (False, True)]


class Average:
    """A moving average that notes when it is in place."""

    def __init__(self, heard: list[Any]) -> None:
        self._heard = heard

    def replaces(self, use: str) -> bool:
        return use == "samples"

    @contextmanager
    def in_place(self) -> Any:
        self._heard.append("averaged")
        yield

    def state_dict(self) -> dict[str, Any]:
        return {"w": torch.ones(1)}

    def load_state_dict(self, content: Any) -> None:
        self._heard.append(["average", sorted(content)])


@producer
def gathered() -> Facts:
    """Which weights are in place for files and samples, in which order, and what the other processes do meanwhile."""
    for use, shares, half, short, first, averaged in product(
        ("files", "samples"), (False, True), (False, True), (False, True), (False, True), (False, True)
    ):
        heard: list[Any] = []
        one = made(
            heard,
            Engine(heard),
            shares=shares,
            half=half,
            first=first,
            average=Average(heard) if averaged else None,
            settings={"zero3_save_16bit_model": short},
        )
        with ExitStack() as stack:
            stack.enter_context(patch.object(sharding, "all_weights", partial(_noted, heard, "whole")))
            exact = SimpleNamespace(safe_get_full_fp32_param=lambda weight: torch.full_like(weight, 5.0))
            stack.enter_context(
                patch.dict("sys.modules", {"deepspeed": SimpleNamespace(utils=exact), "deepspeed.utils": exact})
            )
            with one.weights_for(use):  # type: ignore[arg-type]
                heard.append([float(weight.detach().mean()) for weight in one._parameters])
            after = [float(weight.detach().mean()) for weight in one._parameters]
            words = iter((("gather", use), None, ("write", "folder"), ("done", "")))
            one._processes.broadcast = lambda value, words=words: next(words)
            with patch.object(
                ShardedStepper, "_write_partition", lambda one, path, heard=heard: heard.append(path.name)
            ):
                one.follow()
        yield f"{use} {shares} {half} {short} {first} {averaged}", [heard, after]
    heard = []
    one = made(heard, Engine(heard))
    one.tasks_done()
    one.ready()
    one._loaded = True
    one.ready()
    one.release()
    yield "between", heard


@contextmanager
def _noted(heard: list[Any], name: str, *given: Any) -> Any:
    heard.append(name)
    yield
    heard.append(f"{name} ends")


@producer
def partitions() -> Facts:
    """What a process writes and reads of its partitions, and partitions that do not fit."""
    with folder() as root:
        for shares, scaled, averaged in product((False, True), (False, True), (False, True)):
            place = root / f"{shares} {scaled} {averaged}"
            place.mkdir()
            heard: list[Any] = []
            one = made(heard, Engine(heard), shares=shares, scaled=scaled, average=Average(heard) if averaged else None)
            one.overflow_steps = 6
            masters = one._shards.masters
            one.optimizer.state[masters[0]] = {
                "step": torch.tensor(3.0),
                "mean": torch.ones_like(masters[0]),
                "kind": "x",
            }
            if one._scale is not None:
                one._scale.factor = 8.0
            one.write_parts(place)
            content = one.state_dict()
            other = made(
                heard, Engine(heard), shares=shares, scaled=scaled, average=Average(heard) if averaged else None
            )
            for master in other._shards.masters:
                master.zero_()
            found = refused(other.load, content, place)
            memory = {name: value for state in other.optimizer.state.values() for name, value in state.items()}
            other._zero.persistent_parameters = [
                SimpleNamespace(all_gather=lambda weights, heard=heard: heard.append(len(weights)))
            ] * 2
            other._shards.push()
            yield (
                f"read {shares} {scaled} {averaged}",
                [
                    found,
                    list(other._shards.masters),
                    memory,
                    other.overflow_steps,
                    other._loaded,
                    other._scale and other._scale.factor,
                    heard,
                ],
            )
            other._zero.single_partition_of_fp32_groups = other._zero.fp32_partitioned_groups_flat = [torch.zeros(9)]
            yield f"other sizes {shares} {scaled} {averaged}", refused(other.load, content, place)
        heard = []
        for first, error in product((True, False), (None, OSError(28, "full"))):
            one = made(heard, Engine(heard), first=first)
            with (
                patch.object(sharding, "save_pickle", partial(_raised, error)),
                patch.object(sharding.atomic, "sync_file", lambda path: None),
            ):
                yield f"written {first} {error}", refused(one._write_partition, root)
    for optimizer, values in product(("AdamW", "Adam"), ({}, {"offload_optimizer_device": "cpu"})):
        kind = getattr(torch.optim, optimizer)([nn.Parameter(torch.ones(1))])
        yield f"suited {optimizer} {values}", cpu_adam_if_needed(kind, ShardingSettings(**values), "cpu") is kind
    for full, compute, fp16 in product((False, True), (torch.bfloat16, torch.float16, torch.float32), (False, True)):
        method = {"kind": "fine_tune"} if full else {}
        job = build(
            TrainJob,
            {"method": method, "sharding": {"fp16_master_weights_and_gradients": fp16, "offload_param_device": "cpu"}},
        )
        sizes = [nn.Parameter(torch.ones(size)) for size in ((1,) if fp16 else (3, 4))]
        with patch.object(torch.cuda, "is_available", lambda: False):
            config = config_of(job, 3, sizes, compute)
        yield f"config {full} {compute} {fp16}", config


def _raised(error: Exception | None, *given: Any) -> None:
    if error is not None:
        raise error
