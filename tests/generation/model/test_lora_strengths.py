"""Strengths of a LoRA by part, block and step: each by what it does to images and weights."""

from __future__ import annotations

import gc

import pytest
import torch

from core.families import family
from core.generation.making import ImageMaker
from core.generation.model import loras as loras_module
from core.generation.model.loras import Strength, loras_attached
from core.generation.model.store import make_store
from core.generation.plan.plan import plan_of
from core.generation.prompt.loras import LoraTag, split_tags, tag_of, use_of
from core.generation.run import run_generate
from core.generation.sample.loop import Denoiser, Hook, Sampling, Stage, denoise, noises_of
from core.networks.adapter_file import save_lora
from core.networks.block_weights import SLOTS, block_weights, slot_of
from core.networks.files import read_network
from core.networks.fp8 import to_fp8
from core.record.problems import ProblemsError
from core.record.workspace import PROJECT, Workspace
from core.settings.generation.generate import LoraUse
from tests.generation.model.test_loras import STARTER, random_lora
from tests.generation.test_run import job_of
from tests.prompts import encode_prompts
from tests.refusals import refused

SD1 = {"ss_base_model_version": "sd_v1"}
WEIGHTS = [round(0.1 * number - 0.4, 1) for number in range(17)]
LIST = ",".join(map(str, WEIGHTS))
STEPS = 5


@pytest.fixture(scope="module")
def file(starter, tmp_path_factory):
    return save_lora(tmp_path_factory.mktemp("lora") / "a.safetensors", random_lora(starter, conv=True), SD1)


@pytest.fixture
def space(tmp_path):
    return Workspace(outputs=tmp_path / "outputs", models=PROJECT / "models")


def by_hand(starter, path, tmp_path):
    """The same LoRA with each layer's change multiplied by the weight of its block."""
    weights = block_weights(LIST)
    tensors = random_lora(starter, conv=True)
    for name in tensors:
        slot = slot_of(name.partition(".")[0])
        if name.endswith("lora_up.weight") and slot is not None:
            tensors[name] = tensors[name] * weights[slot]
    return save_lora(tmp_path / "scaled.safetensors", tensors, SD1)


def latents(starter, use, path, hooks=(), merged=0, steps=STEPS):
    """With this LoRA."""
    with loras_attached(starter, [use], lambda name: path, merged) as loras:
        states = encode_prompts(starter, "a fox", "")
        model, sampling, stage = Denoiser.of(starter), Sampling("euler", 4.0), Stage((64, 64), steps)
        own = hooks(loras) if callable(hooks) else hooks
        return denoise(model, states, stage, noises_of(model, stage, [3], sampling), sampling, hooks=own)


def test_block_weights_are_those_layers_changes_scaled_live_and_merged(starter, file, tmp_path):
    scaled = by_hand(starter, file, tmp_path)
    use = LoraUse(file="a", strength=0.8, block_weights=LIST)
    live, wanted = read_network(starter, file, 1.0), read_network(starter, scaled, 0.8)
    Strength.of(use, sdxl=False).set_on(live)
    seen = set()
    for name, adapter in live.adapters.items():
        other = wanted.adapters[name]
        change, asked = adapter.delta() * adapter.multiplier, other.delta() * other.multiplier
        assert torch.allclose(change, asked, rtol=1e-6, atol=1e-6 * float(asked.abs().max()))
        seen.add(slot_of(name))
    assert {SLOTS[each] for each in seen if each is not None} >= {"BASE", "IN01", "MID", "OUT11"}
    evenly = LoraUse(file="a", strength=0.8)
    plain, by_blocks = (latents(starter, each, file, steps=2) for each in (evenly, use))
    assert (by_blocks - plain).abs().mean() > 0.01
    assert torch.allclose(by_blocks, latents(starter, evenly, scaled, steps=2), atol=2e-4)
    assert torch.allclose(by_blocks, latents(starter, use, file, merged=1, steps=2), atol=2e-4)


