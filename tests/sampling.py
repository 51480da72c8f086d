"""Images by the loop of sampling, in one call."""

from core.generation.sample.canvas import decode
from core.generation.sample.loop import Denoiser, Sampling, Stage, denoise, noises_of


def sampled(
    model, states, *, seeds, width, height, steps=20, control=None, on_step=None, cancel=None, sampling=None, **how
):
    """Latents of one image for each seed. model: components, or a `Denoiser`; how: fields of `Sampling`"""
    denoiser = model if isinstance(model, Denoiser) else Denoiser.of(model)
    if sampling is None:
        how = ({} if isinstance(model, Denoiser) else {"prediction": model.prediction}) | how
        sampling = Sampling(**how)
    stage = Stage((width, height), steps)
    noises = noises_of(denoiser, stage, seeds, sampling)
    return denoise(denoiser, states, stage, noises, sampling, control=control, on_step=on_step, cancel=cancel)


def images(components, states, **how):
    """The same as images."""
    from core.families import family

    return decode(components.vae, sampled(components, states, **how), family(components.family).decode_latents)
