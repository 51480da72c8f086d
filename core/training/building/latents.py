"""The source of a run's latents: chooses which images are encoded once and which at each step, and where posteriors are cached."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from core.dataset.buckets.batches import Placed
from core.dataset.caches.encoding import Encode, Posterior, Side, sides
from core.dataset.caches.late import LatePosteriors
from core.dataset.caches.latents import LatentCache
from core.dataset.caches.npz import SHOWN, Exported, NpzCaches, export_npz
from core.dataset.caches.partners import ControlCache, MaskCache, mask_source, plain_mask
from core.dataset.caches.store import CONTROLS, LATENTS, MASKS, Row
from core.dataset.images.masks import load_control, load_mask
from core.dataset.images.pixels import load_pixels
from core.dataset.images.views import View, crop_varies, draw_view, is_varied
from core.record import machine
from core.record.lazy_torch import torch
from core.record.problems import ProblemsError
from core.record.units import first_of
from core.training.loop.sources import DEVICE_BYTES, VALIDATION_EPOCH, DecodedView, Latents, ViewLoader, frozen_latent
from core.training.loop.validation import unaugmented
from core.training.memory.plan import IMAGES, facts_of, fits_with_encoders

if TYPE_CHECKING:
    import numpy as np

    from core.families.base import Family
    from core.training.building.inputs import Inputs
    from core.training.building.models import Models

MOST_DECODERS = 8
ControlSource = Callable[[Placed, View], "np.ndarray | None"]
NPZ_KINDS = {"sd1": "sd", "sd2": "sd", "sdxl": "sdxl"}  # in file names of newer caches of sd-scripts


def encoded_each_step(placed: Placed, cache_latents: str) -> bool:
    """Return whether the image is encoded again at each step that uses it. cache_latents: the setting of this name"""
    return cache_latents == "off" or is_varied(placed.concept.images)


def build_latents(inputs: Inputs, models: Models, *, at_once: bool = False) -> Latents:
    """Return the source of latents. The caller sets its `into_model` once the model is loaded.

    Images that are to be cached are encoded by the first step that needs them. With `at_once`, in several processes, and if the VAE
    does not fit next to the model, they are encoded here.
    """
    memory, device = inputs.job.memory, inputs.context.device
    images = images_of(inputs)
    cached = [placed for placed in images if not encoded_each_step(placed, memory.cache_latents)]
    uncached = [placed for placed in images if encoded_each_step(placed, memory.cache_latents)]
    decoders, uncached_keys = decode_threads(device), {placed.key for placed in uncached}
    batch_size = max(placed.concept.images.train_batch_size for placed in images)
    prefetch = 2 * batch_size + 2 * decoders  # two batches, and two images per thread
    posteriors = _posteriors(inputs, models, cached, prefetch, at_once=at_once, keep_vae=bool(uncached))
    if uncached:
        inputs.context.say(f"{len(uncached)} images are encoded at each step")
    validation_seed = inputs.job.validation.validation_seed

    def seed_of(epoch: int) -> int:
        return validation_seed if epoch == VALIDATION_EPOCH else inputs.seed

    return Latents(
        posteriors.get,
        inputs.seed,
        late_posteriors=posteriors,
        mode=memory.latent_draw,
        masks=latent_masks(inputs, cached),
        views=ViewLoader(_loader(seed_of, uncached_keys, control_source(inputs)), decoders, prefetch),
        uncached=uncached_keys,
        encode=each_step_encoder(inputs, models) if uncached else None,
        encode_at_once=memory.vae_batch_size,
        latent_pixels=inputs.family.latent_pixels,
        validation_seed=validation_seed,
        device=device,
    )


def on_disk(inputs: Inputs) -> bool:
    """Return whether latents, masks and control images are cached on disk."""
    return inputs.job.memory.cache_latents in ("auto", "disk")


def _cache_arguments(inputs: Inputs, row: Row) -> dict[str, Any]:
    """Return the keyword arguments of `Store` that all caches of a run share: folder, memo_path, writes, warn. row: the kind of cache"""
    workspace = inputs.context.workspace
    return {
        "folder": workspace.cache / row.folder,
        "memo_path": workspace.private / "index.sqlite",
        "writes": on_disk(inputs),
        "warn": inputs.context.warn,
    }


def images_of(inputs: Inputs) -> list[Placed]:
    """Return all images that need latents: training and validation images."""
    return [*inputs.plan.placed, *(unaugmented(placed) for placed in inputs.report.validation)]


def decode_threads(device: str) -> int:
    """Return the number of threads that decode images: 2 with a VAE on the CPU, up to MOST_DECODERS for a GPU, which would wait for
    them."""
    return max(2, min(MOST_DECODERS, machine.cores())) if not device.startswith("cpu") else 2


# ---- cached


def latent_cache(inputs: Inputs, images: Sequence[Placed]) -> LatentCache:
    """Return the latent cache of these images for the job's VAE."""
    identity = inputs.family.digest(inputs.model, "vae", vae=inputs.vae, memo=inputs.memo)
    npz = None
    if inputs.job.memory.npz_caches and inputs.family_name in NPZ_KINDS:
        npz = NpzCaches(images, NPZ_KINDS[inputs.family_name])
    vae_precision = inputs.job.memory.vae_precision
    precision = "fp32" if vae_precision == "auto" else vae_precision  # dtype that the VAE is loaded in
    return LatentCache(
        vae_id=identity,
        dtype=precision,
        other_programs=npz,
        shape_of=inputs.family.latent_shape,
        **_cache_arguments(inputs, LATENTS),
    )


