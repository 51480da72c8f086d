"""Memory forecast of a generation, from its settings and the model's header. Loads nothing."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import prod

from core.families.trained_size import trained_size
from core.generation.model.parts import Offload, Parts
from core.generation.model.sources import Sources
from core.generation.plan.hooks import differentiates
from core.generation.plan.plan import plan_of, with_size
from core.generation.plan.stages import detail_size, sampling_of, stages_of
from core.generation.sample.canvas import CPU_LATENT_PIXELS, MAX_AT_ONCE
from core.record import machine
from core.record.workspace import Workspace
from core.settings.job import GenerateJob
from core.settings.model import FAMILIES

TEXT_TOKENS = 77
SHARE = 0.9  # of a GPU's memory, for a generation: the rest is for the screen and other programs
# fp32 tensors that the VAE in strips needs at once: strips of the widest map, and whole maps of its attention.
STRIP_TENSORS, MIDDLE_TENSORS = 3, 8
STRIPS = 8  # if the number is not set
# Factor for reordered copies in convolutions on a CPU, measured in the VAE. For the gradient of SD 1.5 in fp32, 1.2 to
# 1.3 was measured at 512 px and 1.4 to 1.6 at 256 px; for the starter up to 2 (docs/benchmarks.md).
CPU_FACTOR = 1.7
GRADIENT_FACTOR = 1.2  # the same for a gradient on a GPU: computed for SD 1.5 (1.18 with CLIP guidance) and SDXL (1.18)
GUIDANCE_BYTES = 256  # per pixel of an image that CLIP or VGG guidance differentiates: they read it smaller


@dataclass(frozen=True)
class Forecast:
    """The memory forecast of a generation on a device.

    peak      highest use in bytes, including torch's own memory
    total     memory of the device in bytes
    offload   which weights rest in RAM: "off" (none), "parts" or "layers"
    """

    peak: int
    total: int
    offload: Offload


@dataclass(frozen=True)
class Needs:
    """Memory needs of a generation on the device, in bytes.

    denoiser, vae, texts   weights of the denoiser, the VAE and the text encoders
    layer                  weights of the denoiser's largest layer
    reading                encoding prompts while the text encoders' weights rest in RAM
    evaluation             activations of one evaluation of the denoiser
    decoding, in_strips    decoding an image: as a whole, in strips
    loras                  weights of LoRAs, ControlNets and models of hooks
    upscaling              running the upscaling network
    gradient               backpropagation through denoiser and VAE (CLIP and VGG guidance)
    """

    denoiser: int
    layer: int
    vae: int
    texts: int
    reading: int
    evaluation: int
    decoding: int
    in_strips: int
    loras: int = 0
    upscaling: int = 0
    gradient: int = 0

    def peak(self, offload: Offload, sliced: bool = False) -> int:
        """Return the peak on the device in bytes, without torch's own memory.

        offload   "off": all weights on the device; "parts": the denoiser and one other part; "layers": two layers of the denoiser at a time
        sliced    decode in strips
        """
        decoding = self.in_strips if sliced else self.decoding
        visitors = max(self.reading, self.vae + max(decoding, self.gradient), self.upscaling)
        if offload == "off":
            computed = max(self.evaluation, decoding, self.upscaling, self.gradient)
            return self.loras + self.denoiser + self.vae + self.texts + computed
        if offload == "parts":
            return self.loras + self.denoiser + max(self.evaluation, visitors)
        return self.loras + max(2 * self.layer + self.evaluation, visitors)  # the next is copied while one computes

    def with_refiner(self, refiner: Needs) -> Needs:
        """Return the needs of the base model and a refiner that are on the device together."""
        return replace(
            self,
            denoiser=self.denoiser + refiner.denoiser,
            texts=self.texts + refiner.texts,
            evaluation=max(self.evaluation, refiner.evaluation),
        )


def peak_of(base: Needs, refiners: Iterable[Needs], offload: Offload, sliced: bool = False) -> int:
    """Return the highest peak in bytes of the base model, alone and with each refiner.

    With offload "off" base model and refiner are on the device together, otherwise one of them rests in RAM.

    sliced   decode in strips
    """
    peaks = [base.peak(offload, sliced)]
    for refiner in refiners:
        combined = base.with_refiner(refiner) if offload == "off" else replace(refiner, loras=base.loras)
        peaks.append(combined.peak(offload, sliced))
    return max(peaks)


def needs_of(job: GenerateJob, parts: Parts) -> Needs:
    """Return the needs of the largest stage of a job's images, including the detailer."""
    from core.families.counting import config_key, decoding_bytes, gradient_bytes
    from core.generation.model.upscaling_networks import upscaling_bytes

    kind = parts.kind
    job = with_size(job, trained_size(parts.path, kind.name), FAMILIES[kind.name].size_step)
    stages = stages_of(job)
    size = largest = max((stage.size for stage in stages), key=prod)
    images = forecast_batch_size(job, parts.device, size, kind.latent_pixels)
    config, evaluation = parts.config(kind.denoiser), _evaluation_bytes(job, parts, size, images)
    if job.detailer.used:  # one detection at a time, without gradients
        detail = detail_size(job)
        evaluation, largest = max(evaluation, _evaluation_bytes(job, parts, detail, 1)), max(size, detail, key=prod)
    decoding = 0
    if "vae" in parts.opened and parts.config("vae").get("_class_name", "AutoencoderKL") == "AutoencoderKL":
        decoding = decoding_bytes(kind.name, config_key(parts.config("vae")), prod(largest), parts.vae_dtype)
    if parts.device.startswith("cpu"):
        decoding = int(CPU_FACTOR * decoding)
    gradient, attention = 0, parts.memory.attention
    if differentiates(job) and decoding:
        vae_config, dtypes = config_key(parts.config("vae")), (parts.dtype, parts.vae_dtype)
        arguments = config_key(config), vae_config, size, images, *dtypes, attention, TEXT_TOKENS
        factor = CPU_FACTOR if parts.device.startswith("cpu") else GRADIENT_FACTOR
        gradient = int(factor * gradient_bytes(kind.name, *arguments)) + GUIDANCE_BYTES * prod(size)
    entries = parts.opened[kind.denoiser].locations.values()
    itemsize = 1 if parts.memory.narrow_unet else parts.dtype.itemsize
    return Needs(
        denoiser=parts.sizes[kind.denoiser],
        layer=max(prod(location.entry.shape) for location in entries) * itemsize,
        vae=parts.sizes.get("vae", 0),
        texts=sum(parts.sizes[name] for name in parts.text_encoder_names),
        reading=parts.encoding_size,
        evaluation=evaluation,
        decoding=decoding,
        in_strips=strip_bytes(parts, largest, job.generation_memory.vae_slices or STRIPS) if decoding else 0,
        loras=parts.lora_size + parts.control_size + parts.hook_size,
        gradient=gradient,
        upscaling=upscaling_bytes(stages[0].size, parts.upscaler_size) if parts.upscalers and len(stages) > 1 else 0,
    )


