"""Captions to token ids and to text states, against sd-scripts' ids and the rules of long prompts."""

import json
from pathlib import Path

import pytest
import torch

from core.families.components import Components
from core.families.sd1 import FAMILY as sd1
from core.families.token_weights import tokenize
from core.families.tokenizer import load_tokenizer
from core.families.vocabulary import BEGIN, END, read_vocabulary
from core.record.problems import ProblemsError
from tests.models import tiny_sd1
from tests.recorded_json import recorded_json

ROOT = Path(__file__).parents[2]
CASES = recorded_json("prompts")["cases"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return sd1.load(tiny_sd1(tmp_path_factory.mktemp("text") / "tiny"), parts=("text_encoders", "tokenizers"))


def ids_of(model, captions, length=75):
    (ids,) = sd1.tokenize(model, captions, length)
    return ids


def states_of(model, ids, **how):
    return sd1.encode_ids(model, [ids], **how).context


@pytest.mark.parametrize("length", [75, 150, 225])
def test_token_ids_are_those_of_sd_scripts(model, length):
    key = "ids_77" if length == 75 else f"ids_{length}"
    prompts = [case["prompt"] for case in CASES if key in case]
    assert len(prompts) >= 3
    ids = ids_of(model, prompts, length)
    expected = torch.tensor([case[key] for case in CASES if key in case]).reshape(ids.shape)
    assert ids.shape == (len(prompts), length // 75, 77) and ids.dtype == torch.int64
    assert torch.equal(ids, expected)


def test_a_caption_longer_than_a_window_is_cut_into_windows_of_75(model):
    caption = ", ".join(f"fox number {n}" for n in range(60))
    content = model.tokenizers[0](caption)["input_ids"][1:-1]
    assert len(content) > 225
    ids = ids_of(model, [caption], 225)[0]
    assert ids[:, 0].tolist() == [49406] * 3 and ids[:, -1].tolist() == [49407] * 3
    assert ids[:, 1:76].flatten().tolist() == content[:225]
    few = ids_of(model, [", ".join(["fox"] * 50)], 150)[0]
    assert few[1, 1:26].tolist() == content_of(model, ", ".join(["fox"] * 50))[75:] + [49407], "then padding"


def content_of(model, caption):
    return model.tokenizers[0](caption)["input_ids"][1:-1]


def test_the_shipped_tokenizer_is_the_starters_which_has_the_older_vocabulary_files():
    shipped, starters = load_tokenizer(), load_tokenizer(ROOT / "models" / "starter")
    captions = ["a fox, glyph style", "", "Füchse & 3 BÄREN!!", "<|endoftext|> x", "  two   spaces\n", "狐狸 🦊"]
    captions += [case["prompt"] for case in CASES]
    assert torch.equal(*tokenize(Components(tokenizers=[shipped, starters]), captions, 225))
    assert tokenize(Components(tokenizers=[shipped]), captions)[0][0, 0, :8].tolist() == [
        49406,
        320,
        3240,
        267,
        13027,
        2042,
        1844,
        49407,
    ]
    assert len(shipped) == 49408 and shipped.pad_token_id == 49407


def test_a_vocabulary_is_read_once_and_again_when_a_file_of_it_changes(tmp_path):
    (tmp_path / "vocab.json").write_text(json.dumps({BEGIN: 0, END: 1, "a": 2}))
    (tmp_path / "merges.txt").write_text("")
    assert read_vocabulary(tmp_path) is read_vocabulary(tmp_path)
    (tmp_path / "added_tokens.json").write_text(json.dumps({"zunkel": 3}))
    assert len(read_vocabulary(tmp_path)) == 4
    (tmp_path / "vocab.json").write_text("{")
    for _ in range(2):
        with pytest.raises(ProblemsError):
            read_vocabulary(tmp_path)


def test_tokens_are_counted_without_the_marks_of_beginning_and_end(model):
    assert sd1.count_tokens(model, "") == 0
    assert sd1.count_tokens(model, "a fox, glyph style") == 6
    assert sd1.count_tokens(model, "fox " * 100) == 100


def test_the_last_state_comes_after_the_final_norm(model):
    ids = ids_of(model, ["a fox", "a bear, glyph style"])
    encoder = model.text_encoders[0]
    states = states_of(model, ids)
    assert states.shape == (2, 77, 32)
    assert torch.equal(states, encoder(ids[:, 0]).last_hidden_state)
    hidden = encoder(ids[:, 0], output_hidden_states=True).hidden_states
    torch.testing.assert_close(states, encoder.final_layer_norm(hidden[-1]), rtol=0, atol=0)


def test_clip_skip_reads_an_earlier_layer_and_norms_it(model):
    """Computed here layer by layer, with plain attention under a causal mask."""
    ids, encoder = ids_of(model, ["a fox, glyph style"]), model.text_encoders[0]
    states = encoder.embeddings(input_ids=ids[:, 0])
    layers = list(encoder.encoder.layers)
    hidden = [states]
    for layer in layers:
        normed = layer.layer_norm1(states)
        attention = layer.self_attn
        heads = [
            project(normed).view(1, 77, attention.num_heads, attention.head_dim).transpose(1, 2)
            for project in (attention.q_proj, attention.k_proj, attention.v_proj)
        ]
        weights = heads[0] @ heads[1].transpose(2, 3) * attention.head_dim**-0.5
        weights = weights.masked_fill(torch.ones(77, 77).triu(1).bool(), float("-inf")).softmax(-1)
        states = states + attention.out_proj((weights @ heads[2]).transpose(1, 2).reshape(1, 77, -1))
        states = states + layer.mlp(layer.layer_norm2(states))
        hidden.append(states)
    for skip in (None, 1, 2, 3):
        expected = encoder.final_layer_norm(hidden[-(skip or 1)])
        torch.testing.assert_close(states_of(model, ids, clip_skip=skip), expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(states_of(model, ids, clip_skip=1), states_of(model, ids))
    assert not torch.allclose(states_of(model, ids, clip_skip=2), states_of(model, ids), atol=1e-2)


@pytest.mark.parametrize(("length", "total"), [(150, 152), (225, 227)])
def test_windows_are_encoded_alone_and_joined_as_sd_scripts_joins_them(model, length, total):
    captions = ["a fox", ", ".join(f"word {n}" for n in range(60))]
    ids = ids_of(model, captions, length)
    states = states_of(model, ids)
    assert states.shape == (2, total, 32)
    alone = [states_of(model, ids[:, n : n + 1]) for n in range(length // 75)]
    torch.testing.assert_close(states[:, 0], alone[0][:, 0], rtol=1e-5, atol=1e-5)
    for n, window in enumerate(alone):
        torch.testing.assert_close(states[:, 1 + 75 * n : 76 + 75 * n], window[:, 1:76], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(states[:, -1], alone[-1][:, -1], rtol=1e-5, atol=1e-5)


def test_a_long_caption_reaches_the_second_window_only_when_there_is_one(model):
    short, long = "a fox " * 30, "a fox " * 30 + "a bear " * 20
    one = states_of(model, ids_of(model, [short, long], 75))
    two = states_of(model, ids_of(model, [short, long], 150))
    assert not torch.equal(one[0], one[1]) and one.shape[1] == 77
    torch.testing.assert_close(two[0, 1:61], two[1, 1:61], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(two[0, 76:151], two[1, 76:151], atol=1e-3)


def test_gradients_reach_the_text_encoder(model):
    encoder = model.text_encoders[0].requires_grad_(True)
    try:
        for skip, silent in ((None, 0), (2, 1)):
            encoder.zero_grad(set_to_none=True)
            states_of(model, ids_of(model, ["a fox"]), clip_skip=skip).square().mean().backward()
            layers = encoder.encoder.layers
            trains = [
                float(layer.mlp.fc1.weight.grad.abs().sum()) > 0 if layer.mlp.fc1.weight.grad is not None else False
                for layer in layers
            ]
            assert trains == [True] * (3 - silent) + [False] * silent
    finally:
        encoder.requires_grad_(False)
        encoder.zero_grad(set_to_none=True)
