"""Preprocessors, poses, and the shapes of ControlNets and LLLites."""

from __future__ import annotations

import numpy as np
import torch

from core.control import hints, lllite, shapes
from core.control.hints import edges, plain, random_parts
from core.control.hints.pose.drawing import draw
from core.control.hints.pose.person import Person
from core.families import prompt_weights
from core.families.part_shapes import library_name
from core.families.precision import choose_precision, vae_type
from core.families.published_shapes import recorded
from core.settings.hints import HintSettings
from core.settings.memory import MemorySettings
from core.settings.method import MethodSettings
from tests.facts.formats import listed
from tests.facts.samples import quarters, smooth
from tests.facts.store import Facts, producer

OPTIONS = [
    {"preprocessor": "canny"},
    {"preprocessor": "canny", "edge_low": 20, "edge_high": 60},
    {"preprocessor": "soft_edges", "edge_blur": 0.8, "edge_gain": 2.0},
    {"preprocessor": "scribble", "line_width": 3},
    {"preprocessor": "grayscale"},
    {"preprocessor": "invert"},
    {"preprocessor": "blur", "blur_radius": 2.0},
    {"preprocessor": "tile", "tile_factor": 3.0},
    {"preprocessor": "shuffle", "hint_seed": 4},
    {"preprocessor": "inpaint", "mask_share": 0.4, "hint_seed": 2},
]


@producer
def preprocessed() -> Facts:
    """Control images as the sums of their quarters."""
    image = np.asarray(smooth(48, 40, 1))
    for options in OPTIONS:
        made = hints.make_hint(image, HintSettings(**options))
        yield str(options), [made.shape, [each // 200 for each in quarters(made)], len(np.unique(made)) > 2]
    yield (
        "names",
        [
            [each.name, each.settings, sorted(hints.unused_settings({"preprocessor": each.name}))]
            for each in hints.preprocessors().values()
        ],
    )
    yield "black", [hints.black_hints([f"{n}.png" for n in range(number)], "x") for number in (1, 10, 11)]
    gray = plain.gray_levels(image)
    yield (
        "gray",
        [gray, plain.to_levels(np.array([-1.0, 0.4, 0.5, 254.6, 300.0])), plain.gaussian(gray.astype("float32"), 1.5)],
    )
    yield "edges", [int(edges.canny(gray, low, high).sum()) for low, high in ((10, 20), (50, 100), (100, 50))]
    yield (
        "masks",
        [
            [each.shape, round(float(each.mean()), 2)]
            for each in (random_parts.random_mask(40, 50, share, 3) for share in (0.1, 0.5, 0.9))
        ],
    )


@producer
def poses() -> Facts:
    """People as bodies, hands and faces."""
    draws = np.random.default_rng(0)
    body = draws.uniform(20, 100, (18, 2))
    body[4] = np.nan
    whole = Person(body, (draws.uniform(20, 100, (21, 2)),), draws.uniform(20, 100, (68, 2)))
    for name, people in {"one": [whole], "none": [], "two": [whole, Person(body[::-1].copy())]}.items():
        yield name, [[each // 3000 for each in quarters(draw(people, size))] for size in ((128, 128), (600, 520))]


@producer
def nets() -> Facts:
    """The tensors that control nets of the published models have."""
    for family in ("sd1", "sd2", "sdxl"):
        unet = recorded()[family]["unet"]
        found = shapes.control_net_shapes(unet, list(unet))
        yield f"{family} controlnet", [listed(found.items()), shapes.depths_of(unet)]
    layer = lllite.LayerNet(48, 2, 8, 16)
    with torch.no_grad():
        for number, weight in enumerate(layer.parameters()):
            weight.copy_(torch.arange(weight.numel()).reshape(weight.shape) % (7 + number) / 20 - 0.1)
    linear = torch.nn.Linear(48, 12)
    with torch.no_grad():
        linear.weight.copy_(torch.arange(576).reshape(12, 48) % 11 / 50)
        linear.bias.zero_()
        net = lllite.LLLite({"one": layer})
        x = (torch.arange(2 * 16 * 48).reshape(2, 16, 48) % 13) / 13
        answers = [linear(x)]
        for multiplier in (1.0, 0.5):
            net.multiplier = multiplier
            net.attach(torch.nn.ModuleDict({"layer": linear}), [lllite.LLLiteTarget("one", "layer", 2, 48)])
            net.set_control(torch.ones(2, 3, 64, 64) * 0.7)
            answers.append(linear(x))
            net.detach()
        answers.append(linear(x))
    yield "lllite", answers


TEXTS = (
    "a (red:1.3) fox",
    "((a)) [b]",
    "(a:1.2.3)",
    "(a:1001)",
    "(a:1000) (b:-2)",
    "\\(a\\) \\\\",
    "(open [square",
    "close) ]",
    "(a:1,2) (b: 1.2) (c:high)",
    "(" * 100 + "a",
    "(" * 101 + "a",
    "a:b)",
    "",
)


@producer
def weighted() -> Facts:
    """Prompt weights as runs and faults, and the precision of jobs."""
    for text in TEXTS:
        runs, faults = prompt_weights.read_weights(text)
        yield (
            f"{text[:24]} {len(text)}",
            [runs, [[each.start, each.end, each.kind] for each in faults[:3]], bool(prompt_weights.weight_error(text))],
        )
    for precision in ("auto", "no", "bf16", "fp16"):
        for options in ({}, {"full_precision": "bf16"}, {"full_precision": "fp16"}):
            for kind in ("lora", "fine_tune"):
                settings = MemorySettings(mixed_precision=precision, **options)
                made = [
                    choose_precision(
                        settings, "cpu", size, trains=trains, method=MethodSettings(kind=kind), bf16_pays=lambda: True
                    )
                    for size in (200 << 20, (200 << 20) + 1)
                    for trains in (True, False)
                ]
                yield (
                    f"{precision} {options} {kind}",
                    [[each.name, each.scaled, str(each.compute), str(each.trainable)] for each in made],
                )
    yield (
        "generation",
        [
            choose_precision(MemorySettings(), "cpu", 1 << 30, bf16_pays=lambda pays=pays: pays).name
            for pays in (True, False)
        ],
    )
    yield (
        "vae",
        [
            str(vae_type(MemorySettings(vae_precision=each)))
            for each in MemorySettings.model_fields["vae_precision"].annotation.__args__
        ],
    )
    yield "levels", [library_name(name, {"text_model.a": 1, "b": 2}) for name in ("a", "b", "c")]
