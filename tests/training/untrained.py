"""How far the trained model is from the base model, for methods that train next to it or in it."""

import torch

from core.diffusion.text_states import Conditioning
from core.families import family


def distances(training):
    """Of (the prediction with changed weights, the base model's) from the prediction that `untrained` gives, at a first step."""
    passes, method = training.run.passes, training.run.passes.method
    batch = passes.latents.batch(0, [(training.run.plan.placed[0], 0)])
    given = Conditioning(passes.text.states(["a fox"]), control=batch.control)
    at = torch.tensor([500])
    with torch.no_grad():
        for weight in method.state_dict().values():
            weight.add_(0.02)
        own = passes.predict(batch.latents, at, given)
        with method.untrained():
            base = passes.predict(batch.latents, at, given)
        method.release()
    plain = family("sd1").predict(passes.components, batch.latents, at, given)
    return (own - base).abs().max(), (plain - base).abs().max()
