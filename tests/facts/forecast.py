"""Memory forecasts of all recipes and of varied jobs, what they advise, and the values recommended for jobs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from random import Random
from typing import Any
from unittest.mock import patch

import torch

from core.networks.kinds import settings_as_text
from core.record.problems import ProblemsError
from core.record.workspace import PROJECT
from core.settings.base import declared
from core.settings.check import build
from core.settings.job import TrainJob
from core.settings.methods import methods, spec_of
from core.settings.optimization.optimizers import catalog
from core.settings.optimization.rates import effective_rates, scale_factor
from core.settings.optimization.usual_rates import short as short_number
from core.settings.optimization.usual_rates import usual_rates
from core.settings.presets import files as presets
from core.settings.presets.levels import level_of, levels
from core.settings.presets.networks import kind_of, settings_of_arguments
from core.settings.presets.recipes import changes, constant_or_warmup, recipes, usual_rate
from core.training.checks.recipe_fit import fits, nearest
from core.training.memory import activations
from core.training.memory.activations import peak_bytes
from core.training.memory.advice import advise, level_plans, switch_savings
from core.training.memory.plan import CAPTIONS, IMAGES, MemoryFacts, fits_with_encoders, memory_plan
from tests.facts.jobs import changes as random_changes
from tests.facts.store import Facts, digest, producer, refused
from tests.models import tiny_configs
from tests.training.test_memory_plan import published, short

GROUPS = ("memory", "sharding", "method", "network", "schedule", "dataset", "noise", "captions")
OPTIMIZERS = (
    "AdamW",
    "AdamW8bit",
    "AdaFactor",
    "Prodigy",
    "Lion",
    "Lion8bit",
    "SGDNesterov",
    "DAdaptLion",
    "CAME",
    "AdamWScheduleFree",
)


@contextmanager
def counted_quickly() -> Iterator[None]:
    """Passes are not counted but a function of what they compute."""

    def peak(one: activations.Pass, config: Any = None) -> int:
        share = {"network": 3, "weights": 4, "text": 1, "side": 2}[one.trains] * (1 if one.checkpoint else 5)
        return one.sides[0] * one.sides[1] * share * (2 if one.attention == "sdpa" else 3) * 100

    def fast(device: str) -> bool:
        return device.startswith("cuda")

    with (
        patch.object(activations, "peak_bytes", peak),
        patch("core.record.machine.bf16_is_fast", fast),
        patch("core.families.type_speed._bf16_pays", lambda key: True),
        patch("core.training.memory.advice.bf16_is_fast", fast),
        patch("core.training.memory.advice.find_spec", lambda name: True),
    ):
        yield


@cache
def facts(family: str, device: str, side: int, batch: int) -> MemoryFacts:
    """A model with the numbers of the published one whose U-Net has one block."""
    small = short(published(family, side, batch))
    parts = dict(small.parts)
    if family == "sdxl":
        config = dict(parts["unet"].config) | {"attention_head_dim": [5], "transformer_layers_per_block": [1]}
        parts["unet"] = replace(parts["unet"], config=config)
    for name in small.text_parts():
        parts[name] = replace(parts[name], config=dict(parts[name].config) | {"num_hidden_layers": 1})
    return replace(small, parts=parts, device=device, images=40)


def random_job(name: str) -> TrainJob | None:
    draw = Random(name)
    fixed = {"method.kind": draw.choice(list(methods())), "optimizer.optimizer_type": draw.choice(OPTIMIZERS)}
    fixed["network.rank"] = draw.choice((4, 8, 9, 16, 64))
    fixed["dataset.train_batch_size"] = draw.choice((1, 2, 3, 8))
    for path, choices in (
        ("memory.full_precision", ("fp32", "bf16", "fp16")),
        ("sharding.deepspeed", (False, False, True)),
        ("method.ema", (False, True)),
        ("memory.cache_latents", ("off", "auto", "memory", "device", "disk")),
    ):
        fixed[path] = draw.choice(choices)
    try:
        values = random_changes(TrainJob, name, draw.choice((3, 6, 10)), GROUPS, fixed)
        for group in ("network", "method"):
            for each in (
                "layers",
                "exclude_layers",
                "layer_dims",
                "block_lr",
                "block_dims",
                "network_weights",
                "dim_from_weights",
            ):
                values.get(group, {}).pop(each, None)
        return build(TrainJob, values)
    except ProblemsError:
        return None


@producer
def plans() -> Facts:
    """All numbers of the forecast of random jobs."""
    with counted_quickly():
        for number in range(130):
            job, draw = random_job(f"plan {number}"), Random(number)
            if job is None:
                continue
            family = draw.choice(("sd1", "sdxl"))
            given = facts(
                family, draw.choice(("cuda", "cuda", "cpu", "mps")), draw.choice((512, 768)), draw.choice((1, 4))
            )
            late = draw.choice(((), (), (IMAGES,), (CAPTIONS,), (IMAGES, CAPTIONS)))
            try:
                plan = memory_plan(job, given, encoded_in_steps=late)
                found = [plan.parts(), plan.total, plan.memory, plan.disk]
                found += [[fits_with_encoders(job, given, free << 30, late) for free in (2, 6, 12)]]
                found += [spec_of(job).trained_numbers(job, family, given.parts)]
            except (ProblemsError, ValueError) as error:
                found = [type(error).__name__]
            yield f"{number} {job.method.kind} {given.device}", found


@producer
def passes() -> Facts:
    """Bytes of real forward and backward passes of U-Nets with tiny widths."""
    whole = activations.Pass("sd1", (256, 192), 2, torch.bfloat16, "network", activations_of("lora"))
    for change in (
        {}, {"checkpoint": True, "blocks": "outer"}, {"attention": "plain"}, {"trains": "weights", "family": "sdxl"},
        {"network": activations_of("lora", conv_rank=4), "checkpoint": True}, {"trains": "side", "side": '{"method": {"kind": "lllite"}}'},
    ):  # fmt: skip
        one = replace(whole, **change)
        config = tiny_configs(one.family)["unet"] | ONE_BLOCK
        yield str(change)[:100], peak_bytes(one, config)


ONE_BLOCK = {
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    "block_out_channels": [32, 64],
    "layers_per_block": 1,
    "attention_head_dim": 2,
    "transformer_layers_per_block": 1,
}


def activations_of(kind: str, **network: Any) -> str:
    return settings_as_text(build(TrainJob, {"network": {"kind": kind, **network}}))


@producer
def advised() -> Facts:
    """Advice on memory, the slider's levels and what each switch saves."""
    with counted_quickly():
        for number in range(24):
            job, draw = random_job(f"advice {number}"), Random(number)
            if job is None:
                continue
            given = facts("sd1", draw.choice(("cuda", "cuda", "cpu")), 512, job.dataset.train_batch_size)
            given = replace(given, images=0)
            try:
                savings = [[each.path, each.value, each.bytes, each.also] for each in advise(job, given, None)]
                slider = [[each.level.number, each.plan.total, each.saved] for each in level_plans(job, given)]
                yield str(number), [savings, slider, switch_savings(job, given), level_of(job)]
            except (ProblemsError, ValueError) as error:
                yield str(number), type(error).__name__
    for method in methods():
        for optimizer in ("AdamW", "AdaFactor", "Prodigy"):
            job = build(TrainJob, {"method": {"kind": method}, "optimizer": {"optimizer_type": optimizer}})
            for device in ("cuda", "mps"):
                values = {level.number: list(level.values.values()) for level in levels(job, device)}
                yield f"levels {method} {optimizer} {device}", values


