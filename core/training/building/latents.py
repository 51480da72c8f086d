"""From the images of a run to its latents: which are encoded once, which at each step, and where they are kept."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.dataset.buckets.batches import Placed
from core.dataset.caches.encoding import Encode, Posterior, Side, sides
from core.dataset.caches.late import LatePosteriors
from core.dataset.caches.latents import LatentCache
from core.dataset.caches.npz import Exported, NpzCaches, export_npz, shortened
from core.dataset.caches.partners import ControlCache, MaskCache, mask_source, plain_mask
from core.dataset.images.masks import load_control, load_mask
from core.dataset.images.pixels import load_pixels
from core.dataset.images.views import View, crop_varies, draw_view, is_varied
from core.record import machine
from core.record.problems import ProblemsError
from core.training.loop.sources import DEVICE_BYTES, EPOCH, FreshViews, Latents, Shown, frozen_latent, settled
from core.training.loop.validation import as_it_is
from core.training.memory.plan import IMAGES, encodes_beside, facts_of

if TYPE_CHECKING:
    import numpy as np
    import torch

    from core.families.base import Family
    from core.training.building.inputs import Inputs
    from core.training.building.models import Models

MOST_DECODERS = 8
ControlSource = Callable[[Placed, View], "np.ndarray | None"]
NPZ_KINDS = {"sd1": "sd", "sd2": "sd", "sdxl": "sdxl"}  # the ending of newer caches of sd-scripts


def encoded_each_time(placed: Placed, where: str) -> bool:
    """Whether the image is encoded again each time it is used. where: the setting memory.cache_latents."""
    return where == "off" or is_varied(placed.concept.images)


def build_latents(inputs: Inputs, models: Models, *, at_once: bool = False) -> Latents:
    """The source of latents. What no earlier run encoded is encoded when the first step needs it; with `at_once`, for
    several processes, or where the VAE finds no room next to the model, here. Its `into_model` is set when the model is loaded."""
    memory, device = inputs.job.memory, inputs.context.device
    images = images_of(inputs)
    kept = [placed for placed in images if not encoded_each_time(placed, memory.cache_latents)]
    uncached = [placed for placed in images if encoded_each_time(placed, memory.cache_latents)]
    decoders, encoded = decode_threads(device), {placed.key for placed in uncached}
    ahead = 2 * decoders + 2 * max(placed.concept.images.train_batch_size for placed in images)
    posteriors = _posteriors(inputs, models, kept, ahead, at_once=at_once, keep_vae=bool(uncached))
    if uncached:
        inputs.context.say(f"{len(uncached)} images are encoded at each step")
    measured = inputs.job.validation.validation_seed

    def seed_of(epoch: int) -> int:
        return measured if epoch == EPOCH else inputs.seed

    return Latents(
        posteriors.get,
        inputs.seed,
        late=posteriors,
        mode=memory.latent_draw,
        masks=latent_masks(inputs, kept),
        fresh=FreshViews(_loader(seed_of, encoded, control_source(inputs)), decoders, ahead),
        uncached=encoded,
        encode=encoder(inputs, models) if uncached else None,
        encode_at_once=memory.vae_batch_size,
        latent_pixels=inputs.family.latent_pixels,
        validation_seed=measured,
        device=device,
    )


def on_disk(inputs: Inputs) -> bool:
    """Whether what is encoded may be written."""
    return inputs.job.memory.cache_latents in ("auto", "disk")


def _index(inputs: Inputs) -> Path:
    """Where hashes and measurements of files are cached."""
    return inputs.context.workspace.private / "index.sqlite"


def images_of(inputs: Inputs) -> list[Placed]:
    """All that need latents: those that train and those that are held out."""
    return [*inputs.plan.placed, *(as_it_is(placed) for placed in inputs.report.validation)]


def decode_threads(device: str) -> int:
    """A GPU waits for decoding unless many threads do it; with a VAE on the CPU two fill the gaps."""
    return max(2, min(MOST_DECODERS, machine.cores())) if not device.startswith("cpu") else 2


# ---- cached


def latent_cache(inputs: Inputs, images: Sequence[Placed], *, writes: bool = True) -> LatentCache:
    identity = inputs.family.digest(inputs.model, "vae", vae=inputs.vae, memo=inputs.memo)
    others = None
    if inputs.job.memory.npz_caches and inputs.family_name in NPZ_KINDS:
        others = NpzCaches(images, NPZ_KINDS[inputs.family_name])
    wanted = inputs.job.memory.vae_precision
    precision = "fp32" if wanted == "auto" else wanted  # what the VAE is loaded in
    return LatentCache(
        inputs.context.workspace.cache / "latents",
        identity,
        precision,
        _index(inputs),
        writes=writes,
        others=others,
        shape_of=inputs.family.latent_shape,
        warn=inputs.context.warn,
    )


def fill(
    inputs: Inputs, models: Models, cache: LatentCache, images: Sequence[Placed], *, keep_vae: bool = False
) -> None:
    """Encode the images that no earlier run encoded with the same VAE, size and crop. keep_vae: it is needed later."""
    missing = cache.missing(images, inputs.context.check)
    _say_npz(inputs, cache)
    if missing:
        _encode_all(inputs, models, cache, missing, keep_vae)


def _encode_all(inputs: Inputs, models: Models, cache: LatentCache, missing: Sequence[Placed], keep_vae: bool) -> None:
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
        models.put_vae_away()


def _say_npz(inputs: Inputs, cache: LatentCache) -> None:
    if isinstance(cache.others, NpzCaches):
        for line in cache.others.said():
            inputs.context.say(line)


def encoder(inputs: Inputs, models: Models) -> Encode:
    """Pixels -> posterior on the device, by a VAE that is loaded at first use and stays. Images of another size would
    find no room next to what was set aside for this one's, so it is given back, unless there is much memory."""
    import torch

    frees = inputs.context.device.startswith("cuda") and not inputs.job.memory.highvram

    def encode(pixels: torch.Tensor) -> Posterior:
        vae = models.vae().to(inputs.context.device)  # samples put it away when they are done
        posterior: Posterior = inputs.family.encode_image_latents(vae, pixels)
        if frees:
            torch.cuda.empty_cache()
        return posterior

    return encode