def _evaluation_bytes(job: GenerateJob, parts: Parts, sides: tuple[int, int], images: int) -> int:
    """Return the bytes of one denoiser evaluation for `images` images of `sides` (width, height in pixels), with all guidance sides."""
    from core.families.counting import config_key, evaluation_bytes

    kind, config = parts.kind, config_key(parts.config(parts.kind.denoiser))
    rows = images * (1 if kind.reads_guidance else len(sampling_of(job, "epsilon").guidance().sides))
    estimate = kind.activation_bytes(prod(sides), rows)
    if estimate is not None:
        return estimate
    return evaluation_bytes(kind.name, config, sides, rows, parts.dtype, parts.memory.attention, TEXT_TOKENS)


def forecast_batch_size(job: GenerateJob, device: str, sides: tuple[int, int], latent_pixels: int) -> int:
    """Return the batch size to assume: the setting, else 1 on a GPU, and on a CPU the number of images that fit into one batch.

    sides           (width, height) in pixels
    latent_pixels   pixels per side of a latent (8)
    """
    settings = job.generate
    if settings.batch_size is not None:
        return min(settings.batch_size, settings.count)
    if differentiates(job):
        return 1
    fits = CPU_LATENT_PIXELS * latent_pixels**2 // prod(sides) if device.startswith("cpu") else 1
    return max(1, min(settings.count, MAX_AT_ONCE, fits))


