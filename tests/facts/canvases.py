"""Images that a generation begins with: masks, boxes, fits, batches of control images; previews and what CLIP and VGG compare."""

from __future__ import annotations

from functools import partial
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from PIL import Image, ImageDraw

from core.families import family
from core.generation.effects import inpaint, preview
from core.generation.effects.controls import checks
from core.generation.effects.perceptual import hook as perceptual
from core.generation.effects.perceptual.checks import CONVOLUTIONS
from core.generation.plan import initial
from core.generation.plan.requests import Request
from core.generation.sample import canvas
from core.record.problems import ProblemsError
from core.settings.check import build
from core.settings.job import GenerateJob
from tests.facts.samples import beside, quarters, smooth, write
from tests.facts.store import Facts, folder, producer, refused


def sums(image: Image.Image) -> list[Any]:
    return [image.size, image.mode, [each // 100 for each in quarters(image)]]


def mask(width: int, height: int, box: tuple[int, int, int, int]) -> Image.Image:
    made = Image.new("L", (width, height))
    ImageDraw.Draw(made).rectangle(box, fill=255)
    return made


def job_of(**groups: Any) -> GenerateJob:
    return build(GenerateJob, groups)


@producer
def masks() -> Facts:
    """Boxes around masked areas, prepared images, masks at latent size, and the result pasted back."""
    areas = ((0, 0, 10, 10), (40, 20, 50, 60), (90, 90, 100, 100), (0, 0, 100, 100), (30, 30, 31, 80))
    for area, padding, size in product(areas, (0, 8, 200), ((64, 64), (128, 64), (64, 192))):
        yield f"around {area} {padding} {size}", inpaint.box_around(area, (100, 120), padding, size)
    yield (
        "stretched",
        [
            inpaint._extended_span(*each)
            for each in ((3, 7, 10, 100), (3, 7, 2, 100), (90, 99, 30, 100), (3, 7, 200, 100), (0, 4, 7, 100))
        ],
    )
    with folder() as root:
        write(root / "a.png", smooth(100, 120))
        write(root / "m.png", mask(100, 120, (30, 40, 60, 90)))
        write(root / "small.png", mask(50, 60, (15, 20, 30, 45)))
        write(root / "odd.png", mask(50, 50, (0, 0, 9, 9)))
        write(root / "black.png", Image.new("L", (100, 120)))
        write(root / "white.png", Image.new("L", (100, 120), 255))
        a, m = str(root / "a.png"), str(root / "m.png")
        for number, options in enumerate(
            (
                {},
                {"mask_path": m},
                {"mask_path": m, "inpaint_area": "masked"},
                {"mask_path": m, "masked_content": "fill"},
                {"mask_path": m, "inpaint_area": "masked", "mask_padding": 0, "mask_blur": 0},
                {"mask_path": m, "mask_invert": True, "mask_blur": 9},
                {"fit": "crop"},
                {"mask_path": m, "fit": "crop"},
                {"mask_path": str(root / "black.png"), "inpaint_area": "masked"},
                {"mask_path": m, "compatibility": "sd-scripts-0.10"},
            )
        ):
            name = options.pop("compatibility", "none")
            job = job_of(image_to_image={"image_path": a} | options, model={"compatibility": name})
            made = inpaint.canvas_of(job, (64, 96))
            parts = [each and sums(each) for each in (made.visible, made.mask, made.full, made.overlay)]
            yield f"canvas {number}", [parts, made.box, sums(made.pasted(smooth(64, 96, 3)))]
        for name, invert in product(("m", "small", "odd", "black", "white"), (False, True)):
            job = job_of(
                image_to_image={"image_path": a, "mask_path": str(root / f"{name}.png"), "mask_invert": invert}
            )
            yield f"mask {name} {invert}", list(initial.mask_problems([Request(job), Request(job)]))
        yield "latents", [canvas.mask_of(Image.open(root / "m.png"), (4, 12, 10), each) for each in (False, True)]
        yield (
            "unread",
            refused(
                inpaint.canvas_of, job_of(image_to_image={"image_path": str(beside(root / "x.png", "x"))}), (64, 64)
            ),
        )
        yield from sized(root)
    for channels, outputs in ((4, 4), (9, 4), (9, 9), (19, 9), (0, 0), (1, 0)):
        parts_of = SimpleNamespace(denoiser=SimpleNamespace(config={"in_channels": channels, "out_channels": outputs}))
        yield f"reads {channels} {outputs}", inpaint.is_inpainting_model(parts_of)
    yield (
        "filled",
        [
            sums(inpaint.filled(smooth(40, 40), mask(40, 40, box)))
            for box in ((0, 0, 20, 40), (10, 10, 30, 30), (0, 0, 40, 40))
        ],
    )


def sized(root: Path) -> Facts:
    """Images fitted, placed and filled in each way."""
    image = smooth(60, 40)
    for size, fit in product(((60, 40), (30, 40), (90, 30)), ("resize", "crop", "fill")):
        whole = canvas.control_image_for(image, fit, size, None, lambda each: each)
        part = canvas.control_image_for(image, fit, size, ((80, 80), (10, 20, 50, 60)), lambda each: each)
        yield f"placed {size} {fit}", [sums(whole), sums(part)]
    pixels = canvas.pixels_of(image)
    yield "pixels", [pixels, float(pixels.min()), float(pixels.max())]


@producer
def turns() -> Facts:
    """Images of folders for the images of a job: initial ones, masks, control and guide images."""
    with folder() as root:
        for name, number in (
            ("images", 3),
            ("masks", 3),
            ("two", 2),
            ("four", 4),
            ("five", 5),
            ("one", 1),
            ("none", 0),
        ):
            (root / name).mkdir()
            for each in range(number):
                write(
                    root / name / f"{each}.png",
                    smooth(16, 16, each) if (name, each) != ("five", 1) else Image.new("RGB", (16, 16)),
                )
        beside(root / "images" / "x.txt", "x")
        at = lambda name: str(root / name)  # noqa: E731
        for images, masks_at in (
            ("images", "masks"),
            ("images", "two"),
            ("images", "one"),
            ("one", "two"),
            ("none", "two"),
            ("gone", "two"),
            ("images/1.png", "two"),
        ):
            job = job_of(image_to_image={"image_path": at(images), "mask_path": at(masks_at)})

            def resolved(job: GenerateJob = job) -> Any:
                found = initial.with_initial_images([Request(job)] * 4)
                return [[each.job.image_to_image.image_path, each.job.image_to_image.mask_path] for each in found]

            yield f"initial {images} {masks_at}", refused(resolved)
        nets: list[dict[str, Any]] = [
            {"file": "a"},
            {"file": "b"},
            {"file": "c", "enabled": False},
            {"file": "d", "image": at("two")},
        ]
        for shared, name, count in product(("four", "five", "one", "two", None), ("none", "sd-scripts-0.10"), (2, 4)):
            controls = {"nets": nets, "control_image": shared and at(shared)}
            jobs = [job_of(controls=controls, model={"compatibility": name})] * count

            def dealt(jobs: list[GenerateJob] = jobs) -> Any:
                found = checks.with_control_images(jobs)
                rows = [[each.controls.control_image, [net.image for net in each.controls.nets]] for each in found]
                return [rows, list(checks.unused_images(jobs))]

            yield f"controls {shared} {name} {count}", refused(dealt)
        for settings in (
            {"nets": [{"file": "a"}]},
            {"nets": [{"file": "a", "image": "x", "start_at": 0.5, "end_at": 0.5}]},
            {"control_image": "x"},
            {},
            {"nets": [{"file": "a", "start_at": 0.4, "end_at": 0.5}], "control_image": "x"},
        ):
            for shrink in ({}, {"ds_depth_1": 2}):
                job = job_of(controls=settings, deep_shrink=shrink)
                yield f"problems {settings} {shrink}", list(checks.control_problems(job))


@producer
def previews() -> Facts:
    """Colors of latents, sheets of batches, sizes of JPEGs, and which steps show one."""
    draws = torch.Generator().manual_seed(2)
    latents = torch.randn(3, 4, 6, 5, generator=draws)
    for name, factors in preview.PUBLISHED.items():
        yield name, preview.approximated(latents, torch.tensor(factors)).double()
    for count in range(1, 8):
        sheet = preview.tiled(torch.arange(count, dtype=torch.uint8)[:, None, None, None].expand(count, 2, 3, 3) + 1)
        yield f"tiled {count}", sheet[:, :, 0].tolist()
    shown: list[Any] = []

    def show(data: bytes) -> None:
        import io

        shown.append(Image.open(io.BytesIO(data)).size)

    for every, size in ((1, (40, 48)), (2, (4000, 4800)), (3, (5, 6))):
        made = preview.Preview(torch.tensor(preview.PUBLISHED["sd1"]), every, size, show)
        with (
            patch.object(preview.time, "monotonic", iter([100 + 0.1 * each for each in range(9)]).__next__),
            patch.object(preview, "clean_estimate", lambda scheduler, output, timestep, latents: latents),
        ):
            for index in range(9):
                made.step(SimpleNamespace(index=index, scheduler=None, timestep=0, latents=latents), latents)
        yield f"every {every} {size}", list(shown)
        shown.clear()
    vae = SimpleNamespace(config={}, parameters=lambda: iter([torch.zeros(1)]))
    weights = torch.randn(4, 3, generator=draws)
    decoded = lambda vae, latents: torch.einsum("bchw,cr->brhw", latents, weights) + 0.25  # noqa: E731
    kind = SimpleNamespace(name="sd1", latent_channels=4, decode_latents=decoded)
    factors = preview.fitted_factors(kind, vae)
    yield "fitted", [bool((factors[:4] - weights).abs().max() < 1e-4), factors[4]]


class Vae:
    """A VAE that decodes by a formula and overflows in the types that it is told."""

    def __init__(self, dtype: torch.dtype, overflows: tuple[torch.dtype, ...]):
        self.weight, self.overflows = torch.zeros(1, dtype=dtype), overflows

    def parameters(self) -> Any:
        return iter([self.weight])

    def float(self) -> Vae:
        return self.to(torch.float32)

    def to(self, dtype: torch.dtype) -> Vae:
        self.weight = self.weight.to(dtype)
        return self


@producer
def decoding() -> Facts:
    """Decoded images; what overflows is decoded again in fp32, and what is not finite refused."""
    latents = torch.linspace(-1.5, 1.5, 24).reshape(1, 3, 2, 4)

    def decoder(vae: Vae, given: torch.Tensor) -> torch.Tensor:
        return given * float("nan") if vae.weight.dtype in vae.overflows else given

    for dtype, overflows in product(
        (torch.float32, torch.float16, torch.bfloat16),
        ((), (torch.float16,), (torch.bfloat16, torch.float16), (torch.float32,), (torch.float32, torch.float16)),
    ):
        vae, warned = Vae(dtype, overflows), list[Any]()

        def images(vae: Vae = vae, warned: list[Any] = warned) -> Any:
            return [
                quarters(each) for each in canvas.decode(vae, latents.repeat(2, 1, 1, 1), decoder, warn=warned.append)
            ]

        yield f"{dtype} {overflows}", [refused(images), warned, str(vae.weight.dtype)]
    yield "latents", refused(partial(canvas.decode_pixels, Vae(torch.float32, ()), latents / 0, decoder))


@producer
def guides() -> Facts:
    """Distances to texts and images, what is corrected by them, and the parts that are checkpointed meanwhile."""
    draws = torch.Generator().manual_seed(4)
    rows = torch.nn.functional.normalize(torch.randn(4, 8, generator=draws), dim=-1)
    yield "spherical", [perceptual.spherical(rows, each) for each in (rows, -rows, rows.flip(0))]
    image = torch.rand(1, 3, 10, 14, generator=draws)
    for numbers in (perceptual.CLIP_MEAN_STD, perceptual.VGG_MEAN_STD):
        yield f"input {numbers[0][0]}", [perceptual._model_input(image, size, numbers) for size in ((10, 14), (8, 8))]
    yield "pixels", perceptual._pixels(smooth(30, 20), (8, 12), image)
    yield (
        "plain",
        [
            perceptual._clip_text(text, weighted)
            for text in ("a (fox:1.2) AND [b] :0.5", "a BREAK b", "xBREAKy (c)")
            for weighted in (True, False)
        ],
    )
    layers, inputs = [], 3
    for number in range(perceptual.POOLS[-1] + 1):
        if number in CONVOLUTIONS:
            layer = torch.nn.Conv2d(inputs, 4, 3, padding=1)
            with torch.no_grad():
                layer.weight.copy_(torch.randn(layer.weight.shape, generator=draws) / 3)
                layer.bias.fill_(0.1)
            layers.append(layer)
            inputs = 4
        else:
            layers.append(torch.nn.MaxPool2d(2) if number in perceptual.POOLS else torch.nn.ReLU())
    vgg = perceptual.Vgg16(torch.nn.Sequential(*layers))
    with torch.no_grad():
        for layer_number, size in ((0, (256, 128)), (8, (256, 256)), (20, (100, 64)), (30, (128, 256))):
            distance = vgg.to_image(smooth(40, 30), layer_number, size)
            yield f"vgg {layer_number} {size}", [distance(torch.rand(1, 3, 64, 64, generator=draws)), distance(image)]
    calls: list[str] = []
    part = SimpleNamespace(
        enable_gradient_checkpointing=lambda: calls.append("on"),
        disable_gradient_checkpointing=lambda: calls.append("off"),
    )
    for failing in (False, True):
        try:
            with perceptual._checkpointed(part):
                calls.append("within")
                if failing:
                    raise ProblemsError.one("x")
        except ProblemsError:
            calls.append("failed")
    with perceptual._checkpointed(object()):
        calls.append("bare")
    yield "checkpointed", calls
    for pull in (
        torch.tensor([1e-9, 3e-8]),
        torch.tensor([5.0, 100.0]),
        torch.zeros(2),
        torch.tensor([float("inf"), 1.0]),
    ):
        leaf = torch.tensor([1.0, 2.0], requires_grad=True)
        yield f"pulled {pull.tolist()}", perceptual._backward(leaf * leaf, leaf, pull)
    yield from corrected()


def corrected() -> Facts:
    """A step's output and latents after a correction by known gradients, for each prediction and sampler."""
    latents = torch.linspace(-1, 1, 16).reshape(1, 4, 2, 2)
    for sampler, velocity, root in product(("ddim", "lms"), (False, True), (0.009, 0.011, 0.3, 0.99)):
        made = object.__new__(perceptual.Perceptual)
        made._inputs = SimpleNamespace(
            job=job_of(generate={"sampler": sampler}),
            components=SimpleNamespace(vae=None),
            family=SimpleNamespace(decode_latents=lambda vae, given: given[:, :3] * 0.9),
        )
        made._measures = [[(2.0, lambda pixels: (pixels - 0.25).square().sum()), (0.5, lambda pixels: pixels.mean())]]
        scheduler = SimpleNamespace(config={"prediction_type": "v_prediction" if velocity else "epsilon"})
        moment = SimpleNamespace(scheduler=scheduler, timestep=5, latents=latents.clone())
        with (
            patch.object(perceptual, "root_alpha_bar", lambda scheduler, timestep, root=root: root),
            patch.object(perceptual, "model_input", lambda scheduler, given, timestep: given * 0.8),
        ):
            output = made.corrected(moment, latents * 0.3, lambda noisy: noisy * 0.4 + 0.1)
        yield f"{sampler} {velocity} {root}", [output, moment.latents]
    yield "shapes", [family(name).latent_shape((64, 128)) for name in ("sd1", "sdxl")]
