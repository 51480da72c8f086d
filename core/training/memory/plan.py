"""Memory forecast of a training, from the model's header and a forward and backward pass on the meta device."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields, replace
from math import prod
from typing import TYPE_CHECKING, Any

from core.families import family
from core.families.locate import family_of, model_path
from core.families.precision import choose_precision
from core.formats.models.checkpoint import open_vae
from core.formats.tensors.writer import type_named
from core.networks.kinds import settings_as_text
from core.record.lazy_torch import torch
from core.record.machine import CUT_OFF, RUNTIME_BYTES
from core.record.workspace import Workspace
from core.settings.dataset.concepts import concepts_of
from core.settings.job import TrainJob
from core.settings.methods import spec_of
from core.settings.optimization.optimizers import find
from core.settings.optimization.rates import trains_text, trains_unet
from core.settings.optimization.states import USUAL, Shape, state_bytes
from core.settings.rules.dataset import random_augmentations
from core.training.loop.prior import needs_untrained_model
from core.training.loop.sources import DEVICE_BYTES
from core.training.memory.shares import FP32, ProcessSizes, TrainedSizes, process_sizes, processes_here

if TYPE_CHECKING:
    from core.dataset.report import Report
    from core.families.precision import Precision

Sides = tuple[int, int]
IMAGES, CAPTIONS = "images", "captions"  # what steps may encode for the caches
# Bytes for each number of a CLIP layer's input, in 16 bits: Korthikanti et al. 2022, arXiv:2205.05198, section 4.1.
TEXT_LAYER_BYTES = 34
VAE_MAPS = 4  # feature maps of 128 channels at image size that encoding holds at once
CONTROL_SHARE = 6  # compression of lines, poses and depth; photos hardly compress
STEP_BYTES = 12  # AdaFactor, for each number of the updated tensor: its copy, the update and its divisor


@dataclass(frozen=True)
class PartSize:
    """Parameter counts of a part of the model.

    numbers   all parameters
    plain     parameters of norms, biases and embeddings
    wide      parameters of convolutions larger than 1x1
    largest   parameters of the largest tensor
    config    diffusers' or transformers' config of the part
    shapes    {shape: number of tensors}
    """

    numbers: int
    plain: int
    wide: int
    largest: int
    config: Mapping[str, Any] = field(default_factory=dict)
    shapes: Mapping[Shape, int] = field(default_factory=dict)


@dataclass(frozen=True)
class MemoryFacts:
    """Facts of the model and the dataset for a memory forecast.

    parts           {part: parameter counts}
    stored          bytes of the denoiser's weights in the file
    sides           width and height of the largest batch, in pixels
    batch           number of images of the largest batch, in one process
    images          number of images with cached latents
    denoiser_name   name of the denoiser in `parts`
    texts           names of the text encoders in `parts`
    """

    family: str
    device: str
    parts: Mapping[str, PartSize]
    stored: int
    sides: Sides
    batch: int
    images: int = 0
    denoiser_name: str = "unet"
    texts: tuple[str, ...] = ("text_encoder", "text_encoder_2")

    @property
    def denoiser(self) -> PartSize:
        """Parameter counts of the denoiser."""
        return self.parts[self.denoiser_name]

    def text_parts(self) -> list[str]:
        """Return the names of the text encoders that the model has."""
        return [name for name in self.texts if name in self.parts]


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes on the training device during a step: on one GPU, or on a CPU of all processes together.

    weights        of the loaded parts, the network, an EMA on the device and the second U-Net of a prior
    optimizer      optimizer state
    gradients      of all trained weights
    activations    of the largest forward and backward pass, or gathered layers of a sharded model if those are larger
    cache          latents on the device, on a CPU also control images
    spare          torch itself and fragmentation
    memory, disk   offloaded by DeepSpeed to RAM and disk, of all processes of this machine
    """

    weights: int
    optimizer: int
    gradients: int
    activations: int
    cache: int
    spare: int
    memory: int = 0
    disk: int = 0

    @property
    def total(self) -> int:
        """Bytes of all parts on the device."""
        return sum(self.parts().values())

    def parts(self) -> dict[str, int]:
        """Return {field: bytes} of everything on the device."""
        offloaded = ("memory", "disk")
        return {entry.name: getattr(self, entry.name) for entry in fields(self) if entry.name not in offloaded}


# -- facts


