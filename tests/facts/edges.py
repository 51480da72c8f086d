"""Refusals and forecasts at their edges: damaged layers and vocabularies, devices, shares of memory, each setting alone."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from core.diffusion.samplers import SAMPLERS, noise_problem, sampler_problem, schedule_problem, schedules_of
from core.engine import execute, launch
from core.families import compiling
from core.families.attention import device_problems
from core.families.vocabulary import BEGIN, END, LONGEST, read_vocabulary
from core.networks.kinds import kind_of_keys, kinds
from core.networks.kinds.lora import fit_shapes
from core.record.patterns import Pattern
from core.record.problems import Problem, ProblemsError
from core.settings.base import Declared, declared
from core.settings.check import build
from core.settings.job import TrainJob
from core.settings.memory import MemorySettings
from core.settings.rules import ineffective, training_problems
from core.settings.sharding import ShardingSettings
from core.training.memory.shares import TrainedSizes, process_sizes
from tests.facts.store import Facts, digest, folder, plain, producer, refused
from tests.networks.test_kinds import CASES, Tiny, targets_of, trained

OF_THE_MACHINE = {"deepspeed.not-linux", "deepspeed.not-installed"}


# -- networks


def damages(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """(what is wrong, the tensors of a layer with it)."""
    yield "whole", dict(tensors)
    for key, value in tensors.items():
        others = {name: each for name, each in tensors.items() if name != key}
        yield f"no {key}", others
        yield f"nan {key}", {**others, key: torch.full_like(value.float(), float("nan"))}
        yield f"whole numbers {key}", {**others, key: value.to(torch.int64)}
        yield f"zero {key}", {**others, key: torch.zeros_like(value)}
        yield f"flat {key}", {**others, key: value.reshape(-1)}
        yield f"deeper {key}", {**others, key: value[..., None, None]}
        if value.ndim:
            yield f"longer {key}", {**others, key: torch.cat([value, value[:1]])}
        if value.ndim > 1:
            yield f"wider {key}", {**others, key: torch.cat([value, value[:, :1]], 1)}
            yield f"turned {key}", {**others, key: value.transpose(0, 1).contiguous()}
    yield "scaled", {**tensors, "scalar": torch.tensor(2.0)}
    yield "more", {**tensors, "nonsense": torch.ones(1)}


def said(text: Any) -> Any:
    """Whether something was said, and its numbers."""
    return [bool(text), *(word for word in str(text).replace(",", " ").split() if word.isdigit())] if text else ""


def judged(network: Any, own: str, name: str, tensors: Mapping[str, Tensor]) -> Any:
    """What the kind of these tensors makes of them, and whether the layer's adapter would take them."""
    adapter = network.adapters[name]
    kind = kind_of_keys(tensors, name)
    found: list[Any] = [kind.name if kind else ""]
    if kind is not None:
        flaw = said(kind.flaw(name, tensors))
        found.append(flaw)
        if not flaw:
            target = next(each for each in network.targets_for_tests if each.name == name)
            fits = kind.from_tensors(target, tensors) is not None
            misfit = adapter.misfit(tensors) if kind.name == own else ""
            found += [kind.size(tensors), kind.weight_shape(tensors), kind.idle(tensors), fits, said(misfit)]
            if fits and not misfit:
                adapter.take(tensors)
                found.append(adapter.norm())
    return found


@producer
def damaged_layers() -> Facts:
    """A Linear's and a convolution's tensors of each kind, damaged in every way."""
    for case in CASES:
        torch.manual_seed(0)
        tiny = Tiny().requires_grad_(False)
        network = trained(case, tiny)
        network.targets_for_tests = list(targets_of(tiny))  # type: ignore[attr-defined]
        layers: dict[str, dict[str, Tensor]] = {}
        for key, tensor in network.saved().items():
            name, _, end = key.partition(".")
            layers.setdefault(name, {})[end] = tensor.detach()
        chosen = [next((name for name in layers if part in name), "") for part in ("conv1", "to_k", "to_out", "norm")]
        for name in dict.fromkeys(filter(None, chosen)):
            kind = kind_of_keys(layers[name], name)
            own = kind.name if kind else ""
            for what, tensors in damages(layers[name]):
                yield f"{case} {name} {what}", refused(judged, network, own, name, tensors)


