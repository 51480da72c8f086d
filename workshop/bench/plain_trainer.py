"""A plain trainer to compare with: diffusers' U-Net, autocast, torch's AdamW, the loss read back at every step.

Deliberately written like the widely used training scripts, and in its favor where they differ: latents are given,
no VAE is loaded, nothing is saved, no image is decoded. Started as a process of its own:

    python -m workshop.bench.plain_trainer SPEC.json        prints its measurements as JSON
"""

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from core.record import machine
from workshop.bench.compare import Spec

TEXT_LINEARS = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
UNET_BLOCKS = "Transformer2DModel"
FIRST_ID, LAST_ID, NEW_ID, TOKENS = 49406, 49407, 49405, 77
TRAIN_STEPS = 1000


DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class WrappedLinear(nn.Module):
    """A linear layer (or 1x1 convolution) with a LoRA, wrapped like in the usual scripts. Its weights train in fp32."""

    def __init__(self, base: nn.Module, rank: int):
        super().__init__()
        self.base = base
        if isinstance(base, nn.Conv2d):
            self.down: nn.Module = nn.Conv2d(base.in_channels, rank, 1, bias=False)
            self.up: nn.Module = nn.Conv2d(rank, base.out_channels, 1, bias=False)
        else:
            assert isinstance(base, nn.Linear)
            self.down = nn.Linear(base.in_features, rank, bias=False)
            self.up = nn.Linear(rank, base.out_features, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x) + self.up(self.down(x))


def wrap(model: nn.Module, rank: int, wanted: Callable[[str, nn.Module], bool]) -> list[nn.Parameter]:
    """Put a LoRA on every wanted layer; returns the trainable parameters."""
    trainable: list[nn.Parameter] = []
    for name, layer in [(name, layer) for name, layer in model.named_modules() if wanted(name, layer)]:
        parent, _, last = name.rpartition(".")
        wrapped = WrappedLinear(layer, rank)
        setattr(model.get_submodule(parent), last, wrapped)
        trainable += [*wrapped.down.parameters(), *wrapped.up.parameters()]
    return trainable


def in_transformer(unet: nn.Module) -> Callable[[str, nn.Module], bool]:
    """Every linear layer and 1x1 convolution of the U-Net's transformers: what kohya's LoRAs train."""
    inside = tuple(f"{name}." for name, part in unet.named_modules() if type(part).__name__ == UNET_BLOCKS)

    def wanted(name: str, layer: nn.Module) -> bool:
        small = isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1))
        return small and name.startswith(inside)

    return wanted


