"""How much memory a training will take, part by part, from the model's header and a pass on the meta device; nothing is loaded."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from math import prod
from typing import TYPE_CHECKING, Any

from core.formats.tensors.writer import type_named
from core.networks.kinds import described
from core.record.machine import CUT_OFF, OF_ITS_OWN
from core.record.workspace import Workspace
from core.settings.dataset.concepts import concepts_of
from core.settings.job import TrainJob
from core.settings.methods import spec_of
from core.settings.optimization.optimizers import ADAFACTOR, find
from core.settings.optimization.rates import trains_text, trains_unet
from core.settings.rules.dataset import changes_by_chance
from core.training.memory.shares import FP32, Places, ToShare, places, processes_here

if TYPE_CHECKING:
    from core.dataset.report import Report
    from core.families.base import Family
    from core.families.precision import Precision

Sides = tuple[int, int]
IMAGES, CAPTIONS = "images", "captions"  # what may be encoded between the steps
# Bytes for each number of a CLIP layer's input, in 16 bits: Korthikanti et al. 2022, arXiv:2205.05198, section 4.1.
TEXT_LAYER_BYTES = 34
VAE_MAPS = 4  # maps of 128 channels at the image's size that encoding holds at once
DEVICE_CACHE = 2 << 30  # core/training/loop/sources.py: posteriors up to here lie on the device
CONTROL_SHARE = 6  # lines, poses and depth are compressed to a sixth of their pixels or less, photos to nearly all
STEP_BYTES = 12  # for each number of the tensor that AdaFactor moves: its copy, its change, what that is divided by


@dataclass(frozen=True)
class PartSize:
    """A part of the model: numbers in all, in its norms, biases and embeddings, in its 3x3 convolutions, in its largest
    tensor."""

    numbers: int
    plain: int
    wide: int
    largest: int
    config: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class MemoryFacts:
    """What the plan needs besides the job. sides: of the largest bucket; images: how many latents are kept.

    stored   bytes of the denoiser's weights as they lie in the file      body, texts   names of the denoiser and the text encoders
    """

    family: str
    device: str
    parts: Mapping[str, PartSize]
    stored: int
    sides: Sides
    batch: int
    images: int = 0
    body: str = "unet"
    texts: tuple[str, ...] = ("text_encoder", "text_encoder_2")

    @property
    def denoiser(self) -> PartSize:
        return self.parts[self.body]

    def text_parts(self) -> list[str]:
        return [name for name in self.texts if name in self.parts]


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes on the training device while a step runs: on one GPU, or on a CPU of all processes together.

    weights      of the parts that lie there, of the network, of an average on the device, of a prior's second U-Net
    optimizer    its state      gradients  of all that trains
    activations  of the largest pass, or what gathering takes where that is more
    cache        latents kept there, on a CPU control images too     spare      torch itself and what lies between tensors
    memory, disk    of all processes of this machine, besides the GPU: what DeepSpeed offloads
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
        return sum(self.parts().values())

    def parts(self) -> dict[str, int]:
        """What lies on the device."""
        beside = ("memory", "disk")
        return {entry.name: getattr(self, entry.name) for entry in fields(self) if entry.name not in beside}


# -- facts


def facts_of(job: TrainJob, workspace: Workspace, device: str, report: Report | None = None) -> MemoryFacts:
    """From the headers of the model's files; the largest bucket from a look at the dataset, else from the resolution."""
    from core.families import family
    from core.families.locate import family_of, model_path
    from core.formats.models.checkpoint import open_vae

    path = model_path(job.model.base_model, workspace)
    name = family_of(path, job.model.family)
    layout = family(name).layout
    found = family(name).parts(path)
    if job.model.vae:
        found["vae"] = open_vae(model_path(job.model.vae, workspace, "model.vae"))
    parts = {key: _size(part, part.config_after(layout.config(key))) for key, part in found.items()}
    stored = found[layout.denoiser].weight_bytes()
    sides, batch = largest_batch(job, report)
    images = len(report.placed) if report else 0
    return MemoryFacts(name, device, parts, stored, sides, batch, images, layout.denoiser, layout.text_encoders)