@producer
def shipped() -> Facts:
    """Each shipped preset: what it states, its forecast, and which recipe of another size is nearest."""
    store = presets.PresetStore(PROJECT / "presets")
    found = {name: store.load(name, "train") for name in store.names("train") if not name.startswith("user/")}
    with counted_quickly():
        for name, preset in found.items():
            job = presets.apply(preset, TrainJob())
            assert isinstance(job, TrainJob)
            side = job.dataset.resolution if isinstance(job.dataset.resolution, int) else 1024
            family = preset.family or "sd1"
            plan = memory_plan(
                job, facts("sdxl" if family == "sdxl" else "sd1", "cuda", side, job.dataset.train_batch_size)
            )
            others = {wanted: nearest(found.values(), preset, wanted, 9 * 10**9) for wanted in ("sd1", "sdxl")}
            yield (
                name,
                {
                    "stated": digest(preset.stated()),
                    "plan": plan.parts(),
                    "total": plan.total,
                    "nearest": {wanted: each and each.name for wanted, each in others.items()},
                    "fits": [fits(preset, size) for size in (None, 0, int(preset.vram_gb * 0.95e9), 12 * 10**9)],
                    "rates": effective_rates(job),
                },
            )


@producer
def recommended() -> Facts:
    """Usual learning rates by method, part, kind and optimizer, and what recipes for optimizers change."""
    for method in methods():
        for optimizer in OPTIMIZERS:
            job = build(TrainJob, {"method": {"kind": method}, "optimizer": {"optimizer_type": optimizer}})
            yield (
                f"{method} {optimizer}",
                [
                    [
                        usual and [usual.low, usual.start, usual.high]
                        for part in PARTS
                        if (usual := usual_rates(job, part)) or True
                    ],
                    (rate := usual_rate(job)) and rate.settings,
                    [changes(job, each) for each in recipes(optimizer)] if method == "lora" else "",
                ],
            )
    for entry in catalog().values():
        yield f"recipe {entry.name}", [dict(each.settings) for each in recipes(entry.name)][:1]
    for kind, rank, alpha in (
        ("lora", 8, 1),
        ("lora", 8, 8),
        ("lora", 8, 24),
        ("lora", 64, 1),
        ("loha", 4, 1),
        ("ia3", 4, 1),
        ("oft", 4, 1),
    ):
        job = build(TrainJob, {"network": {"kind": kind, "rank": rank, "alpha": alpha}})
        found = usual_rates(job)
        yield (
            f"rates {kind} {rank} {alpha}",
            found and [found.low, found.start, found.high, found.deviation(1e-5), found.deviation(1e-2)],
        )
    for values in (
        {"learning_rate": 1e-4, "unet_lr": 2e-4, "text_encoder_lr": 5e-5},
        {"learning_rate": 1e-4, "text_encoder_lr": [1e-5, 2e-5], "scale_lr": True},
        {"learning_rate": 1e-4, "loraplus_lr_ratio": 4, "loraplus_text_encoder_lr_ratio": 2},
        {"learning_rate": 1e-4, "unet_lr": 0, "loraplus_unet_lr_ratio": 16},
    ):
        more = {
            "network": {"train_text_encoder": True},
            "dataset": {"train_batch_size": 3},
            "schedule": {"gradient_accumulation_steps": 2},
        }
        job = build(TrainJob, {"optimizer": values, **more})
        yield f"rates {values}", [effective_rates(job, 2), scale_factor(job, 2)]
    yield "short", [short_number(number) for number in (1e-4, 2.5e-5, 1e-3, 0.005, 1.0, 3.333e-4, 12, 0.00099)]
    for schedule in (
        {"lr_scheduler": "constant", "lr_warmup_steps": 10},
        {"lr_scheduler": "constant"},
        {"lr_scheduler": "cosine", "lr_warmup_steps": 10},
    ):
        yield (
            f"warmup {schedule}",
            [each.settings for each in constant_or_warmup(build(TrainJob, {"schedule": schedule}))],
        )


