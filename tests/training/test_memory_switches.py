"""The switches of the memory group act, and the training stays what it was."""

import shutil
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from core.families import family
from core.families.attention import checkpoint_unet, memory_problems, set_attention
from core.networks.fp8 import FP8, Fp8Conv, Fp8Linear, base_weight, to_fp8
from core.record.workspace import PROJECT
from core.settings.memory import MemorySettings
from core.settings.rules import ineffective, training_problems
from core.training.building.latents import encoder


class Blocks(nn.Module):
    def __init__(self):
        super().__init__()
        draw = torch.Generator().manual_seed(3)
        self.conv_in = nn.Conv2d(4, 8, 3, padding=1)
        self.down_blocks = nn.ModuleList([nn.Conv2d(8, 6, 3, padding=1, stride=2), nn.Linear(5, 7)])
        for weight in self.parameters():
            weight.data = torch.randn(weight.shape, generator=draw) * 0.05
        self.requires_grad_(False)


def test_weights_of_blocks_become_8_bit_and_products_stay_near():
    model, plain = Blocks(), Blocks()
    assert to_fp8(model) == 3 * (8 * 6 * 9 + 5 * 7)  # three of four bytes each
    conv, linear = model.down_blocks
    assert isinstance(conv, Fp8Conv) and isinstance(linear, Fp8Linear)
    assert conv.weight.dtype == linear.weight.dtype == FP8 and model.conv_in.weight.dtype == torch.float32
    for narrowed, wide, shape in ((conv, plain.down_blocks[0], (2, 8, 6, 8)), (linear, plain.down_blocks[1], (3, 5))):
        x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
        ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
        near, exact = narrowed(ours), wide(theirs)
        assert (near - exact).norm() < 0.05 * exact.norm() and not torch.equal(near, exact)
        near.sum().backward(), exact.sum().backward()
        assert (ours.grad - theirs.grad).norm() < 0.05 * theirs.grad.norm()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_no_channel_of_8_bit_weights_is_scaled_by_the_rounding_of_its_factor(dtype):
    wide = torch.randn(32, 1 << 16, generator=torch.Generator().manual_seed(5)) * torch.logspace(-4, 0, 32)[:, None]
    model = nn.ModuleDict({"mid_block": nn.Sequential(nn.Linear(1 << 16, 32))}).to(dtype).requires_grad_(False)
    (layer,) = model["mid_block"]
    layer.weight.copy_(wide)
    exact = layer.weight.double()
    to_fp8(model)
    ratios = (base_weight(layer).double() * exact).sum(1) / exact.square().sum(1)
    assert (ratios - 1).abs().max() < 2.5e-3


@pytest.mark.slow
def test_a_lora_trains_beside_8_bit_weights_with_a_loss_near_to_the_exact_one(train):
    text = {"rank": 4, "alpha": 4.0, "train_norm": True, "train_text_encoder": True}
    plain, narrowed = train(network=text), train(network=text, memory={"fp8_base": True})
    assert plain.start() == narrowed.start() == "done"
    exact, near = plain.losses(), narrowed.losses()
    assert exact.keys() == near.keys()
    assert all(near[step] == pytest.approx(exact[step], rel=0.05) and near[step] != exact[step] for step in exact)


@pytest.mark.slow
def test_captions_encoded_in_8_bit_are_kept_apart_from_exact_ones(train, workspace):
    """In a cache on disk that the next run reads."""
    workspace.cache.unlink()  # of all tests
    one = {"max_train_steps": 1, "seed": 7}
    narrowed, after, alone = (train(schedule=one, memory={"fp8_base": fp8}) for fp8 in (True, False, False))
    assert narrowed.start() == after.start() == "done"
    shutil.rmtree(workspace.cache / "text")
    assert alone.start() == "done"
    assert after.losses() == alone.losses() != narrowed.losses()


def test_8_bit_weights_cannot_train_themselves(make_job):
    job = make_job(method={"kind": "fine_tune"}, memory={"fp8_base": True})
    assert any(each.where == "memory.fp8_base" and each.level == "error" for each in training_problems(job))


@pytest.mark.slow
def test_switches_leave_the_losses_as_they_are(train):
    two = {"schedule": {"max_train_steps": 2}}
    plain = train(**two)
    assert plain.start() == "done"
    for memory in (
        {"gradient_checkpointing": True},
        {"gradient_checkpointing": True, "checkpoint_blocks": "outer"},
        {"attention": "plain", "allow_tf32": True, "highvram": True, "lowram": True},
        {"attention": "sliced"},
    ):
        switched = train(**two, memory=memory)
        assert switched.start() == "done" and switched.losses() == pytest.approx(plain.losses(), rel=1e-4)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False


def starter_unet():
    return family("sd1").load(PROJECT / "models" / "starter", parts=("denoiser",)).denoiser


def test_attention_and_checkpointing_are_where_they_were_asked_for():
    unet = starter_unet()
    set_attention(unet, "plain")
    assert {type(each).__name__ for each in unet.attn_processors.values()} == {"AttnProcessor"}
    set_attention(unet, "sliced")
    assert "SlicedAttnProcessor" in {type(each).__name__ for each in unet.attn_processors.values()}
    checkpoint_unet(unet, "inner")
    on = [block.gradient_checkpointing for block in unet.down_blocks]
    assert on == [number >= 2 for number in range(len(on))]
    assert unet.mid_block.gradient_checkpointing