def largest_batch(job: TrainJob, report: Report | None = None) -> tuple[Sides, int]:
    """Width and height of the bucket with the most pixels in a batch, and the images of that batch in each process."""
    found: list[tuple[Sides, int]] = []
    if report is not None:
        found = [(each.placement.bucket, each.concept.images.train_batch_size) for each in report.placed]
    for concept in concepts_of(job) if not found else ():
        own = concept.images
        found += [(_pair(side), own.train_batch_size) for side in (own.resolution, *own.more_resolutions)]
    found = found or [(_pair(job.dataset.resolution), job.dataset.train_batch_size)]
    sides, batch = max(found, key=lambda each: prod(each[0]) * each[1])
    return (max(64, sides[0] // 8 * 8), max(64, sides[1] // 8 * 8)), batch


def _pair(side: Any) -> Sides:
    wide, high = side if isinstance(side, (tuple, list)) else (side, side)
    return wide, high


def _size(part: Any, config: Mapping[str, Any]) -> PartSize:
    shapes = {name: place.entry.shape for name, place in part.places.items()}
    plain = sum(prod(s) for name, s in shapes.items() if len(s) < 2 or "embedding" in name)
    wide = sum(prod(s) for s in shapes.values() if len(s) == 4 and s[2] > 1)
    numbers = [prod(shape) for shape in shapes.values()]
    return PartSize(sum(numbers), plain, wide, max(numbers, default=0), config)


# -- the plan


def encodes_beside(job: TrainJob, facts: MemoryFacts, free: int, late: Collection[str]) -> bool:
    """Whether what encodes these (IMAGES, CAPTIONS) finds room next to the model, in so many free bytes. Of a CPU's memory the
    share that is left for what lies between tensors is enough, which saves counting a pass."""
    beside = _encoders(job, facts, late) + _encoding(job, facts, late)
    if facts.device.startswith("cpu") and beside <= CUT_OFF * free:
        return True
    return memory_plan(job, facts, late=late).total <= free


def shared_places(job: TrainJob, facts: MemoryFacts) -> Places:
    """Where DeepSpeed puts what trains; only with DeepSpeed on."""
    precision = _precision(job, facts)
    return _shared(job, facts, precision, _trained_numbers(job, facts))


def memory_plan(job: TrainJob, facts: MemoryFacts, *, late: Collection[str] = ()) -> MemoryPlan:
    """What this job takes on this device. Counting a pass takes seconds at first (SDXL), nothing when asked again.

    late   what is still encoded for the caches between the steps: IMAGES, CAPTIONS
    """
    precision, trainable = _precision(job, facts), _trained_numbers(job, facts)
    count, cuda = job.memory.num_processes, facts.device.startswith("cuda")
    share = (_shared if job.sharding.active else _plain)(job, facts, precision, trainable)
    one_pass = max(_activations(job, facts, precision), _encoding(job, facts, late)) + share.gathered
    if count > 1 and not job.sharding.active:
        one_pass = max(one_pass, share.gradients)  # they travel as one piece
    passes = max(one_pass, share.whole)
    weights = share.weights + _beside(job, facts, precision, trainable, late)
    spare = OF_ITS_OWN["cuda" if cuda else "cpu"]
    spare += int(CUT_OFF * (weights + passes + share.optimizer + share.gradients))
    plan = MemoryPlan(weights, share.optimizer, share.gradients, passes, _cache(job, facts), spare)
    return replace(plan, memory=share.memory, disk=share.disk) if cuda else _on_one_machine(plan, share, job)


def _precision(job: TrainJob, facts: MemoryFacts) -> Precision:
    from core.families.precision import choose_precision

    found = choose_precision(job.memory, facts.device, facts.stored, method=job.method)
    # With DeepSpeed a full model is in the compute dtype.
    return replace(found, trainable=found.compute) if job.sharding.active and job.method.traits.full_size else found


def _on_one_machine(plan: MemoryPlan, share: Places, job: TrainJob) -> MemoryPlan:
    """On a CPU: all its processes, and what DeepSpeed puts into RAM, in the same memory."""
    every = {name: size * processes_here(job) for name, size in plan.parts().items()}
    return MemoryPlan(**every | {"optimizer": every["optimizer"] + share.memory}, disk=share.disk)


def _plain(job: TrainJob, facts: MemoryFacts, precision: Precision, trainable: Mapping[str, int]) -> Places:
    """Each process holds everything."""
    own, trained = type_named(job.memory.full_precision).itemsize, sum(trainable.values())
    gradients = (trained + _clipped_words(job, facts)) * own
    weights, cast, step = _weights(job, facts, precision, trainable, own), 0, _until_narrow(job, facts, precision)
    if job.method.traits.full_size:
        cast, step = _cast(precision, trainable), _step(trained, own)
    if job.method.traits.full_size and (job.memory.fused_backward_pass or job.memory.fused_optimizer_groups):
        largest = max(facts.parts[name].largest for name in trainable)
        at_once = largest if job.memory.fused_backward_pass else trained // (job.memory.fused_optimizer_groups or 1)
        gradients = at_once * own + _step(at_once, own) + largest * STEP_BYTES
        weights += cast
    elif job.schedule.gradient_accumulation_steps == 1:
        gradients = max(gradients, cast)  # what was cast is given up while gradients come
    else:
        weights += cast
    return Places(weights, gradients, int(FP32 * trained * state_numbers(job)), whole=step)


def _until_narrow(job: TrainJob, facts: MemoryFacts, precision: Precision) -> int:
    """What the U-Net takes more until it is in fp8, where it is not loaded in RAM first."""
    beside = facts.device.startswith("cuda") and not job.memory.lowram
    if beside or job.method.traits.base_trains or not job.memory.narrow_unet:
        return 0
    return (facts.denoiser.numbers - facts.denoiser.plain) * (_bytes(precision.compute) - 1)


def _step(numbers: int, own: int) -> int:
    """What a step takes besides: 16-bit weights and gradients are fp32 meanwhile, so many at once."""
    from core.optimization.rounding import LARGEST

    return min(numbers, LARGEST) * 2 * FP32 if own < FP32 else 0


def _cast(precision: Precision, trainable: Mapping[str, int]) -> int:
    """What autocast makes of the weights of a model that train, and keeps until the pass is over."""
    if precision.compute == precision.trainable:
        return 0
    return sum(trainable.values()) * _bytes(precision.compute)


def _clipped_words(job: TrainJob, facts: MemoryFacts) -> int:
    """Numbers of the token embedding table whose gradients sd-scripts clips too: the last encoder's."""
    if not job.method.traits.new_words or not job.optimizer.clips_as_kohya:
        return 0
    last = facts.parts[facts.text_parts()[-1]].config
    return int(last.get("vocab_size", 49408)) * int(last.get("hidden_size", 768))


def _shared(job: TrainJob, facts: MemoryFacts, precision: Precision, trainable: Mapping[str, int]) -> Places:
    """DeepSpeed's way. A network is fp32."""
    item = _bytes(precision.compute) if job.method.traits.full_size else 4
    model = _weights(job, facts, precision, trainable, item)
    given = ToShare(sum(trainable.values()), item, model, state_numbers(job))
    return places(job.sharding, given, job.memory.num_processes, processes_here(job))


def _bytes(dtype: Any) -> int:
    return int(dtype.itemsize)


def _trained_numbers(job: TrainJob, facts: MemoryFacts) -> dict[str, int]:
    """{part: numbers that train}."""
    return spec_of(job).trained_numbers(job, facts.family, facts.parts)


def _weights(job: TrainJob, facts: MemoryFacts, precision: Precision, trainable: Mapping[str, int], own: int) -> int:
    """Of the model and the network. own: bytes of a number that trains."""
    whole, compute = job.method.traits.base_trains, _bytes(precision.compute)
    names = [facts.body, *(facts.text_parts() if trains_text(job) else ())]
    total = 0 if whole else sum(trainable.values()) * own
    for name in names:
        part, trains = facts.parts[name], whole and name in trainable
        body = name == facts.body
        reads_what_trains = job.method.traits.new_words and not body
        item = own if trains or reads_what_trains else compute
        narrow = not trains and is_narrow(job, body)
        total += part.plain * item + (part.numbers - part.plain) * (1 if narrow else item)
        if body and not trains and not narrow and facts.device == "cpu" and not job.sharding.shares_weights:
            total += part.wide * item  # core/networks/frozen.py
    return total


def _beside(
    job: TrainJob, facts: MemoryFacts, precision: Precision, trainable: Mapping[str, int], late: Collection[str]
) -> int:
    """Weights next to the model that trains: an average, of its part where DeepSpeed cuts it, an untrained U-Net, encoders."""
    whole, total = job.method.traits.base_trains, 0
    if whole and job.method.ema and job.method.ema_device != "cpu":
        total += sum(trainable.values()) * 4 // (job.memory.num_processes if job.sharding.active else 1)
    if whole and job.method.prior == "model":
        total += facts.denoiser.numbers * _bytes(precision.compute)
    return total + _encoders(job, facts, late)


def _encoders(job: TrainJob, facts: MemoryFacts, late: Collection[str]) -> int:
    """Weights of the VAE and of frozen text encoders, where they work between the steps."""
    total = 0
    if IMAGES in late or encodes_each_time(job):
        total += facts.parts["vae"].numbers * _vae_bytes(job)
    if CAPTIONS in late:
        item = _bytes(_precision(job, facts).compute)
        total += sum(facts.parts[name].numbers for name in facts.text_parts()) * item
    return total


def is_narrow(job: TrainJob, body: bool) -> bool:
    """Whether a frozen part, the denoiser or a text encoder, lies in fp8; text encoders do so for LoRA only."""
    if body:
        return job.memory.narrow_unet
    return job.memory.fp8_base and job.method.traits.uses_network


def _vae_bytes(job: TrainJob) -> int:
    return 2 if job.memory.vae_precision in ("bf16", "fp16") else 4


def encodes_each_time(job: TrainJob) -> bool:
    """Whether the VAE works at each step, by the settings of any folder."""
    varied = any(changes_by_chance(concept.images) for concept in concepts_of(job))
    return job.memory.cache_latents == "off" or varied


def _activations(job: TrainJob, facts: MemoryFacts, precision: Precision) -> int:
    import torch

    from core.training.memory.activations import Pass, peak_bytes

    own = _family(facts).activation_bytes(prod(facts.sides), facts.batch)
    if own is not None:
        return own + _text_activations(job, facts, _bytes(precision.compute))

    if job.method.traits.base_trains:
        trains = "weights" if trains_unet(job) else "text"
    elif spec_of(job).side is not None:
        trains = "side"
    else:
        trains = "network" if job.method.traits.uses_network and job.network.train_unet else "text"
    if trains == "network":
        network = job.network.model_copy(update={"train_text_encoder": False})
    settings = described(job.model_copy(update={"network": network})) if trains == "network" else ""
    attention = "sdpa" if job.memory.attention == "auto" else job.memory.attention
    one = Pass(
        facts.family,
        facts.sides,
        1,
        torch.bfloat16,
        trains,
        settings,
        job.memory.gradient_checkpointing,
        job.memory.checkpoint_blocks,
        attention,
        side=_of_the_method(job) if trains == "side" else "",
    )
    # In proportion to images and bytes a number, so one counting serves all of them.
    item = _bytes(precision.compute)
    counted = peak_bytes(one, facts.denoiser.config) * facts.batch * item // 2
    return counted + _text_activations(job, facts, item)


def _of_the_method(job: TrainJob) -> str:
    """The method and its own settings, as a preset's text."""
    own, chosen = spec_of(job).group, {"method": {"kind": job.method.kind}}
    return json.dumps(chosen | ({own: getattr(job, own).model_dump(mode="json")} if own else {}))


def _family(facts: MemoryFacts) -> Family:
    from core.families import family

    return family(facts.family)


def _text_activations(job: TrainJob, facts: MemoryFacts, item: int) -> int:
    if not trains_text(job):
        return 0
    tokens = (job.captions.max_token_length or 75) + 2
    total = 0
    for name in facts.text_parts():
        config = facts.parts[name].config
        layers = 2 if job.memory.gradient_checkpointing else config["num_hidden_layers"]
        total += facts.batch * tokens * config["hidden_size"] * layers * TEXT_LAYER_BYTES * item // 2
    return total


def _encoding(job: TrainJob, facts: MemoryFacts, late: Collection[str]) -> int:
    """Of images."""
    if IMAGES not in late and not encodes_each_time(job):
        return 0
    rows = job.memory.vae_batch_size if IMAGES in late else min(facts.batch, job.memory.vae_batch_size)
    return rows * VAE_MAPS * 128 * prod(facts.sides) * _vae_bytes(job)


def _cache(job: TrainJob, facts: MemoryFacts) -> int:
    return _latents(job, facts) + _control_images(job, facts)


def _control_images(job: TrainJob, facts: MemoryFacts) -> int:
    """They are held in RAM, compressed."""
    from core.dataset.caches.partners import most_held

    where = job.memory.cache_latents
    if facts.device.startswith("cuda") or not job.method.traits.control_images or where == "off":
        return 0
    size = facts.images * 3 * prod(facts.sides) // CONTROL_SHARE
    return min(size, most_held(writes=where in ("auto", "disk")))


def _latents(job: TrainJob, facts: MemoryFacts) -> int:
    if encodes_each_time(job) or job.memory.cache_latents == "memory":
        return 0
    size = facts.images * 2 * prod(_family(facts).latent_shape(facts.sides)) * 4
    return size if job.memory.cache_latents == "device" or size <= DEVICE_CACHE else 0


def state_numbers(job: TrainJob) -> float:
    """fp32 numbers that the optimizer keeps for each number that trains: AdamW 2, in 8 bits 0.5, AdaFactor nearly none."""
    entry = find(job.optimizer.optimizer_type)
    if entry is None:
        return 2.0
    if entry.path == ADAFACTOR:
        return 0.01 if job.optimizer.optimizer_args.get("beta1") is None else 1.01
    name = entry.path.rpartition(".")[2].lower()
    count = next((number for word, number in STATES if word in name), 2.0)
    return count / 4 if "8bit" in name else count


# State per weight by a part of the class name, first match; others are like Adam, with two numbers each.
STATES: Sequence[tuple[str, float]] = (
    ("prodigy", 4.0),
    ("dadaptadan", 5.0),
    ("dadaptlion", 2.0),
    ("dadaptsgd", 3.0),
    ("dadaptadagrad", 4.0),
    ("dadapt", 3.0),
    ("sgdschedulefree", 1.0),
    ("adan", 4.0),
    ("lion", 1.0),
    ("sgd", 1.0),
    ("rmsprop", 1.0),
    ("adagrad", 1.0),
    ("adafactor", 0.01),
    ("came", 1.01),
)
