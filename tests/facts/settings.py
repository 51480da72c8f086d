"""What the settings' rules, forms, presets and texts answer to random jobs and odd inputs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

from core.record.problems import Problem, ProblemsError
from core.settings.check import build
from core.settings.job import TrainJob
from core.settings.optimization.usual_rates import unusual_rates
from core.settings.rules import ineffective, training_problems
from tests.facts.jobs import changes
from tests.facts.store import Facts, producer

METHODS = ("lora", "dreambooth", "fine_tune", "embedding", "controlnet", "lllite")
SEEDS = Path(__file__).with_name("seeds.txt")
FAMILIES = ("sd1", "sd2", "sdxl", "sdxl_refiner", "auto")
# Groups that jobs of a topic draw from, and what half of them set besides: what opens the topic's rules.
TOPICS: dict[str, tuple[tuple[str, ...], dict[str, tuple[Any, ...]]]] = {
    "noise": (("noise", "model", "dataset"), {"noise.loss_type": ("huber", "l2", "smooth_l1", "log_cosh")}),
    "network": (
        (
            "network",
            "method",
            "sharding",
            "dora",
            "ia3",
            "diag_oft",
            "boft",
            "lokr",
            "loha",
            "locon",
            "glora",
            "lllite",
        ),
        {
            "network.kind": ("lora", "locon", "loha", "lokr", "dora", "ia3", "diag_oft", "boft", "dylora", "glora"),
            "network.train_text_encoder": (True, False),
            "network.conv_rank": (None, 4),
            "optimizer.text_encoder_lr": (None, 0.0, 1e-4),
        },
    ),
    "optimizer": (
        ("optimizer", "schedule", "network", "method"),
        {
            "optimizer.optimizer_type": (
                "AdamW",
                "AdaFactor",
                "Prodigy",
                "DAdaptLion",
                "DAdaptAdam",
                "AdamWScheduleFree",
                "Lion",
                "SGDNesterov",
                "CAME",
                "AdamW8bit",
                "Muon",
                "nonsense",
                "torch.optim.SGD",
                "DAdaptation",
                "RAdamScheduleFree",
                "adafactor",
            ),
            "optimizer.optimizer_args": (
                {},
                {"relative_step": False},
                {"relative_step": False, "warmup_init": True},
                {"clip_threshold": 2.0},
                {"weight_decay": 0.1},
                {"betas": [0.9, 0.99], "eps": 1e-8},
                {"d_coef": 2},
                {"scale_parameter": False},
                {"relative_step": True, "warmup_init": False},
                {"nonsense": 1},
                {"momentum": "much"},
            ),
            "optimizer.learning_rate": (1e-4, 1.0, 0.0, -1e-4, 0.01, 1e-7, 3e-5),
            "schedule.lr_scheduler": (
                "constant",
                "constant_with_warmup",
                "cosine",
                "adafactor",
                "step",
                "linear",
                "rex",
            ),
            "schedule.lr_warmup_steps": (0, 10, "10%", 0.5, 2000),
            "schedule.max_train_steps": (100, 1000, None),
        },
    ),
    "memory": (
        ("memory", "sharding", "method", "schedule", "optimizer"),
        {
            "memory.mixed_precision": ("no", "bf16", "fp16", "auto"),
            "memory.full_precision": ("fp32", "bf16", "fp16"),
            "memory.torch_compile": (True, False),
            "memory.fused_backward_pass": (True, False),
            "optimizer.optimizer_type": ("AdamW", "AdaFactor", "Prodigy", "Lion"),
        },
    ),
    "sharding": (
        ("sharding", "memory", "method", "network", "noise"),
        {
            "sharding.deepspeed": (True,),
            "sharding.zero_stage": (0, 1, 2, 3),
            "sharding.offload_optimizer_device": (None, "cpu", "nvme"),
            "sharding.offload_param_device": (None, "cpu", "nvme"),
            "memory.num_processes": (1, 2, 4),
            "optimizer.optimizer_type": ("AdamW", "Lion", "AdaFactor"),
            "optimizer.optimizer_args": ({}, {"amsgrad": True}),
        },
    ),
    "saving": (("saving", "resume", "hub", "samples", "validation", "logging", "schedule"), {}),
    "dataset": (("dataset", "captions", "validation", "method"), {"memory.cache_latents": ("off", "auto", "disk")}),
    "embedding": (
        ("embedding", "captions", "saving", "noise"),
        {
            "embedding.token_string": ("zkw", "zkw, zkv", "zkw, zkw", "a/b", "two words", None),
            "embedding.init_word": ("cat", "cat, dog", "cat, dog, fox", None),
            "embedding.extended": (True, False),
        },
    ),
    "all": ((), {}),
}
OF_THE_MACHINE = {"deepspeed.not-linux", "deepspeed.not-installed"}
JOBS_EACH = 1  # for each family, method and topic; SEEDS has further ones


def random_job(name: str) -> TrainJob | list[Problem]:
    """A job of random settings, or the problems of its values; those are then taken back, so that the rules see the others.

    name   "method family topic number"
    """
    method, family, topic, _ = name.split()
    groups, opening = TOPICS[topic]
    draw = Random(name)
    fixed = {"method.kind": method, "model.family": family}
    if draw.random() < 0.7:
        fixed |= {path: draw.choice(choices) for path, choices in opening.items() if draw.random() < 0.7}
    values = changes(TrainJob, name, draw.choice((2, 5, 10)), groups, fixed)
    first: list[Problem] = []
    for _ in range(3):
        try:
            return build(TrainJob, values)
        except ProblemsError as error:
            first = first or error.problems
            for problem in error.problems:
                group, _, setting = problem.where.partition(".")
                values.get(group, {}).pop(setting.partition(".")[0], None)
    return first


def answers(job: TrainJob | list[Problem], plain: set[str]) -> dict[str, Any]:
    """A job's problems, and which settings have no effect in it though they usually have, or the other way round."""
    if isinstance(job, list):
        return {"refused": job}
    gray = set(ineffective(job))
    problems = [each for each in training_problems(job) if each.code not in OF_THE_MACHINE]
    far = [(each.where, each.direction, each.rate, each.usual.start) for each in unusual_rates(job)]
    found = {"problems": problems, "gray": sorted(gray - plain), "not gray": sorted(plain - gray), "far": far}
    return {name: value for name, value in found.items() if value}


def usually_gray(method: str) -> set[str]:
    return set(ineffective(build(TrainJob, {"method": {"kind": method}})))


def names() -> Iterator[str]:
    """A job of each kind, and those that reach what these do not."""
    for method in METHODS:
        for family in FAMILIES:
            yield from (f"{method} {family} {topic} {number}" for topic in TOPICS for number in range(JOBS_EACH))
    yield from SEEDS.read_text("utf-8").split("\n")[:-1]


@producer
def rules() -> Facts:
    """What random jobs are told."""
    plain = {method: usually_gray(method) for method in METHODS}
    for method, gray in plain.items():
        yield f"{method} usual", sorted(gray)
    for name in names():
        yield name, answers(random_job(name), plain[name.split()[0]])
