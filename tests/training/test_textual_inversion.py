"""Whole trainings of new words on the starter: files that others read, resuming bit for bit, refusals."""

import pytest
import torch
from safetensors import safe_open

from core.dataset.preflight import preflight
from core.formats.embedding_file import read_embedding
from core.training.checks.before_start import problems_without_model
from tests.refusals import refused

WORD = {"token_string": "zunkel", "num_vectors_per_token": 2, "init_word": "fox"}


def groups(**more):
    return {
        "method": {"kind": "embedding"},
        "embedding": {**WORD, **more.pop("embedding", {})},
        "optimizer": {"learning_rate": 5e-3},
        **more,
    }


def test_a_word_is_trained_and_saved_as_sd_scripts_saves_it(train):
    samples = {"sample_prompts": ["a zunkel, glyph style"], "sample_steps": 2, "sample_every_n_steps": 3}
    training = train(**groups(samples=samples))
    assert training.start() == "done"
    with safe_open(training.file(), "pt") as file:
        metadata = file.metadata()
        assert list(file.keys()) == ["emb_params"]
    assert metadata["modelspec.architecture"] == "stable-diffusion-v1/textual-inversion"
    assert not any(key.startswith("ss_") for key in metadata)
    trained = read_embedding(training.file())["emb_params"]
    assert trained.shape[0] == 2 and not torch.equal(trained[0], trained[1])
    assert len(training.lines("sample")) == 3


@pytest.mark.slow
def test_diffusers_reads_the_file(train):
    diffusers = pytest.importorskip("diffusers")
    training = train(**groups())
    training.start()
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(
        training.job.model.base_model, safety_checker=None, local_files_only=True
    )
    pipeline.load_textual_inversion(str(training.file()), token="<new>")
    ids = pipeline.tokenizer("<new> <new>_1")["input_ids"][1:-1]
    trained = read_embedding(training.file())["emb_params"]
    there = pipeline.text_encoder.get_input_embeddings().weight[ids].float()
    torch.testing.assert_close(there, trained, atol=1e-3, rtol=1e-3)  # the model there is in fp16


# test_full_precision goes on with a word of two vectors in bf16.


@pytest.mark.slow
def test_the_files_of_further_words_are_told_copied_kept_and_taken_away_with_the_first_ones(train, tmp_path):
    """By names that every system takes, whatever signs the word has."""
    two = {"embedding": {"token_string": "zunkel, <brabol>"}, "captions": {"caption_prefix": "zunkel, <brabol>,"}}
    saving = {"copy_to": str(tmp_path / "copies"), "save_every_n_steps": 1, "save_last_n": 1}
    training = train(**groups(**two, saving=saving, schedule={"max_train_steps": 3, "seed": 7}))
    assert training.start() == "done"
    last = {"t-step00000002.safetensors", "t-step00000002-brabol.safetensors"}
    ends = {"t.safetensors", "t-brabol.safetensors"}
    assert {path.name for path in training.folder.checkpoints.iterdir()} == last | ends
    assert {path.name for path in (tmp_path / "copies").iterdir()} == ends
    told = [line["file"].removeprefix("checkpoints/") for line in training.lines("saved")]
    assert told[-2:] == ["t.safetensors", "t-brabol.safetensors"] and len(told) == 6
    longer = training.again()
    longer.job = longer.job.with_settings(schedule={"max_train_steps": 4})
    assert longer.start() == "done"
    assert (training.folder.checkpoints / "t-step00000003-brabol.safetensors").is_file(), "the first end of it"


def test_what_cannot_be_trained_is_said_before_anything_loads(train):
    with refused("embedding.no-token"):
        train(**groups(embedding={"token_string": None})).start()
    with refused("saving.full-model-format"):
        train(**groups(saving={"output_name": "t", "save_model_as": "diffusers"})).start()


def test_a_word_that_no_caption_holds_is_said_before_anything_loads(train):
    with refused("embedding.token-not-in-captions", "'zunkel'") as caught:
        train(**groups(captions={"trigger_word": "glyph style"})).start()
    assert caught.value.problems[0].where == "captions.trigger_word"
    with refused("embedding.token-not-in-captions", "'brabol'") as caught:
        words = {"token_string": "zunkel, brabol"}
        train(**groups(embedding=words, captions={"caption_prefix": "zunkel,"})).start()
    assert len(caught.value.problems) == 1 and caught.value.problems[0].where == "embedding.token_string"


@pytest.mark.parametrize(("prompts", "told"), [([], False), (["a fox"], True), (["a fox", "A Zkw, red --s 2"], False)])
def test_samples_without_a_token_are_named(train, prompts, told):
    training = train(**groups(samples={"sample_prompts": prompts}, embedding={"token_string": "zkw,brabol"}))
    report = preflight(training.job, training.workspace)
    codes = [each.code for each in problems_without_model(training.job, training.workspace, report)]
    assert codes.count("embedding.token-not-in-samples") == told