@producer
def low_rank_shapes() -> Facts:
    """Which matrices fit which layer."""
    layers = {"linear": torch.nn.Linear(6, 4), "1x1": torch.nn.Conv2d(6, 4, 1), "3x3": torch.nn.Conv2d(6, 4, 3)}
    downs = [(2, 6), (2, 6, 1, 1), (2, 6, 3, 3), (2, 54), (2, 3, 6, 3), (2, 18, 3), (3, 6), (2, 5)]
    ups = [(4, 2), (4, 2, 1, 1), (2, 4), (4, 3), (8, 1)]
    for name, module in layers.items():
        found = {}
        for down in downs:
            for up in ups:
                fitted = fit_shapes(torch.ones(down), torch.ones(up), module)
                if fitted is not None:
                    found[f"{down} {up}"] = [[*each.shape] for each in fitted]
        yield name, found


@producer
def kinds_of_network() -> Facts:
    """Widths and ranks that go together, and what files and settings of a kind say."""
    for name, kind in kinds().items():
        rows = [
            [width, rank]
            for width in (1, 3, 4, 6, 8, 12, 320)
            for rank in (1, 2, 3, 4, 8)
            if not kind.fits or kind.fits(width, rank)
        ]
        job = build(TrainJob, {"network": {"kind": name, "conv_rank": 2, "rank": 3}})
        yield (
            name,
            [digest(rows) if len(rows) < 35 else "all", kind.network_args(job), kind.kind_settings(job) is not None],
        )
        yield f"{name} sized", kind.sized(job.network, kind.kind_settings(job))


# -- vocabularies

WORDS = {BEGIN: 0, END: 1, "a": 2, "b": 3, "ab": 4}


@producer
def vocabularies() -> Facts:
    """Tokenizers that are whole, and damaged in each place."""
    whole: dict[str, Any] = {"model": {"type": "BPE", "vocab": WORDS, "merges": ["a b"]}, "added_tokens": []}

    def with_(model: Mapping[str, Any] = {}, **more: Any) -> dict[str, Any]:
        return {**whole, "model": {**whole["model"], **model}, **more}

    def token(content: Any, number: Any, **flags: Any) -> dict[str, Any]:
        return {"content": content, "id": number, **flags}

    contents = {
        "whole": whole,
        "pairs": with_({"merges": [["a", "b"]]}),
        "other type": with_({"type": "WordPiece"}),
        "no type": {"model": {"vocab": WORDS, "merges": []}},
        "no model": {"added_tokens": []},
        "words are a list": with_({"vocab": [*WORDS]}),
        "one word": with_({"vocab": {BEGIN: 0}}),
        "two words": with_({"vocab": {BEGIN: 0, END: 1}, "merges": []}),
        "true as id": with_({"vocab": {**WORDS, "a": True}}),
        "text as id": with_({"vocab": {**WORDS, "a": "2"}}),
        "a gap": with_({"vocab": {**WORDS, "ab": 5}}),
        "twice": with_({"vocab": {**WORDS, "ab": 3}}),
        "no begin": with_({"vocab": {"x": 0, END: 1, "a": 2, "b": 3, "ab": 4}}),
        "no end": with_({"vocab": {BEGIN: 0, "x": 1, "a": 2, "b": 3, "ab": 4}}),
        "no merges": with_({"merges": None}),
        "merge of three": with_({"merges": ["a b ab"]}),
        "merge of numbers": with_({"merges": [[1, 2]]}),
        "merge of strangers": with_({"merges": ["x b"]}),
        "second stranger": with_({"merges": ["a x"]}),
        "merge to a stranger": with_({"merges": ["b a"]}),
        "added dict": with_(added_tokens={"a": 1}),
        "added texts": with_(added_tokens=["a"]),
        "added": with_(added_tokens=[token("z", 5, special=True, lstrip=0, other=1), token("a", 2)]),
        "added turned": with_(added_tokens=[token("y", 6), token("z", 5)]),
        "added twice": with_(added_tokens=[token("z", 5), token("z", 6)]),
        "added gap": with_(added_tokens=[token("z", 6)]),
        "added early": with_(added_tokens=[token("z", 4)]),
        "added empty": with_(added_tokens=[token("", 5)]),
        "added long": with_(added_tokens=[token("z" * LONGEST, 5)]),
        "added too long": with_(added_tokens=[token("z" * (LONGEST + 1), 5)]),
        "added true": with_(added_tokens=[token("z", True)]),
    }  # fmt: skip
    with folder() as place:
        for name, content in contents.items():
            (place / "tokenizer.json").write_text(json.dumps(content))
            yield name, refused(read_vocabulary, place)
        (place / "tokenizer.json").unlink()
        (place / "vocab.json").write_text(json.dumps(WORDS))
        (place / "merges.txt").write_text("#version: 0.2\na b\n\n")
        yield "two files", [read_vocabulary(place), len(read_vocabulary(place))]
        hashes = {**WORDS, "#": len(WORDS), "##": len(WORDS) + 1}
        (place / "vocab.json").write_text(json.dumps(hashes))
        (place / "merges.txt").write_text("#version: 0.2\na b\n# #\n")
        yield "merges of hashes", read_vocabulary(place).merges
        (place / "vocab.json").write_text(json.dumps(WORDS))
        (place / "merges.txt").write_text("#version: 0.2\na b\n\n")
        (place / "added_tokens.json").write_text(json.dumps({"z": 5, "y": 6}))
        yield "three files", [read_vocabulary(place).added, len(read_vocabulary(place))]
    with (
        patch("core.families.vocabulary.MOST_WORDS", 5),
        patch("core.families.vocabulary.MOST_ADDED", 1),
        folder() as place,
    ):
        for name, content in (
            ("most words", with_(added_tokens=[token("z", 5)])),
            ("one word more", with_({"vocab": {**WORDS, "c": 5}})),
            ("one added more", with_(added_tokens=[token("z", 5), token("y", 6)])),
        ):
            (place / "tokenizer.json").write_text(json.dumps(content))
            yield name, refused(read_vocabulary, place)


