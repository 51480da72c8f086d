"""From the images of a run to its latents: which are encoded once, which at each step, and where they are kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from core.dataset.encoding import Encode, Side, sides
from core.dataset.images import load_pixels
from core.dataset.latent_cache import LatentCache, Posterior, frozen_latent, on_place, posterior_bytes
from core.dataset.mask_cache import MaskCache, mask_source, plain_mask
from core.dataset.masks import load_mask
from core.dataset.npz import Exported, NpzCaches, export_npz, shortened
from core.dataset.views import draw_view, is_varied
from core.record import machine
from core.training.sources import DEVICE_BYTES, FreshViews, Latents, Shown
from core.training.validation import EPOCH, as_it_is

if TYPE_CHECKING:
    import torch

    from core.dataset.batches import Placed
    from core.families.base import Family
    from core.training.setup import Builder

MOST_DECODERS = 8
NPZ_KINDS = {"sd1": "sd", "sd2": "sd", "sdxl": "sdxl"}  # the ending of newer caches of sd-scripts


def encoded_each_time(placed: Placed, where: str) -> bool:
    """Whether the image is encoded anew each time it is used. where: the setting memory.cache_latents."""
    return where == "off" or is_varied(placed.concept.images)


def build_latents(builder: Builder) -> Latents:
    """Encode what no earlier run encoded, and make the source of latents. Its `scale` is set when the model is loaded."""
    memory, device = builder.job.memory, builder.context.device
    images = images_of(builder)
    kept = [placed for placed in images if not encoded_each_time(placed, memory.cache_latents)]
    anew = len(kept) < len(images)
    cache = latent_cache(builder, kept, writes=on_disk(builder))
    fill(builder, cache, kept, keep_vae=anew)
    if anew:
        builder.context.say(f"{len(images) - len(kept)} images are encoded at each step")
        builder.context.stage("loading the VAE")
        builder.load_vae()
    decoders = decode_threads(device)
    measured = builder.job.validation.validation_seed

    def seed_of(epoch: int) -> int:
        return measured if epoch == EPOCH else builder.seed

    return Latents(
        _posteriors(cache, kept, memory.cache_latents, device),
        lambda placed, epoch, repeat: mirrored(placed, seed_of(epoch), epoch, repeat),
        builder.seed,
        mode=memory.latent_draw,
        masks=latent_masks(builder, kept),
        fresh=FreshViews(_loader(seed_of), decoders, ahead=2 * decoders + 2 * _largest_batch(images)) if anew else None,
        is_fresh=lambda placed: encoded_each_time(placed, memory.cache_latents),
        encode=encoder(builder) if anew else None,
        encode_at_once=memory.vae_batch_size,
        validation_seed=measured,
        device=device,
    )


def on_disk(builder: Builder) -> bool:
    """Whether what is encoded may be written."""
    return builder.job.memory.cache_latents in ("auto", "disk")


def images_of(builder: Builder) -> list[Placed]:
    """All that need latents: those that train and those that are held out."""
    return [*builder.plan.placed, *(as_it_is(placed) for placed in builder.report.validation)]


def _largest_batch(images: Sequence[Placed]) -> int:
    return max(placed.concept.images.train_batch_size for placed in images)


def decode_threads(device: str) -> int:
    """A GPU waits for decoding unless many threads do it; beside a VAE on the CPU two fill the gaps."""
    return max(2, min(MOST_DECODERS, machine.cores())) if not device.startswith("cpu") else 2


# ---- cached


def latent_cache(builder: Builder, images: Sequence[Placed], *, writes: bool = True) -> LatentCache:
    identity = builder.family.digest(builder.model, "vae", vae=builder.vae, memo=builder.memo)
    others = None
    if builder.job.memory.npz_caches:
        others = NpzCaches(images, NPZ_KINDS.get(builder.family_name, "sd"))
    folder, index = builder.context.workspace.cache / "latents", builder.context.workspace.private / "index.sqlite"
    wanted = builder.job.memory.vae_precision
    precision = "fp32" if wanted == "auto" else wanted  # what the VAE is loaded in
    return LatentCache(
        folder, identity, precision, index, writes=writes, others=others, channels=builder.family.latent_channels
    )


def fill(builder: Builder, cache: LatentCache, images: Sequence[Placed], *, keep_vae: bool = False) -> None:
    """Encode the images that no earlier run encoded with the same VAE, size and crop. keep_vae: it is needed later."""
    context = builder.context
    missing = cache.missing(images, context.check)
    if isinstance(cache.others, NpzCaches):
        for line in cache.others.said():
            context.say(line)
    if missing:
        context.stage("loading the VAE")
        vae = builder.load_vae()
        cache.fill(
            missing,
            encoder(builder),
            batch_size=builder.job.memory.vae_batch_size,
            threads=decode_threads(context.device),
            retry=fp32_retry(builder.family, vae),
            check=context.check,
            progress=lambda done, total: context.stage("encoding images", done, total),
        )
        if not keep_vae:
            builder.put_vae_away()


def encoder(builder: Builder) -> Encode:
    """Pixels -> posterior on the device, by a VAE that is loaded at first use and stays. Images of another size would
    find no room beside what was set aside for this one's, so it is given back, unless there is much memory."""
    import torch

    frees = builder.context.device.startswith("cuda") and not builder.job.memory.highvram

    def encode(pixels: torch.Tensor) -> Posterior:
        vae = builder.load_vae().to(builder.context.device)  # samples put it away when they are done
        posterior: Posterior = builder.family.encode_image_latents(vae, pixels)
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