@pytest.mark.slow
def test_merged_into_weights_in_fp8_it_acts_as_attached_and_they_are_restored(file):
    model, use = family("sd1").load(STARTER), LoraUse(file="a", strength=0.7)
    to_fp8(model.denoiser)
    before = {name: value.clone() for name, value in model.denoiser.state_dict().items()}
    before |= {name: value.clone() for name, value in model.denoiser.named_buffers()}
    plain, live, merged = (
        latents(model, use.model_copy(update={"strength": 0.0}), file),
        latents(model, use, file),
        latents(model, use, file, merged=1),
    )
    assert (merged - live).norm() < 0.2 * (live - plain).norm()  # rounded to fp8 again
    after = dict(model.denoiser.state_dict()) | dict(model.denoiser.named_buffers())
    assert any(name.endswith("factors") for name in after)
    assert all(torch.equal(value.float(), before[name].float()) for name, value in after.items())


@pytest.mark.slow
def test_weights_of_1_and_all_steps_are_bit_equal_to_none(starter, file):
    plain = latents(starter, LoraUse(file="a", strength=0.7), file)
    for more in ({"block_weights": "ALL"}, {"block_weights": ",".join(["1"] * 17)}, {"start_at": 0.0, "end_at": 1.0}):
        assert torch.equal(plain, latents(starter, LoraUse(file="a", strength=0.7, **more), file))


class OnAt(Hook):
    """Turns the first network on at these steps by its multiplier."""

    def __init__(self, network, strength, steps):
        self.network, self.strength, self.steps = network, strength, steps

    def before(self, at):
        self.network.set_multiplier(self.strength if at.index in self.steps else 0.0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("start", "end", "steps"), [(0.2, 0.8, {1, 2, 3}), (0.5, 1.0, {3, 4}), (0.0, 0.2, {0}), (0.3, 0.35, set())]
)
def test_a_step_range_is_a_run_with_the_lora_on_at_these_steps_only(starter, file, space, start, end, steps):
    use = LoraUse(file=str(file), strength=0.9, start_at=start, end_at=end)
    wanted = latents(starter, use, file, lambda loras: [OnAt(loras.networks[0], 0.9, steps)])
    job = job_of(prompt="a fox", steps=STEPS, sampler="euler", seed=3, loras=[use])
    plan = plan_of(job, space)
    with loras_attached(starter, [use], lambda name: file) as loras:
        maker = ImageMaker(starter, no_words(starter), loras)
        made = maker.make(plan.requests, decoded=False).latents[-1]
        assert torch.equal(made, wanted)
        assert {each.multiplier for each in loras.networks[0].adapters.values()} == {0.9}


def no_words(starter):
    from core.generation.model.embeddings import embeddings_attached

    with embeddings_attached(starter, []) as words:
        return words


def test_the_prompt_sets_them_as_the_lbw_extension_does(file, space):
    tag = f"<lora:{file}:0.9:lbw=OUTALL:step=1-4>".replace(":1.0", "")
    (request,) = plan_of(job_of(prompt=f"a fox {tag}", steps=5), space).requests
    assert request.job.generate.loras == [
        LoraUse(file=str(file), strength=0.9, block_weights="OUTALL", start_at=0.2, end_at=0.8)
    ]
    assert [Strength.of(request.job.generate.loras[0], False).acts(index, 5) for index in range(5)] == [
        False,
        True,
        True,
        True,
        False,
    ]


@pytest.mark.parametrize("more", [("OUTALL", (0, None)), (None, (2, 12)), (LIST, (0, 3)), ("MIDD", (4, None))])
def test_blocks_and_steps_of_a_tag_are_written_as_they_are_read(more):
    tag = LoraTag("ink", 0.8, 0.5, *more)
    assert split_tags(f"a fox {tag}") == ("a fox", [tag]) and tag_of(use_of(tag, 20), 20) == tag


def test_one_that_is_off_is_neither_read_nor_used(space):
    job = job_of(loras=[LoraUse(file="not here at all", enabled=False)])
    assert plan_of(job, space).requests[0].job.generate.loras == []