# -- devices


@producer
def devices() -> Facts:
    """What each device refuses."""
    there = {"xformers": True}
    with patch("core.families.attention.find_spec", lambda name: there.get(name)):
        for device in ("cpu", "cuda", "cuda:1", "mps"):
            for installed in (True, False):
                there["xformers"] = installed
                for values in (
                    {"attention": "xformers"},
                    {"mixed_precision": "fp16"},
                    {"fp8_base": True},
                    {"fp8_base_unet": True},
                    {"attention": "xformers", "mixed_precision": "fp16", "fp8_base": True},
                ):
                    yield f"{device} {installed} {values}", device_problems(MemorySettings(**values), device)
    backends = patch.object(
        torch._dynamo, "list_backends", lambda exclude_tags=(): ["inductor", "cudagraphs", "eager", "tvm"]
    )
    with backends, patch.object(compiling, "find_spec", lambda name: None):
        for compiler in (True, False):
            with patch.object(compiling, "_compiler_found", lambda device, found=compiler: found):
                for backend in ("inductor", "cudagraphs", "eager", "tvm", "openxla"):
                    settings = MemorySettings.model_construct(torch_compile=True, dynamo_backend=backend)
                    for device in ("cpu", "cuda", "mps"):
                        yield f"compile {compiler} {backend} {device}", compiling.compile_problems(settings, device)
    yield "not compiled", compiling.compile_problems(MemorySettings(), "mps")
    for there_are, wanted in ((1, 1), (1, 2), (2, 2), (2, 3)):
        with patch.object(torch.cuda, "device_count", lambda count=there_are: count):
            for device in ("cpu", "cuda:0"):
                yield f"cards {there_are} {wanted} {device}", refused(launch.check_gpus, wanted, device)


@producer
def samplers() -> Facts:
    """Which sampler fits which objective, schedule and image."""
    for name in [*SAMPLERS, "nonsense"]:
        problems = [sampler_problem(name, objective, "w") for objective in ("epsilon", "v", "flow", "x0", "nonsense")]
        schedules = [
            schedule_problem(name, schedule, "w") is None for schedule in ("own", "karras", "exponential", "nonsense")
        ]
        yield (
            name,
            [[each is None for each in problems], schedules, noise_problem(name, "w") is None, schedules_of(name)],
        )


@producer
def advice_on_memory() -> Facts:
    """Which tasks are told what saves memory."""
    said_of = {}
    context: Any = SimpleNamespace(workspace=None, device="cpu")
    with patch("core.training.memory.advice.out_of_memory_advice", lambda *_: "of training"):
        for task in ("generate", "class_images", "grid", "train", "probe", "caption", "resize_lora"):
            text = execute.memory_advice(task, TrainJob(), context)
            said_of[task] = text if text in ("", "of training") else "of generation"
    yield "tasks", said_of


# -- memory of processes


