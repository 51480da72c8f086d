"""A toy method: only the biases of the U-Net train, and are saved in a small file of their own."""

from core.settings.base import Settings, setting
from core.settings.methods import MethodSpec, Usual, register


class BiasSettings(Settings):
    """Biases of the U-Net."""

    only: str = setting("", title="Only modules", help="Trains the modules whose name contains this. Empty trains all.")


def _make(inputs):
    import torch
    from safetensors.torch import save_file

    from core.methods import Method
    from core.optimization.groups import Trainable

    class Biases(Method):
        trains_text, trains_unet, extension = False, True, ".safetensors"

        def build(self, components):
            components.denoiser.requires_grad_(False)
            only = inputs.job.biases.only
            self.biases = {
                name: value
                for name, value in components.denoiser.named_parameters()
                if name.endswith(".bias") and only in name
            }
            for value in self.biases.values():
                value.requires_grad_(True)
            return [Trainable("unet", list(self.biases.values()))]

        def state_dict(self):
            return {name: value.detach() for name, value in self.biases.items()}

        def load_state_dict(self, tensors):
            with torch.no_grad():
                for name, value in self.biases.items():
                    value.copy_(tensors[name])

        def write(self, path, metadata, precision, *, epoch, step):
            save_file({name: value.float().contiguous() for name, value in self.state_dict().items()}, path, metadata)
            return []

        def release(self):
            self.biases = {}

    return Biases()


register(
    MethodSpec(
        name="biases",
        title="Biases of the U-Net",
        words="bias tuning",
        changes="model",
        make=_make,
        trains_unet=lambda job: True,
        trains_text=lambda job: False,
        trained_numbers=lambda job, family, parts: {"unet": 10_000},
        usual={"unet": Usual(1e-5, 1e-3, 1e-2)},
        project="bias_tuning",
        saves="model",
        group="biases",
        settings=BiasSettings,
    )
)
