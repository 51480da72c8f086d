"""LoRAs named in a prompt: the parser alone, then what a job, an image and a sample make of them."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from core.generation.images.a1111 import a1111_text, from_a1111_text
from core.generation.images.metadata import read_image_metadata
from core.generation.model.sources import Hashes
from core.generation.plan.files import find_sources
from core.generation.prompt.loras import MOST_TAGS, LoraTag, split_tags, with_prompt_loras
from core.generation.prompt.sample_prompts import read_prompts
from core.generation.run import run_generate
from core.networks.network import Network
from core.record.problems import ProblemsError
from core.record.workspace import PROJECT, Workspace
from core.settings.generation.generate import GenerateSettings, LoraUse
from core.settings.samples import SampleSettings
from tests.generation.test_run import job_of, small_lora


@pytest.mark.parametrize(
    ("prompt", "plain", "tags"),
    [
        ("a fox", "a fox", []),
        (" a fox ", " a fox ", []),
        ("a fox <lora:ink:0.8>", "a fox", [("ink", 0.8, 0.8)]),
        (
            "<lora:ink:0.8> a fox, <lora:my style.v2:-.5>red",
            "a fox, red",
            [("ink", 0.8, 0.8), ("my style.v2", -0.5, -0.5)],
        ),
        ("a <LoRA: ink >fox", "a fox", [("ink", 1, 1)]),
        ("a fox, <lora:ink:0.8>, red", "a fox, , red", [("ink", 0.8, 0.8)]),
        ("a fox<lora:ink:0.5:0.8>", "a fox", [("ink", 0.8, 0.5)]),
        ("a fox<lora:ink:te=0.5:unet=0.8>", "a fox", [("ink", 0.8, 0.5)]),
        ("(a fox <lora:ink:1>:1.2)", "(a fox :1.2)", [("ink", 1, 1)]),
        ("a fox <lyco:ink:1> <b> <lora", "a fox  <b> <lora", [("ink", 1, 1)]),
    ],
)
def test_tags_are_taken_out_of_the_prompt(prompt, plain, tags):
    assert split_tags(prompt) == (plain, [LoraTag(*each) for each in tags])


@pytest.mark.parametrize(
    "tag",
    ["", ":1", "ink:much", "ink:1.2.3", "ink:nan", "ink:inf", "ink:11", "ink:1:1:1", "ink:dyn=3", "ink:te=1:te=1"]
    + ["ink:1:lbw=INALL:lbw=OUTALL", "ink:1:OUTALL:INALL", "ink:1:step=0-5:step=6-9"],
)
def test_a_tag_that_is_wrong_is_never_read_as_words(tag):
    with pytest.raises(ValueError, match="lora"):
        split_tags(f"a fox <lora:{tag}>")


def test_of_two_strengths_the_text_encoders_is_first_as_in_a1111():
    assert split_tags("<lora:ink:0.5:0.8>")[1] == [LoraTag("ink", 0.8, 0.5)]
    assert split_tags("<lora:ink:te=0.5>")[1] == [LoraTag("ink", 0.5, 0.5)]
    assert split_tags("<lora:ink:unet=0.8>")[1] == [LoraTag("ink", 0.8, 1)]
    block = "a fox <lora:ink:0.5:0.8>\nSteps: 20, Sampler: DDIM, Seed: 3, Size: 64x64"
    (use,) = from_a1111_text(block).job.generate.loras
    assert (use.file, use.strength, use.text_encoder_strength) == ("ink", 0.8, 0.5)


@given(st.floats(-10, 10).map(lambda x: float(f"{x:g}")), st.floats(-10, 10).map(lambda x: float(f"{x:g}")))
def test_what_is_written_is_read_back(unet, text_encoder):
    tag = LoraTag("ink", unet, text_encoder)
    assert split_tags(f"a fox {tag}") == ("a fox", [tag])


@given(st.text(alphabet="<lora:>=te.5 x\n", max_size=80))
def test_any_text_is_parsed_or_refused(text):
    try:
        plain, tags = split_tags(text)
    except ValueError:
        return
    assert tags or plain == text


def test_a_prompt_names_a_limited_number():
    with pytest.raises(ValueError, match=str(MOST_TAGS)):
        split_tags("<lora:a:1>" * (MOST_TAGS + 1))


# ---- in a job


@pytest.fixture
def workspace(tmp_path):
    (tmp_path / "models" / "loras").mkdir(parents=True)
    (tmp_path / "models" / "starter").symlink_to(PROJECT / "models" / "starter")
    small_lora(tmp_path / "models" / "loras" / "ink.safetensors")
    return Workspace(outputs=tmp_path / "outputs", models=tmp_path / "models")


def pixels(path):
    return np.asarray(Image.open(path))


def test_a_tag_makes_the_image_that_the_setting_makes_and_its_metadata_says_so(workspace, store):
    (named,) = run_generate(job_of(prompt="a fox <lora:ink:0.8>", seed=5), workspace, store=store)
    (chosen,) = run_generate(
        job_of(prompt="a fox", seed=5, loras=[LoraUse(file="ink", strength=0.8)]), workspace, store=store
    )
    (plain,) = run_generate(job_of(prompt="a fox", seed=5), workspace, store=store)
    assert np.array_equal(pixels(named), pixels(chosen)) and not np.array_equal(pixels(named), pixels(plain))
    found = read_image_metadata(named).job.generate
    assert found.prompt == "a fox" and [use.strength for use in found.loras] == [0.8]
    assert found.loras[0].file == "models/loras/ink.safetensors"
    assert Image.open(named).text["parameters"].startswith("a fox <lora:ink:0.8>\n")
    off, text_only = (
        run_generate(job_of(prompt=f"a fox <lora:ink:{each}>", seed=5), workspace, store=store)[0]
        for each in ("0", "1:0")  # it has no layers of the text encoder
    )
    assert np.array_equal(pixels(off), pixels(plain)) and np.array_equal(pixels(text_only), pixels(plain))


@pytest.mark.parametrize(
    ("asked", "code"),
    [
        ({"prompt": "a fox <lora:imk:1>"}, "lora.not-found"),
        ({"prompt": "a fox <lora:ink:x>"}, "prompt.bad-lora"),
        ({"negative_prompt": "<lora:ink:1>"}, "prompt.lora-in-negative"),
    ],
)
def test_what_cannot_be_applied_is_refused_before_anything_loads(workspace, asked, code):
    for look in (find_sources, lambda job, space: run_generate(job, space, store=None)):
        with pytest.raises(ProblemsError) as error:
            look(job_of(**asked), workspace)
        assert [problem.code for problem in error.value.problems] == [code]
    assert code != "lora.not-found" or "mean ink?" in error.value.problems[0].fix  # not its folder: as in a prompt


@pytest.mark.slow
def test_a_seed_of_minus_one_is_random_and_the_one_used_is_saved(workspace, store):
    assert GenerateSettings(seed=-1).seed is None and GenerateSettings(seed="-1").seed is None
    files = run_generate(job_of(seed=-1, steps=1, count=2), workspace, store=store)
    seeds = [read_image_metadata(path).job.generate.seed for path in files]
    assert seeds[1] == (seeds[0] + 1) % 2**32


def test_samples_show_what_trains_alone():
    found, notes = read_prompts(SampleSettings(sample_prompts=["a fox <lora:ink:0.8> --d -1"]))
    assert (found[0].prompt, found[0].seed) == ("a fox", None) and [note.code for note in notes] == ["prompts.lora"]
    words = SampleSettings(sample_prompts=["a fox <lora:ink:0.8>"]).model_copy(update={"compatibility": "kohya"})
    assert read_prompts(words)[0][0].prompt == "a fox <lora:ink:0.8>", "as sd-scripts reads it"


def test_each_part_has_its_strength():
    adapters = [SimpleNamespace(name=name) for name in ("lora_te_text_model_x", "lora_te1_text_model_x", "lora_unet_x")]
    network = Network(adapters)
    for given_, found in (((0.8,), [0.8, 0.8, 0.8]), ((0.8, 0.5), [0.5, 0.5, 0.8]), ((0.8, 0.0), [0.0, 0.0, 0.8])):
        network.set_multiplier(*given_)
        assert [adapter.multiplier for adapter in adapters] == found


@pytest.mark.parametrize("prompt", ["a fox, <lora:ink:0.8>, red", "<lora:ink:0.8>a  fox", "a fox\n<lora:ink:0.8>\nred"])
def test_the_prompt_of_a_saved_image_is_read_as_it_was_generated(prompt):
    made = with_prompt_loras(job_of(prompt=prompt))
    read = from_a1111_text(a1111_text(made, Hashes())).job.generate
    assert (read.prompt, read.loras) == (made.generate.prompt, made.generate.loras)


@pytest.mark.parametrize(
    ("body", "tag"),
    [
        ("ink:1:OUTALL", LoraTag("ink", 1, 1, "OUTALL")),
        ("ink:1:0.5:MIDD", LoraTag("ink", 0.5, 1, "MIDD")),
        ("ink:0.8:1,0,0.5", LoraTag("ink", 0.8, 0.8, "1,0,0.5")),
    ],
)
def test_block_weights_without_their_name_are_read_after_a_strength(body, tag):
    assert split_tags(f"a <lora:{body}>")[1] == [tag]
    for wrong in ("ink:1,2", "ink:OUTALL", "ink:1:out"):
        with pytest.raises(ValueError, match="is not a number"):
            split_tags(f"<lora:{wrong}>")