PARTS = ("unet", "text_encoder", "text_encoder_2", "unet plus", "unet_block3")


@producer
def presets_of_the_past() -> Facts:
    """Presets of earlier versions, odd headers, and those of other programs."""
    folder = Path(__file__).parents[1] / "settings" / "versions"
    for file in sorted(folder.glob("*.json")):
        preset = refused(presets.read, file)
        yield file.name, preset
    for text in (
        "", "[]", "{}", '{"schema_version": "1"}', '{"schema_version": 0}', '{"schema_version": 4}', '{"schema_version": 3}',
        '{"schema_version": 3, "kind": "x"}', '{"schema_version": 3, "task": "nonsense"}', '{"schema_version": 3, "task": 5}',
        '{"schema_version": 3, "kind": "recipe", "task": "generate"}', '{"schema_version": 3, "kind": "recipe", "model": {}}',
        '{"schema_version": 3, "kind": "recipe", "model": {"base_model": "x"}}', '{"schema_version": 3, "family": "sd9"}',
        '{"schema_version": 3, "kind": "recipe", "dataset": {"resolution": 512}, "vram_gb": 8, "reasons": {"a": "b"}}',
        '{"schema_version": 3, "vram_gb": 2000}', '{"schema_version": 3, "reasons": {"a": 1}}', '{"datasets": []}',
        '{"schema_version": 3, "noise": {"min_snr_gama": 5}}', '{"schema_version": 3, "noise": {"min_snr_gamma": "5"}}',
        '{"schema_version": 3, "schema_version": 3}', '{"training_method": 1, "model_type": 1, "concepts": 1}',
        '{"LoRA_type": 1, "train_data_dir": "", "output_dir": ""}', 'network_dim = 4\noutput_name = "a"\nlearning_rate = 1',
        '{"schema_version": 1, "task": "class_pictures", "noise": {"compatibility": "kohya"}, "model": {}}',
        '{"schema_version": 1, "noise": {"compatibility": "none"}, "samples": {"compatibility": "kohya_0.9"}, "model": {}}',
        '{"schema_version": 2, "network": {"kind": "dora"}}', '{"schema_version": 2, "network": {"kind": "lora"}}',
        '{"schema_version": 2, "network": {"kind": "dora_loha"}, "dora_loha": {"wd_on_output": false}}',
        '{"schema_version": 1, "task": "tool", "tool": {"name": "export_diffusers", "file": "a", "output": "b"}}',
        '{"schema_version": 2, "task": "images", "images": {"action": "edges", "folder": "a", "edge_low": 5, "quality": 5}}',
        '{"schema_version": 1, "task": "images", "images": {"folder": "a", "max_resolution": "512", "crop_size": 5}}',
        '{"schema_version": 1, "method": {"prior": "pictures"}, "noise": {"mask_mean": "picture"}}',
        '{"schema_version": 3, "task": "export_diffusers", "export_diffusers": {"file": "a"}}',
    ):  # fmt: skip
        yield text, refused(_without_defaults, text)