@producer
def shares() -> Facts:
    """Bytes of one process with DeepSpeed: stages, offloading, types, numbers of processes."""
    for stage in (1, 2, 3):
        for optimizer in (None, "cpu", "nvme"):
            for param in (None, "cpu", "nvme"):
                for fp16 in (False, True):
                    settings = ShardingSettings.model_construct(
                        **ShardingSettings().model_dump()
                        | {
                            "deepspeed": True,
                            "zero_stage": stage,
                            "offload_optimizer_device": optimizer,
                            "offload_param_device": param,
                            "fp16_master_weights_and_gradients": fp16,
                        }
                    )
                    rows = []
                    for trained_, item in ((1_000_003, 2), (1_000_003, 4), (900_000_000, 2), (2_600_000_000, 4)):
                        sizes = TrainedSizes(trained_, item, 3 * trained_ * item, 2.0)
                        rows += [
                            process_sizes(settings, sizes, processes, here)
                            for processes, here in ((1, 1), (2, 2), (8, 4))
                        ]
                    numbers = [list(plain(row).values()) for row in rows]
                    yield f"{stage} {optimizer} {param} {fp16}", [numbers[0], numbers[5], numbers[-1], digest(numbers)]


# -- patterns


@producer
def time_of_patterns() -> Facts:
    """Each use of a pattern takes from the time that all its uses have."""
    clock = iter([0.0, 0.4, 1.0, 1.5, 2.0, 2.0])
    seconds: list[float] = []

    def use(timeout: float) -> str:
        seconds.append(timeout)
        return "found"

    pattern = Pattern("a", "here")
    pattern._left = 1.2
    with patch("core.record.patterns.time.thread_time", lambda: next(clock)):
        for _ in range(3):
            pattern._with_timeout(use)
    yield "left", [seconds, pattern._left]

    def late(timeout: float) -> str:
        raise TimeoutError

    yield "late", refused(pattern._with_timeout, late)


# -- settings


def values_of(entry: Declared) -> Iterator[Any]:
    """Values of a setting other than its default: its edges and what lies a step beyond, its choices, nothing."""
    bounds, default = entry.bounds, entry.default
    step = 1 if entry.kind == "int" else 0.001
    if entry.kind == "choice":
        yield from (each for each in entry.choices if each != default)
    elif entry.kind == "bool":
        yield not default
    elif entry.kind in ("int", "float"):
        low, high = bounds.get("ge", bounds.get("gt")), bounds.get("le", bounds.get("lt"))
        edges = [edge for edge in (low, high) if edge is not None]
        yield from (edge + more for edge in edges for more in (-step, step) if edge + more != default)
        yield from [edge for edge in edges if edge != default][:1]
    elif entry.kind == "text":
        yield "x"
    elif entry.kind == "span":
        yield 0.1
    if entry.optional and default is not None:
        yield None


DEEPSPEED_GROUPS = {"sharding", "memory", "method", "network", "noise", "optimizer"}
BASES: dict[str, dict[str, Any]] = {
    "lora": {},
    "deepspeed": {
        "sharding": {"deepspeed": True, "zero_stage": 3},
        "memory": {"num_processes": 2},
        "network": {"train_text_encoder": True},
    },
}


@producer
def each_setting_alone() -> Facts:
    """What one changed setting is told, and which others it makes gray or not."""
    for base, fixed in BASES.items():
        plain_job = build(TrainJob, fixed)
        usual = {_key(each) for each in training_problems(plain_job)}
        gray = set(ineffective(plain_job))
        for entry in declared(TrainJob):
            if base == "deepspeed" and (entry.group not in DEEPSPEED_GROUPS or entry.kind not in ("bool", "choice")):
                continue
            rows = {}
            for value in values_of(entry):
                values = {**fixed, entry.group: {**fixed.get(entry.group, {}), entry.name: value}}
                if found := _alone(values, usual, gray):
                    rows[repr(value)] = found
            if rows:
                text = json.dumps(plain(rows))
                yield f"{base} {entry.path}", rows if len(text) < 500 else [sorted(rows), digest(rows)]


def _key(problem: Problem) -> str:
    return json.dumps(plain(problem))


def _alone(values: dict[str, Any], usual: set[str], gray: set[str]) -> Any:
    try:
        job = build(TrainJob, values)
    except ProblemsError as error:
        return ["refused", *error.problems]
    told = [each for each in training_problems(job) if each.code not in OF_THE_MACHINE and _key(each) not in usual]
    now = set(ineffective(job))
    return [told, sorted(gray - now), sorted(now - gray)] if told or now != gray else None