def fp32_retry(family: Family, vae: Any) -> Encode | None:
    """How an image whose latents are not finite is tried again: by a VAE of 16 bits, for this once in 32."""
    import torch

    own = next(vae.parameters()).dtype
    if own == torch.float32:
        return None

    def encode(pixels: torch.Tensor) -> Posterior:
        vae.float()
        try:
            return family.encode_image_latents(vae, pixels)
        finally:
            vae.to(own)

    return encode


def _posteriors(
    inputs: Inputs, models: Models, images: Sequence[Placed], ahead: int, *, at_once: bool, keep_vae: bool
) -> LatePosteriors:
    """Of the images that are encoded once.

    ahead   decoded images that may wait in memory        keep_vae   others are encoded at each step
    """
    context, memory = inputs.context, inputs.job.memory
    cache = latent_cache(inputs, images, writes=on_disk(inputs))
    todo = _left_for_steps(inputs, models, cache, images, at_once=at_once, keep_vae=keep_vae)
    encode = encoder(inputs, models)

    def encode_again(pixels: torch.Tensor) -> Posterior:
        return (fp32_retry(inputs.family, models.vae()) or encode)(pixels)

    def finished() -> None:
        if not keep_vae:
            models.put_vae_away()
        context.stage("training")

    return LatePosteriors(
        cache,
        encode,
        todo,
        device=place_of(cache, images, memory.cache_latents, context.device),
        batch_size=memory.vae_batch_size,
        threads=decode_threads(context.device),
        ahead=ahead,
        retry=encode_again,
        synchronize=partial(settled, context.device),
        progress=lambda done, total: context.stage("training; encoding images", done, total),
        finished=finished,
    )


def _left_for_steps(
    inputs: Inputs, models: Models, cache: LatentCache, images: Sequence[Placed], *, at_once: bool, keep_vae: bool
) -> list[Side]:
    """What the steps encode. With `at_once`, or where the VAE finds no room next to the model, nothing: all is encoded here.

    On a GPU a damaged entry is found here too, as there may be no room for the VAE later, and so it is for batches of
    several images, which are made of all that has to be encoded.
    """
    context, memory = inputs.context, inputs.job.memory
    reads = not context.device.startswith("cpu") or memory.vae_batch_size > 1
    todo = cache.lacking(images, context.check, reads=reads)
    _say_npz(inputs, cache)
    if not todo:
        return []
    if at_once or not fits_beside(inputs, [IMAGES]):
        _encode_all(inputs, models, cache, list({side.placed.key: side.placed for side in todo}.values()), keep_vae)
        return []
    cache.require_room(todo)
    return todo


