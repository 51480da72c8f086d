"""What tools compute of layers and images: decompositions, sums, ranks, plots, faces, captions of pairs."""

from __future__ import annotations

from itertools import product
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from PIL import Image
from safetensors.torch import load_file

from core.networks.adapter_file import save_lora
from core.record.problems import Problem
from core.record.workspace import Workspace
from core.settings.tools.hints import MakePairsSettings
from core.settings.tools.images import FaceSettings
from core.tools import merges
from core.tools.images import faces, make_pairs
from core.tools.loras import layers, plots, singular_values, sums, svd
from tests.facts.running import run
from tests.facts.samples import beside, quarters, smooth
from tests.facts.store import Facts, folder, producer, refused
from tests.facts.tools import LAYER, METADATA, lora


def matrix(rows: int, columns: int, rank: int, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    """A matrix of this rank whose singular values fall by a third each."""
    draws = torch.Generator().manual_seed(seed)
    left = torch.linalg.qr(torch.randn(rows, rank, generator=draws, dtype=torch.float64)).Q
    right = torch.linalg.qr(torch.randn(columns, rank, generator=draws, dtype=torch.float64)).Q
    return (left * (scale * 1.5 ** -torch.arange(rank, dtype=torch.float64)) @ right.mT).float()


@producer
def decompositions() -> Facts:
    """Singular values and signs by each way, cut, clamped and retained; where the iteration gives up."""
    draws = torch.Generator().manual_seed(1)
    up, down = torch.randn(12, 3, generator=draws), torch.randn(3, 9, generator=draws)
    changes = {
        "low rank": svd.Product(up, down),
        "full": svd.Product(torch.randn(4, 6, generator=draws), torch.randn(6, 5, generator=draws)),
        "matrix": matrix(10, 7, 7),
        "zero": torch.zeros(5, 4),
        "edge": svd.Product(torch.randn(3, 3, generator=draws), torch.randn(3, 9, generator=draws)),
    }
    for name, change in changes.items():
        found = svd.decompose(change)
        again = found.u * found.s @ found.v
        shares = [found.retained(rank) for rank in (0, 1, 2, 99)]
        signs = [bool(column[column.abs().argmax()] >= 0) for column in found.u.T]
        low = isinstance(change, svd.Product) and change.is_low_rank
        kohya = svd.decompose(change, compatibility="sd-scripts")
        yield (
            name,
            [
                low,
                found.s[found.s > 1e-6],
                found.norm,
                shares,
                all(signs),
                again,
                kohya.s[kohya.s > 1e-5],
                found.u.shape,
                kohya.u.shape,
            ],
        )
        if name != "zero":
            yield (
                f"{name} cut",
                [[each.abs() for each in found.cut(2)], [each.abs().max() for each in found.cut(2, 0.9)]],
            )
    for rows, columns, rank, scale in (
        (140, 150, 8, 1.0),
        (150, 140, 8, 1.0),
        (80, 90, 8, 1.0),
        (79, 90, 8, 1.0),
        (140, 150, 40, 1.0),
        (140, 150, 8, 1e-8),
        (140, 150, 8, 0.0),
    ):
        made = matrix(rows, columns, 30, 5, scale)
        found = svd.leading(made, rank)
        yield (
            f"leading {rows} {columns} {rank} {scale}",
            found and [found.s, found.norm, found.retained(rank), (found.u * found.s @ found.v).abs().double().sum()],
        )
    with patch.object(svd, "QUANTILE_NUMBERS", 10):
        yield "thinned", [each.abs().max() for each in svd.clamped(up, down, 0.8)]
    yield "clamped", list(svd.clamped(up, down, 0.8))


@producer
def added() -> Facts:
    """Sums of layers with strengths of both signs, alphas of 0, and kinds without factors."""
    draws = torch.Generator().manual_seed(2)

    def term(ratio: float, block: float, alpha: float, rank: int = 2) -> sums.Term:
        return sums.Term(
            ratio,
            block,
            alpha,
            svd.Product(torch.randn(5, rank, generator=draws), torch.randn(rank, 4, generator=draws)),
        )

    other = sums.Term(0.5, 2.0, 1.0, full_change=torch.randn(5, 4, generator=draws))
    cases = {
        "one": [term(1, 1, 2)],
        "two": [term(0.5, 1, 2), term(-0.7, 0.5, 1)],
        "no alpha": [term(1, 1, 0), term(0.5, 1, 3)],
        "none": [term(1, 1, 0)],
        "off": [term(0, 1, 1), term(0, 1, 2)],
        "negative": [term(-1, -0.5, -2), term(0.4, -1, 3)],
    }
    for name, terms in cases.items():
        ways = (sums.concatenated, sums.averaged, sums.averaged_as_sd_scripts, sums.concatenated_as_sd_scripts)
        yield name, [refused(way, terms) for way in ways]
    yield "ranks", sums.concatenated([term(1, 1, 2), term(-1, 1, 2, 3)])
    yield (
        "whole",
        [
            isinstance(sums.total_change([term(1, 1, 2)]), svd.Product),
            sums.total_change([term(1, 1, 2), other]),
            sums.total_change([other, other]),
        ],
    )
    yield (
        "shuffled",
        [
            list(sums.shuffled(torch.arange(8.0).reshape(2, 4), torch.arange(12.0).reshape(4, 3), seed, name))
            for seed in (0, 1)
            for name in "ab"
        ],
    )
    for text in ("", " ", "1, 2", "1", "1,2,3", "x", "0.5,-1", "1;2", "nan, 1"):
        problems: list[Problem] = []
        yield f"ratios {text}", [refused(merges.ratios_of, text, 2, "LoRA", "here", problems), problems]


@producer
def ranks() -> Facts:
    """Retained norms, needed and usual ranks, places of layers in maps, figures and colors of plots."""
    values = {"a": torch.tensor([4.0, 2.0, 1.0]).double(), "b": torch.tensor([3.0]).double()}
    retained = singular_values.retained_together
    yield "retained", [retained({"a": values["a"]}, len(values["a"])), retained(values, 3)]
    yield (
        "needed",
        [singular_values.rank_that_keeps([0.5, 0.9, 1.0], keep) for keep in (0.4, 0.5, 0.9, 0.9 + 5e-10, 0.91, 1.1)],
    )
    yield "usual", [singular_values.usual_rank(rank) for rank in (*range(1, 10), 16, 17, 64, 65, 128, 129, 5000)]
    yield (
        "quantiles",
        [singular_values._quantile(list(range(count)), share) for count in (1, 2, 10, 11) for share in (0.1, 0.5, 0.9)],
    )
    curves = (
        singular_values._retained_curves({"a": [0.5, 1.0], "b": [0.9]}, [0.6, 1.0], 2),
        singular_values._value_curves(values, 3),
    )
    yield "curves", list(curves)
    names = (
        "lora_unet_down_blocks_1_attentions_0_proj_in",
        "lora_unet_mid_block_resnets_0_conv1",
        "lora_unet_up_blocks_2_upsamplers_0_conv",
        "lora_te_text_model_encoder_layers_11_self_attn_q_proj",
        "lora_te2_text_model_encoder_layers_3_mlp_fc1",
        "lora_unet_conv_in",
        "lora_te_text_projection",
        "lora_unet_down_blocks_0_attentions_1_transformer_blocks_0_attn2_to_k",
        "lora_unet_time_embedding_linear_1",
        "x",
    )
    yield "places", [layers.cell_of(name) for name in names]
    yield (
        "columns",
        [layers.columns_of(part, {"IN04", "OUT03", "MID", "other", "2", "11", "10"}) for part in layers.PARTS.values()],
    )
    yield (
        "figures",
        [plots.significant_digits(value) for value in (0, 1, 9.99e-4, 1e-3, 99999, 99999.6, 1e5, 123.456, -2e-5)],
    )
    yield (
        "colors",
        [plots.color_of(value, span) for value in (None, 0, 0.5, 1, 2, -1) for span in ((0, 1), (-2, 1), (0, 0))],
    )
    targets = [
        layers.target_with("x", torch.zeros(shape), bias)
        for shape, bias in (((4, 3), True), ((4, 3, 1, 1), False), ((4, 3, 3, 3), True))
    ]
    yield (
        "targets",
        [
            [
                type(each.module).__name__,
                each.module.weight.shape,
                each.module.weight.requires_grad,
                each.module.bias is not None,
            ]
            for each in targets
        ],
    )


class Found:
    def __init__(self, *found: Any):
        self.found = list(found)

    def find(self, image: Image.Image, least: float) -> list[Any]:
        return self.found


def face(x: float, y: float, side: float, tilt: float = 0.0) -> Any:
    return SimpleNamespace(center=(x, y), size=(side, side * 1.2), tilt=tilt)


@producer
def crops() -> Facts:
    """Windows around faces by each option, and faces that are left out."""
    with folder() as root:
        path = root / "p.png"
        smooth(120, 90).save(path)
        options: tuple[dict[str, Any], ...] = (
            {},
            {"face_min_size": 24},
            {"face_min_size": 25},
            {"face_max_size": 36},
            {"face_max_size": 35},
            {"multiple_faces": True},
            {"face_rotate": True},
            {"face_crop": "size", "crop_size": (64, 64)},
            {"face_crop": "size", "crop_size": (121, 64)},
            {"face_crop": "ratio", "face_crop_ratio": (2.0, 2.5)},
            {"face_crop": "size", "crop_size": (64, 64), "face_resize": "fit"},
            {"face_crop": "size", "crop_size": (64, 64), "face_resize": "face", "resize_face_size": 60},
            {"face_crop": "ratio", "face_crop_ratio": (9.0, 9.0), "face_rotate": True},
        )
        for number, given in enumerate(options):
            for name, found in (
                ("two", Found(face(60.4, 40, 30, 10), face(100, 80, 20))),
                ("corner", Found(face(3, 2, 30, -0.04))),
                ("none", Found()),
            ):

                def made(given: dict[str, Any] = given, found: Found = found) -> Any:
                    settings = FaceSettings(folder=str(root), **given)
                    try:
                        copies, left_out = faces.face_copies(path, settings, found)
                    except faces.Skip:
                        return "skipped"
                    return [
                        [
                            each.stem,
                            each.image.colors.size,
                            [q // 200 for q in quarters(each.image.colors.convert("RGB"))],
                        ]
                        for each in copies
                    ] + [len(left_out)]

                yield f"{number} {name}", refused(made)
    yield (
        "around",
        [faces.window_around(x, y, (20, 30), (60, 50)) for x, y in product((0, 10, 30.5, 59), (0, 25.5, 49))],
    )
    turned = [faces.rotated(smooth(40, 30), degrees, (10, 12)) for degrees in (0.04, 0.06, 30, -90, 180)]
    yield "rotated", [[each // 200 for each in quarters(image)] for image in turned]


@producer
def pairs() -> Facts:
    """Captions of files and folders for pairs, their limit, and names of their folder."""
    with folder() as root:
        beside(root / "lines.txt", "one\n\n two \n# three\n")
        beside(root / "empty.txt", "\n \n")
        for name, text in {
            "set/b.txt": "b  c\nd",
            "set/a.caption": "a",
            "set/sub/x.txt": "x",
            "set/.hidden/y.txt": "y",
            "set/b.caption": "B",
            "set/z.md": "z",
            "set/e.txt": " ",
        }.items():
            beside(root / name, text)
        for name in ("lines.txt", "empty.txt", "set", "gone", ""):
            yield f"captions {name}", refused(make_pairs._captions, str(root / name) if name else "")
        for most in (2, 3):
            with patch.object(make_pairs, "MAX_PROMPTS", most):
                yield f"most {most}", refused(make_pairs._captions, str(root / "lines.txt"))
        space = Workspace(root / "outputs", root / "models")
        for given in ({}, {"output": str(root / "out")}, {"preprocessor": "canny"}, {"captions": str(root / "set")}):
            settings = MakePairsSettings(**{"captions": str(root / "lines.txt"), **given})
            yield f"output {sorted(given)}", make_pairs._output(settings, space)
        base = make_pairs._job(MakePairsSettings(captions="x"))
        requests = [make_pairs._request(base, ["a", "b"], 7, number) for number in range(3)]
        yield (
            "requests",
            [[each.job.generate.prompt, each.job.generate.seed, each.job.generate.prompt_weights] for each in requests],
        )
        wheres = ("generate.width", "generate.nope", str(root / "x"), "model.base_model", "")
        yield "where", [make_pairs._at_tool_setting(Problem("w", each)).where for each in wheres]


@producer
def untrained() -> Facts:
    """Tools on a LoRA that changes nothing, and on one of a single trained layer."""
    for name, trained in (("zero", ()), ("one", (LAYER,))):
        with folder() as root:
            path = lora(root / "a.safetensors")
            tensors = load_file(path)
            changed = {
                key: each if key.endswith("alpha") or key.startswith(trained or ("x",)) else each * 0
                for key, each in tensors.items()
            }
            save_lora(root / "b.safetensors", changed, METADATA)
            b = str(root / "b.safetensors")
            for task, given in (
                ("singular_values", {"file": b, "keep": 0.9}),
                ("check_weights", {"file": b}),
                ("compare_loras", {"file": b, "other": str(path)}),
                (
                    "resize_lora",
                    {
                        "file": b,
                        "new_rank": 2,
                        "dynamic_method": "sv_fro",
                        "dynamic_param": 0.9,
                        "output": str(root / "c.safetensors"),
                    },
                ),
            ):
                yield f"{name} {task}", run(task, root, {task: given})