def _without_defaults(text: str) -> Any:
    preset = presets.parse_bytes(text.encode(), "x.json")
    return [preset.kind, preset.task, preset.values, preset.notes, preset.family, preset.vram_gb, preset.reasons]


@producer
def networks_of_others() -> Facts:
    """Network types and arguments of other programs as settings."""
    known = {entry.path: entry for entry in declared(TrainJob)}
    for given in (
        {"LoRA_type": "Standard"}, {"LoRA_type": "Kohya LoCon"}, {"LoRA_type": "LyCORIS/LoKr"}, {"LoRA_type": "LoRA-FA"},
        {"LoRA_type": "LyCORIS/Diag-OFT"}, {"LoRA_type": "LyCORIS/Native Fine-Tuning"}, {"LoRA_type": "nonsense"},
        {"network_module": "networks.lora"}, {"network_module": "networks.dylora"}, {"network_module": "lycoris.kohya"},
        {"network_module": "lycoris.kohya", "algo": "loha", "dora_wd": "True"}, {"network_module": "networks.oft"}, {},
        {"network_module": "lycoris.kohya", "algo": "boft"}, {"network_module": "lycoris.kohya", "algo": "ia3", "dora_wd": "0"},
    ):  # fmt: skip
        yield str(given), kind_of(given)
    arguments = {
        "conv_dim": 4,
        "dropout": 0.1,
        "use_cp": True,
        "constrain": 1,
        "factor": 8,
        "preset": "full",
        "algo": "x",
        "new": 1,
    }
    for kind in ("lora", "locon", "loha", "lokr", "diag_oft", "dora", "dora_lokr", "ia3", "glora"):
        yield f"arguments {kind}", settings_of_arguments(kind, arguments, known)
