"""torch.compile: the same losses, compiled in truth, for every kind of training; refusals in words."""

import importlib.util
import shutil

import pytest
import torch

from core.families import compiling
from core.families.compiling import CompiledBlocks, compile_problems, try_compiling
from core.settings.check import build
from core.settings.job import TrainJob
from core.settings.memory import MemorySettings
from core.settings.rules import ineffective, training_problems
from core.training.prove import prove
from tests.models import tiny_sd1
from tests.options import ADAFACTOR
from tests.refusals import refused

FINE_TUNE = {"method": {"kind": "fine_tune"}, "optimizer": {"learning_rate": 1e-5}}
# Adam divides by the gradient's own size: where that is nearly nothing, its last digits decide.
PLAIN = {"optimizer": {"optimizer_type": "SGD", "learning_rate": 1.0}}
WAYS = {
    "LoRA, blocks that compute twice": (
        {**PLAIN, "dataset": {"enable_bucket": False}},
        {"gradient_checkpointing": True},
    ),
    "LoRA beside fp8": ({}, {"fp8_base": True, "mixed_precision": "bf16"}),
    "whole model within the backward pass": (
        {**FINE_TUNE, "optimizer": ADAFACTOR, "dataset": {"enable_bucket": False}},
        {"fused_backward_pass": True},
    ),
}


def settings(backend="inductor"):
    return MemorySettings(torch_compile=True, dynamo_backend=backend)


@pytest.fixture
def pieces(monkeypatch):
    """What was compiled, by kind of block, when a run lets go of it."""
    found = {}
    release = CompiledBlocks.release

    def look(blocks):
        found.update(blocks.graphs)
        release(blocks)

    monkeypatch.setattr(CompiledBlocks, "release", look)
    return found


@pytest.mark.slow  # dynamo takes half a minute for each, inductor minutes
@pytest.mark.parametrize("way", WAYS)
def test_losses_are_those_without_and_dynamo_counts_what_it_compiled(train, pieces, way):
    groups, memory = WAYS[way]
    schedule = {"max_train_steps": 2, "seed": 7}
    plain = train(**groups, memory=memory, schedule=schedule)
    assert plain.start() == "done" and not pieces
    memory = {**memory, "torch_compile": True, "dynamo_backend": "eager"}
    compiled = train(**groups, memory=memory, schedule=schedule)
    torch._dynamo.utils.counters.clear()
    assert compiled.start() == "done"
    # In bf16 sums that are taken in another order round otherwise
    rounding = 1e-2 if "mixed_precision" in memory else 1e-4
    assert compiled.losses() == pytest.approx(plain.losses(), rel=rounding)
    assert set(pieces) == set(compiling.BLOCKS)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= sum(pieces.values())
    assert not torch._dynamo.utils.counters["graph_break"]
    assert torch._dynamo.config.recompile_limit == 8, "what was set for the run is put back"


@pytest.mark.slow
def test_a_compiled_run_that_was_stopped_ends_to_the_bit_as_an_unbroken_one(workspace, make_job, pieces, tmp_path):
    """Stopped in the middle of an epoch, which has a short batch: the life after it meets, and so compiles, the forms of
    its batches in another order."""
    model = {"base_model": str(tiny_sd1(tmp_path / "tiny"))}
    job = make_job(model=model, dataset={"enable_bucket": False}, memory=settings("eager").model_dump())
    proof = prove(job, workspace, "cpu", 4)
    assert set(pieces) == set(compiling.BLOCKS)
    assert proof.stopped_at == 2 and proof.equal, proof.report()


def small_unet():
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    return UNet2DConditionModel(
        in_channels=4,
        out_channels=4,
        block_out_channels=(32, 32),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=4,
        norm_num_groups=8,
    )


def ask(unet, size=8, batch=2):
    x = torch.randn(batch, 4, size, size, generator=torch.Generator().manual_seed(1))
    text = torch.randn(batch, 7, 16, generator=torch.Generator().manual_seed(2))
    return unet(x, torch.tensor([5] * batch), encoder_hidden_states=text).sample


def said():
    kept = []
    return kept, lambda what, fix: kept.append((what, fix))


