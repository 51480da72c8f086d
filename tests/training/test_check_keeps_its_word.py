"""What `train --check` passes trains, to its end, with a checkpoint and, of a model, a sample: the starter model and a
dataset, each damaged in one way, are checked, and every second one is trained for one step if it passes."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from core.cli.main import BAD_INPUT, DONE, main
from core.record.workspace import PROJECT

STARTER = PROJECT / "models" / "starter"
UNET, VAE = ("unet/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.safetensors")
TEXT = "text_encoder/model.safetensors"
ASKED = {
    "dataset.resolution": "64",
    "dataset.bucket_reso_steps": "16",
    "network.rank": "2",
    "schedule.max_train_steps": "1",
    "logging.log_with": "none",
}
SAMPLES = ("--samples.sample_prompts", '["a fox"]', "--samples.sample_steps", "1")
Damage = Callable[[Path], Any]


def config(part: str, **changes: Any) -> Damage:
    """A part's config with values changed; `...` takes one away."""

    def damage(home: Path) -> None:
        path = home / "model" / (f"{part}.json" if "/" in part else f"{part}/config.json")
        held = json.loads(path.read_text("utf-8")) | changes
        path.write_text(json.dumps({name: value for name, value in held.items() if value is not ...}), "utf-8")

    return damage


def tensors(file: str, change: Callable[[dict[str, torch.Tensor]], Any]) -> Damage:
    def damage(home: Path) -> None:
        held = load_file(home / "model" / file)
        change(held)
        save_file(held, home / "model" / file)

    return damage


def first(held: dict[str, torch.Tensor]) -> str:
    return sorted(held)[0]


def fill(value: float) -> Callable[[dict[str, torch.Tensor]], Any]:
    return lambda held: held[first(held)].fill_(value)


def to(dtype: torch.dtype) -> Callable[[dict[str, torch.Tensor]], Any]:
    return lambda held: held.update({name: value.to(dtype) for name, value in held.items()})


def content(file: str, change: Callable[[bytes], bytes]) -> Damage:
    return lambda home: (home / file).write_bytes(change((home / file).read_bytes()))


def gone(file: str) -> Damage:
    return lambda home: (home / file).unlink()


def image(name: str, make: Callable[[Path], Any], caption: bytes = b"a fox") -> Damage:
    def damage(home: Path) -> None:
        make(home / "set" / name)
        (home / "set" / name).with_suffix(".txt").write_bytes(caption)

    return damage


def caption(text: bytes) -> Damage:
    return lambda home: (home / "set" / "fox.txt").write_bytes(text)


def drawn(mode: str, size: tuple[int, int] = (80, 64), **more: Any) -> Callable[[Path], Any]:
    return lambda path: Image.effect_noise(size, 60).convert("RGB").convert(mode).save(path, **more)


def _sharded(home: Path) -> None:
    """An index that leads to a file which is not there."""
    (home / "model" / UNET).rename(home / "model/unet/diffusion_pytorch_model-00001-of-00002.safetensors")
    weights = dict.fromkeys(
        load_file(home / "model/unet/diffusion_pytorch_model-00001-of-00002.safetensors"), "gone.safetensors"
    )
    index = home / "model/unet/diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weights}), "utf-8")


def _lies_in_the_header(home: Path) -> None:
    """A header that says one axis more, with the same number of numbers."""
    path = home / "model" / UNET
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = data[8 : 8 + length]
    changed = re.sub(rb'"shape": ?\[(\d+),(\d+)\]', lambda found: found.group(), header, count=1)
    listing = json.loads(changed)
    name = next(name for name, each in listing.items() if name != "__metadata__" and len(each["shape"]) == 2)
    listing[name]["shape"].append(1)
    text = json.dumps(listing).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])