def fits_beside(inputs: Inputs, late: Collection[str]) -> bool:
    """Whether what encodes these (IMAGES, CAPTIONS) finds room next to the model that trains. Of several processes the first
    encodes for all, before the others go on."""
    context = inputs.context
    if context.processes.count > 1 or inputs.job.sharding.active:
        return False
    facts = facts_of(inputs.job, context.workspace, context.device, inputs.report)
    return encodes_beside(inputs.job, facts, machine.free_memory(context.device), late)


def place_of(cache: LatentCache, images: Sequence[Placed], where: str, device: str) -> str | None:
    """Where posteriors are held: small ones and those for the device there; None: they are read from the disk each time."""
    size = sum(cache.bytes_of(placed) * len(sides(placed)) for placed in images)
    if where != "device" and size > DEVICE_BYTES:
        return None
    return "cpu" if where == "memory" else device


# ---- at each step


def _loader(
    seed_of: Callable[[int], int], uncached: Collection[tuple[str, ...]], control_of: ControlSource
) -> Callable[[Placed, int, int], Shown]:
    """seed_of: (epoch) -> the seed of its views. uncached: of the images whose pixels are needed; of others the control image is."""

    def load(placed: Placed, epoch: int, repeat: int) -> Shown:
        view = draw_view(placed, seed_of(epoch), epoch, repeat)
        control = control_of(placed, view)
        if placed.key not in uncached:
            return Shown(control=control)
        return Shown(
            load_pixels(placed.image.path, view, images=placed.concept.images), load_mask(placed, view), control
        )

    return load


def control_source(inputs: Inputs) -> ControlSource:
    """What gives the control image of a view: from the cache, which is filled here, or decoded each time."""
    where = inputs.job.memory.cache_latents
    fixed = [each for each in images_of(inputs) if each.image.control and not crop_varies(each.concept.images)]
    if where == "off" or not fixed:
        return load_control
    context, folder = inputs.context, inputs.context.workspace.cache / "controls"
    cache = ControlCache(folder, _index(inputs), writes=on_disk(inputs), warn=context.warn)
    cache.fill(
        fixed,
        threads=decode_threads(context.device),
        check=context.check,
        progress=lambda done, total: context.stage("preparing control images", done, total),
    )
    return cache.load


def latent_masks(inputs: Inputs, images: Sequence[Placed]) -> dict[tuple[str, ...], torch.Tensor]:
    """{image key: [1, h, w]} of those that have a mask."""
    masked = [placed for placed in images if mask_source(placed) is not None]
    if not masked:
        return {}
    context = inputs.context
    context.stage("reading masks")
    cache = MaskCache(
        context.workspace.cache / "masks",
        _index(inputs),
        writes=on_disk(inputs),
        warn=context.warn,
        latent_pixels=inputs.family.latent_pixels,
    )
    return cache.load(masked, threads=decode_threads(context.device), check=context.check)


# ---- the prepare job


def prepare_latents(inputs: Inputs, models: Models) -> None:
    """Latents, masks and control images on disk, for those settings that keep them there."""
    if on_disk(inputs):
        control_source(inputs)
    where = inputs.job.memory.cache_latents
    kept = [placed for placed in images_of(inputs) if not encoded_each_time(placed, where)]
    if not on_disk(inputs) or not kept:
        inputs.context.say("Latents are not cached: with these settings, images are encoded at each step")
        return
    fill(inputs, models, latent_cache(inputs, kept), kept)
    latent_masks(inputs, kept)


def write_npz_caches(inputs: Inputs, models: Models) -> Exported:
    """<stem>.npz next to each image that trains, for sd-scripts: the fixed latents of each; none is overwritten."""
    if inputs.family_name not in NPZ_KINDS:
        what = ".npz caches are for Stable Diffusion 1.x, 2.x and SDXL"
        raise ProblemsError.one(what, "model.base_model", "choose another model", code="npz.other-family")
    every = images_of(inputs)
    images = [placed for placed in every if not is_varied(placed.concept.images)]
    if len(images) < len(every):
        inputs.context.say(f"{len(every) - len(images)} images are augmented at random and get no .npz cache")
    cache = latent_cache(inputs, images, writes=on_disk(inputs))
    fill(inputs, models, cache, images)

    def sample(side: Side) -> torch.Tensor:
        mean, logvar = cache.read(side)
        return frozen_latent(mean, logvar, inputs.seed, side.placed.key, side.mirrored)

    done = export_npz(images, sample, plain_mask, inputs.context.check)
    inputs.context.say(f"{done.written} .npz caches written next to the images")
    if done.kept:
        inputs.context.say(f"{len(done.kept)} existed already or match several images: {shortened(done.kept)}")
    return done