def test_what_no_model_can_do_is_refused_before_it_is_loaded(file, space):
    for more, code in (
        ({"block_weights": "1,2,3"}, "lora.block-weights"),
        ({"block_weights": ",".join(["1"] * 12)}, "lora.block-weights"),  # of SDXL
        ({"start_at": 0.6, "end_at": 0.4}, "lora.step-range"),
    ):
        with refused(code):
            plan_of(job_of(loras=[LoraUse(file=str(file), **more)]), space)
    with refused("lora.merged-range"):
        plan_of(job_of(loras=[LoraUse(file=str(file), end_at=0.5)], network_merge=True), space)
    with pytest.raises(ProblemsError) as caught:
        plan_of(job_of(prompt="a fox <lora:a:1:step=many>"), space)
    assert caught.value.codes == ["prompt.bad-lora"]


def test_blocks_that_a_list_leaves_out_and_loras_for_few_steps_are_named(file, space, tmp_path):
    def codes(name, guidance, blocks):
        path = tmp_path / name
        path.write_bytes(file.read_bytes())
        loras = [LoraUse(file=str(path), block_weights=blocks)]
        return [note.code for note in plan_of(job_of(loras=loras, guidance_scale=guidance), space).notes]

    whole = ",".join(["1"] * 26)
    assert "lora.unlisted-blocks" in codes("a.safetensors", 4.0, LIST)
    for blocks in (None, "OUTALL", whole):
        assert not {"lora.unlisted-blocks", "lora.few-steps"} & set(codes("a.safetensors", 7.0, blocks))
    for name, guidance, advised in (
        ("lcm-lora-sdv1-5.safetensors", 7.0, True),
        ("lcm-lora-sdv1-5.safetensors", 1.0, False),
        ("Hyper-SD15-8steps-CFG-lora.safetensors", 7.0, False),
        ("lightning_style.safetensors", 7.0, False),
    ):
        assert ("lora.few-steps" in codes(name, guidance, None)) == advised, name


@pytest.mark.slow
def test_twenty_loras_at_once_make_an_image(starter, space, tmp_path):
    files = [
        save_lora(tmp_path / f"{n}.safetensors", random_lora(starter, conv=False, seed=n, size=0.05), SD1)
        for n in range(20)
    ]
    loras = [LoraUse(file=str(path), strength=0.5) for path in files]
    one, twenty = (
        run_generate(job_of(steps=1, seed=1, loras=uses), space, store=make_store()) for uses in (loras[:1], loras)
    )
    assert one[0].read_bytes() != twenty[0].read_bytes()


@pytest.mark.slow
def test_a_file_is_read_once_for_a_model_until_it_changes(starter, file, tmp_path, monkeypatch):
    path = save_lora(tmp_path / "own.safetensors", random_lora(starter, conv=False), SD1)
    read = []
    monkeypatch.setattr(
        "core.generation.model.loras.read_network", lambda *given: read.append(given[1]) or read_network(*given)
    )
    first = latents(starter, LoraUse(file="a", strength=0.8), path)
    latents(starter, LoraUse(file="a", strength=-0.5, block_weights="MIDD"), path)
    assert torch.equal(latents(starter, LoraUse(file="a", strength=0.8), path), first) and len(read) == 1
    two = [LoraUse(file="a"), LoraUse(file="a", strength=0.5)]
    with loras_attached(starter, two, lambda name: path) as loras:
        assert loras.networks[0] is not loras.networks[1]
    assert len(read) == 2
    save_lora(path, random_lora(starter, conv=False, seed=9), SD1)
    assert not torch.equal(latents(starter, LoraUse(file="a", strength=0.8), path), first) and len(read) == 3
    monkeypatch.setattr("core.generation.model.loras.MOST_CACHED_BYTES", 0)
    for _ in range(2):  # what is over the limit is not kept
        latents(starter, LoraUse(file="a", strength=0.8), path)
    assert len(read) == 4  # the first time it was kept from before


@pytest.mark.slow
def test_networks_go_with_their_model(file):
    model = family("sd1").load(STARTER)
    latents(model, LoraUse(file="a"), file)
    before = len(loras_module._NETWORKS)
    del model
    gc.collect()
    assert len(loras_module._NETWORKS) == before - 1