def fill_cache(inputs: Inputs, models: Models, cache: LatentCache, images: Sequence[Placed]) -> None:
    """Encode the images that `cache` lacks for this VAE, size and crop."""
    missing = cache.missing(images, inputs.context.check)
    _report_npz(inputs, cache)
    if missing:
        _encode_all(inputs, models, cache, missing, keep_vae=False)


def _encode_all(inputs: Inputs, models: Models, cache: LatentCache, missing: Sequence[Placed], keep_vae: bool) -> None:
    """Encode the images `missing` into the cache; then move the VAE off the device unless `keep_vae`."""
    context, vae = inputs.context, models.vae()
    cache.fill(
        missing,
        encoder(inputs, models),
        batch_size=inputs.job.memory.vae_batch_size,
        threads=decode_threads(context.device),
        retry=fp32_retry(inputs.family, vae),
        check=context.check,
        progress=lambda done, total: context.stage("encoding images", done, total),
    )
    if not keep_vae:
        models.offload_vae()


def _report_npz(inputs: Inputs, cache: LatentCache) -> None:
    """Log which .npz files of sd-scripts the cache uses."""
    if isinstance(cache.other_programs, NpzCaches):
        for line in cache.other_programs.log_lines():
            inputs.context.say(line)


def encoder(inputs: Inputs, models: Models) -> Encode:
    """Return a function from pixels to a posterior on the device. The VAE is loaded at the first call.

    On CUDA each call releases torch's cached memory, which images of another size could not reuse, unless `highvram` is on.
    """
    frees = inputs.context.device.startswith("cuda") and not inputs.job.memory.highvram

    def encode(pixels: torch.Tensor) -> Posterior:
        vae = models.vae().to(inputs.context.device)  # samples move it to the CPU when they are done
        posterior: Posterior = inputs.family.encode_image_latents(vae, pixels)
        if frees:
            torch.cuda.empty_cache()
        return posterior

    return encode


def fp32_retry(family: Family, vae: Any) -> Encode | None:
    """Return a function that encodes pixels with the VAE temporarily in fp32; None if the VAE is in fp32 already."""
    dtype = next(vae.parameters()).dtype
    if dtype == torch.float32:
        return None

    def encode(pixels: torch.Tensor) -> Posterior:
        vae.float()
        try:
            return family.encode_image_latents(vae, pixels)
        finally:
            vae.to(dtype)

    return encode


