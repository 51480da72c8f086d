"""A toy objective: the velocity of a straight line from image to noise, as in flow matching; and a toy sampler for it."""

from core.diffusion.objectives import ObjectiveKind
from core.diffusion.objectives import register as register_objective
from core.diffusion.samplers import register as register_sampler
from core.settings.base import Settings, setting


class StraightSettings(Settings):
    """The straight line's loss."""

    late_weight: float = setting(1.0, title="Late weight", help="Weight of the noisier half.", ge=0, le=10)
    logit_normal: bool = setting(False, title="Logit-normal", help="Draws fractions of timesteps, most in the middle.")


def _make(job, prediction, device):
    import torch

    from core.diffusion.objective import Objective
    from core.record.draws import normal

    class Straight(Objective):
        prediction = "epsilon"
        fractions = job.straight.logit_normal

        def draw(self, settings, address, size):
            """Logit-normal (Esser et al. 2024, arXiv:2403.03206), shifted for larger images."""
            if not job.straight.logit_normal:
                return super().draw(settings, address, size)
            seed, *rest = address
            at = float(torch.sigmoid(normal((1,), seed, "straight", *rest)))
            shift = (size[0] * size[1] / 64**2) ** 0.5
            return 1000 * shift * at / (1 + (shift - 1) * at)

        def noised(self, x0, noise, timesteps):
            s = ((timesteps + 1) / 1000).view(-1, 1, 1, 1)
            return (1 - s) * x0 + s * noise

        def target(self, x0, noise, timesteps):
            return noise - x0

        def weight(self, timesteps):
            return 1.0 + (timesteps >= 500).float() * (job.straight.late_weight - 1.0)

    return Straight()


def _sampler(prediction, zero_terminal_snr):
    """Every step goes the same way along the line."""

    class Line:
        def set_timesteps(self, count, device=None):
            import torch

            self.timesteps = torch.linspace(999, 999 / count, count, device=device).long()

        def step(self, output, timestep, latents, return_dict=False):
            return (latents - output / len(self.timesteps),)

    return Line()


register_objective(ObjectiveKind("straight", "Straight line", _make, StraightSettings))
register_sampler("line", "Straight line", _sampler, frozenset({"straight", "flow"}))
