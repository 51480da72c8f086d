"""What a generation takes at most on its device, by its settings and the headers of its model: nothing is loaded."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import prod

from core.families.trained_size import trained_size
from core.generation.model.parts import Offload, Parts
from core.generation.model.sources import Sources
from core.generation.plan.hooks import differentiates
from core.generation.plan.plan import plan_of, with_size
from core.generation.plan.stages import sampling_of, stages_of
from core.generation.sample.canvas import CPU_LATENT_PIXELS, MAX_AT_ONCE
from core.record import machine
from core.record.workspace import Workspace
from core.settings.job import GenerateJob
from core.settings.model import FAMILIES

TEXT_TOKENS = 77
SHARE = 0.9  # of a GPU's memory, which a generation may take: the rest is for the screen and other programs
# fp32 tensors that the VAE in strips needs at once: of the widest map, a strip each, and of the whole map of its attention.
STRIP_TENSORS, MIDDLE_TENSORS = 3, 9
STRIPS = 8  # where their number is left open
# What convolutions on a CPU need for other orders of the same numbers, on top of what is counted: measured in the VAE. Of the
# gradient of SD 1.5 in fp32, 1.2 to 1.3 was measured at 512 px and 1.4 to 1.6 at 256 px; of the starter up to 2 (docs/benchmarks.md).
CPU_TIMES = 1.7
GRADIENT_TIMES = 1.2  # the same on a GPU, of a gradient: counted for SD 1.5 (1.18 with CLIP guidance) and SDXL (1.18)
MEASURING = 256  # bytes for each pixel of an image whose distance is differentiated: VGG16 sees a quarter of the sides, CLIP less


@dataclass(frozen=True)
class Forecast:
    """Bytes at most, of those that the device has. offload: what will rest in RAM"""

    peak: int
    total: int
    offload: Offload


@dataclass(frozen=True)
class Needs:
    """Bytes of weights: denoiser, its largest layer, VAE, text encoders, these while they visit; and of what is computed with
    them: one evaluation, one decoding as a whole and in strips; of LoRAs, ControlNets and models of hooks; of a network that enlarges
    images, at work; of a gradient through denoiser and VAE, which is then on the device."""

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
        """On the device, without what torch takes for itself."""
        decoding = self.in_strips if sliced else self.decoding
        visitors = max(self.reading, self.vae + max(decoding, self.gradient), self.upscaling)
        if offload == "off":
            computed = max(self.evaluation, decoding, self.upscaling, self.gradient)
            return self.loras + self.denoiser + self.vae + self.texts + computed
        if offload == "parts":
            return self.loras + self.denoiser + max(self.evaluation, visitors)
        return self.loras + max(2 * self.layer + self.evaluation, visitors)  # the next comes while one still computes

    def with_refiner(self, refiner: Needs) -> Needs:
        """Of both at once, side by side."""
        return replace(
            self,
            denoiser=self.denoiser + refiner.denoiser,
            texts=self.texts + refiner.texts,
            evaluation=max(self.evaluation, refiner.evaluation),
        )


def peak_of(base: Needs, refiners: Iterable[Needs], offload: Offload, sliced: bool = False) -> int:
    """Of a model and one of its refiners at a time: side by side, or one in RAM where anything is offloaded."""
    peaks = [base.peak(offload, sliced)]
    for refiner in refiners:
        together = base.with_refiner(refiner) if offload == "off" else replace(refiner, loras=base.loras)
        peaks.append(together.peak(offload, sliced))
    return max(peaks)


def needs_of(job: GenerateJob, parts: Parts) -> Needs:
    """Of the largest stage of a job's images."""
    from core.families.counting import decoding_bytes, evaluation_bytes, frozen, gradient_bytes
    from core.generation.model.upscaling_networks import enlarging_bytes

    kind = parts.kind
    job = with_size(job, trained_size(parts.path, kind.name), FAMILIES[kind.name].size_step)
    stages = stages_of(job)
    sides = max((stage.size for stage in stages), key=prod)
    images = images_together(job, parts.device, sides, kind.latent_pixels)
    rows = images * (1 if kind.reads_guidance else len(sampling_of(job, "epsilon").guidance().sides))
    pixels, config = prod(sides), parts.config(kind.denoiser)
    known = kind.activation_bytes(pixels, rows)
    if known is None:
        known = evaluation_bytes(
            kind.name, frozen(config), sides, rows, parts.dtype, parts.memory.attention, TEXT_TOKENS
        )
    decoding = 0
    if _of_diffusers(parts):
        decoding = decoding_bytes(kind.name, frozen(parts.config("vae")), pixels, parts.vae_dtype)
    if parts.device.startswith("cpu"):
        decoding = int(CPU_TIMES * decoding)
    gradient = 0
    if differentiates(job) and decoding:
        vae = frozen(parts.config("vae")), sides, images, parts.dtype, parts.vae_dtype, parts.memory.attention
        times = CPU_TIMES if parts.device.startswith("cpu") else GRADIENT_TIMES
        gradient = int(times * gradient_bytes(kind.name, frozen(config), *vae, TEXT_TOKENS)) + MEASURING * pixels
    entries = parts.found[kind.denoiser].places.values()
    item = 1 if parts.memory.narrow_unet else parts.dtype.itemsize
    return Needs(
        denoiser=parts.sizes[kind.denoiser],
        layer=max(prod(place.entry.shape) for place in entries) * item,
        vae=parts.sizes.get("vae", 0),
        texts=sum(parts.sizes[name] for name in parts.texts),
        reading=parts.reading_size,
        evaluation=known,
        decoding=decoding,
        in_strips=strip_bytes(parts, sides, job.generation_memory.vae_slices or STRIPS) if decoding else 0,
        loras=parts.lora_size + parts.control_size + parts.other_size,
        gradient=gradient,
        upscaling=enlarging_bytes(stages[0].size) if job.hires.highres_fix_upscaler_file and len(stages) > 1 else 0,
    )