def facts_of(job: TrainJob, workspace: Workspace, device: str, report: Report | None = None) -> MemoryFacts:
    """Return the facts of a job from the headers of its model's files, with the largest bucket of the dataset `report`, or without a report
    of the settings. Raises ProblemsError for a model that is missing or unknown."""
    path = model_path(job.model.base_model, workspace)
    name = family_of(path, job.model.family)
    layout = family(name).layout
    parts_of_file = family(name).parts(path)
    if job.model.vae:
        parts_of_file["vae"] = open_vae(model_path(job.model.vae, workspace, "model.vae"))
    parts = {key: _part_size(part, part.full_config(layout.config(key))) for key, part in parts_of_file.items()}
    stored = parts_of_file[layout.denoiser].weight_bytes()
    sides, batch = largest_batch(job, report)
    images = len(report.placed) if report else 0
    return MemoryFacts(name, device, parts, stored, sides, batch, images, layout.denoiser, layout.text_encoders)


def largest_batch(job: TrainJob, report: Report | None = None) -> tuple[Sides, int]:
    """Return (size, images in a process) of the batch with the most pixels: of the images in `report`, else by the settings. The size is
    (width, height), rounded down to multiples of 8, at least 64."""
    batches: list[tuple[Sides, int]] = []
    if report is not None:
        batches = [(each.placement.bucket, each.concept.images.train_batch_size) for each in report.placed]
    for concept in concepts_of(job) if not batches else ():
        images = concept.images
        batches += [
            (_width_height(side), images.train_batch_size) for side in (images.resolution, *images.more_resolutions)
        ]
    batches = batches or [(_width_height(job.dataset.resolution), job.dataset.train_batch_size)]
    sides, batch = max(batches, key=lambda each: prod(each[0]) * each[1])
    return (max(64, sides[0] // 8 * 8), max(64, sides[1] // 8 * 8)), batch


def _width_height(side: Any) -> Sides:
    """Return a resolution setting, one side or (width, height), as (width, height)."""
    wide, high = side if isinstance(side, (tuple, list)) else (side, side)
    return wide, high


def _part_size(part: Any, config: Mapping[str, Any]) -> PartSize:
    """Return the parameter counts of a part from its header. config: diffusers' or transformers' config of the part"""
    shapes = {name: weight.entry.shape for name, weight in part.locations.items()}
    plain = sum(prod(shape) for name, shape in shapes.items() if len(shape) < 2 or "embedding" in name)
    wide = sum(prod(shape) for shape in shapes.values() if len(shape) == 4 and shape[2] > 1)
    numbers = [prod(shape) for shape in shapes.values()]
    return PartSize(sum(numbers), plain, wide, max(numbers, default=0), config, Counter(shapes.values()))


# -- the plan


def fits_with_encoders(job: TrainJob, facts: MemoryFacts, free: int, encoded_in_steps: Collection[str]) -> bool:
    """Return whether the job fits into `free` bytes of memory while its steps encode images or captions that are not cached.

    encoded_in_steps   what steps encode: IMAGES, CAPTIONS

    On a CPU, encoders of at most CUT_OFF * `free` (the share for fragmentation) are accepted without counting a pass, which takes
    seconds.
    """
    encoders = _encoder_bytes(job, facts, encoded_in_steps) + _encoding_bytes(job, facts, encoded_in_steps)
    if facts.device.startswith("cpu") and encoders <= CUT_OFF * free:
        return True
    return memory_plan(job, facts, encoded_in_steps=encoded_in_steps).total <= free


def sharded_sizes(job: TrainJob, facts: MemoryFacts) -> ProcessSizes:
    """Return the bytes on the GPU, in RAM and on disk of a job with DeepSpeed."""
    return _sharded_bytes(job, facts, _precision(job, facts), _trained_numbers(job, facts))


def memory_plan(job: TrainJob, facts: MemoryFacts, *, encoded_in_steps: Collection[str] = ()) -> MemoryPlan:
    """Return the memory forecast of a job. Counting a pass takes seconds for SDXL the first time; the count is cached.
    encoded_in_steps: what steps still encode for the caches: IMAGES, CAPTIONS"""
    precision, trainable = _precision(job, facts), _trained_numbers(job, facts)
    count, cuda = job.memory.num_processes, facts.device.startswith("cuda")
    sizes = (_sharded_bytes if job.sharding.active else _unsharded_bytes)(job, facts, precision, trainable)
    one_pass = (
        max(_activation_bytes(job, facts, precision), _encoding_bytes(job, facts, encoded_in_steps)) + sizes.gathered
    )
    if count > 1 and not job.sharding.active:
        one_pass = max(one_pass, sizes.gradients)  # all-reduced as one tensor
    passes = max(one_pass, sizes.between_passes)
    weights = sizes.weights + _extra_weight_bytes(job, facts, precision, trainable, encoded_in_steps)
    spare = RUNTIME_BYTES["cuda" if cuda else "cpu"]
    spare += int(CUT_OFF * (weights + passes + sizes.optimizer + sizes.gradients))
    plan = MemoryPlan(weights, sizes.optimizer, sizes.gradients, passes, _cache_bytes(job, facts), spare)
    return replace(plan, memory=sizes.memory, disk=sizes.disk) if cuda else _on_cpu(plan, sizes, job)


def _precision(job: TrainJob, facts: MemoryFacts) -> Precision:
    """Return the precision of a job; with DeepSpeed a full model is trained in the compute dtype."""
    precision = choose_precision(job.memory, facts.device, facts.stored, method=job.method)
    if job.sharding.active and job.method.traits.full_size:  # DeepSpeed trains a full model in the compute dtype
        return replace(precision, trainable=precision.compute)
    return precision


def _on_cpu(plan: MemoryPlan, sizes: ProcessSizes, job: TrainJob) -> MemoryPlan:
    """Return the plan of a CPU, where all processes and DeepSpeed's offload to RAM share one memory. plan: of one process"""
    of_all = {name: size * processes_here(job) for name, size in plan.parts().items()}
    return MemoryPlan(**of_all | {"optimizer": of_all["optimizer"] + sizes.memory}, disk=sizes.disk)


def _unsharded_bytes(
    job: TrainJob, facts: MemoryFacts, precision: Precision, trainable: Mapping[str, int]
) -> ProcessSizes:
    """Return the bytes of a process without DeepSpeed. trainable: {part: number of trained weights}"""
    item, trained = type_named(job.memory.full_precision).itemsize, sum(trainable.values())
    gradients = (trained + _clipped_embeddings(job, facts)) * item
    weights, cast = _weight_bytes(job, facts, precision, trainable, item), 0
    step = _fp8_cast_bytes(job, facts, precision)
    if job.method.traits.full_size:
        cast, step = _cast_bytes(precision, trainable), _step_bytes(job, trained, item)
    if job.method.traits.full_size and (job.memory.fused_backward_pass or job.memory.fused_optimizer_groups):
        largest = max(facts.parts[name].largest for name in trainable)
        at_once = largest if job.memory.fused_backward_pass else trained // (job.memory.fused_optimizer_groups or 1)
        step = _step_bytes(job, at_once, item)
        gradients = at_once * item + step + largest * STEP_BYTES
        weights += cast
    elif job.schedule.gradient_accumulation_steps == 1:
        gradients = max(gradients, cast)  # cast weights are freed while gradients are computed
    else:
        weights += cast
    compensation = trained * item if job.memory.kahan_summation and job.memory.full_precision == "bf16" else 0
    return ProcessSizes(weights, gradients, optimizer_bytes(job, facts, trained) + compensation, between_passes=step)


def _fp8_cast_bytes(job: TrainJob, facts: MemoryFacts, precision: Precision) -> int:
    """Return the extra bytes of the U-Net on the device before it is cast to fp8; 0 if it is cast in RAM or not at all."""
    in_ram = facts.device.startswith("cuda") and not job.memory.lowram
    if in_ram or job.method.traits.base_trains or not job.memory.narrow_unet:
        return 0
    return (facts.denoiser.numbers - facts.denoiser.plain) * (precision.compute.itemsize - 1)


def _step_bytes(job: TrainJob, numbers: int, item: int) -> int:
    """Return the extra bytes of an optimizer step of `numbers` weights of `item` bytes: 16-bit weights and gradients are fp32 during it, at
    most LARGEST at once if the optimizer keeps its state per weight, else all."""
    from core.optimization.rounding import LARGEST

    entry = find(job.optimizer.optimizer_type)
    at_once = min(numbers, LARGEST) if entry is not None and entry.by_weight else numbers
    return at_once * 2 * FP32 if item < FP32 else 0


def _cast_bytes(precision: Precision, trainable: Mapping[str, int]) -> int:
    """Return the bytes of the trained weights' copies that autocast caches during a pass. trainable: {part: number of trained weights}"""
    if precision.compute == precision.trainable:
        return 0
    return sum(trainable.values()) * precision.compute.itemsize


def _clipped_embeddings(job: TrainJob, facts: MemoryFacts) -> int:
    """Return the parameter count of the last text encoder's token embeddings if their gradients are clipped as in sd-scripts, else 0."""
    if not job.method.traits.new_words or not job.optimizer.clips_as_kohya:
        return 0
    last = facts.parts[facts.text_parts()[-1]].config
    return int(last.get("vocab_size", 49408)) * int(last.get("hidden_size", 768))


def _sharded_bytes(
    job: TrainJob, facts: MemoryFacts, precision: Precision, trainable: Mapping[str, int]
) -> ProcessSizes:
    """Return the bytes of a process with DeepSpeed; a network is in fp32. trainable: {part: number of trained weights}"""
    item = precision.compute.itemsize if job.method.traits.full_size else 4
    model = _weight_bytes(job, facts, precision, trainable, item)
    trained = TrainedSizes(sum(trainable.values()), item, model, state_numbers(job))
    return process_sizes(job.sharding, trained, job.memory.num_processes, processes_here(job))


def _trained_numbers(job: TrainJob, facts: MemoryFacts) -> dict[str, int]:
    """Return {part: number of trained weights}."""
    return spec_of(job).trained_numbers(job, facts.family, facts.parts)


def _trained_shapes(job: TrainJob, facts: MemoryFacts) -> Mapping[Shape, int]:
    """Return {shape: number of trained tensors}."""
    return spec_of(job).trained_shapes(job, facts.family, facts.parts)


def _weight_bytes(
    job: TrainJob, facts: MemoryFacts, precision: Precision, trainable: Mapping[str, int], item: int
) -> int:
    """Return the bytes of the weights of the trained model and the network.

    trainable   {part: number of trained weights}
    item        bytes of a trained weight
    """
    full_model, compute = job.method.traits.base_trains, precision.compute.itemsize
    names = [facts.denoiser_name, *(facts.text_parts() if trains_text(job) else ())]
    total = 0 if full_model else sum(trainable.values()) * item
    for name in names:
        part, trains = facts.parts[name], full_model and name in trainable
        is_denoiser = name == facts.denoiser_name
        has_trained_tokens = job.method.traits.new_words and not is_denoiser
        size = item if trains or has_trained_tokens else compute
        fp8 = not trains and is_fp8(job, is_denoiser)
        total += part.plain * size + (part.numbers - part.plain) * (1 if fp8 else size)
        if is_denoiser and not trains and not fp8 and facts.device == "cpu" and not job.sharding.shares_weights:
            total += part.wide * size  # core/networks/frozen.py
    return total


def _extra_weight_bytes(
    job: TrainJob,
    facts: MemoryFacts,
    precision: Precision,
    trainable: Mapping[str, int],
    encoded_in_steps: Collection[str],
) -> int:
    """Return the bytes of weights besides the trained model: an EMA (its shard with DeepSpeed), an untrained U-Net, and the encoders that
    steps use."""
    full_model, total = job.method.traits.base_trains, 0
    if job.method.ema and (job.method.ema_device != "cpu" or facts.device.startswith("cpu")):
        total += sum(trainable.values()) * 4 // (job.memory.num_processes if job.sharding.active else 1)
    if full_model and needs_untrained_model(job):
        total += facts.denoiser.numbers * precision.compute.itemsize
    return total + _encoder_bytes(job, facts, encoded_in_steps)


def _encoder_bytes(job: TrainJob, facts: MemoryFacts, encoded_in_steps: Collection[str]) -> int:
    """Return the bytes of the VAE if steps encode images, and of frozen text encoders if steps encode captions."""
    total = 0
    if IMAGES in encoded_in_steps or encodes_each_time(job):
        total += facts.parts["vae"].numbers * _vae_bytes(job)
    if CAPTIONS in encoded_in_steps:
        item = _precision(job, facts).compute.itemsize
        total += sum(facts.parts[name].numbers for name in facts.text_parts()) * item
    return total


def is_fp8(job: TrainJob, is_denoiser: bool) -> bool:
    """Return whether a frozen part is in fp8: the denoiser, if `is_denoiser`, or with a LoRA the text encoders."""
    if is_denoiser:
        return job.memory.narrow_unet
    return job.memory.fp8_base and job.method.traits.uses_network


def _vae_bytes(job: TrainJob) -> int:
    """Return the bytes of a number in the VAE's dtype."""
    return 2 if job.memory.vae_precision in ("bf16", "fp16") else 4


def encodes_each_time(job: TrainJob) -> bool:
    """Return whether images of any folder are encoded at each step."""
    varied = any(random_augmentations(concept.images) for concept in concepts_of(job))
    return job.memory.cache_latents == "off" or varied


def _activation_bytes(job: TrainJob, facts: MemoryFacts, precision: Precision) -> int:
    """Return the bytes of the largest forward and backward pass: stated by the family, else counted on torch's meta device."""
    from core.training.memory.activations import Pass, peak_bytes

    stated = family(facts.family).activation_bytes(prod(facts.sides), facts.batch)
    if stated is not None:
        return stated + _text_activation_bytes(job, facts, precision.compute.itemsize)

    if job.method.traits.base_trains:
        trains = "weights" if trains_unet(job) else "text"
    elif spec_of(job).side is not None:
        trains = "side"
    else:
        trains = "network" if job.method.traits.uses_network and job.network.train_unet else "text"
    unet_alone = job.with_settings(network={"train_text_encoder": False})
    settings = settings_as_text(unet_alone) if trains == "network" else ""
    attention = "sdpa" if job.memory.attention == "auto" else job.memory.attention
    largest_pass = Pass(
        facts.family,
        facts.sides,
        1,
        torch.bfloat16,
        trains,
        settings,
        job.memory.gradient_checkpointing,
        job.memory.checkpoint_blocks,
        attention,
        side=_method_settings(job) if trains == "side" else "",
    )
    # Proportional to images and bytes of a number, so that one count serves all.
    item = precision.compute.itemsize
    counted = peak_bytes(largest_pass, facts.denoiser.config) * facts.batch * item // 2
    return counted + _text_activation_bytes(job, facts, item)


def _method_settings(job: TrainJob) -> str:
    """Return the method and its settings group as the JSON text of a preset."""
    group, values = spec_of(job).group, {"method": {"kind": job.method.kind}}
    return json.dumps(values | ({group: getattr(job, group).model_dump(mode="json")} if group else {}))


def _text_activation_bytes(job: TrainJob, facts: MemoryFacts, item: int) -> int:
    """Return the bytes that passes of the text encoders store for the backward pass; 0 if they do not train. item: bytes of a number"""
    if not trains_text(job):
        return 0
    tokens = (job.captions.max_token_length or 75) + 2
    total = 0
    for name in facts.text_parts():
        config = facts.parts[name].config
        layers = 2 if job.memory.gradient_checkpointing else config["num_hidden_layers"]
        total += facts.batch * tokens * config["hidden_size"] * layers * TEXT_LAYER_BYTES * item // 2
    return total


def _encoding_bytes(job: TrainJob, facts: MemoryFacts, encoded_in_steps: Collection[str]) -> int:
    """Return the bytes of the VAE's activations while steps encode images; 0 if they do not."""
    if IMAGES not in encoded_in_steps and not encodes_each_time(job):
        return 0
    rows = job.memory.vae_batch_size if IMAGES in encoded_in_steps else min(facts.batch, job.memory.vae_batch_size)
    return rows * VAE_MAPS * 128 * prod(facts.sides) * _vae_bytes(job)


def _cache_bytes(job: TrainJob, facts: MemoryFacts) -> int:
    """Return the bytes of cached latents on the device and of control images."""
    return _latent_bytes(job, facts) + _control_image_bytes(job, facts)


def _control_image_bytes(job: TrainJob, facts: MemoryFacts) -> int:
    """Return the bytes of control images, which are cached in RAM, compressed; 0 on a GPU, which they do not use."""
    from core.dataset.caches.partners import memory_limit

    cache_latents = job.memory.cache_latents
    if facts.device.startswith("cuda") or not job.method.traits.control_images or cache_latents == "off":
        return 0
    size = facts.images * 3 * prod(facts.sides) // CONTROL_SHARE
    return min(size, memory_limit(writes=cache_latents in ("auto", "disk")))


def _latent_bytes(job: TrainJob, facts: MemoryFacts) -> int:
    """Return the bytes of cached posteriors on the device; 0 if they are in RAM, on disk, or images are encoded each step."""
    if encodes_each_time(job) or job.memory.cache_latents == "memory":
        return 0
    size = facts.images * 2 * prod(family(facts.family).latent_shape(facts.sides)) * 4
    return size if job.memory.cache_latents == "device" or size <= DEVICE_BYTES else 0


def optimizer_bytes(job: TrainJob, facts: MemoryFacts, trained: int) -> int:
    """Return the bytes of the optimizer state of `trained` weights. If the method does not know the weights' shapes, they count as large
    matrices."""
    shapes = _trained_shapes(job, facts) or {USUAL: 1}
    numbers = sum(prod(shape) * count for shape, count in shapes.items())
    return round(trained * (state_bytes(job.optimizer, shapes) / numbers))


def state_numbers(job: TrainJob) -> float:
    """Return how many fp32 values of optimizer state a trained weight of a large matrix has: 2 with AdamW, 0.5 with 8-bit AdamW."""
    return state_bytes(job.optimizer, {USUAL: 1}) / prod(USUAL) / FP32