def each_step_encoder(inputs: Inputs, models: Models) -> Encode:
    """Return a function from pixels to a posterior, for images that are encoded at each step. Images for which a 16-bit VAE returns NaN or
    infinity are encoded again in fp32."""
    encode = encoder(inputs, models)

    def checked(pixels: torch.Tensor) -> Posterior:
        mean, logvar = encode(pixels)
        retry = fp32_retry(inputs.family, models.vae())
        if retry is not None:
            finite = (mean.isfinite() & logvar.isfinite()).flatten(1).all(1)
            for row in (~finite).nonzero().flatten().tolist():
                posterior = retry(pixels[row : row + 1])
                mean[row], logvar[row] = posterior[0][0], posterior[1][0]
        return mean, logvar

    return checked


def _posteriors(
    inputs: Inputs, models: Models, images: Sequence[Placed], ahead: int, *, at_once: bool, keep_vae: bool
) -> LatePosteriors:
    """Return the source of posteriors of the images that are encoded once.

    ahead      maximum number of decoded images that wait in memory
    at_once    encode here, not at the first step that needs an image
    keep_vae   leave the VAE on the device at the end, for images that are encoded at each step
    """
    context, memory = inputs.context, inputs.job.memory
    cache = latent_cache(inputs, images)
    todo = _sides_for_steps(inputs, models, cache, images, at_once=at_once, keep_vae=keep_vae)
    encode = encoder(inputs, models)

    def finished() -> None:
        if not keep_vae:
            models.offload_vae()
        context.stage("training")

    return LatePosteriors(
        cache,
        encode,
        todo,
        device=posterior_device(cache, images, memory.cache_latents, context.device),
        batch_size=memory.vae_batch_size,
        threads=decode_threads(context.device),
        ahead=ahead,
        retry=lambda pixels: (fp32_retry(inputs.family, models.vae()) or encode)(pixels),
        synchronize=partial(machine.synchronize, context.device),
        progress=lambda done, total: context.stage("training; encoding images", done, total),
        finished=finished,
    )


def _sides_for_steps(
    inputs: Inputs, models: Models, cache: LatentCache, images: Sequence[Placed], *, at_once: bool, keep_vae: bool
) -> list[Side]:
    """Return the sides (an image, plain or flipped) that steps will encode; [] if all are cached or were encoded here (see
    `build_latents`).

    On a GPU cached entries are read here to find damaged ones, as the VAE may not fit later; likewise if several images are encoded
    together, since the batches depend on all sides to encode.
    """
    context, memory = inputs.context, inputs.job.memory
    reads = not context.device.startswith("cpu") or memory.vae_batch_size > 1
    todo = cache.missing_sides(images, context.check, reads=reads)
    _report_npz(inputs, cache)
    if not todo:
        return []
    if at_once or not encoders_fit(inputs, [IMAGES]):
        _encode_all(inputs, models, cache, list({side.placed.key: side.placed for side in todo}.values()), keep_vae)
        return []
    cache.require_room(todo)
    return todo


def encoders_fit(inputs: Inputs, encoded_in_steps: Collection[str]) -> bool:
    """Return whether the encoders that steps need fit next to the model: the VAE for IMAGES, the text encoders for CAPTIONS.

    False in several processes, where the first one encodes for all before the others continue.
    """
    context = inputs.context
    if context.processes.count > 1 or inputs.job.sharding.active:
        return False
    facts = facts_of(inputs.job, context.workspace, context.device, inputs.report)
    return fits_with_encoders(inputs.job, facts, machine.available_memory(context.device), encoded_in_steps)


def posterior_device(cache: LatentCache, images: Sequence[Placed], cache_latents: str, device: str) -> str | None:
    """Return the device that holds the posteriors in memory; None if they are too large and are read from disk each time."""
    size = sum(cache.bytes_of(placed) * len(sides(placed)) for placed in images)
    if cache_latents != "device" and size > DEVICE_BYTES:
        return None
    return "cpu" if cache_latents == "memory" else device


# ---- at each step