@pytest.mark.slow
def test_inductor_gives_the_same_gradients():
    attention = small_unet().down_blocks[0].attentions[0]
    generator = torch.Generator().manual_seed(0)
    x, text = torch.randn(2, 32, 8, 8, generator=generator), torch.randn(2, 7, 16, generator=generator)

    def gradients():
        attention.zero_grad(set_to_none=True)
        attention(x, encoder_hidden_states=text).sample.pow(2).mean().backward()
        return {name: weight.grad for name, weight in attention.named_parameters()}

    plain = gradients()
    try_compiling("inductor", "cpu")
    blocks = CompiledBlocks(attention, "inductor", said()[1], several_sizes=False)
    for name, gradient in gradients().items():
        torch.testing.assert_close(gradient, plain[name], rtol=1e-3, atol=1e-6)
    assert blocks.graphs == {"BasicTransformerBlock": 1}
    blocks.release()


@pytest.mark.slow
def test_equal_blocks_share_a_piece_and_sizes_do_not_add_up():
    unet = small_unet()
    count = sum(type(module).__name__ in compiling.BLOCKS for module in unet.modules())
    blocks = CompiledBlocks(unet, "eager", said()[1], several_sizes=True)
    ask(unet, 16)
    first = sum(blocks.graphs.values())
    for size in (12, 20):
        ask(unet, size)
    assert first < count and sum(blocks.graphs.values()) <= first + 2
    blocks.release()


@pytest.mark.slow
def test_without_gradients_the_plain_blocks_are_asked_and_released_blocks_are_plain():
    unet = small_unet()
    blocks = CompiledBlocks(unet, "eager", said()[1], several_sizes=False)
    with torch.no_grad():
        ask(unet)
    assert not blocks.graphs
    ask(unet)
    assert blocks.graphs
    blocks.release()
    assert not any("forward" in module.__dict__ for module in unet.modules())


@pytest.mark.slow
def test_too_many_sizes_are_told_and_go_on_uncompiled(monkeypatch):
    monkeypatch.setattr(compiling, "VARIANTS", 1)
    unet, (kept, say) = small_unet(), said()
    plain = {size: ask(unet, size).detach() for size in (8, 12, 16, 20)}
    blocks = CompiledBlocks(unet, "eager", say, several_sizes=False)
    for size, result in plain.items():
        torch.testing.assert_close(ask(unet, size), result)
    assert kept and "further sizes run without torch.compile" in kept[0][0] and len(kept) <= len(compiling.BLOCKS)
    assert max(blocks.graphs.values()) <= blocks._max_graphs
    blocks.release()


def test_what_is_missing_is_said_before_the_start(monkeypatch):
    assert compile_problems(settings("eager"), "cpu") == [] == compile_problems(MemorySettings(), "cpu")
    for backend in ("onnxrt", "fx2trt", "tvm"):
        (problem,) = compile_problems(settings(backend), "cpu")
        assert problem.code == "compile.no-backend" and f"'{backend}'" in problem.what and "inductor" in problem.fix
    assert compile_problems(settings("cudagraphs"), "cuda")[0].code == "compile.cudagraphs"
    monkeypatch.setattr(shutil, "which", lambda name: name)
    assert [problem.level for problem in compile_problems(settings(), "cpu")] == ["advice"]
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert compile_problems(settings(), "cpu")[0].code == "compile.no-compiler"
    find = importlib.util.find_spec
    monkeypatch.setattr(compiling, "find_spec", lambda name: None if name == "triton" else find(name))
    assert compile_problems(settings(), "cuda:0")[0].code == "compile.no-triton"
    monkeypatch.setattr(compiling.sys, "platform", "win32")
    assert "Build Tools" in compile_problems(settings(), "cpu")[0].fix
    assert "triton-windows" in compile_problems(settings(), "cuda:0")[0].fix


def test_a_compiler_that_fails_is_told_in_a_sentence(monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("InvalidCxxCompiler: No working C++ compiler found\nlong trace")

    monkeypatch.setattr(torch, "compile", broken)
    with refused("compile.failed", "No working C++ compiler found") as caught:
        try_compiling("inductor", "cpu")
    assert "long trace" not in str(caught.value)


def test_dropouts_are_refused_and_the_compiler_is_named_as_unused():
    job = build(TrainJob, {"memory": {"torch_compile": True}, "network": {"rank_dropout": 0.1}})
    assert any(problem.where.startswith("memory.torch_compile") for problem in training_problems(job))
    assert "memory.dynamo_backend" in ineffective(build(TrainJob, {}))
    assert "memory.dynamo_backend" not in ineffective(job)
    sharded = build(TrainJob, {"memory": {"torch_compile": True}, "sharding": {"deepspeed": True}})
    assert "memory.compile-with-deepspeed" in [problem.code for problem in training_problems(sharded)]
