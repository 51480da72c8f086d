"""What a run encodes, where and when; the prior term of its loss; when bf16 pays on a CPU."""

from __future__ import annotations

import json
from contextlib import ExitStack
from functools import partial
from itertools import product
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch

from core.dataset.caches.encoding import Side
from core.diffusion.text_states import TextStates
from core.families import counting, type_speed
from core.settings.check import build
from core.settings.job import TrainJob
from core.training.building import latents
from core.training.loop import prior
from tests.facts.caches import images
from tests.facts.samples import beside
from tests.facts.store import Facts, folder, producer


def _inputs(device: str, heard: list[Any], processes: int = 1, **groups: Any) -> Any:
    workspace: Any = SimpleNamespace(cache=_Place("cache"), private=_Place("private"))
    context = SimpleNamespace(
        device=device,
        workspace=workspace,
        warn=None,
        check=None,
        say=lambda line: heard.append("said"),
        stage=lambda *words: heard.append(["stage", *words[1:]]),
        processes=SimpleNamespace(count=processes),
    )
    family = SimpleNamespace(digest=lambda *given, **named: sorted(named), latent_shape="shape")
    return SimpleNamespace(
        job=build(TrainJob, groups),
        context=context,
        family=family,
        family_name="sd1",
        model="m",
        vae="v",
        memo="memo",
        report=None,
    )


class _Place(str):
    def __truediv__(self, other: str) -> str:
        return f"{self}/{other}"


@producer
def encoded() -> Facts:
    """Caches, devices of their entries, threads, and images that are encoded by the steps."""
    for device, cores in product(("cpu", "cuda:0", "mps"), (1, 4, 64)):
        with patch.object(latents.machine, "cores", lambda cores=cores: cores):
            yield f"threads {device} {cores}", latents.decode_threads(device)
    with folder() as root:
        items = images(root, flip_aug=True)
        for kept, precision, npz in product(("auto", "disk", "memory", "device"), ("auto", "bf16"), (True, False)):
            made = _inputs("cuda", [], memory={"cache_latents": kept, "vae_precision": precision, "npz_caches": npz})
            with patch.object(latents, "LatentCache", dict):
                cache = latents.latent_cache(made, items)
            cache["others"] = type(cache.pop("other_programs")).__name__
            yield f"cache {kept} {precision} {npz}", [cache, latents.on_disk(made)]
        for size, kept, device in product((50, 51), ("auto", "memory", "device"), ("cpu", "cuda")):
            one: Any = SimpleNamespace(bytes_of=lambda placed, size=size: size)
            with patch.object(latents, "DEVICE_BYTES", 50 * 2 * len(items)):
                yield f"held {size} {kept} {device}", latents.posterior_device(one, items, kept, device)
        for number, (device, batch, todo, at_once, fits, keep_vae) in enumerate(
            product(("cpu", "cuda"), (1, 2), (0, 3), (True, False), (True, False), (True, False))
        ):
            yield (
                f"late {number}",
                _late(
                    device,
                    batch,
                    [Side(items[0]), Side(items[0], True), Side(items[2])][:todo],
                    items,
                    at_once,
                    fits,
                    keep_vae,
                ),
            )
    for processes, active, fits in product((1, 2), (True, False), (True, False)):
        made = _inputs("cuda", [], processes, sharding={"deepspeed": active, "zero_stage": 2})
        with ExitStack() as stack:
            for name, answer in (("facts_of", None), ("fits_with_encoders", fits)):
                stack.enter_context(patch.object(latents, name, lambda *given, answer=answer: answer))
            stack.enter_context(patch.object(latents.machine, "available_memory", lambda device: 1))
            yield f"fit {processes} {active} {fits}", latents.encoders_fit(made, [])


def _late(device: str, batch: int, todo: list[Side], items: Any, at_once: bool, fits: bool, keep_vae: bool) -> Any:
    heard: list[Any] = []
    made = _inputs(device, heard, memory={"vae_batch_size": batch})
    models: Any = SimpleNamespace(vae=lambda: "vae", offload_vae=partial(heard.append, "offloaded"))
    cache: Any = SimpleNamespace(
        other_programs=None,
        missing_sides=lambda placed, check, reads: heard.append(["lacking", reads]) or todo,
        require_room=lambda sides: heard.append(["room", len(sides)]),
        fill=_filled(heard),
    )
    with ExitStack() as stack:
        for name, answer in (("encoders_fit", fits), ("encoder", "encoder"), ("fp32_retry", "retry")):
            stack.enter_context(patch.object(latents, name, lambda *given, answer=answer: answer))
        late = latents._sides_for_steps(made, models, cache, items, at_once=at_once, keep_vae=keep_vae)
    return [len(late), heard]


def _filled(heard: list[Any]) -> Any:
    def fill(missing: Any, encode: Any, *, progress: Any, check: Any, **named: Any) -> None:
        heard.append(["filled", len(missing), encode, named])
        progress(1, 2)

    return fill


