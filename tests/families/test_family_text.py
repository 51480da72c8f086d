"""SD 2.x and SDXL: captions to token ids and states, against sd-scripts' ids, the rules of long prompts and diffusers."""

import shutil
from pathlib import Path

import pytest
import torch
from transformers.models.clip.tokenization_clip import CLIPTokenizer

from core.families.clip import join_whole
from core.families.components import Components
from core.families.sdxl import pooled_state
from core.families.token_weights import tokenize
from core.families.tokenizer import load_tokenizer
from tests.recorded_json import recorded_json

VECTORS = Path(__file__).parents[1] / "vectors"
CASES = recorded_json("prompts_sdxl")["cases"]
BEGIN, END, PAD = 49406, 49407, 0
CAPTIONS = ["a fox, glyph style", "", "a photo of a house by the sea " * 3]
LONG = ", ".join(f"word {n}" for n in range(50))  # 189 content tokens


def content(caption):
    return load_tokenizer()(caption)["input_ids"][1:-1]


# ---- ids ----


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["prompt"][:12])
def test_sdxls_ids_are_those_of_sd_scripts(tiny_models, case):
    model = tiny_models("sdxl")
    ours = model.family.tokenize(model.components, [case["prompt"]])
    assert [ids.tolist() for ids in ours] == case["ids"]


@pytest.mark.slow
def test_the_fillings_of_the_families(tiny_models):
    sd2, sdxl = tiny_models("sd2"), tiny_models("sdxl")
    assert [tokenizer.pad_token_id for tokenizer in sd2.components.tokenizers] == [PAD]
    assert [tokenizer.pad_token_id for tokenizer in sdxl.components.tokenizers] == [END, PAD]
    (ids,) = sd2.family.tokenize(sd2.components, ["a fox"])
    assert ids[0, 0, :6].tolist() == [BEGIN, 320, 3240, END, PAD, PAD] and ids[0, 0, -1] == PAD


@pytest.mark.slow
def test_an_exclamation_mark_is_filling_for_sd2_and_a_word_for_sdxl(tiny_models):
    """As in sd-scripts: SD 2's published tokenizer is made with it, SDXL's second is told later."""
    sd2, sdxl = tiny_models("sd2"), tiny_models("sdxl")
    assert sd2.family.tokenize(sd2.components, ["wow!"])[0][0, 0, :4].tolist() == [BEGIN, 2781, PAD, END]
    for ids in sdxl.family.tokenize(sdxl.components, ["wow!"]):
        assert ids[0, 0, :4].tolist() == [BEGIN, 2781, 256, END]


@pytest.mark.parametrize("length", [150, 225])
def test_windows_end_with_eos_where_full_and_begin_with_it_where_empty(length):
    """Section 1.4 of the reference, for a filling that is not EOS."""
    tokenizer = load_tokenizer(pad="!", pad_is_mark=False)
    words = content(LONG)
    (ids,) = tokenize(Components(tokenizers=[tokenizer]), ["a fox", LONG], length)
    short, long = ids[0].tolist(), ids[1].tolist()
    assert short[0] == [BEGIN, 320, 3240, END, *[PAD] * 73]
    assert all(window == [BEGIN, END, *[PAD] * 75] for window in short[1:])
    assert long[0] == [BEGIN, *words[:75], END] and long[1] == [BEGIN, *words[75:150], END]
    if length == 225:
        rest = words[150:]
        assert long[2] == [BEGIN, *rest, END, *[PAD] * (75 - len(rest))]


def test_one_window_is_left_as_it_is():
    tokenizer = load_tokenizer(pad="!", pad_is_mark=False)
    expected = tokenizer([LONG, ""], padding="max_length", truncation=True, max_length=77)["input_ids"]
    assert tokenize(Components(tokenizers=[tokenizer]), [LONG, ""])[0].squeeze(1).tolist() == expected


def test_a_published_second_tokenizer_reads_captions_as_the_first_does(tmp_path, tiny_models):
    """Its folder names "!" a special token; in captions it is a word all the same."""
    model = tiny_models("sdxl")
    folder = Path(shutil.copytree(model.folder, tmp_path / "published"))
    special = CLIPTokenizer.from_pretrained(str(folder / "tokenizer"), pad_token="!")
    special.save_pretrained(str(folder / "tokenizer_2"))
    assert special("wow!")["input_ids"] == [BEGIN, 2781, PAD, END]
    again = model.family.load(folder, parts=("tokenizers",)).tokenizers[1]
    assert again("wow!")["input_ids"] == [BEGIN, 2781, 256, END]


# ---- states ----


