"""Textual inversion: new rows train and nothing else; its files are those of sd-scripts."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from core.families import family
from core.formats.embedding_file import LAYERS, read_embedding, write_embedding
from core.methods import MethodInputs
from core.methods.embedding import EmbeddingMethod
from core.methods.tokens import TokenTable, with_vector_names
from core.networks.files import NetworkFiles
from core.record.workspace import PROJECT, Workspace
from core.settings.check import build
from core.settings.job import TrainJob
from core.settings.methods import spec_of
from tests.refusals import refused

STARTER = PROJECT / "models" / "starter"


def method(**embedding):
    return EmbeddingMethod(build(TrainJob, {"embedding": {"token_string": "zunkel", **embedding}}))


@pytest.fixture
def components():
    return family("sd1").load(STARTER, parts=("denoiser", "text_encoders", "tokenizers"))


def encode(components, captions):
    return family("sd1").encode_captions(components, captions)


def test_new_ids_read_new_rows_and_old_ids_the_old_table():
    table = nn.Embedding(10, 4)
    words = TokenTable(table, torch.arange(8.0).view(2, 4))
    out = words(torch.tensor([[0, 9, 10, 11]]))
    assert torch.equal(out[0, :2], table.weight[[0, 9]]) and torch.equal(out[0, 2:], torch.arange(8.0).view(2, 4))
    out.sum().backward()
    assert table.weight.grad is None and torch.equal(words.rows.grad, torch.ones(2, 4))


@pytest.mark.parametrize("preserved", [False, True])
def test_vectors_keep_the_median_length_of_the_models_embeddings(preserved):
    table = nn.Embedding(3, 2)
    table.weight.data = torch.tensor([[3.0, 4.0], [0.0, 1.0], [0.0, 7.0]])  # lengths 5, 1, 7
    own = method(preserve_embedding_norm=preserved)
    own._tables = [TokenTable(table, torch.tensor([[0.0, 20.0], [0.6, 0.8]])), TokenTable(table, torch.ones(1, 2))]
    own._tables[1].rows.requires_grad_(False)  # at a rate of 0
    norms = own.after_update()
    expected = torch.tensor([[0.0, 5.0], [3.0, 4.0]]) if preserved else torch.tensor([[0.0, 20.0], [0.6, 0.8]])
    torch.testing.assert_close(own._tables[0].rows.detach(), expected)
    assert torch.equal(own._tables[1].rows, torch.ones(1, 2))
    assert float(norms["norm/text_encoder"]) == pytest.approx(float(expected.norm()))


def test_a_word_is_spelled_out_as_its_vectors_and_other_words_are_left_alone():
    assert with_vector_names("a mira, miracle, mira2 and (Mira:1.2)", ["mira"], 2) == (
        "a <mira|0> <mira|1>, miracle, mira2 and (<mira|0> <mira|1>:1.2)"
    )
    assert with_vector_names("mira and mira-cat", ["mira", "mira-cat"], 1) == "<mira|0> and <mira-cat|0>"
    assert with_vector_names("mira", ["mira"], 2, "_IN01") == "<mira|0_IN01> <mira|1_IN01>"


@given(text=st.text(alphabet="ab mirctx,.", max_size=40), count=st.integers(1, 4))
def test_spelling_out_touches_nothing_without_the_word(text, count):
    if "zunkel" not in text:
        assert with_vector_names(text, ["zunkel"], count) == text


def test_only_the_new_rows_train_and_they_begin_with_the_init_word(components):
    own = method(num_vectors_per_token=2, init_word="red fox")
    encoder, tokenizer = components.text_encoders[0], components.tokenizers[0]
    table = encoder.get_input_embeddings().weight.detach().clone()
    ids = tokenizer("red fox")["input_ids"][1:-1]
    (trainable,) = own.build(components)
    assert torch.equal(own.vectors("zunkel")["emb_params"], table[ids].float())
    assert [parameter.requires_grad for parameter in components.denoiser.parameters()].count(True) == 0
    assert [name for name, one in encoder.named_parameters() if one.requires_grad] == [
        "embeddings.token_embedding.rows"
    ]
    spelled = own.encode(["a zunkel here"], lambda captions: encode(components, captions)).context
    torch.testing.assert_close(spelled, encode(components, ["a red fox here"]).context)  # it still means its beginning
    spelled.sum().backward()
    assert float(trainable.parameters[0].grad.abs().sum()) > 0 and encoder.get_input_embeddings().weight.grad is None


def test_several_words_train_together_and_each_has_its_file(components, tmp_path):
    own = method(token_string="zunkel, brabol", num_vectors_per_token=2, init_word="fox, car")
    own.build(components)
    assert {tuple(own.vectors(word)["emb_params"].shape) for word in ("zunkel", "brabol")} == {
        (2, table_width(components))
    }
    own.write(tmp_path / "out.safetensors", {}, "fp32", epoch=1, step=1)
    assert torch.equal(
        read_embedding(tmp_path / "out-brabol.safetensors")["emb_params"], own.vectors("brabol")["emb_params"]
    )
    assert torch.equal(read_embedding(tmp_path / "out.safetensors")["emb_params"], own.vectors("zunkel")["emb_params"])


def table_width(components):
    return components.text_encoders[0].get_input_embeddings().weight.shape[1]


def test_a_word_that_the_model_knows_is_refused(components):
    with refused("embedding.known-token", "'fox'"):
        method(token_string="fox").build(components)


def test_it_goes_on_from_a_file_that_fits_and_says_what_does_not(components, tmp_path):
    path = tmp_path / "given.pt"
    width = table_width(components)
    torch.save({"string_to_param": {"*": torch.full((2, width), 0.5)}}, path)  # as A1111 writes it
    job = build(TrainJob, {"embedding": {"token_string": "zunkel", "num_vectors_per_token": 2}})
    own = EmbeddingMethod(job, path)
    own.build(components)
    assert torch.equal(own.vectors("zunkel")["emb_params"], torch.full((2, width), 0.5))
    other = EmbeddingMethod(build(TrainJob, {"embedding": {"token_string": "brabol"}}), path)
    with refused("embedding.other-size", f"2 vectors of width {width}", f"needs 1 of width {width}"):
        other.build(family("sd1").load(STARTER, parts=("denoiser", "text_encoders", "tokenizers")))


def test_the_file_to_go_on_from_is_the_one_that_was_set(components, tmp_path):
    given = torch.full((1, table_width(components)), 0.25)
    write_embedding(tmp_path / "given.safetensors", {"emb_params": given}, {}, torch.float32)
    embedding = {"token_string": "zunkel", "embedding_weights": str(tmp_path / "given.safetensors")}
    job = build(TrainJob, {"method": {"kind": "embedding"}, "embedding": embedding})
    workspace = Workspace(tmp_path, PROJECT / "models", PROJECT / "presets")
    own = spec_of(job).make(MethodInputs(job, workspace, 0, STARTER, None, NetworkFiles()))
    own.build(components)
    assert torch.equal(own.vectors("zunkel")["emb_params"], given)


@pytest.mark.parametrize("ending", [".safetensors", ".pt"])
def test_files_come_back_the_same(tmp_path, ending):
    vectors = {"clip_l": torch.randn(2, 8), "clip_g": torch.randn(2, 12)}
    write_embedding(tmp_path / f"a{ending}", vectors, {"modelspec.title": "a"}, torch.float32)
    again = read_embedding(tmp_path / f"a{ending}")
    assert again.keys() == vectors.keys() and all(torch.equal(again[name], vectors[name]) for name in vectors)


def test_extended_inversion_gives_each_layer_its_own_text(components):
    own = method(extended=True, init_word="fox", num_vectors_per_token=2)
    unet = components.denoiser
    own.build(components)
    text = own.encode(["a zunkel"], lambda captions: encode(components, captions)).context
    assert text.shape[1] == len(LAYERS) == 16
    latents, at = torch.randn(1, 4, 8, 8), torch.tensor([500])
    with torch.no_grad():
        same = unet(latents, at, encoder_hidden_states=text, return_dict=False)[0]
        plain = unet(latents, at, encoder_hidden_states=text[:, 0], return_dict=False)[0]
        torch.testing.assert_close(same, plain)  # all layers begin alike
        own._tables[0].rows[0] += 1.0  # the first vector of IN01
        changed = own.encode(["a zunkel"], lambda captions: encode(components, captions)).context
    assert not torch.equal(changed[:, 0], text[:, 0]) and torch.equal(changed[:, 1:], text[:, 1:])
    assert list(own.vectors("zunkel")) == list(LAYERS) and own.vectors("zunkel")["OUT11"].shape == (
        2,
        table_width(components),
    )
    own.release()


@pytest.mark.parametrize("lacking", [0, 1, 16])
def test_extended_inversion_goes_on_from_a_file_of_all_layers_alone(components, tmp_path, lacking):
    vectors = {name: torch.full((1, table_width(components)), number / 16) for number, name in enumerate(LAYERS)}
    kept = dict(list(vectors.items())[lacking:]) or {"emb_params": vectors[LAYERS[0]]}
    write_embedding(tmp_path / "given.safetensors", kept, {}, torch.float32)
    job = build(TrainJob, {"embedding": {"token_string": "zunkel", "extended": True}})
    own = EmbeddingMethod(job, tmp_path / "given.safetensors")
    if lacking:
        with refused("embedding.other-tensors", lacking):
            own.build(components)
        return
    own.build(components)
    again = own.vectors("zunkel")
    assert all(torch.equal(again[name], vectors[name]) for name in LAYERS)
    own.release()