@producer
def priors() -> Facts:
    """The prior term of an image's loss, and settings under which there is none or nothing trains."""
    with folder() as root:
        items = images(root)
        roles = ("train", "regularization", "train")
        batch: Any = SimpleNamespace(
            items=[(_of(placed, role, word), 0) for placed, role, word in zip(items, roles, ("cat", "", " dog "))]
        )
        known = {
            name: TextStates(torch.full((1, 2, 3), float(number))) for number, name in enumerate(("cat", "dog"), 1)
        }
        for trains, caption, weight in product((True, False), (None, "dog"), (1.0, 0.25)):
            job = build(
                TrainJob,
                {"method": {"prior": "model", "class_caption": caption}, "dataset": {"prior_loss_weight": weight}},
            )
            asked: list[Any] = []

            def states(captions: Any, asked: list[Any] = asked) -> TextStates:
                asked.append(list(captions))
                return TextStates(torch.full((len(captions), 2, 3), 9.0))

            def loss(predict: Any, preserved: Any, sample_weights: Any) -> Any:
                return [predict(1, 2), preserved[0](1, 2), preserved[1].tolist(), sample_weights]

            def predicted(name: str, noisy: int, at: int, text: TextStates) -> Any:
                return [name, text.context.mean((1, 2)).tolist()]

            term = prior.ModelPrior(job, known, trains)
            found = term.losses(batch, partial(predicted, "trained"), partial(predicted, "untrained"), states, loss)
            yield f"losses {trains} {caption} {weight}", [found, asked]
        placed = [each for each, _ in batch.items]
        for number, (kind, chosen, weight, caption, preserving) in enumerate(
            product(("lora", "embedding"), ("images", "model"), (0.0, 1.0), (None, "dog"), ((), (0,), (0, 1, 2)))
        ):
            job = build(
                TrainJob,
                {
                    "method": {"kind": kind, "prior": chosen, "class_caption": caption},
                    "dataset": {"prior_loss_weight": weight},
                },
            )
            some: Any = [
                _of(each, each.concept.role, each.concept.source.class_word, index in preserving)
                for index, each in enumerate(placed)
            ]
            yield (
                f"problems {number}",
                [
                    prior.prior_problems(job, some),
                    prior.captions(job, some),
                    prior.has_prior(job),
                    prior.needs_untrained_model(job),
                ],
            )


def _of(placed: Any, role: str, word: str | None, preserves: bool = False) -> Any:
    source = SimpleNamespace(class_word=word, folder=placed.image.path.name, diff_output_preservation=preserves)
    return SimpleNamespace(concept=SimpleNamespace(role=role, source=source), image=placed.image)


@producer
def speeds() -> Facts:
    """When bf16 is used on a CPU, how often it is measured, and what is remembered."""
    with folder() as root:
        file = root / "speeds.json"
        for number, (known, found) in enumerate(
            product(
                (
                    None,
                    "[1]",
                    {"key": {"fp32": 1.0, "bf16": 1.05}},
                    {"key": {"fp32": 1.0, "bf16": 1.06}},
                    {"key": {"fp32": 1.0}},
                    {"other": {"fp32": 2.0, "bf16": 2.0}},
                ),
                (1.0, 1.05, 1.06),
            )
        ):
            file.unlink(missing_ok=True)
            if known is not None:
                beside(file, known if isinstance(known, str) else json.dumps(known))
            type_speed._bf16_pays.cache_clear()
            measured = {"fp32": 1.0, "bf16": found}
            with (
                patch.object(type_speed, "speeds_file", lambda: file),
                patch.object(type_speed, "measure", lambda measured=measured: measured),
            ):
                pays = type_speed._bf16_pays("key")
            yield str(number), [pays, json.loads(file.read_text())]
        type_speed._bf16_pays.cache_clear()
    for first in (2.9, 3.0, 5.0):
        times = iter([1.0, first, *(each for pair in zip((0.9, 1.1, 0.8, 1.2), (2.0, 2.1, 1.9, 2.2)) for each in pair)])
        counted: list[int] = []
        with ExitStack() as stack:
            stack.enter_context(
                patch.object(
                    type_speed, "_seconds", lambda work, times=times, counted=counted: counted.append(1) or next(times)
                )
            )
            stack.enter_context(patch.object(type_speed, "_work", lambda dtype: lambda: None))
            stack.enter_context(patch.object(type_speed.machine, "threads", torch.get_num_threads))
            yield f"measured {first}", [type_speed.measure(), len(counted)]


UNET = {
    "block_out_channels": (32, 64), "layers_per_block": 1, "cross_attention_dim": 64, "attention_head_dim": 8,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}  # fmt: skip
VAE = {"block_out_channels": (32,), "norm_num_groups": 8, "latent_channels": 4}


@producer
def passes() -> Facts:
    """Peak memory of passes of small models, in two digits, by size, batch, dtype, attention and length of text."""
    unet, vae = counting.config_key(UNET), counting.config_key(VAE)
    for sides, rows, dtype, attention, tokens in (
        ((64, 64), 1, torch.float32, "auto", 77), ((64, 128), 4, torch.bfloat16, "xformers", 77),
        ((128, 128), 1, torch.float32, "sliced", 77), ((64, 64), 1, torch.float32, "math", 700),
    ):  # fmt: skip
        found = counting.evaluation_bytes("sd1", unet, sides, rows, dtype, attention, tokens)
        slopes = counting.gradient_bytes("sd1", unet, vae, sides, rows, dtype, torch.float32, attention, tokens)
        yield f"{sides} {rows} {dtype} {attention} {tokens}", [f"{each:.2g}" for each in (found, slopes)]
    decoded = [
        counting.decoding_bytes("sd1", vae, pixels, dtype)
        for pixels in (1, 64, 128**2)
        for dtype in (torch.float32, torch.bfloat16)
    ]
    yield "decoded", [f"{each:.2g}" for each in decoded]
    yield "keys", [counting.config_key({"b": [1, (2,)], "a": {"c": "d"}})]
    there = torch.empty(10, device="meta")
    with counting.LiveBytes([there]) as live:
        seen = []
        one = torch.empty(8, device="meta")
        seen.append([live.now, live.peak])
        one.add_(1), one.view(2, 4), there.add_(1)
        seen.append([live.now, live.peak])
        two = one + one
        del one
        seen.append([live.now, live.peak])
        del two
        seen.append([live.now, live.peak])
    yield "live", seen