def test_sdxls_states_are_those_of_diffusers(tiny_models):
    model = tiny_models("sdxl")
    with torch.no_grad():
        ours = model.family.encode_captions(model.components, CAPTIONS)
        context, _, pooled_states, _ = model.pipeline.encode_prompt(
            CAPTIONS, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False
        )
    torch.testing.assert_close(ours.context, context, rtol=0, atol=1e-5)
    torch.testing.assert_close(ours.pooled, pooled_states, rtol=0, atol=1e-5)
    assert ours.context.shape == (3, 77, 32 + 48) and ours.pooled.shape == (3, 48)


def test_sd2s_states_are_those_of_diffusers(tiny_models):
    model = tiny_models("sd2")
    with torch.no_grad():
        ours = model.family.encode_captions(model.components, CAPTIONS)
        context, _ = model.pipeline.encode_prompt(CAPTIONS, "cpu", 1, False)
        skipped = model.family.encode_captions(model.components, CAPTIONS, clip_skip=2)
        (encoder,), (ids,) = model.components.text_encoders, model.family.tokenize(model.components, CAPTIONS)
        theirs = encoder.final_layer_norm(encoder(ids[:, 0], output_hidden_states=True).hidden_states[-2])
    torch.testing.assert_close(ours.context, context, rtol=0, atol=1e-5)
    torch.testing.assert_close(skipped.context, theirs, rtol=0, atol=1e-5)
    assert ours.pooled is None


def test_sdxl_does_not_read_clip_skip(tiny_models):
    model = tiny_models("sdxl")
    with torch.no_grad():
        one, other = (model.family.encode_captions(model.components, ["a"], clip_skip=skip) for skip in (None, 2))
    assert torch.equal(one.context, other.context)


@pytest.mark.parametrize(("length", "total"), [(150, 152), (225, 227), (600, 602)])
def test_long_captions_are_read_window_by_window_and_pooled_by_the_first(tiny, length, total):
    captions = ["a fox", LONG]
    with torch.no_grad():
        ids = tiny.family.tokenize(tiny.components, captions, length)
        whole = tiny.family.encode_captions(tiny.components, captions, max_token_length=length)
        alone = [
            tiny.family.encode_ids(tiny.components, [each[:, n : n + 1] for each in ids]) for n in range(length // 75)
        ]
        drawn = tiny.family.encode_captions(tiny.components, captions, max_token_length=length, join=join_whole)
    assert whole.context.shape[:2] == (2, total)
    torch.testing.assert_close(whole.context[:, 0], alone[0].context[:, 0], rtol=0, atol=1e-5)
    for n, window in enumerate(alone):
        torch.testing.assert_close(
            whole.context[:, 1 + 75 * n : 76 + 75 * n], window.context[:, 1:76], rtol=0, atol=1e-5
        )
    torch.testing.assert_close(whole.context[:, -1], alone[-1].context[:, -1], rtol=0, atol=1e-5)
    torch.testing.assert_close(drawn.context, torch.cat([each.context for each in alone], dim=1), rtol=0, atol=1e-5)
    if tiny.name == "sdxl":
        torch.testing.assert_close(whole.pooled, alone[0].pooled, rtol=0, atol=1e-5)


def test_the_pooled_vector_is_at_the_first_end_mark_whatever_ids_come_before():
    """Tokens that were added have ids above EOS: transformers would pool one of them."""

    class Encoder:
        text_projection = torch.nn.Linear(1, 1, bias=False)

    torch.nn.init.ones_(Encoder.text_projection.weight)
    ids = torch.tensor([[BEGIN, 49408, 320, END, END], [BEGIN, 320, 320, 320, 320]])
    states = torch.arange(10.0).view(2, 5, 1)
    assert pooled_state(Encoder, states, ids, END).flatten().tolist() == [3.0, 5.0], "without an end mark the first"


def test_gradients_reach_every_layer_that_sdxl_reads(tiny_models):
    """Of the first encoder the last layer is not read; the second's is, by the pooled vector."""
    model = tiny_models("sdxl")
    for encoder in model.components.text_encoders:
        encoder.requires_grad_(True)
    try:
        states = model.family.encode_captions(model.components, ["a fox"])
        (states.context.square().mean() + states.pooled.square().mean()).backward()
        first, second = model.components.text_encoders
        trains = [
            [layer.mlp.fc1.weight.grad is not None for layer in layers]
            for layers in (first.encoder.layers, second.text_model.encoder.layers)
        ]
        assert trains == [[True, True, False], [True, True, True]]
        assert second.text_projection.weight.grad is not None
    finally:
        for encoder in model.components.text_encoders:
            encoder.requires_grad_(False).zero_grad(set_to_none=True)
