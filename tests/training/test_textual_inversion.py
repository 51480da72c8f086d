"""Whole trainings of new words on the starter: files that others read, resuming bit for bit, refusals."""

import pytest
import torch
from safetensors import safe_open

from core.formats.embedding_file import read_embedding
from tests.refusals import refused
from tests.selection import slow_unless

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


RESUMED = {
    "two vectors": {},
    "each layer": {"embedding": {"extended": True, "num_vectors_per_token": 1}},
    "two words, accumulation": {
        "embedding": {"token_string": "zunkel, brabol"},
        "captions": {"caption_prefix": "zunkel, brabol,"},
        "schedule": {"max_train_steps": 4, "seed": 7, "gradient_accumulation_steps": 2},
    },
    "sentences, bf16": {
        "captions": {"caption_template": "object", "caption_dropout_rate": 0.2},
        "memory": {"mixed_precision": "bf16"},
    },
}


# test_full_precision goes on with a word of two vectors in bf16.
@pytest.mark.slow(
    but=(
        "two vectors",
        "sentences, bf16",
    )
)
@pytest.mark.parametrize("name", slow_unless(("each layer", "two words, accumulation").__contains__, RESUMED))
def test_a_resumed_word_equals_an_unbroken_one(train, monkeypatch, name):
    more = RESUMED[name]
    whole = train(**groups(**more))
    assert whole.start() == "done"
    broken = train(**groups(**more))

    def stop_after_two(line):
        if line["kind"] == "steps" and line["steps"][-1] >= 2:
            broken.token.cancel()

    broken.on_line = stop_after_two
    monkeypatch.setattr("core.training.loop.losses.EVENT_SECONDS", 0.0)
    assert broken.start() == "stopped"
    rest = broken.again()
    assert rest.start() == "done"
    assert rest.losses() == whole.losses()
    one, other = read_embedding(whole.file()), read_embedding(rest.file())
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


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
    longer.job = longer.job.model_copy(
        update={"schedule": longer.job.schedule.model_copy(update={"max_train_steps": 4})}
    )
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