MODEL: dict[str, Damage] = {
    "nothing": lambda home: None,
    "a UNet tensor is missing": tensors(UNET, lambda held: held.pop(first(held))),
    "a UNet tensor more": tensors(UNET, lambda held: held.update(more=torch.zeros(3))),
    "a UNet tensor of another shape": tensors(UNET, lambda held: held.update({first(held): torch.zeros(3)})),
    "an axis more": _lies_in_the_header,
    "NaN in the UNet": tensors(UNET, fill(float("nan"))),
    "infinity in the VAE": tensors(VAE, fill(float("inf"))),
    "NaN in the text encoder": tensors(TEXT, fill(float("nan"))),
    "a UNet of zeros": tensors(UNET, lambda held: [value.zero_() for value in held.values()]),
    "a UNet in fp16": tensors(UNET, to(torch.float16)),
    "a UNet in fp64": tensors(UNET, to(torch.float64)),
    "a UNet in whole numbers": tensors(UNET, to(torch.int32)),
    "a UNet in fp8": tensors(UNET, to(torch.float8_e4m3fn)),
    "a VAE in bf16": tensors(VAE, to(torch.bfloat16)),
    "a text encoder in fp8": tensors(TEXT, to(torch.float8_e5m2)),
    "a text encoder tensor is missing": tensors(TEXT, lambda held: held.pop(sorted(held)[-1])),
    "a VAE tensor is missing": tensors(VAE, lambda held: held.pop(first(held))),
    "UNet widths": config("unet", block_out_channels=[32, 64]),
    "UNet groups": config("unet", norm_num_groups=7),
    "UNet attention of another width": config("unet", cross_attention_dim=99),
    "UNet heads that do not divide": config("unet", attention_head_dim=7),
    "UNet of nine channels": config("unet", in_channels=9),
    "UNet activation": config("unet", act_fn="nonsense"),
    "UNet without a class": config("unet", _class_name=...),
    "UNet with a setting more": config("unet", nonsense=[1, 2]),
    "UNet time embedding": config("unet", time_embedding_type="fourier"),
    "UNet class embedding": config("unet", class_embed_type="timestep"),
    "UNet linear projection": config("unet", use_linear_projection=True),
    "UNet sample size": config("unet", sample_size=None),
    "VAE scaling of zero": config("vae", scaling_factor=0.0),
    "VAE scaling that is text": config("vae", scaling_factor="0.18"),
    "VAE scaling is null": config("vae", scaling_factor=None),
    "VAE of 8 latent channels": config("vae", latent_channels=8),
    "VAE with a shift": config("vae", shift_factor=0.5),
    "text encoder activation": config("text_encoder", hidden_act="nonsense"),
    "text encoder layers": config("text_encoder", num_hidden_layers=99),
    "text encoder positions": config("text_encoder", max_position_embeddings=10),
    "text encoder words": config("text_encoder", vocab_size=100),
    "text encoder end word": config("text_encoder", eos_token_id=5),
    "text encoder dropout": config("text_encoder", attention_dropout=2.0),
    "unknown prediction": config("scheduler/scheduler_config", prediction_type="nonsense"),
    "sample prediction": config("scheduler/scheduler_config", prediction_type="sample"),
    "v prediction": config("scheduler/scheduler_config", prediction_type="v_prediction"),
    "other betas": config("scheduler/scheduler_config", beta_schedule="linear", beta_end=0.02),
    "unknown betas": config("scheduler/scheduler_config", beta_schedule="nonsense"),
    "betas as a list": config("scheduler/scheduler_config", trained_betas=[0.1] * 10),
    "fewer timesteps": config("scheduler/scheduler_config", num_train_timesteps=10),
    "no scheduler": gone("model/scheduler/scheduler_config.json"),
    "no index": gone("model/model_index.json"),
    "another pipeline": content(
        "model/model_index.json", lambda data: data.replace(b"StableDiffusionPipeline", b"FluxPipeline")
    ),
    "no vocabulary": gone("model/tokenizer/vocab.json"),
    "no merges": gone("model/tokenizer/merges.txt"),
    "empty merges": content("model/tokenizer/merges.txt", lambda data: b""),
    "half a vocabulary": content("model/tokenizer/vocab.json", lambda data: data[: len(data) // 2]),
    "a short vocabulary": content("model/tokenizer/vocab.json", lambda data: b'{"a": 0, "b</w>": 1}'),
    "a tokenizer of other length": config("tokenizer/tokenizer_config", model_max_length=5),
    "half a UNet": content(f"model/{UNET}", lambda data: data[: len(data) // 2]),
    "an empty VAE": content(f"model/{VAE}", lambda data: b""),
    "a missing shard": _sharded,
    "a VAE for a UNet": lambda home: shutil.copy(home / "model" / VAE, home / "model" / UNET),
    "no text encoder": lambda home: shutil.rmtree(home / "model/text_encoder"),
}
EXIF = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x63" + bytes(7)  # orientation 99
NUMBERS = {"NaN in the UNet", "NaN in the text encoder"}  # the check reads no weights; training says what it is
DATASET: dict[str, Damage] = {
    "half an image": content("set/fox.png", lambda data: data[: len(data) // 2]),
    "an empty image": content("set/fox.png", lambda data: b""),
    "one pixel": image("a.png", drawn("RGB", (1, 1))),
    "a line": image("a.png", drawn("RGB", (2000, 3))),
    "CMYK": image("a.jpg", drawn("CMYK")),
    "16 bits": image("a.png", lambda path: Image.new("I;16", (80, 64), 30_000).save(path)),
    "floats": image("a.tif", lambda path: Image.new("F", (80, 64), 0.5).save(path)),
    "a palette": image("a.gif", drawn("P")),
    "black and white": image("a.png", drawn("1")),
    "gray with transparency": image("a.png", drawn("LA")),
    "wholly transparent": image("a.png", lambda path: Image.new("RGBA", (80, 64), (0, 0, 0, 0)).save(path)),
    "an animation": image("a.gif", drawn("P", save_all=True, append_images=[Image.new("P", (80, 64), 9)] * 5)),
    "a JPEG named .png": image("a.png", drawn("RGB", format="JPEG")),
    "a text named .png": image("a.png", lambda path: path.write_bytes(b"hello")),
    "a broken color profile": image("a.png", drawn("RGB", icc_profile=b"nonsense" * 40)),
    "an orientation that is none": image("a.jpg", drawn("RGB", exif=EXIF)),
    "a folder named .png": lambda home: (home / "set/a.png").mkdir(),
    "a link to nothing": lambda home: (home / "set/a.png").symlink_to("gone.png"),
    "a link to itself": lambda home: (home / "set/a.png").symlink_to("a.png"),
    "a pipe": lambda home: os.mkfifo(home / "set/a.txt"),
    "an empty caption": caption(b""),
    "no caption": gone("set/fox.txt"),
    "a caption of other bytes": caption(bytes(range(128, 256))),
    "a caption with NUL": caption(b"a\0fox"),
    "a caption of one letter a thousand times": caption(b"a" * 100_000),
    "a caption of signs": caption("🦊\u202e\u0300 ((((:1.5)) {a|b|} <lora:x:1> __x__".encode()),
    "a UTF-16 caption": caption("a fox".encode("utf-16")),
    "a caption that is a folder": lambda home: ((home / "set/fox.txt").unlink(), (home / "set/fox.txt").mkdir()),
    "latents that are none": lambda home: (home / "set/fox.npz").write_bytes(b"nonsense"),
    "a list that is none": lambda home: (home / "set/metadata.jsonl").write_bytes(b"nonsense"),
    "an empty folder": lambda home: [path.unlink() for path in (home / "set").iterdir()],
}  # fmt: skip


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    return tmp_path_factory.mktemp("outputs")


def made(home: Path) -> Path:
    """A copy of the starter's model and of five of its images."""
    shutil.rmtree(home, ignore_errors=True)
    shutil.copytree(STARTER, home / "model", ignore=shutil.ignore_patterns("images", "licenses"))
    (home / "set").mkdir()
    for path in [STARTER / "images/fox.png", *sorted((STARTER / "images").glob("*.png"))[:4]]:
        shutil.copy(path, home / "set")
        shutil.copy(path.with_suffix(".txt"), home / "set")
    return home


def run(home: Path, outputs: Path, *more: str) -> tuple[int, str]:
    said = io.StringIO()
    words = [word for name, value in ASKED.items() for word in (f"--{name}", value)]
    places = [
        "--model.base_model",
        str(home / "model"),
        "--dataset.folder",
        str(home / "set"),
        "--outputs",
        str(outputs),
    ]
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        code = main(["train", *places, *words, "--device", "cpu", *more])
    return code, said.getvalue()


@pytest.mark.slow
@pytest.mark.parametrize(("damages", "samples"), [(MODEL, SAMPLES), (DATASET, ())], ids=["model", "dataset"])
def test_what_the_check_passes_trains(damages, samples, tmp_path, outputs):
    faults, ends = [], {}
    for place, (name, damage) in enumerate(damages.items()):
        damage(made(tmp_path / "home"))
        checked, told = run(tmp_path / "home", outputs, *samples, "--check")
        ends[name] = checked
        if checked not in (DONE, BAD_INPUT):
            faults.append(f"{name}: the check ends with {checked}: {told[-400:]}")
        if checked == DONE and place % 2:
            trained, told = run(tmp_path / "home", outputs, *samples)
            if trained != DONE and not (name in NUMBERS and "NaN or infinite values" in told):
                faults.append(f"{name}: the check passed it, the training ends with {trained}: {told[-600:]}")
    assert not faults, f"{len(faults)} of {len(damages)}:\n" + "\n".join(faults)
    assert ends.get("nothing", DONE) == DONE and set(ends.values()) == {DONE, BAD_INPUT}, ends