def test_xformers_is_refused_in_words_where_it_has_no_kernel():
    found = memory_problems(MemorySettings(attention="xformers"), "cpu")
    assert len(found) == 1 and found[0].code in ("memory.no-xformers", "memory.xformers-device") and found[0].fix
    assert memory_problems(MemorySettings(), "cpu") == []


@pytest.mark.slow
def test_the_vae_encodes_in_the_type_that_is_asked_for(train, monkeypatch):
    from core.training.building.models import Models

    seen = []
    load = Models.vae
    monkeypatch.setattr(Models, "vae", lambda self: seen.append(load(self)) or seen[-1])
    run = train(memory={"vae_precision": "bf16", "cache_latents": "memory"}, schedule={"max_train_steps": 1})
    assert run.start() == "done"
    assert next(seen[0].parameters()).dtype == torch.bfloat16


def test_switches_without_effect_say_why(make_job):
    found = ineffective(make_job(memory={"fp8_base": True}))
    assert {"memory.checkpoint_blocks", "memory.fp8_base_unet"} <= found.keys()
    assert "memory.lowram" not in found  # says where the model is made narrow
    assert "memory.lowram" in ineffective(make_job())
    assert "memory.allow_tf32" not in ineffective(make_job(memory={"mixed_precision": "bf16"}))  # the VAE is in fp32
    narrow = {"mixed_precision": "bf16", "vae_precision": "bf16"}
    assert "memory.allow_tf32" in ineffective(make_job(memory=narrow))


@pytest.mark.slow
def test_with_little_main_memory_the_vae_is_read_again_for_each_samples(train, monkeypatch):
    from core.families.sd1 import FAMILY as sd1

    read = []
    load = sd1.load

    def counted(*given, **named):
        read.append(tuple(named.get("parts", ())))
        return load(*given, **named)

    monkeypatch.setattr(sd1, "load", counted)
    samples = {"sample_prompts": ["a fox"], "sample_steps": 1, "sample_every_n_steps": 1}
    for lowram in (False, True):
        read.clear()
        run = train(samples=samples, memory={"lowram": lowram}, schedule={"max_train_steps": 2})
        assert run.start() == "done"
        assert (read.count(("vae",)) > 1) == lowram


def switches(training):
    """How the model that will train computes, and what may be held."""
    passes = training.run.passes
    unet = passes.components.denoiser
    return {
        "attention": {type(each).__name__ for each in unet.attn_processors.values()},
        "twice": [block.gradient_checkpointing for block in (*unet.down_blocks, unet.mid_block)],
        "tf32": torch.backends.cuda.matmul.allow_tf32,
        "captions": passes.text._cache.room_bytes,
        "precision": (passes.precision.name, unet.dtype),
    }


@pytest.mark.slow
def test_each_switch_reaches_the_model_that_trains(at_first_step):
    plain = at_first_step(switches)
    assert plain["attention"] == {"AttnProcessor2_0"} and not any(plain["twice"]) and not plain["tf32"]
    assert plain["precision"] == ("no", torch.float32)
    memory = {
        "attention": "plain",
        "gradient_checkpointing": True,
        "checkpoint_blocks": "inner",
        "allow_tf32": True,
        "text_cache_bytes": 1 << 20,
        "mixed_precision": "bf16",
    }
    try:
        switched = at_first_step(switches, memory=memory)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    assert switched["attention"] == {"AttnProcessor"} and switched["tf32"] and switched["captions"] == 1 << 20
    assert switched["twice"] == [number >= 2 for number in range(len(plain["twice"]))]
    assert switched["precision"] == ("bf16", torch.bfloat16)


@pytest.mark.parametrize("much", [False, True])
def test_a_card_with_much_memory_keeps_what_was_set_aside_from_batch_to_batch(monkeypatch, much):
    freed = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: freed.append(1))
    inputs = SimpleNamespace(
        context=SimpleNamespace(device="cuda:0"),
        job=SimpleNamespace(memory=MemorySettings(highvram=much)),
        family=SimpleNamespace(encode_image_latents=lambda vae, pixels: pixels),
    )
    models = SimpleNamespace(vae=lambda: SimpleNamespace(to=lambda device: None))
    encoder(inputs, models)(torch.zeros(1))
    assert len(freed) == (0 if much else 1)


@pytest.mark.slow
@pytest.mark.parametrize(("switch", "narrowed"), [("fp8_base", True), ("fp8_base_unet", False)])
def test_text_encoders_are_8_bit_where_the_whole_model_is(at_first_step, switch, narrowed):
    def types(training):
        components = training.run.passes.components
        return [
            {weight.dtype for weight in part.parameters()} for part in (components.denoiser, *components.text_encoders)
        ]

    unet, text = at_first_step(types, network={"train_text_encoder": True}, memory={switch: True})
    assert FP8 in unet and (FP8 in text) is narrowed


@pytest.mark.slow
@pytest.mark.parametrize("trains", [False, True])
def test_texts_are_read_from_the_layer_that_clip_skip_names(at_first_step, trains):
    def read(training):
        samples = training.samples
        states = samples.texts.states(samples.prompts[0])
        return training.run.passes.text.states(["a fox"]).context, states.positive.context

    groups = {"network": {"train_text_encoder": trains}, "samples": {"sample_prompts": ["a fox"]}}
    starter = family("sd1").load(PROJECT / "models" / "starter", parts=("text_encoders", "tokenizers"))
    for skip in (None, 2):
        expected = family("sd1").encode_captions(starter, ["a fox"], clip_skip=skip).context
        for found in at_first_step(read, model={"clip_skip": skip}, **groups):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