def _loader(
    seed_of: Callable[[int], int], uncached: Collection[tuple[str, ...]], control_of: ControlSource
) -> Callable[[Placed, int, int], DecodedView]:
    """Return the load function of a ViewLoader.

    seed_of    (epoch) -> seed of the epoch's random augmentation
    uncached   keys of the images whose pixels are needed; for others only the control image is loaded
    """

    def load(placed: Placed, epoch: int, repeat: int) -> DecodedView:
        view = draw_view(placed, seed_of(epoch), epoch, repeat)
        control = control_of(placed, view)
        if placed.key not in uncached:
            return DecodedView(control=control)
        return DecodedView(
            load_pixels(placed.image.path, view, images=placed.concept.images), load_mask(placed, view), control
        )

    return load


def control_source(inputs: Inputs) -> ControlSource:
    """Return a function (image, view) -> control image, [3, H, W] in 0..1: read from the cache, which is filled here, or decoded each
    time."""
    cache_latents = inputs.job.memory.cache_latents
    fixed = [each for each in images_of(inputs) if each.image.control and not crop_varies(each.concept.images)]
    if cache_latents == "off" or not fixed:
        return load_control
    context = inputs.context
    cache = ControlCache(**_cache_arguments(inputs, CONTROLS))
    cache.fill(
        fixed,
        threads=decode_threads(context.device),
        check=context.check,
        progress=lambda done, total: context.stage("preparing control images", done, total),
    )
    return cache.load


def latent_masks(inputs: Inputs, images: Sequence[Placed]) -> dict[tuple[str, ...], torch.Tensor]:
    """Return {image key: mask [1, h, w] in 0..1, at the latents' size} of the images whose mask is not all ones. Read from the cache, which
    is filled here."""
    masked = [placed for placed in images if mask_source(placed) is not None]
    if not masked:
        return {}
    context = inputs.context
    context.stage("reading masks")
    cache = MaskCache(**_cache_arguments(inputs, MASKS), latent_pixels=inputs.family.latent_pixels)
    return cache.load(masked, threads=decode_threads(context.device), check=context.check)


# ---- the prepare job


def prepare_latents(inputs: Inputs, models: Models) -> None:
    """Write latents, masks and control images to disk, if the settings cache them on disk."""
    if on_disk(inputs):
        control_source(inputs)
    cache_latents = inputs.job.memory.cache_latents
    cached = [placed for placed in images_of(inputs) if not encoded_each_step(placed, cache_latents)]
    if not on_disk(inputs) or not cached:
        inputs.context.say("Latents are not cached: with these settings, images are encoded at each step")
        return
    fill_cache(inputs, models, latent_cache(inputs, cached), cached)
    latent_masks(inputs, cached)


def write_npz_caches(inputs: Inputs, models: Models) -> Exported:
    """Write <stem>.npz with fixed latents next to each training and validation image, for sd-scripts. Existing files are not overwritten,
    and images that are augmented at random get none. Raises ProblemsError for families other than SD 1.x, 2.x, SDXL."""
    if inputs.family_name not in NPZ_KINDS:
        what = ".npz caches are for Stable Diffusion 1.x, 2.x and SDXL"
        raise ProblemsError.one(what, "model.base_model", "choose another model", code="npz.other-family")
    all_images = images_of(inputs)
    images = [placed for placed in all_images if not is_varied(placed.concept.images)]
    if len(images) < len(all_images):
        inputs.context.say(f"{len(all_images) - len(images)} images are augmented at random and get no .npz cache")
    cache = latent_cache(inputs, images)
    fill_cache(inputs, models, cache, images)

    def sample(side: Side) -> torch.Tensor:
        mean, logvar = cache.read(side)
        return frozen_latent(mean, logvar, inputs.seed, side.placed.key, side.flipped)

    done = export_npz(images, sample, plain_mask, inputs.context.check)
    inputs.context.say(f"{done.written} .npz caches written next to the images")
    if done.skipped:
        inputs.context.say(
            f"{len(done.skipped)} existed already or match several images: {first_of(done.skipped, SHOWN)}"
        )
    return done
