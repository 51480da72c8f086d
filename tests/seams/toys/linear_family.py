"""What the toy family computes."""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from core.diffusion.objective import Objective
from core.diffusion.text_states import TextStates
from core.families.base import Family
from core.families.components import Components
from core.families.layout import Layout
from core.families.targets import Target
from core.formats.hashes import model_hashes
from core.formats.models.checkpoint import Part, TensorLocation
from core.formats.tensors.header import read_header

CHANNELS, HIDDEN, LETTERS, STATES = 8, 16, 26, 4
PARTS = ("mlp", "text_encoder", "vae")


class Denoiser(nn.Module):
    def __init__(self):
        super().__init__()
        self.into, self.text, self.out = (
            nn.Linear(CHANNELS, HIDDEN),
            nn.Linear(STATES, HIDDEN),
            nn.Linear(HIDDEN, CHANNELS),
        )

    def forward(self, noisy, timesteps, states, guidance):
        hidden = self.into(noisy.movedim(1, -1)) + self.text(states.mean(1))[:, None, None]
        return self.out(torch.tanh(hidden + (timesteps / 1000 + guidance / 100).reshape(-1, 1, 1, 1))).movedim(-1, 1)


class Flow(Objective):
    def noised(self, x0, noise, timesteps):
        s = ((timesteps + 1) / 1000).view(-1, 1, 1, 1)
        return (1 - s) * x0 + s * noise

    def target(self, x0, noise, timesteps):
        return noise - x0


def _file(path):
    """A model is one file, alone or in a folder with its config."""
    return Path(path) / "mlp" / "model.safetensors" if Path(path).is_dir() else Path(path)


class LinearFamily(Family):
    def load(self, path, *, parts=("denoiser", "vae", "text_encoders"), dtype=torch.float32, device="cpu", **how):
        tensors = load_file(_file(path))
        made = {
            "mlp": Denoiser(),
            "text_encoder": nn.Linear(LETTERS, STATES),
            "vae": nn.Linear(192, CHANNELS, bias=False),
        }
        for name, module in made.items():
            own = f"linear.{name}."
            module.load_state_dict({key[len(own) :]: value for key, value in tensors.items() if key.startswith(own)})
            module.requires_grad_(False).to(device=device)
        return Components(
            denoiser=made["mlp"].to(dtype) if "denoiser" in parts else None,
            vae=made["vae"] if "vae" in parts else None,
            text_encoders=[made["text_encoder"].to(dtype)] if "text_encoders" in parts else [],
            tokenizers=[None] if "tokenizers" in parts else [],
            vae_config={"scaling_factor": 1.0},
            family="linear",
            source=Path(path),
        )

    def digest(self, path, part, *, memo=None, **how):
        return f"{model_hashes(_file(path), memo)[1]} {part}"

    def parts(self, path):
        found = {}
        path = _file(path)
        for name, entry in read_header(path)[0].items():
            part, _, key = name.removeprefix("linear.").partition(".")
            found.setdefault(part, {})[key] = TensorLocation(Path(path), name, entry)
        return {part: Part(part, Path(path), places) for part, places in found.items()}

    def weight_bytes(self, path, item_bytes=None):
        return {name: part.weight_bytes(item_bytes) for name, part in self.parts(path).items()}

    def make_empty(self, name, config=None):
        with torch.device("meta"):
            return Denoiser() if name == "mlp" else nn.Linear(LETTERS, STATES)

    def problems(self, path, vae=None):
        return []

    def activation_bytes(self, pixels, batch):
        return pixels // 64 * batch * HIDDEN * 4 * 4


def _encode_captions(components, captions, **how):
    counts = torch.tensor([[text.lower().count(chr(97 + n)) for n in range(LETTERS)] for text in captions])
    encoder = components.text_encoders[0]
    return TextStates(encoder(counts.to(encoder.weight.dtype))[:, None])


def _predict(components, noisy, timesteps, given):
    dtype = components.denoiser.into.weight.dtype
    return components.denoiser(noisy.to(dtype), timesteps.to(dtype), given.texts.context.to(dtype), given.guidance)


def _lora_targets(part, *, conv=False):
    if isinstance(part, Denoiser):
        for name, module in part.named_children():
            yield Target(f"lora_unet_{name}", name, part, name, module)


def _encode_latents(vae, pixels):
    mean = vae(pixel_unshuffle(pixels, 8).movedim(1, -1)).movedim(-1, 1).float()
    return mean, torch.full_like(mean, -30.0)


def _decode_latents(vae, latents):
    return pixel_shuffle((latents.movedim(1, -1) @ vae.weight.float()).movedim(-1, 1), 8).tanh()


def write_model(path, seed=1):
    torch.manual_seed(seed)
    made = {"mlp": Denoiser(), "text_encoder": nn.Linear(LETTERS, STATES), "vae": nn.Linear(192, CHANNELS, bias=False)}
    tensors = {
        f"linear.{name}.{key}": value for name, module in made.items() for key, value in module.state_dict().items()
    }
    save_file(tensors, path)
    return path


FAMILY = LinearFamily(
    Layout(
        denoiser="mlp",
        family="linear",
        configs=Path(__file__).parent / "linear_configs",
        text_encoders=("text_encoder",),
        tokenizers=(),
        resolution=64,
    ),
    encode_captions=_encode_captions,
    encode_ids=_encode_captions,
    predict=_predict,
    lora_targets=_lora_targets,
    reads_guidance=True,
    latent_channels=CHANNELS,
    encode_image_latents=_encode_latents,
    decode_latents=_decode_latents,
    count_tokens=lambda components, caption: len(caption.split()),
)
