"""A toy method: a ControlNet (Zhang et al. 2023, arXiv:2302.05543) of diffusers' class trains next to the frozen U-Net."""

from core.record.problems import Problem, ProblemsError
from core.settings.base import Settings, setting
from core.settings.methods import MethodSpec, Usual, register


class ControlSettings(Settings):
    """A ControlNet next to the U-Net."""

    weights: str | None = setting(None, title="Initial ControlNet", help="Training continues it.", names="path or name")
    scale: float = setting(1.0, within=(0, 2), title="Conditioning scale", help="Multiplies what it adds.")


def _beside(unet, job=None):
    """(noisy latents, timesteps, Conditioning) -> what the U-Net gets besides; at first nothing."""
    import torch
    from diffusers import ControlNetModel

    class Beside(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.scale = ControlNetModel.from_unet(unet), 1.0

        def forward(self, noisy, timesteps, given):
            dtype, texts, more = self.net.dtype, given.texts, {}
            if texts.pooled is not None:
                more["added_cond_kwargs"] = {"text_embeds": texts.pooled.to(dtype), "time_ids": given.sizes.float()}
            down, mid = self.net(
                noisy.to(dtype),
                timesteps,
                encoder_hidden_states=texts.context.to(dtype),
                controlnet_cond=given.control.to(dtype),
                conditioning_scale=self.scale,
                return_dict=False,
                **more,
            )
            return {"down_block_additional_residuals": down, "mid_block_additional_residual": mid}

    return Beside()


def _initial(job, workspace):
    """The tensors that training begins with; None: those of the U-Net."""
    from safetensors.torch import load_file

    from core.families.locate import model_path
    from core.formats.detect import identify

    if not job.control.weights:
        return None
    path = model_path(job.control.weights, workspace, "control.weights")
    if identify(path).kind != "controlnet":
        raise ProblemsError.one(f"{path.name} is no ControlNet", "control.weights", "choose one", "control.other-file")
    return load_file(path)


def _file_problems(job, workspace):
    try:
        _initial(job, workspace)
    except ProblemsError as error:
        return error.problems
    return []


def _make(inputs):
    from contextlib import contextmanager
    from dataclasses import replace

    import torch
    from safetensors.torch import save_file

    from core.formats.tensors.writer import type_named
    from core.methods import Method
    from core.optimization.groups import Trainable

    class ControlNet(Method):
        trains_text, trains_unet, extension = False, True, ".safetensors"

        def build(self, components):
            unet, memory = components.denoiser.requires_grad_(False), inputs.job.memory
            with torch.random.fork_rng([]):
                torch.manual_seed(inputs.seed)
                self.side, self.adds = _beside(unet), True
            self.side.scale = inputs.job.control.scale
            if (start := _initial(inputs.job, inputs.workspace)) is not None:
                self.side.net.load_state_dict(start)
            if memory.gradient_checkpointing:
                self.side.net.enable_gradient_checkpointing()
            self.side.to(unet.device, type_named(memory.full_precision)).train()
            return [Trainable("unet", list(self.side.parameters()))]

        def conditioned(self, given, noisy_latents, timesteps):
            return replace(given, added=self.side(noisy_latents, timesteps, given)) if self.adds else given

        @contextmanager
        def untrained(self):
            self.adds = False
            try:
                yield
            finally:
                self.adds = True

        def state_dict(self):
            return {name: value.detach() for name, value in self.side.net.state_dict().items()}

        def load_state_dict(self, tensors):
            self.side.net.load_state_dict(tensors)

        def write(self, path, metadata, precision, *, epoch, step):
            dtype = type_named(precision)
            tensors = {name: value.to(dtype).cpu().contiguous() for name, value in self.state_dict().items()}
            save_file(tensors, path, metadata)
            return []

        def release(self):
            self.side = None

    return ControlNet()


def _numbers(job, family_name, parts):
    import torch

    from core.families import family

    with torch.device("meta"):
        net = _beside(family(family_name).make_empty("unet", parts["unet"].config))
    return {"unet": sum(weight.numel() for weight in net.parameters())}


def _problems(job):
    if job.sharding.active:
        what, fix = "DeepSpeed cannot share a ControlNet", "turn it off"
        yield Problem(what, "sharding.deepspeed", fix, code="control.sharding")


register(
    MethodSpec(
        name="control",
        title="ControlNet",
        words="a ControlNet",
        changes="side model",
        make=_make,
        trains_unet=lambda job: True,
        trains_text=lambda job: False,
        trained_numbers=_numbers,
        usual={"unet": Usual(1e-6, 1e-5, 1e-3)},
        project="controlnet",
        saves="controlnet",
        group="control",
        settings=ControlSettings,
        problems=_problems,
        file_problems=_file_problems,
        preserves_class=True,
        control_images=True,
        side=_beside,
    )
)