def _posteriors(cache: LatentCache, images: Sequence[Placed], where: str, device: str) -> Callable[[Side], Posterior]:
    """Small ones and those for the device are held there; others are read from the disk each time."""
    size = sum(posterior_bytes(placed, cache.channels) * len(sides(placed)) for placed in images)
    if where != "device" and size > DEVICE_BYTES:
        return cache.read
    held = on_place(cache.load(images), "cpu" if where == "memory" else device)
    return lambda side: held[side.key]


# ---- at each step


def mirrored(placed: Placed, seed: int, epoch: int, repeat: int) -> bool:
    return placed.concept.images.flip_aug and draw_view(placed, seed, epoch, repeat).flip


def _loader(seed_of: Callable[[int], int]) -> Callable[[Placed, int, int], Shown]:
    """seed_of: (epoch) -> the seed of its views."""

    def load(placed: Placed, epoch: int, repeat: int) -> Shown:
        view = draw_view(placed, seed_of(epoch), epoch, repeat)
        pixels = load_pixels(placed.image.path, view, images=placed.concept.images)
        return Shown(pixels, load_mask(placed, view))

    return load


def latent_masks(builder: Builder, images: Sequence[Placed]) -> dict[tuple[str, ...], torch.Tensor]:
    """{image key: [1, h, w]} of those that have a mask."""
    masked = [placed for placed in images if mask_source(placed) is not None]
    if not masked:
        return {}
    context = builder.context
    context.stage("reading masks")
    cache = MaskCache(
        context.workspace.cache / "masks", context.workspace.private / "index.sqlite", writes=on_disk(builder)
    )
    return cache.load(masked, threads=decode_threads(context.device), check=context.check)


# ---- the prepare job


def prepare_latents(builder: Builder) -> None:
    """Latents and masks on disk, for those settings that keep them there."""
    where = builder.job.memory.cache_latents
    kept = [placed for placed in images_of(builder) if not encoded_each_time(placed, where)]
    if not on_disk(builder) or not kept:
        builder.context.say("Latents are not cached: with these settings training encodes the images at each step")
        return
    fill(builder, latent_cache(builder, kept), kept)
    latent_masks(builder, kept)


def write_npz_caches(builder: Builder) -> Exported:
    """<stem>.npz beside each image that trains, for sd-scripts: the fixed latents of each; none is overwritten."""
    every = images_of(builder)
    images = [placed for placed in every if not is_varied(placed.concept.images)]
    if len(images) < len(every):
        builder.context.say(f"{len(every) - len(images)} images change every epoch and get no .npz cache")
    cache = latent_cache(builder, images, writes=on_disk(builder))
    fill(builder, cache, images)

    def sample(side: Side) -> torch.Tensor:
        mean, logvar = cache.read(side)
        return frozen_latent(mean, logvar, builder.seed, side.placed.key, side.mirrored)

    done = export_npz(images, sample, plain_mask, builder.context.check)
    builder.context.say(f"{done.written} .npz caches were written beside their images")
    if done.kept:
        builder.context.say(f"{len(done.kept)} were there already or fit several images: {shortened(done.kept)}")
    return done
