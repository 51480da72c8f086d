"""Sample pictures of a run: the same prompts, seeds and noise each time, so that only the training changes them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from core.families import family
from core.record.events import Sampled
from core.settings.samples import SampleSettings

if TYPE_CHECKING:
    from core.training.run import Run


def sample_size(run: Run) -> tuple[int, int]:
    """(width, height) of samples: as set, else the training resolution, in multiples of 8."""
    size = run.job.dataset.resolution
    width, height = size if isinstance(size, tuple) else (size, size)
    samples = run.job.samples
    return (samples.width or width) // 8 * 8, (samples.height or height) // 8 * 8


def sample_captions(samples: SampleSettings) -> list[str]:
    """Every text that samples need encoded: the negative prompt, then the prompts."""
    return [samples.negative_prompt, *samples.sample_prompts]


def draw_samples(run: Run) -> None:
    """One picture for each prompt, with the weights as they are now. A stop is heard at every sampling step."""
    import torch

    from core.generation.pipeline import decode, denoise
    from core.record import atomic

    settings, context = run.job.samples, run.context
    width, height = sample_size(run)
    run.method.set_strength(1.0)
    run.text.need(sample_captions(settings))
    with torch.no_grad():
        negative = run.text.states([settings.negative_prompt])
        for index, prompt in enumerate(settings.sample_prompts):
            context.stage(f"drawing sample {index + 1} of {len(settings.sample_prompts)}")
            seed = (settings.seed + index) % 2**32
            latents = denoise(
                run.predict,
                run.text.states([prompt]),
                negative,
                seeds=[seed],
                width=width,
                height=height,
                sampler=settings.sample_sampler,
                steps=settings.sample_steps,
                guidance_scale=settings.guidance_scale,
                prediction=run.prediction,
                zero_terminal_snr=run.job.noise.zero_terminal_snr,
                on_step=lambda done, steps: context.check(),
            )
            with vae_on_device(run) as vae:
                picture = decode(vae, latents)[0]
            name = f"{run.state.step:08d}_{index:02d}.png"
            with atomic.open_atomic(context.folder.samples / name) as path:
                picture.save(path, format="PNG")
            context.journal.put(Sampled(run.state.step, index, prompt, seed, f"samples/{name}"))
    context.stage("training" if run.state.step < run.total else "finishing")


@contextmanager
def vae_on_device(run: Run) -> Iterator[Any]:
    """The VAE, on the device only while it is used; loaded at the first sample, since cached latents need it for nothing."""
    device = run.context.device
    if run.components.vae is None:
        loaded = family(run.components.family).load(run.components.source, parts=("vae",), vae=run.facts["vae_path"])
        run.components.vae = loaded.vae
    vae = run.components.vae.to(device)
    try:
        yield vae
    finally:
        if device != "cpu":
            vae.to("cpu")