def images_together(job: GenerateJob, device: str, sides: tuple[int, int], latent_pixels: int) -> int:
    """How many images a batch will have at least: on a GPU as many as fit, if the number is left open."""
    settings = job.generate
    if settings.batch_size is not None:
        return min(settings.batch_size, settings.count)
    if differentiates(job):
        return 1
    fits = CPU_LATENT_PIXELS * latent_pixels**2 // prod(sides) if device.startswith("cpu") else 1
    return max(1, min(settings.count, MAX_AT_ONCE, fits))


def strip_bytes(parts: Parts, sides: tuple[int, int], slices: int) -> int:
    """What decoding in strips takes on the device. Its maps lie in RAM, which is the device where there is no GPU."""
    width, height = sides
    widths = parts.config("vae").get("block_out_channels", (128, 256))
    channels = widths[1]  # of the widest map at the image's size
    strip = STRIP_TENSORS * channels * 4 * width * (-(-height // slices) + 2)
    middle = MIDDLE_TENSORS * widths[-1] * 4 * width * height // 4 ** (len(widths) - 1)
    maps = 2 * channels * parts.vae_dtype.itemsize * width * height if parts.device.startswith("cpu") else 0
    return int(max(strip, middle) + maps)


def _of_diffusers(parts: Parts) -> bool:
    return "vae" in parts.found and parts.config("vae").get("_class_name", "AutoencoderKL") == "AutoencoderKL"


def offload_of(job: GenerateJob, parts: Parts, refiners: Iterable[Parts] = ()) -> Offload:
    """As set; "auto" is the fastest that fits into the GPU's memory, with the refiner where there is one."""
    settings = job.generation_memory
    if not parts.device.startswith("cuda"):
        return "off"
    if settings.offload != "auto":
        return settings.offload
    needs, sliced = needs_of(job, parts), (settings.vae_slices or STRIPS) > 1
    others = [needs_of(job, each) for each in refiners]
    room = SHARE * machine.memory(parts.device)[1] - machine.OF_ITS_OWN["cuda"]
    ways: list[Offload] = ["off", "parts"]
    last: Offload = "parts" if differentiates(job) else "layers"
    return next((way for way in ways if peak_of(needs, others, way, sliced) < room), last)


def offload_for(job: GenerateJob, sources: Sources, device: str) -> Offload:
    """As `offload_of`, by the files of a job."""
    parts, refiners = Parts(job.memory, sources, device), Parts.of_refiners(job.memory, sources, device)
    return offload_of(job, parts, refiners.values())


def forecast(job: GenerateJob, workspace: Workspace, device: str) -> Forecast:
    """Of a job that is not running. Raises ProblemsError for one that cannot."""
    plan = plan_of(job.model_copy(update={"generate": job.generate.model_copy(update={"count": 1})}), workspace)
    one = plan.requests[0].job
    one = one.model_copy(update={"generate": one.generate.model_copy(update={"count": job.generate.count})})
    parts = Parts(job.memory, plan.sources, device)
    refiners = list(Parts.of_refiners(job.memory, plan.sources, device).values())
    way = offload_of(one, parts, refiners)
    needs, others = needs_of(one, parts), [needs_of(one, each) for each in refiners]
    total, cuda = machine.memory(device)[1], device.startswith("cuda")
    slices, own = one.generation_memory.vae_slices, machine.OF_ITS_OWN["cuda" if cuda else "cpu"]
    whole = int((1 + machine.CUT_OFF) * peak_of(needs, others, way))
    sliced = slices > 1 if slices is not None else whole + own > SHARE * total
    peak = int((1 + machine.CUT_OFF) * peak_of(needs, others, way, sliced))
    return Forecast(peak + own, total, way)