def strip_bytes(parts: Parts, sides: tuple[int, int], slices: int) -> int:
    """Return the bytes on the device for decoding one image in strips. On a CPU this includes the feature maps, which rest in RAM.

    sides    (width, height) in pixels
    slices   number of strips
    """
    width, height = sides
    widths = parts.config("vae").get("block_out_channels", (128, 256))
    channels = widths[1]  # of the widest map at the image's size
    strip = STRIP_TENSORS * channels * 4 * width * (-(-height // slices) + 2)
    middle = MIDDLE_TENSORS * widths[-1] * 4 * width * height // 4 ** (len(widths) - 1)
    maps = 2 * channels * parts.vae_dtype.itemsize * width * height if parts.device.startswith("cpu") else 0
    return int(max(strip, middle) + maps)


def offload_of(job: GenerateJob, parts: Parts, refiners: Iterable[Parts] = ()) -> Offload:
    """Return the job's offload mode: as set, for "auto" the fastest that fits into VRAM with every refiner, and "off" without CUDA."""
    settings = job.generation_memory
    if not parts.device.startswith("cuda"):
        return "off"
    if settings.offload != "auto":
        return settings.offload
    needs, sliced = needs_of(job, parts), (settings.vae_slices or STRIPS) > 1
    refiner_needs = [needs_of(job, each) for each in refiners]
    budget = SHARE * machine.memory(parts.device)[1] - machine.RUNTIME_BYTES["cuda"]
    choices: list[Offload] = ["off", "parts"]
    last: Offload = "parts" if differentiates(job) else "layers"
    return next((offload for offload in choices if peak_of(needs, refiner_needs, offload, sliced) < budget), last)


def offload_for(job: GenerateJob, sources: Sources, device: str) -> Offload:
    """Return the offload mode of a job (`offload_of`), given its files instead of opened parts."""
    parts, refiners = Parts(job.memory, sources, device), Parts.of_refiners(job.memory, sources, device)
    return offload_of(job, parts, refiners.values())


def forecast(job: GenerateJob, workspace: Workspace, device: str) -> Forecast:
    """Return the memory forecast of a job. Plans the job; raises ProblemsError if it is invalid."""
    plan = plan_of(job.with_settings(generate={"count": 1}), workspace)
    first = plan.requests[0].job.with_settings(generate={"count": job.generate.count})
    parts = Parts(job.memory, plan.sources, device)
    refiners = list(Parts.of_refiners(job.memory, plan.sources, device).values())
    offload = offload_of(first, parts, refiners)
    needs, refiner_needs = needs_of(first, parts), [needs_of(first, each) for each in refiners]
    total, cuda = machine.memory(device)[1], device.startswith("cuda")
    slices, torch_bytes = first.generation_memory.vae_slices, machine.RUNTIME_BYTES["cuda" if cuda else "cpu"]
    unsliced = int((1 + machine.CUT_OFF) * peak_of(needs, refiner_needs, offload))
    sliced = slices > 1 if slices is not None else unsliced + torch_bytes > SHARE * total
    peak = int((1 + machine.CUT_OFF) * peak_of(needs, refiner_needs, offload, sliced))
    return Forecast(peak + torch_bytes, total, offload)
