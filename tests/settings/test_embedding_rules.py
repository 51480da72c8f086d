"""What textual inversion asks of the other settings, said before anything loads."""

import pytest

from core.settings.check import build
from core.settings.job import TrainJob
from core.settings.rules import training_problems


def said(**groups):
    job = build(TrainJob, {"method": {"kind": "embedding"}, **groups})
    return {problem.where: problem for problem in training_problems(job)}


def test_a_file_of_another_name_than_its_token_is_advised_the_word_it_is_read_by_elsewhere():
    for name in ("my_lora", "foxes"):
        advice = said(embedding={"token_string": "<zkw>, zkx"}, saving={"output_name": name})["saving.output_name"]
        assert (advice.code, advice.level) == ("embedding.output-name", "advice")
        assert f"The token is <zkw>, but the file will be called {name}," in advice.what
        assert advice.fix == f"use zkw as token and as output name, or write {name} in other programs"
    for token, both in (
        ("../zkw", "use zkw as token"),
        ("(zkx)", "use zkx as token"),
        ("zky", "call the file zky too"),
    ):
        advice = said(embedding={"token_string": token}, saving={"output_name": "cup"})["saving.output_name"]
        assert f"The token is {token}," in advice.what and advice.fix.startswith(both)
    for name in ("zkw", "ZKW"):
        assert "saving.output_name" not in said(embedding={"token_string": "zkw"}, saving={"output_name": name})


@pytest.mark.parametrize(
    ("captions", "level"),
    [
        ({"caption_dropout_rate": 1.0}, "error"),
        ({"caption_dropout_every_n_epochs": 1}, "error"),
        ({"caption_dropout_rate": 0.1}, "advice"),
        ({"caption_dropout_every_n_epochs": 2}, "advice"),
        ({}, None),
    ],
)
def test_steps_without_a_caption_train_no_token(captions, level):
    found = said(embedding={"token_string": "zkw"}, captions=captions).get("captions.caption_dropout_rate")
    assert (found and (found.code, found.level)) == (level and ("embedding.dropout", level))


def test_words_whose_files_would_have_one_name_or_none_are_refused():
    """From the second word on each gets a file that is called by it, without signs that file names cannot hold."""
    assert "embedding.token_string" not in said(
        embedding={"token_string": "<a>, <b>, b*c"}, captions={"trigger_word": "x"}
    )
    for given, word in (("zkw, <b>, b", "'b'"), ("zkw, <>", "'<>'")):
        found = said(embedding={"token_string": given}, captions={"trigger_word": "x"})["embedding.token_string"]
        assert (found.code, found.level) == ("embedding.token-no-file-name", "error") and word in found.what