class PlainTrainer:
    """The parts of one training, loaded in fp32 like the usual scripts, then cast as specified."""

    def __init__(self, spec: Spec):
        from diffusers import UNet2DConditionModel
        from transformers import CLIPTextModel, CLIPTextModelWithProjection

        torch.manual_seed(0)
        self.spec = spec
        folder = Path(spec.model)
        self.unet = UNet2DConditionModel.from_pretrained(folder / "unet", torch_dtype=torch.float32)
        self.texts = [CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=torch.float32)]
        if (folder / "text_encoder_2").is_dir():
            second = CLIPTextModelWithProjection.from_pretrained(folder / "text_encoder_2", dtype=torch.float32)
            self.texts.append(second)
        for part in (self.unet, *self.texts):
            part.requires_grad_(False)
        self.trainable = self._place()
        self.optimizer = self._optimizer()
        steps_done = torch.linspace(0.00085**0.5, 0.012**0.5, TRAIN_STEPS) ** 2
        self.alpha_bar = torch.cumprod(1 - steps_done, 0).to(spec.device)

    def _place(self) -> list[nn.Parameter]:
        """Casts, moves and freezes the parts by method; returns the trainable parameters."""
        spec, frozen = self.spec, DTYPES[self.spec.frozen]
        whole = spec.method in ("dreambooth", "fine_tune")
        self.unet.to(spec.device, DTYPES[spec.trainable] if whole else frozen)
        for text in self.texts:
            trains = spec.method == "embedding" or (whole and spec.text)
            text.to(spec.device, DTYPES[spec.trainable] if trains else frozen)
        if spec.method == "lora":
            wrapped = wrap(self.unet, spec.rank, in_transformer(self.unet))
            if spec.text:
                for text in self.texts:
                    wrapped += wrap(text, spec.rank, lambda name, _: name.rpartition(".")[2] in TEXT_LINEARS)
            self.unet.to(spec.device)
            for text in self.texts:
                text.to(spec.device)
        elif spec.method == "embedding":
            wrapped = [parameter for text in self.texts for parameter in text.get_input_embeddings().parameters()]
            self.before = [parameter.detach().clone() for parameter in wrapped]
        else:
            wrapped = [*self.unet.parameters(), *(p for text in self.texts if spec.text for p in text.parameters())]
        for parameter in wrapped:
            parameter.requires_grad_(True)
        self.unet.train()
        return wrapped

    def _optimizer(self) -> Any:
        if self.spec.optimizer == "Adafactor":
            from transformers.optimization import Adafactor

            return Adafactor(
                self.trainable, lr=self.spec.rate, scale_parameter=False, relative_step=False, warmup_init=False
            )
        return torch.optim.AdamW(self.trainable, lr=self.spec.rate, weight_decay=0.01)

    def encode(self, ids: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """(text encoder states, SDXL's added conditions or {}) of token ids: at every step, whether or not the text encoder
        trains, like the usual scripts."""
        trains = any(parameter.requires_grad for text in self.texts for parameter in text.parameters())
        with torch.enable_grad() if trains else torch.no_grad():
            if len(self.texts) == 1:
                return self.texts[0](ids).last_hidden_state, {}
            read = [text(ids, output_hidden_states=True) for text in self.texts]
            size = self.spec.size
            sizes = torch.tensor([[size, size, 0, 0, size, size]] * len(ids), device=ids.device)
            states = torch.cat([each.hidden_states[-2] for each in read], -1)
            return states, {"text_embeds": read[1].text_embeds, "time_ids": sizes}

    def step(self, latents: torch.Tensor, ids: torch.Tensor) -> float:
        """One optimizer step; the loss is read back immediately."""
        noise = torch.randn_like(latents)
        timesteps = torch.randint(0, TRAIN_STEPS, (len(latents),), device=latents.device)
        clean = self.alpha_bar[timesteps].view(-1, 1, 1, 1)
        noisy = clean**0.5 * latents + (1 - clean) ** 0.5 * noise
        with self._autocast():
            states, more = self.encode(ids)
            dtype = next(self.unet.parameters()).dtype
            if not self.spec.autocast:
                noisy, states = noisy.to(dtype), states.to(dtype)
            predicted = self.unet(noisy, timesteps, states, added_cond_kwargs=more or None).sample
        loss = nn.functional.mse_loss(predicted.float(), noise.float())
        loss.backward()
        nn.utils.clip_grad_norm_(self.trainable, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.spec.method == "embedding":
            self._put_back()
        return loss.item()

    def _put_back(self) -> None:
        """Restore all rows of the table but the trained token's, as diffusers' script does."""
        with torch.no_grad():
            for table, before in zip(self.trainable, self.before, strict=True):
                others = torch.ones(len(table), dtype=torch.bool)
                others[NEW_ID] = False
                table[others] = before[others]

    def _autocast(self) -> AbstractContextManager[Any]:
        if not self.spec.autocast:
            return nullcontext()
        return torch.autocast(torch.device(self.spec.device).type, torch.bfloat16)

    def batches(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Made-up latents and captions of a few tokens; the benchmark measures time and memory, not images."""
        drawn = torch.Generator().manual_seed(1)
        side = self.spec.size // 8
        while True:
            latents = torch.randn(self.spec.batch, 4, side, side, generator=drawn)
            ids = torch.full((self.spec.batch, TOKENS), LAST_ID)
            ids[:, 0] = FIRST_ID
            ids[:, 1:8] = torch.randint(300, 40000, (self.spec.batch, 7), generator=drawn)
            ids[:, 1] = NEW_ID
            yield latents.to(self.spec.device), ids.to(self.spec.device)


def train(spec: Spec) -> dict[str, Any]:
    """Seconds of every step, and its losses."""
    trainer = PlainTrainer(spec)
    seconds, losses = [], []
    batches = trainer.batches()
    for _ in range(spec.steps):
        latents, ids = next(batches)
        machine.synchronize(spec.device)
        started = time.perf_counter()
        losses.append(trainer.step(latents, ids))
        machine.synchronize(spec.device)
        seconds.append(time.perf_counter() - started)
    return {"spec": asdict(spec), "seconds": seconds, "losses": losses}


def main(arguments: list[str]) -> None:
    from core.record import machine

    torch.set_num_threads(machine.threads())
    spec = Spec(**json.loads(Path(arguments[0]).read_text("utf-8")))
    print(json.dumps(train(spec)))


if __name__ == "__main__":
    main(sys.argv[1:])
